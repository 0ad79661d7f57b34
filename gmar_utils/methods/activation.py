"""Grad-CAM and CDAM: activation and gradient at the last block's first norm.

A [CLS] classifier's last block output has no gradient at the patches, so the norm in front of its attention is read.
"""

import torch

from ..capture import Trace


def gradcam(trace: Trace) -> torch.Tensor:
    """Grad-CAM (B, N) [selvaraju2017gradcam]: channels weighted by their mean gradient over patches, summed; ReLU."""
    activation, gradient = trace.activation
    channel_weights = gradient[:, trace.prefix_tokens :].mean(1, keepdim=True)
    return (activation * channel_weights).sum(-1).relu()


def cdam(trace: Trace) -> torch.Tensor:
    """CDAM (B, N), signed [brocki2023cdam]: activation × gradient, summed over channels: Grad-CAM without the mean."""
    activation, gradient = trace.activation
    return (activation * gradient).sum(-1)
