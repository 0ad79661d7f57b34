"""LeGrad: the gradient of a layer's own prediction with respect to its attention."""

import torch

from ..capture import Trace
from ..capture.checks import choice
from ..capture.tracing import differentiate


def legrad(trace: Trace, layers: str | int = "all", pool: str = "model") -> torch.Tensor:
    """LeGrad (B, N) [bousselham2024legrad]: mean over layers, heads and query positions of ReLU(∂s⁽ˡ⁾/∂A⁽ˡ⁾).

    s⁽ˡ⁾ is the target's logit when the model's own final norm, pooling and head read layer l's tokens.

    Args:
        layers: "all" (the paper), or k: the last k layers (the authors' code takes 2).
        pool: "model": the model's own pooling; "mean": the mean over all tokens first (the authors' code).
    """
    maps = layer_maps(trace, pool)
    count = maps.shape[1]
    if layers != "all" and not (isinstance(layers, int) and 1 <= layers <= count):
        raise ValueError(f"layers must be 'all' or a whole number from 1 to {count}, got {layers!r}.")
    return maps[:, 0 if layers == "all" else count - layers :].mean(1)


def layer_maps(trace: Trace, pool: str = "model") -> torch.Tensor:
    """Every layer's own LeGrad scores E⁽ˡ⁾ (B, L, N); arguments as `legrad`.

    The graph is cut between the blocks: L short backward passes in one call, cheaper than one through the model. What
    reads the last block's tokens in the model reads those of all blocks, as one batch of L·B images."""
    choice("pool", pool, ("model", "mean"))

    def join(outputs):
        return torch.cat([o.mean(1, keepdim=True).expand_as(o) for o in outputs] if pool == "mean" else outputs)

    with trace.recording(join=join) as recorder:
        logits = recorder.forward()
        depth, batch = len(recorder.attentions), len(trace.pixel_values)
        if len(logits) != depth * batch:
            raise ValueError(
                f"LeGrad has the head of {type(trace.model).__name__} read all {depth} layers as one batch, and it "
                f"gives {len(logits)} rows for {depth} × {batch}. Use another method, such as gmar."
            )
        if pool == "model":  # the last layer's are the model's own; what the head says of means is not its prediction
            trace.score(recorder, logits[-batch:])
        y = trace.score_of(logits, torch.arange(batch).repeat(depth))
    return torch.stack([g.relu().mean((1, 2)) for g in differentiate(y, recorder.attentions)], 1)
