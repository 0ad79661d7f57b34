"""Grad-CAM for a Vision Transformer."""

import torch

from ..capture import Trace


def gradcam(trace: Trace) -> torch.Tensor:
    """Grad-CAM (B, N) [selvaraju2017gradcam] at the last block's first LayerNorm.

    A [CLS] classifier's last block output has no gradient at the patches, so the layer in front of its attention is
    read. Channel weights = mean gradient over the patch tokens; weighted sum over channels; ReLU.
    """
    activation, gradient = trace.activation
    channel_weights = gradient[:, trace.prefix_tokens :].mean(1, keepdim=True)
    return (activation * channel_weights).sum(-1).relu()
