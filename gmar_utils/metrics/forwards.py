"""What every metric of forward passes shares: input, precision, targets, scores, and the loop over (image, step) rows;
and maps cut into the units that it removes, patches or pixels: their order, and where each one lies."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import nn

from ..capture import trace
from ..capture.checks import check_whole, choice
from ..capture.layout import logits_of, unwrap
from ..capture.settling import settled
from ..capture.target import class_score, probability, resolve_target
from ..photo import resize

SCORES = ("probability", "logit")
Target = int | list[int] | torch.Tensor | None  # None: the class predicted on the full image; else one, or (B,)
Grid = tuple[int, int] | None  # (R, C)


def cheap_dtype(device: torch.device | str) -> torch.dtype:
    """The cheapest type for forward passes that keeps their results: what `precision="auto"` takes on this device.

    bfloat16 where the processor computes in it (a T4 only emulates it, slowly), float16 on other GPUs, else float32.
    """
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    has_it = torch.device(device).type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.bfloat16 if has_it else torch.float32


@contextmanager
def evaluating(model: nn.Module, pixel_values: torch.Tensor, precision: str = "float32") -> Iterator[str]:
    """Eval mode, inference mode and the fused attention path. Yields the name of the precision.

    Args:
        model: any classifier.
        pixel_values: (B, channels, height, width).
        precision: "float32" | "auto": the blocks in `cheap_dtype`, with norms, softmax and head in float32 (on a GPU
            the head is cheap too). A model in half precision stays in it, and a caller's own autocast is kept.
    """
    choice("precision", precision, ("float32", "auto"))
    device, dtype, module = pixel_values.device.type, pixel_values.dtype, unwrap(model)
    with settled(module) as blocks, ExitStack() as stack:
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        elif precision == "auto" and dtype == torch.float32:
            dtype = _made_cheap(blocks, pixel_values.device, stack)
        stack.enter_context(torch.inference_mode())
        yield str(dtype).removeprefix("torch.")


def _made_cheap(blocks, device, stack):
    """Autocast to `cheap_dtype` for as long as the stack is open; the type that the blocks then compute in."""
    dtype = cheap_dtype(device)
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


def score_of(model: nn.Module, output: object, target: torch.Tensor, score: str) -> torch.Tensor:
    """(B,) probability or logit of the target in the model's output, float32 or wider."""
    logits = logits_of(output)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return probability(model, logits, target) if score == "probability" else class_score(logits, target)


def row_scores(
    model: nn.Module,
    pixel_values: torch.Tensor,
    target: Target,
    steps: int,
    run: Callable[[torch.Tensor, torch.Tensor], object],
    *,
    score: str = "probability",
    batch_size: int = 64,
    precision: str = "float32",
) -> tuple[torch.Tensor, dict]:
    """The target's score of every image at every step: one long batch of rows, made part by part.

    Args:
        model: classifier.
        pixel_values: (B, channels, height, width).
        target: None (the class predicted on the full image) | int | (B,).
        steps: S.
        run: (image, step), numbers (b,) of such rows → what the model gives for them.
        score: "probability" | "logit".
        batch_size: rows in a forward pass.
        precision: as `evaluating`.

    Returns:
        Scores (B, S), and what a protocol says of them: score, target, precision, images.
    """
    choice("score", score, SCORES)
    check_whole("batch_size", batch_size)
    if isinstance(target, tuple):  # elsewhere a contrast of two classes: never to be read as one of them
        raise ValueError(f"A metric follows one class: target is an id, or ids in a list or tensor; got {target!r}.")
    rows = torch.arange(len(pixel_values) * steps, device=pixel_values.device)
    with evaluating(model, pixel_values, precision) as found:
        # A given class is checked against one image's logits: that needs no full pass.
        asked = pixel_values if target is None else pixel_values[:1]
        logits = torch.cat([logits_of(model(x)) for x in asked.split(batch_size)])
        ids = resolve_target(model, logits.expand(len(pixel_values), -1), target)
        parts = ((row // steps, row % steps) for row in rows.split(batch_size))
        scores = [score_of(model, run(image, step), ids[image], score) for image, step in parts]
    about = {"score": score, "target": "predicted" if target is None else "label", "precision": found}
    return torch.cat(scores).unflatten(0, (-1, steps)), about | {"images": len(pixel_values)}


def checked_maps(maps: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
    """The maps, float32 on the images' device; ValueError unless finite, (B, R, C) and no larger than the images."""
    shape = tuple(getattr(maps, "shape", ()))
    batch = isinstance(maps, torch.Tensor) and maps.ndim == 3 and len(maps) == len(pixel_values)
    if not batch or 0 in shape or maps.is_complex():
        raise ValueError(
            f"maps must be a tensor of real numbers (B, R, C) or (B, height, width) with B = {len(pixel_values)}, got "
            f"{shape or type(maps).__name__}."
        )
    if not bool(maps.isfinite().all()):
        bad = (~maps.isfinite()).flatten(1).any(1).nonzero()[:, 0].tolist()
        raise ValueError(
            f"maps hold NaN or infinity (images {bad[:8]} of the batch): an order of patches is undefined. "
            "Faithfulness uses maps on the model's input, not those of to_photo."
        )
    height, width = pixel_values.shape[-2:]
    if shape[1] > height or shape[2] > width:
        raise ValueError(f"maps of {shape[1]}×{shape[2]} are larger than the image of {height}×{width} pixels.")
    return maps.detach().to(pixel_values.device, torch.float32)


def unit_values(
    maps: torch.Tensor, pixel_values: torch.Tensor, model: nn.Module, unit: str = "patch", grid: Grid = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What is removed, and where it lies.

    Args:
        maps: (B, R, C), each value one unit, or (B, height, width), averaged per patch of the model.
        pixel_values: (B, channels, height, width).
        model: its patch embedding says how large a patch is.
        unit: "patch" | "pixel".
        grid: (R, C) of a model whose layout `trace` cannot see; needed for full-size maps only.

    Returns:
        Values (B, R, C) of the units, the row of units (height,) of each pixel row, and the column (width,) of each
        pixel column. A pixel behind the last whole patch belongs to the last patch. A map with another grid than the
        model's is laid over the whole image: pixel row y belongs to row ⌊y·R/height⌋, exact for every size.
    """
    choice("unit", unit, ("patch", "pixel"))
    size = tuple(pixel_values.shape[-2:])
    if unit == "pixel":
        return resize(maps, size), *(torch.arange(n, device=maps.device) for n in size)
    full = tuple(maps.shape[1:]) == size and tuple(grid or ()) != size
    rows, columns = (grid or trace(model, pixel_values[:1], gradients=False).grid) if full else maps.shape[1:]
    strided = (m.stride for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride == m.kernel_size)
    strides = next(strided, (None, None))
    y, x = (_unit_of(n, k, s, maps.device) for n, k, s in zip(size, (rows, columns), strides, strict=True))
    if full:
        place = (y[:, None] * columns + x).flatten()
        sums = torch.zeros(len(maps), rows * columns, dtype=torch.float64, device=maps.device)
        sums.index_add_(1, place, maps.flatten(1).double())
        maps = (sums / place.bincount(minlength=rows * columns)).float().unflatten(1, (rows, columns))
    return maps, y, x


def ranks(values: torch.Tensor, descending: bool) -> torch.Tensor:
    """The place (B, R, C) of each unit in the order of `values`; ties keep reading order."""
    return values.flatten(1).argsort(dim=1, descending=descending, stable=True).argsort(dim=1).view_as(values)


def on_pixels(units: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Something of each unit (B, R, C) spread over its pixels (B, height, width)."""
    return units[:, y][:, :, x]


def _unit_of(pixels, units, stride, device):
    """The unit of each pixel along one side: the model's own patches where their number fits, what is left over to the
    last one; else units of equal share."""
    place = torch.arange(pixels, device=device)
    if stride and units in (pixels // stride, -(-pixels // stride)):
        return (place // stride).clamp(max=units - 1)
    return place * units // pixels
