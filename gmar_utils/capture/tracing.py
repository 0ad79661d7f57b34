"""The hooks: attention probabilities and their gradients for a whole batch, with nothing left behind in the model."""

import warnings
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from .layout import in_table, patch_grid, readout, unwrap
from .recorder import Recorder
from .target import against, class_score, parse_target, resolve_target


@dataclass(eq=False)
class Trace:
    """One forward pass, seen through its attention, and the backward pass when `gradients` is read.

    Attributes:
        attentions: L tensors (B, H, N, N), float32; every row sums to 1.
        logits: (B, K).
        target: (B,) class explained.
        prefix_tokens: P, tokens in front of the patches.
        grid: (R, C), N = P + R·C.
        readout: (B, N) v₀, the tokens that the classifier reads; each row sums to 1.
        against: (B,) class b of a contrast y = y_a − y_b, or None.
        model: what was traced, for methods that run a pass of their own.
        pixel_values: (B, channels, height, width).
        graph: (y summed over the batch, L attentions) that `gradients` differentiates, or None.
    """

    attentions: Sequence[torch.Tensor]
    logits: torch.Tensor
    target: torch.Tensor
    prefix_tokens: int
    grid: tuple[int, int]
    readout: torch.Tensor
    against: torch.Tensor | None = None
    model: nn.Module | None = None
    pixel_values: torch.Tensor | None = None
    graph: tuple[torch.Tensor, Sequence[torch.Tensor]] | None = field(default=None, repr=False)

    @cached_property
    def gradients(self) -> tuple[torch.Tensor, ...]:
        """L tensors ∂y/∂A (B, H, N, N), float32: one activations-only backward at the first use, with the weights of
        that moment: read them before the model is changed."""
        if self.graph is None:  # made without a graph: another forward pass, with one
            contrast = None if self.against is None else (int(self.target[0]), int(self.against[0]))
            layout = self.prefix_tokens, self.grid
            return trace(self.model, self.pixel_values, contrast or self.target, *layout).gradients
        (y, attentions), self.graph = self.graph, None  # the backward pass frees it
        with torch.inference_mode(False):
            return _gradients(y, attentions, self.pixel_values.dtype)

    def patches(self, scores: torch.Tensor) -> torch.Tensor:
        """Token scores (B, N) → patch map (B, R, C)."""
        return scores[:, self.prefix_tokens :].reshape(-1, *self.grid)


def trace(
    model: nn.Module, pixel_values: torch.Tensor, target=None, prefix_tokens: int | None = None,
    grid: tuple[int, int] | None = None, *, gradients: bool = True,
) -> Trace:  # fmt: skip
    """Attention of every layer, and its gradient on demand: one forward and one activations-only backward a batch.

    Args:
        model: any module that calls `F.scaled_dot_product_attention` and returns logits or has `.logits`.
        pixel_values: (B, channels, height, width).
        target: None (the predicted class) | a class id | (B,) ids as list, array or tensor | a tuple (a, b), the
            contrast y = y_a − y_b; with one logit, 1 explains y and 0 explains −y.
        prefix_tokens: P, and
        grid: (R, C): only for modules whose patch embedding is not a strided Conv2d.
        gradients: False keeps no graph for the backward pass (attention rollout needs none).

    Raises:
        ValueError: saying why, for models without (B, H, N, N) attention: CNNs, windowed attention (Swin),
            `nn.MultiheadAttention`.
        IndexError: a target outside the model's classes.
    """
    given, model = model, unwrap(model)
    check_pixel_values(pixel_values)
    target = parse_target(target, len(pixel_values))
    with recording(model, pixel_values, gradients=gradients) as (recorder, pixel_values):
        logits, attentions = recorder.forward(model, pixel_values)
        other, target = against(logits, target), resolve_target(model, logits, target)
        y = class_score(logits, target, other).sum()
    tokens = attentions[0].shape[-1]
    prefix, grid = patch_grid(model, pixel_values, tokens, prefix_tokens, grid)
    start = readout(model, tokens, prefix, logits.device)
    found = Trace(
        tuple(a.detach() for a in attentions), logits.detach(), target, prefix, grid,
        start.expand(len(pixel_values), -1), other, given, pixel_values, (y, attentions) if gradients else None,
    )  # fmt: skip
    if gradients and not in_table(model):
        _compare_readout(start, found.gradients[-1])
    return found


def _compare_readout(start, gradient):
    """After the last attention nothing mixes tokens: only queries that the classifier reads have a gradient there."""
    missed = int(((gradient != 0).any((0, 1, 3)) & (start == 0)).sum())
    if missed:
        warnings.warn(
            f"The classifier reads {missed} tokens that the maps do not start from: what a model reads that is not in "
            "the table of gmar_utils.capture.layout is a guess. If it averages patches, set model.global_pool = 'avg'.",
            stacklevel=3,
        )


def _gradients(y, attentions, input_dtype):
    """∂y/∂A in float32. Those of a float16 model would underflow: y is scaled up, the gradients down again."""
    if torch.float16 not in (y.dtype, input_dtype):
        return torch.autograd.grad(y, attentions)
    return tuple(g / 1024 for g in torch.autograd.grad(1024 * y, attentions))


@contextmanager
def settled(model: nn.Module):
    """Eval mode, PyTorch's own attention and frozen parameters (a backward pass computes no weight gradients) inside
    this context. Everything is put back afterwards, also after an error."""
    with ExitStack() as stack:
        modules = [model]
        for module in modules:  # grows while it runs: `model.modules()` in a fraction of its time
            if module is None:  # an optional part that this model lacks
                continue
            if module._modules:
                modules += module._modules.values()
            if module.training:
                stack.callback(setattr, module, "training", True)
                module.training = False
            for parameter in module._parameters.values():
                if parameter is not None and parameter.requires_grad:
                    stack.callback(parameter.requires_grad_, True)
                    parameter.requires_grad_(False)
        before = getattr(getattr(model, "config", None), "_attn_implementation", None)
        if before not in (None, "sdpa"):
            with suppress(ValueError):  # no such choice: the recorder says why there is nothing to see
                model.set_attn_implementation("sdpa")
                stack.callback(model.set_attn_implementation, before)
        yield


@contextmanager
def recording(
    model: nn.Module, pixel_values: torch.Tensor, local: bool = False, hooks=(), gradients: bool = True
):  # fmt: skip
    """A `settled` model, with gradients on also inside no_grad, or off (a forward pass then keeps its attention and
    nothing else). hooks: (module, forward hook) pairs, then removed.

    Yields a recorder, whose `forward` keeps the attention (with `local`, each map cut from the graph below it, so that
    gradients stay inside one layer), and the pixel values, copied where they were made under inference_mode, which
    autograd refuses.
    """
    check_pixel_values(pixel_values)
    with settled(model), torch.inference_mode(False), torch.set_grad_enabled(gradients), ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        yield Recorder(local), pixel_values.clone() if pixel_values.is_inference() else pixel_values


def check_pixel_values(pixel_values) -> None:
    """ValueError unless it is a tensor (B, channels, height, width) of at least one image."""
    if not isinstance(pixel_values, torch.Tensor) or pixel_values.ndim != 4:
        raise ValueError(
            "pixel_values must be a tensor (B, channels, height, width), got "
            f"{tuple(getattr(pixel_values, 'shape', ())) or type(pixel_values).__name__}. "
            "Use load_model(...).preprocess(images)."
        )
    if not len(pixel_values):
        raise ValueError("pixel_values holds no image.")
