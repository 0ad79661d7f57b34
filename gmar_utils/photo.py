"""Photos in, maps back: reading pictures of every kind, and the geometry of resize and centre crop."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError


def read_photo(image, channels: int = 3, window: tuple[float, float] | None = None) -> Image.Image:
    """A picture as the model's own kind of PIL image: RGB, or L for a 1-channel model; turned upright by EXIF.

    image   path, PIL image, or array (height, width[, 1 | 3 | 4]): uint8, uint16 or float
    window  (low, high): the values shown as black and white in 16-bit and float pictures. Without it floats within
            [0, 1] are taken as such, and anything else is stretched over its own range, with a warning.
    Transparent pixels are laid on white. Raises FileNotFoundError or ValueError, naming the file.
    """
    name = repr(str(image)) if isinstance(image, str | Path) else "the image"
    if isinstance(image, str | Path):
        image = _open(Path(image))
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
        pixels = np.asarray(image, dtype=np.float64) if deep else None
    else:
        pixels = np.asarray(image)
        if pixels.ndim not in (2, 3) or pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4):
            raise ValueError(f"{name} must be (height, width) or (height, width, 1 | 3 | 4), got {pixels.shape}.")
        pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
        if pixels.dtype == np.uint8:
            image, pixels = Image.fromarray(pixels), None
    if pixels is not None:
        image = Image.fromarray(_to_8_bit(pixels, window, name))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def _open(path: Path) -> Image.Image:
    if not path.exists():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder, not a picture.")
    if path.stat().st_size == 0:
        raise ValueError(f"{str(path)!r} is empty (0 bytes); copy or download it again.")
    try:
        image = Image.open(path)
        image.load()
    except UnidentifiedImageError:
        raise ValueError(f"{str(path)!r} is not a picture in a format that Pillow reads.") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is damaged or cut short ({error}); copy or download it again.") from None
    return image


def _to_8_bit(pixels, window, name):
    pixels = pixels.astype(np.float64)
    if not np.isfinite(pixels).all():
        raise ValueError(f"{name} holds NaN or infinite values; replace them first.")
    if window is None:
        low, high = float(pixels.min()), float(pixels.max())
        if 0 <= low and high <= 1:
            low, high = 0.0, 1.0
        else:
            warnings.warn(
                f"{name} has values from {low:g} to {high:g}; they are stretched from black to white. "
                "Pass window=(low, high) to choose.",
                stacklevel=4,
            )
    else:
        low, high = window
        if not low < high:
            raise ValueError(f"window must be (low, high) with low < high, got {window}.")
    return (255 * ((pixels - low) / max(high - low, 1e-12)).clip(0, 1)).round().astype(np.uint8)


def resized_and_cropped(size: tuple[int, int], processor) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """What `processor` does with a photo of (height, width): the size it resizes to, the crop (top, left, h, w)."""
    height, width = size
    if getattr(processor, "do_resize", False):
        target = processor.size
        if target.get("shortest_edge"):
            scale = target["shortest_edge"] / min(height, width)
            height, width = int(height * scale + 1e-6), int(width * scale + 1e-6)
        else:
            height, width = target["height"], target["width"]
    if not getattr(processor, "do_center_crop", False):
        return (height, width), (0, 0, height, width)
    crop = processor.crop_size
    top, left = (height - crop["height"]) // 2, (width - crop["width"]) // 2
    return (height, width), (top, left, crop["height"], crop["width"])


def to_photo(maps: torch.Tensor, sizes: Sequence[tuple[int, int]], processor) -> list[torch.Tensor]:
    """Maps (B, r, c) at any resolution → float32 (height, width) each, on the photo's pixels; NaN outside the crop."""
    if len(maps) != len(sizes):
        raise ValueError(f"{len(maps)} maps for {len(sizes)} photos.")
    results = []
    for single, (height, width) in zip(maps.detach().float().cpu(), sizes, strict=True):
        (rows, columns), (top, left, crop_h, crop_w) = resized_and_cropped((height, width), processor)
        # centre of each photo pixel, in units of the crop
        y = ((torch.arange(height) + 0.5) * rows / height - top) / crop_h
        x = ((torch.arange(width) + 0.5) * columns / width - left) / crop_w
        where = torch.stack(torch.meshgrid(2 * x - 1, 2 * y - 1, indexing="xy"), -1)
        values = F.grid_sample(
            single[None, None], where[None], mode="bilinear", padding_mode="border", align_corners=False
        )[0, 0]
        results.append(torch.where((where.abs() <= 1).all(-1), values, torch.nan))
    return results


def resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Maps (B, r, c) → (B, height, width), bilinearly (align_corners=False)."""
    return F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]


def minmax(maps: torch.Tensor) -> torch.Tensor:
    """Each map of (B, …) scaled to [0, 1]; a constant map becomes 0."""
    flat = maps.float().flatten(1)
    low, high = flat.aminmax(dim=1, keepdim=True)
    return ((flat - low) / (high - low).clamp_min(torch.finfo(flat.dtype).tiny)).view_as(maps)
