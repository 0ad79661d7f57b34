"""What sees the attention of a forward pass: a function mode that stands in for PyTorch's fused attention."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from .layout import logits_of


class Recorder(TorchFunctionMode):
    """Replaces `F.scaled_dot_product_attention` by an explicit softmax and keeps its result.

    A function mode reaches every module that calls it, transformers' and timm's, and this thread only. It costs a few
    microseconds for every call of a torch function, so it is on during the forward pass and no longer.
    """

    def __init__(self, local: bool):
        super().__init__()
        self.local, self.attentions = local, []

    def forward(self, model, pixel_values):
        """Logits (B, K) and the attention of every layer; a ValueError says why it cannot be rolled out."""
        with self:
            output = model(pixel_values)
        logits = logits_of(output)
        self._check(model, len(pixel_values))
        return logits, self.attentions

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **kwargs) if kwargs else func(*args)

    def _attend(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
        scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
        if is_causal:
            causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~causal, -torch.inf)
        if attn_mask is not None:
            allowed = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if allowed else scores + attn_mask
        attention = scores.softmax(-1, dtype=torch.float32)
        if self.local:
            attention = attention.detach()
        if not attention.requires_grad:
            attention.requires_grad_()
        self.attentions.append(attention)
        return attention.to(value.dtype) @ value

    def _check(self, model, batch):
        name = type(model).__name__
        if not self.attentions:
            reason = (
                "it uses nn.MultiheadAttention, whose attention PyTorch computes out of reach; load the same "
                "architecture from transformers or timm"
                if any(isinstance(m, nn.MultiheadAttention) for m in model.modules())
                else "it never calls F.scaled_dot_product_attention: a CNN has no attention, and a model with an "
                "attention of its own must be switched to PyTorch's"
            )
            raise ValueError(f"{name} shows no attention maps: {reason}.")
        shapes = {tuple(a.shape) for a in self.attentions}
        first = self.attentions[0].shape
        if len(shapes) > 1 or len(first) != 4 or first[0] != batch or first[2] != first[3]:
            raise ValueError(
                f"{name} attends in shapes {sorted(shapes)}; one global (B, H, N, N) map a layer with B = {batch} is "
                "needed. Windowed or pyramid attention (Swin, PVT) and attention pooling (timm's SigLIP, CaiT) have no "
                "such map: use Grad-CAM made for it."
            )
