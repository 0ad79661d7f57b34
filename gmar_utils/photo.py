"""Photos in, maps back: reading pictures of every kind, what a processor does to them, and the way back."""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError

PREPARED = "Values that a processor has prepared go into gmar_utils.explain(vit.model, pixel_values)."
Picture = str | os.PathLike | Image.Image | np.ndarray | torch.Tensor  # as `read_photo` takes it
Pictures = Picture | Iterable[Picture]
_CHECKED: dict[tuple, str | None] = {}  # (processor, size) → None, or why its geometry is not known


def is_one(images: object) -> bool:
    """Whether it is one picture (a path, PIL image, array or tensor), and not several of them."""
    if isinstance(images, np.ndarray | torch.Tensor):
        return images.ndim < 4
    return isinstance(images, str | os.PathLike | Image.Image)


def as_list(images: Pictures) -> list:
    """The pictures one by one: of one picture, a batch (B, …) in one array or tensor, or any iterable of pictures.

    Raises:
        TypeError: For what is neither, such as a processor's output.
        ValueError: When there is no picture in it.
    """
    if is_one(images):
        return [images]
    if isinstance(images, Mapping | bytes | bytearray) or not isinstance(images, Iterable):
        raise TypeError(
            f"Expected a picture (path, PIL image, array or tensor) or several of them, got {type(images).__name__}. "
            f"{PREPARED}"
        )
    if not (found := list(images)):
        raise ValueError("Expected at least one picture, got an empty list.")
    return found


def read_photo(
    image: Picture, channels: int = 3, window: tuple[float, float] | None = None
) -> Image.Image | np.ndarray:
    """A picture as the model's own kind: RGB, or L for a 1-channel model; turned upright by EXIF.

    Args:
        image: path, PIL image, array (height, width[, channels]) or tensor ([channels, ]height, width). Arrays are
            uint8, uint16 or float; tensors uint8, or float in [0, 1]. Transparent pixels are laid on white.
        channels: of the model. 1 and 3 give a PIL image; any other number takes pictures of so many channels, as they
            are, and gives an array (height, width, channels), uint8.
        window: (low, high), the values shown as black and white in 16-bit and float pictures. Without it floats
            within [0, 1] are taken as such, and anything else is stretched over its own range, with a warning.

    Raises:
        FileNotFoundError, ValueError: Naming the file.
        TypeError: For what is no picture.
    """
    if window is not None and not (np.isfinite(window).all() and window[0] < window[1]):
        raise ValueError(f"window must be two finite numbers (low, high) with low < high, got {window}.")
    name = "the picture"
    if isinstance(image, str | os.PathLike):
        name, image = repr(str(image)), _open(Path(image))
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
        image = np.asarray(image) if deep or channels not in (1, 3) or 0 in image.size else image
    if not isinstance(image, Image.Image):
        pixels = _array(image, channels, window, name)
        if channels not in (1, 3):
            return pixels
        image = Image.fromarray(pixels)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def _open(path):
    if not path.exists():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder, not a picture.")
    try:
        image = Image.open(path)
        if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError
        image.load()
    except Image.DecompressionBombError:
        raise ValueError(
            f"{str(path)!r} has more than {Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels, which may need gigabytes "
            "of memory. Scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS in Python."
        ) from None
    except UnidentifiedImageError:
        why = "not a picture in a format that Pillow reads" if path.stat().st_size else "empty (0 bytes); copy it again"
        raise ValueError(f"{str(path)!r} is {why}.") from None
    except Exception as error:  # a damaged file ends in whatever its decoder stumbles over
        raise ValueError(f"{str(path)!r} is damaged or cut short ({error}); copy or download it again.") from None
    return image


def _array(image, channels, window, name) -> np.ndarray:
    """Pixels (height, width[, channels]), channels last, uint8, of an array or a tensor."""
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = image.float() if image.is_floating_point() else image
        if image.is_floating_point() and not ((image >= 0) & (image <= 1)).all():
            raise ValueError(
                f"{name} is a tensor with values from {image.min():g} to {image.max():g}; a picture in a tensor is "
                f"uint8, or float in [0, 1]. {PREPARED}"
            )
        image = image.movedim(0, -1) if image.ndim == 3 else image
    elif not hasattr(image, "__array__"):
        raise TypeError(f"A picture is a path, PIL image, array or tensor, got {type(image).__name__}.")
    pixels = np.asarray(image)
    if pixels.dtype.kind not in "buif":
        raise TypeError(f"{name} must hold numbers, got an array of {pixels.dtype}.")
    taken = (1, 3, 4) if channels in (1, 3) else (channels,)  # grey, RGB and RGBA are made into one another
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[2] not in taken:
        raise ValueError(
            f"{name} must be (height, width) or (height, width, {' | '.join(map(str, taken))}), channels last (first "
            f"in a tensor), got {np.shape(image)}."
        )
    if 0 in pixels.shape:
        raise ValueError(f"{name} has no pixels: its shape is {pixels.shape}.")
    pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    if pixels.dtype == np.uint8:
        return pixels
    pixels = pixels.astype(np.float64)
    if not np.isfinite(pixels).all():
        raise ValueError(f"{name} holds NaN or infinite values; replace them first.")
    low, high = (0.0, 1.0) if window is None else window
    if window is None and not (0 <= pixels.min() and pixels.max() <= 1):
        low, high = float(pixels.min()), float(pixels.max())
        stretched = f"{name} has values from {low:g} to {high:g}; they are stretched from black to white."
        warnings.warn(f"{stretched} Pass window=(low, high) to choose.", stacklevel=4)
    return (255 * ((pixels - low) / max(high - low, 1e-12)).clip(0, 1)).round().astype(np.uint8)


def prepare(processor: object, picture: np.ndarray) -> torch.Tensor:
    """Pixel values (1, channels, h, w), float32, that `processor` makes of a uint8 picture (height, width, channels).

    Pillow resizes pictures of one or three channels only; others go through channel by channel."""
    given = {"return_tensors": "pt", "input_data_format": "channels_last"}
    if picture.shape[-1] in (1, 3):
        return processor([picture], **given)["pixel_values"].float()
    planes = zip(np.moveaxis(picture, -1, 0), processor.image_mean, processor.image_std, strict=True)
    single = [processor([p[..., None]], image_mean=[m], image_std=[d], **given)["pixel_values"] for p, m, d in planes]
    return torch.cat(single, 1).float()


def resized_and_cropped(size: tuple[int, int], processor: object) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """What `processor` says it does with a photo of (height, width).

    Returns:
        The size it resizes to, and the crop (top, left, height, width) that it takes of that.
    """
    scaled, target = size, getattr(processor, "do_resize", False) and processor.size or {}
    if edge := target.get("shortest_edge"):
        scale = edge / min(size)
        scaled = tuple(int(side * scale + 1e-6) for side in size)
    elif target.get("height") and target.get("width"):
        scaled = target["height"], target["width"]
    if not getattr(processor, "do_center_crop", False):
        return scaled, (0, 0, *scaled)
    cropped = processor.crop_size["height"], processor.crop_size["width"]
    starts = ((full - side) // 2 for full, side in zip(scaled, cropped, strict=True))
    return scaled, (*starts, *cropped)


def check_geometry(size: tuple[int, int], processor: object) -> None:
    """ValueError unless `processor` does with a photo of (height, width) what `resized_and_cropped` says.

    It is asked itself, once for each size: it prepares two ramps, whose grey says from where in the photo it comes."""
    key = (type(processor).__qualname__, processor.to_json_string(), size)
    if key not in _CHECKED:
        try:
            _CHECKED[key] = _deviation(size, processor)
        except Exception as error:  # another processor's own words for what it does not take
            _CHECKED[key] = f"asked, it fails: {error}"
    if _CHECKED[key] is not None:
        raise ValueError(
            f"Where {type(processor).__name__} looks in a photo of {size[0]}×{size[1]} is not known ({_CHECKED[key]}), "
            "so the map cannot be laid on the photo. Use a processor that resizes and crops the centre, such as "
            "transformers' ViTImageProcessorPil or BitImageProcessorPil."
        )


def _deviation(size, processor):
    mean = getattr(processor, "image_mean", None)
    channels = len(mean) if isinstance(mean, list | tuple) and len(mean) else 3

    def shown(values):  # (height, width) in [0, 255] → (h, w) as prepared
        grey = np.broadcast_to(np.round(values).astype(np.uint8)[..., None], (*values.shape, channels))
        return prepare(processor, np.ascontiguousarray(grey))[0, 0].double()

    scaled, (*starts, rows, columns) = resized_and_cropped(size, processor)
    blanks = [shown(np.full((64, 64), value)) for value in (0.0, 255.0)]
    black, white = (blank[blank.shape[0] // 2, blank.shape[1] // 2] for blank in blanks)
    expected = [  # where in the photo, from 0 to 1, each row and each column is said to come from
        (torch.arange(count, dtype=torch.float64) + 0.5 + start) / full
        for count, start, full in zip((rows, columns), starts, scaled, strict=True)
    ]
    inside = [(place > 0) & (place < 1) for place in expected]
    for axis, length in enumerate(size):
        ramp = (np.arange(length) + 0.5) / length * 255
        seen = shown(np.broadcast_to(ramp[:, None] if axis == 0 else ramp, size))
        if seen.shape != (rows, columns):
            return f"it makes {seen.shape[0]}×{seen.shape[1]} of it, not {rows}×{columns}"
        place = ((seen - black) / (white - black)).movedim(axis, 0)
        error = (place - expected[axis][:, None])[inside[axis]][:, inside[1 - axis]].abs().max()
        if not error <= 0.01 + 1 / scaled[axis] + 1 / length:  # grey steps, and the kernels of the two grids
            return f"its pixels come from elsewhere, by {100 * error:.0f} % of the {('height', 'width')[axis]}"
    return None


def to_photo(maps: torch.Tensor, sizes: Sequence[tuple[int, int]], processor: object) -> list[torch.Tensor]:
    """Maps back on the photos' own pixels, bilinearly; NaN outside of what the processor cropped.

    Args:
        maps: (B, r, c), at any resolution.
        sizes: B times (height, width) of a photo.
        processor: what the photos went through.

    Returns:
        B tensors (height, width), float32.

    Raises:
        ValueError: When it is not known where the processor looks in a photo.
    """
    if len(maps) != len(sizes):
        raise ValueError(f"{len(maps)} maps for {len(sizes)} photos.")
    results = []
    for single, size in zip(maps.detach().float().cpu(), sizes, strict=True):
        check_geometry(size, processor)
        scaled, crop = resized_and_cropped(size, processor)
        rows, columns = map(_weights, size, scaled, crop[:2], crop[2:], single.shape)
        results.append(rows @ single @ columns.T)
    return results


def _weights(length, scaled, start, cropped, n):
    """(length, n): the share of each of a map's n rows in every row of the photo; NaN outside the crop."""
    place = ((torch.arange(length, dtype=torch.float64) + 0.5) * scaled / length - start) / cropped
    at = (place * n - 0.5).clamp(0, n - 1)
    weights = (1 - (at[:, None] - torch.arange(n)).abs()).relu()
    weights[(place < 0) | (place > 1)] = torch.nan
    return weights.float()


def resize(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Maps (B, r, c) → (B, height, width), bilinearly, float32."""
    return F.interpolate(maps[:, None].float(), size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def minmax(maps: torch.Tensor) -> torch.Tensor:
    """Each map of (B, …) scaled to [0, 1]; a constant map becomes 0."""
    flat = maps.float().flatten(1)
    low, high = flat.aminmax(dim=1, keepdim=True)
    return ((flat - low) / (high - low).clamp_min(torch.finfo(flat.dtype).tiny)).view_as(maps)
