"""Grad-CAM for a Vision Transformer."""

import torch

from ..capture import Trace
from ..capture.layout import blocks, first_norm, unwrap
from ..capture.target import class_score
from ..capture.tracing import recording


def gradcam(trace: Trace) -> torch.Tensor:
    """Grad-CAM (B, N) [selvaraju2017gradcam] at the last block's first LayerNorm.

    A [CLS] classifier's last block output has no gradient at the patches, so the layer in front of its attention is
    read. Channel weights = mean gradient over the patch tokens; weighted sum over channels; ReLU.
    """
    model, seen = unwrap(trace.model), []

    def keep(module, args, output):
        torch.set_grad_enabled(True)  # from here on: no layer below is differentiated
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    hooks = [(first_norm(blocks(model)[-1]), keep)]
    with recording(model, trace.pixel_values, hooks=hooks, gradients=False) as (recorder, pixel_values):
        logits, _ = recorder.forward(model, pixel_values)
        (gradient,) = torch.autograd.grad(class_score(logits, trace.target, trace.against).sum(), seen)
    channel_weights = gradient.float()[:, trace.prefix_tokens :].mean(1, keepdim=True)
    return (seen[0].detach().float() * channel_weights).sum(-1).relu()
