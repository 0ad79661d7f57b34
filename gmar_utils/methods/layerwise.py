"""LeGrad: the gradient of a layer's own prediction with respect to its attention."""

import torch

from ..capture import Trace
from ..capture.layout import blocks, classify, unwrap
from ..capture.target import class_score
from ..capture.tracing import recording


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

    The graph is cut between the blocks: L short backward passes in one call, cheaper than one through the model."""
    if pool not in ("model", "mean"):
        raise ValueError(f"pool must be 'model' or 'mean', got {pool!r}.")
    model, outputs = unwrap(trace.model), []

    def keep(module, args, output):
        tokens, *rest = output if isinstance(output, tuple) else (output,)
        outputs.append(tokens)
        return (tokens.detach(), *rest) if rest else tokens.detach()

    hooks = [(block, keep) for block in blocks(model)]
    with recording(model, trace.pixel_values, local=True, hooks=hooks) as (recorder, pixel_values):
        _, attentions = recorder.forward(model, pixel_values)
        if pool == "mean":
            outputs = [o.mean(1, keepdim=True).expand_as(o) for o in outputs]
        score = sum(class_score(classify(model, o), trace.target, trace.against).sum() for o in outputs)
        gradients = torch.autograd.grad(score, attentions)
    return torch.stack([g.relu().mean((1, 2)) for g in gradients], 1)
