"""Maps cut into the units that a metric removes: patches or pixels, their order, and where each one lies."""

import torch
from torch import nn

from ..capture import trace
from ..capture.checks import choice
from ..photo import minmax, resize


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


def image_size_maps(maps: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
    """Maps in [0, 1] at image size: patch maps come up bilinearly, then min–max; full-size ones must be in [0, 1]."""
    size = pixel_values.shape[-2:]
    if maps.shape[1:] != size:
        return minmax(resize(minmax(maps), size))  # first, too: rounding would turn a constant map into noise
    if not bool(((maps >= 0) & (maps <= 1)).all()):
        raise ValueError(
            f"Maps at image size must lie in [0, 1], got {maps.min():.4g} to {maps.max():.4g}. "
            "gmar_utils.explain gives such maps."
        )
    return maps


def unit_values(
    maps: torch.Tensor,
    pixel_values: torch.Tensor,
    model: nn.Module,
    unit: str = "patch",
    grid: tuple[int, int] | None = None,
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
        maps = maps if maps.shape[1:] == size else resize(maps, size)
        return maps, *(torch.arange(n, device=maps.device) for n in size)
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
