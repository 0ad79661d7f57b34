"""Grad-CAM for a Vision Transformer."""

import torch
from torch import nn

from ..capture.layout import blocks, first_norm, patch_grid, unwrap
from ..capture.target import class_score, resolve_target
from ..capture.tracing import recording


def gradcam(model: nn.Module, pixel_values: torch.Tensor, target=None, prefix_tokens=None, grid=None) -> torch.Tensor:
    """Grad-CAM (B, R, C) [selvaraju2017gradcam] at the last block's first LayerNorm.

    A [CLS] classifier's last block output has no gradient at the patches, so the layer in front of its attention is
    read. Channel weights = mean gradient over the patch tokens; weighted sum over channels; ReLU. Arguments as `trace`.
    """
    model, seen = unwrap(model), []

    def keep(module, args, output):
        torch.set_grad_enabled(True)  # from here on: no layer below is differentiated
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    hooks = [(first_norm(blocks(model)[-1]), keep)]
    with recording(model, pixel_values, hooks=hooks, gradients=False) as (recorder, pixel_values):
        logits, _ = recorder.forward(model, pixel_values)
        score = class_score(logits, resolve_target(model, logits, target)).sum()
        (gradient,) = torch.autograd.grad(score, seen)
    activation = seen[0].detach().float()
    prefix, grid = patch_grid(model, pixel_values, activation.shape[1], prefix_tokens, grid)
    channel_weights = gradient.float()[:, prefix:].mean(1, keepdim=True)
    return (activation[:, prefix:] * channel_weights).sum(-1).relu().unflatten(1, grid)
