"""LeGrad: the gradient of a layer's own prediction with respect to its attention."""

import torch
from torch import nn

from ..capture.layout import blocks, classify, patch_grid, unwrap
from ..capture.target import class_score, resolve_target
from ..capture.tracing import recording


def legrad(
    model: nn.Module, pixel_values: torch.Tensor, target=None, layers: str | int = "all", pool: str = "model",
    prefix_tokens: int | None = None, grid: tuple[int, int] | None = None,
) -> torch.Tensor:  # fmt: skip
    """LeGrad (B, R, C) [bousselham2024legrad]: mean over layers, heads and query positions of ReLU(∂s⁽ˡ⁾/∂A⁽ˡ⁾).

    s⁽ˡ⁾ is the target's logit when the model's own final norm, pooling and head read layer l's tokens.
    layers  "all" (the paper), or k: the last k layers (the authors' code takes 2)
    pool    "model": the model's own pooling; "mean": the mean over all tokens first (the authors' code)
    The target defaults to the class predicted from the last layer. Other arguments as `trace`.
    """
    maps = layer_maps(model, pixel_values, target, pool, prefix_tokens, grid)
    count = maps.shape[1]
    if layers != "all" and not (isinstance(layers, int) and 1 <= layers <= count):
        raise ValueError(f"layers must be 'all' or a whole number from 1 to {count}, got {layers!r}.")
    return maps[:, 0 if layers == "all" else count - layers :].mean(1)


def layer_maps(
    model: nn.Module, pixel_values: torch.Tensor, target=None, pool: str = "model", prefix_tokens=None, grid=None
) -> torch.Tensor:
    """Every layer's own LeGrad map E⁽ˡ⁾ (B, L, R, C); arguments as `legrad`.

    The graph is cut between the blocks: L short backward passes in one call, cheaper than one through the model."""
    if pool not in ("model", "mean"):
        raise ValueError(f"pool must be 'model' or 'mean', got {pool!r}.")
    model, outputs = unwrap(model), []

    def keep(module, args, output):
        tokens, *rest = output if isinstance(output, tuple) else (output,)
        outputs.append(tokens)
        return (tokens.detach(), *rest) if rest else tokens.detach()

    hooks = [(block, keep) for block in blocks(model)]
    with recording(model, pixel_values, local=True, hooks=hooks) as (recorder, pixel_values):
        logits, attentions = recorder.forward(model, pixel_values)
        target = resolve_target(model, logits, target)
        if pool == "mean":
            outputs = [o.mean(1, keepdim=True).expand_as(o) for o in outputs]
        score = sum(class_score(classify(model, o), target).sum() for o in outputs)
        gradients = torch.autograd.grad(score, attentions)
    prefix, grid = patch_grid(model, pixel_values, attentions[0].shape[-1], prefix_tokens, grid)
    return torch.stack([g.relu().mean((1, 2)) for g in gradients], 1)[..., prefix:].unflatten(2, grid)
