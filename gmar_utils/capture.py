"""The hooks: attention probabilities and their gradients for a whole batch, with nothing left behind in the model."""

from collections.abc import Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from .architecture import patch_grid, readout, unwrap


@dataclass(frozen=True)
class Trace:
    """One forward (and one backward) pass, seen through its attention.

    attentions    L tensors (B, H, N, N), float32; every row sums to 1
    gradients     L tensors (B, H, N, N), float32: ∂y/∂A, or None when not asked for
    logits        (B, K)
    target        (B,) class explained
    prefix_tokens P, tokens in front of the patches
    grid          (R, C), N = P + R·C
    readout       (N,) v₀, the tokens that the classifier reads; sums to 1
    """

    attentions: Sequence[torch.Tensor]
    gradients: Sequence[torch.Tensor] | None
    logits: torch.Tensor
    target: torch.Tensor
    prefix_tokens: int
    grid: tuple[int, int]
    readout: torch.Tensor

    def patches(self, scores: torch.Tensor) -> torch.Tensor:
        """Token scores (B, N) → patch map (B, R, C)."""
        return scores[:, self.prefix_tokens :].unflatten(1, self.grid)


def trace(
    model: nn.Module,
    pixel_values: torch.Tensor,
    target=None,
    prefix_tokens: int | None = None,
    grid: tuple[int, int] | None = None,
    *,
    gradients: bool = True,
) -> Trace:
    """Attention of every layer and its gradient: one forward and one activations-only backward for the batch.

    model         any module that calls `F.scaled_dot_product_attention` and returns logits or has `.logits`
    pixel_values  (B, channels, height, width)
    target        None (the predicted class) | int | (B,) class ids; with one logit, 1 explains y and 0 explains −y
    prefix_tokens, grid   only for modules whose patch embedding is not a strided Conv2d
    gradients     False skips the backward pass (attention rollout needs none)

    Raises ValueError, saying why, for models without (B, H, N, N) attention: CNNs, windowed attention (Swin),
    `nn.MultiheadAttention`; IndexError for a target outside the model's classes.
    """
    model = unwrap(model)
    with recording(model, pixel_values) as (recorder, pixel_values):
        logits = logits_of(model(pixel_values))
        attentions = recorder.checked(model, pixel_values)
        target = resolve_target(model, logits, target)
        grads = None
        if gradients:
            # float16 gradients of attention underflow; the scale leaves them exact and is taken out in float32.
            scale = 1024.0 if _lowest_precision(attentions[-1], logits, pixel_values) == torch.float16 else 1.0
            y = class_score(logits, target).sum() * scale
            grads = tuple(g.float() / scale for g in torch.autograd.grad(y, attentions))
    tokens = attentions[0].shape[-1]
    prefix, grid = patch_grid(model, pixel_values, tokens, prefix_tokens, grid)
    return Trace(
        attentions=tuple(a.detach() for a in attentions),
        gradients=grads,
        logits=logits.detach(),
        target=target,
        prefix_tokens=prefix,
        grid=grid,
        readout=readout(model, tokens, prefix, attentions[0].device),
    )


def logits_of(output) -> torch.Tensor:
    """The logits (B, K) in a model's output: the tensor itself, its `.logits`, or the first of a tuple."""
    if isinstance(output, tuple):
        output = output[0]
    logits = getattr(output, "logits", output)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise ValueError(
            f"The model's output must be logits of shape (B, K) or have .logits; got {type(output).__name__}"
            + (f" with logits of shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else "")
            + ". Load the model with its classification head (AutoModelForImageClassification)."
        )
    return logits


def resolve_target(model: nn.Module, logits: torch.Tensor, target=None) -> torch.Tensor:
    """Class ids (B,) from None (the predicted class), an int, or a (B,) tensor. Checks the range."""
    batch, classes = logits.shape
    if target is None:
        if classes == 1:
            explains_minus_y = (logits[:, 0] <= 0) & (_problem(model) != "regression")
            return (~explains_minus_y).long()
        return logits.argmax(1)
    target = torch.as_tensor(target, device=logits.device)
    target = target.clone() if target.is_inference() else target  # autograd refuses tensors of inference_mode
    if target.is_floating_point() or target.dtype == torch.bool:
        raise TypeError(f"target must be class ids (int), got {target.dtype}.")
    if target.ndim > 1 or target.ndim == 1 and len(target) != batch:
        raise ValueError(f"target must be an int or a tensor of shape ({batch},), got shape {tuple(target.shape)}.")
    target = target.long().expand(batch)
    top = max(classes, 2)  # one logit stands for two classes
    if bool(((target < 0) | (target >= top)).any()):
        raise IndexError(f"target {target.tolist()} is outside the model's classes 0 to {top - 1}.")
    return target


def class_score(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """y (B,): the logit of the target class. With one logit, target 1 gives y and target 0 gives −y."""
    if logits.shape[1] == 1:
        return logits[:, 0] * (2 * target - 1)
    return logits.gather(1, target[:, None])[:, 0]


def probability(model: nn.Module, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Probability (B,) of the target: softmax, or sigmoid for one logit and multi-label heads.

    Raises ValueError for a regression head, which has no probability."""
    if _problem(model) == "regression":
        raise ValueError("A regression head has no probability; use score='logit'.")
    if logits.shape[1] == 1 or _problem(model) == "multi_label_classification":
        return class_score(logits.float(), target).sigmoid()
    return logits.float().softmax(1).gather(1, target[:, None])[:, 0]


def _problem(model):
    return getattr(getattr(unwrap(model), "config", None), "problem_type", None)


def _lowest_precision(*tensors):
    return min((t.dtype for t in tensors), key=lambda d: torch.finfo(d).bits)


@contextmanager
def recording(model: nn.Module, pixel_values: torch.Tensor, local: bool = False):
    """Record the attention of `model` inside this context; everything is put back afterwards, also after an error.

    The parameters are frozen, so that the backward pass computes no weight gradients, and the model is in eval mode.
    With `local` each attention map is cut from the graph below it, so that gradients stay inside one layer. Yields the
    recorder and the pixel values, copied where they were made under inference_mode, which autograd refuses.
    """
    if not isinstance(pixel_values, torch.Tensor) or pixel_values.ndim != 4:
        raise ValueError(
            "pixel_values must be a tensor (B, channels, height, width), got "
            f"{tuple(pixel_values.shape) if isinstance(pixel_values, torch.Tensor) else type(pixel_values).__name__}. "
            "Use load_model(...).preprocess(images)."
        )
    recorder = _Recorder(local)
    with ExitStack() as stack:
        for module in model.modules():
            if module.training:
                module.training = False
                stack.callback(setattr, module, "training", True)
            for parameter in module._parameters.values():
                if parameter is not None and parameter.requires_grad:
                    parameter.requires_grad_(False)
                    stack.callback(parameter.requires_grad_, True)
        before = getattr(getattr(model, "config", None), "_attn_implementation", None)
        if before not in (None, "sdpa"):
            with suppress(ValueError):  # no such choice: `checked` says why there is nothing to see
                model.set_attn_implementation("sdpa")
                stack.callback(model.set_attn_implementation, before)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(recorder)
        yield recorder, pixel_values.clone() if pixel_values.is_inference() else pixel_values


class _Recorder(TorchFunctionMode):
    """Replaces `F.scaled_dot_product_attention` by an explicit softmax and keeps its result."""

    def __init__(self, local: bool):
        super().__init__()
        self.local, self.attentions, self.fused = local, [], 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        if func is F.multi_head_attention_forward:
            self.fused += 1
        return func(*args, **(kwargs or {}))

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

    def checked(self, model, pixel_values) -> list[torch.Tensor]:
        """The recorded maps, or a ValueError that says why they cannot be rolled out."""
        name, batch = type(model).__name__, len(pixel_values)
        if not self.attentions:
            reason = (
                "it uses nn.MultiheadAttention, whose attention PyTorch computes out of reach; load the same "
                "architecture from transformers or timm"
                if self.fused or any(isinstance(m, nn.MultiheadAttention) for m in model.modules())
                else "it never calls F.scaled_dot_product_attention: a CNN has no attention, and a model with an "
                "attention of its own must be switched to PyTorch's"
            )
            raise ValueError(f"{name} shows no attention maps: {reason}.")
        shapes = {tuple(a.shape) for a in self.attentions}
        first = self.attentions[0].shape
        if len(shapes) > 1 or len(first) != 4 or first[0] != batch or first[2] != first[3]:
            raise ValueError(
                f"{name} attends in shapes {sorted(shapes)}; one global (B, H, N, N) map a layer with B = {batch} is "
                "needed. Windowed or pyramid attention (Swin, PVT) has no such map: use Grad-CAM made for it."
            )
        return self.attentions
