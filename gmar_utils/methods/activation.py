"""Grad-CAM and CDAM: activation and gradient at the last block's first LayerNorm.

A [CLS] classifier's last block output has no gradient at the patches, so the layer in front of its attention is read.
"""

import torch

from ..capture import Trace
from ..capture.layout import blocks, first_norm, unwrap
from ..capture.target import class_score
from ..capture.tracing import recording


def gradcam(trace: Trace) -> torch.Tensor:
    """Grad-CAM (B, N) [selvaraju2017gradcam]: channels weighted by their mean gradient over patches, summed; ReLU."""
    activation, gradient = _last_norm(trace)
    channel_weights = gradient[:, trace.prefix_tokens :].mean(1, keepdim=True)
    return (activation * channel_weights).sum(-1).relu()


def cdam(trace: Trace) -> torch.Tensor:
    """CDAM (B, N), signed [brocki2023cdam]: activation × gradient, summed over channels: Grad-CAM without the mean."""
    activation, gradient = _last_norm(trace)
    return (activation * gradient).sum(-1)


def _last_norm(trace):
    """Output of the last block's first LayerNorm and ∂y/∂output, both (B, N, D), float32."""
    model, seen = unwrap(trace.model), []

    def keep(module, args, output):
        torch.set_grad_enabled(True)  # from here on: no layer below is differentiated
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    hooks = [(first_norm(blocks(model)[-1]), keep)]
    with recording(model, trace.pixel_values, hooks=hooks, gradients=False) as (recorder, pixel_values):
        logits, _ = recorder.forward(model, pixel_values)
        (gradient,) = torch.autograd.grad(class_score(logits, trace.target, trace.against).sum(), seen)
    return seen[0].detach().float(), gradient.float()
