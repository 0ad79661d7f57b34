"""What every metric's forward passes share: precision, targets, scores, and the loop over (image, step) rows."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import nn

from ..capture.checks import check_model, check_pixel_values
from ..capture.layout import find_blocks, logits_of, unwrap
from ..capture.settling import settled
from ..capture.target import class_score, probability, resolve_target


def choice(name: str, value, allowed: Iterable) -> None:
    """ValueError, naming what there is, unless `value` is one of `allowed`."""
    if not any(value is a or type(value) is type(a) and value == a for a in allowed):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")


def check_input(model: nn.Module, pixel_values, batch_size: int) -> torch.Tensor:
    """The pixel values as `check_pixel_values` gives them; ValueError for those, a model or a batch size that is none.

    Args:
        model: classifier.
        pixel_values: (B, channels, height, width).
        batch_size: images in a forward pass, at least 1.
    """
    check_model(model)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.")
    return check_pixel_values(pixel_values, model)


def cheap_dtype(device: torch.device | str) -> torch.dtype:
    """The cheapest type for forward passes that keeps their results: what `precision="auto"` takes on this device.

    bfloat16 where the processor computes in it (a T4 only emulates it, slowly), float16 on other GPUs, else float32.
    """
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    has_it = torch.device(device).type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.bfloat16 if has_it else torch.float32


@contextmanager
def evaluating(model: nn.Module, pixel_values: torch.Tensor, precision: str = "float32"):
    """Eval mode, inference mode and the fused attention path. Yields the name of the precision.

    Args:
        model: any classifier.
        pixel_values: (B, channels, height, width).
        precision: "float32" | "auto": the blocks in `cheap_dtype`, with norms, softmax and head in float32 (on a GPU
            the head is cheap too). A model in half precision stays in it, and a caller's own autocast is kept.
    """
    choice("precision", precision, ("float32", "auto"))
    device, dtype, module = pixel_values.device.type, pixel_values.dtype, unwrap(model)
    with settled(module), ExitStack() as stack:
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        elif precision == "auto" and dtype == torch.float32:
            dtype = _made_cheap(module, pixel_values.device, stack)
        stack.enter_context(torch.inference_mode())
        yield str(dtype).removeprefix("torch.")


def _made_cheap(module, device, stack):
    """Autocast to `cheap_dtype` for as long as the stack is open; the type that the blocks then compute in."""
    dtype, blocks = cheap_dtype(device), find_blocks(module)
    if dtype == torch.float32 or not blocks:
        return torch.float32
    if device.type == "cuda":  # around all of the model: compiled, it is one graph
        stack.enter_context(torch.autocast(device.type, dtype))
        return dtype
    # Inside the blocks alone: what reads their output (norm, head, a product with text) stays in float32. Logits that
    # differ by less than a half-precision step must not become equal. Norms inside follow the float32 they are given.
    for block in blocks:
        own = block.__dict__.get("forward")
        stack.callback(partial(setattr, block, "forward", own) if own else partial(delattr, block, "forward"))
        block.forward = torch.autocast(device.type, dtype)(block.forward)
    return dtype


def score_of(model: nn.Module, pixel_values: torch.Tensor, target: torch.Tensor, score: str) -> torch.Tensor:
    """(B,) probability or logit of the target, float32 or wider."""
    logits = logits_of(model(pixel_values))
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return probability(model, logits, target) if score == "probability" else class_score(logits, target)


def resolve(model: nn.Module, pixel_values: torch.Tensor, target, batch_size: int) -> torch.Tensor:
    """Class ids (B,); None is the predicted class. A given one is checked against one image's logits, no full pass."""
    if target is None:
        return torch.cat([resolve_target(model, logits_of(model(x))) for x in pixel_values.split(batch_size)])
    logits = logits_of(model(pixel_values[:1]))
    return resolve_target(model, logits.expand(len(pixel_values), -1), target)


def each_row(
    images: int, steps: int, batch_size: int, device, run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Scores (images, steps) of `run(image, step)`, which gets the numbers (b,) of up to `batch_size` such rows."""
    rows = torch.arange(images * steps, device=device)
    scores = [run(row // steps, row % steps) for row in rows.split(batch_size)]
    return torch.cat(scores).unflatten(0, (images, steps))
