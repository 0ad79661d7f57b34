"""The reader's photos, with labels and masks where there are some; what cannot be read is named, and left out."""

import csv
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..model import Vit
from ..photo import Picture, Pictures, as_list, read_photo

PICTURES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif"}


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo that the model takes.

    Attributes:
        name: its file's name, or "photo 3".
        image: as `read_photo` gives it.
        pixel_values: (1, channels, height, width).
        label: the class that it shows, or None.
        mask: (height, width) uint8 on the photo's pixels: 0 background, 255 void, else the object; or None.
        key: a digest of all that, by which its results are kept.
    """

    name: str
    image: Image.Image | np.ndarray
    pixel_values: torch.Tensor
    label: int | None
    mask: torch.Tensor | None
    key: str

    @property
    def picture(self) -> Image.Image:
        """The photo to look at: of a model with neither 1 nor 3 channels the first channel."""
        if isinstance(self.image, Image.Image):
            return self.image.convert("RGB")
        return Image.fromarray(np.ascontiguousarray(self.image[..., 0])).convert("RGB")


def read_photos(
    vit: Vit,
    photos: Pictures | Mapping[str, Picture] | Sequence[Mapping],
    labels: Mapping[str, str | int] | str | os.PathLike | None = None,
    masks: Mapping[str, Picture] | str | os.PathLike | None = None,
) -> tuple[list[Photo], list[str]]:
    """The photos that can be used, and a sentence for each thing that cannot.

    Args:
        vit: the model; its processor prepares the photos.
        photos: pictures as `Vit.preprocess` takes them, folders of them, {name: picture}, or a sequence of records
            {"image", and "label", "mask", "box" (x0, y0, x1, y1) where known}.
        labels: {file name: label word or class id}, or a CSV file with the columns file, label and, where the object's
            box is known, x0, y0, x1, y1 (pixels, x1 and y1 exclusive).
        masks: {file name: picture}, or a folder with a picture of the same stem for each photo.

    Raises:
        ValueError: when no photo can be used; when the labels' file is not such a table.
    """
    listed = _listed(photos)
    words, boxes = read_labels(labels)
    found, problems = [], []
    for name, record in listed:
        try:
            image = read_photo(record["image"], vit.channels)
            values = vit.preprocess([record["image"]])
        except (OSError, ValueError, TypeError, MemoryError) as error:
            problems.append(f"{name}: {' '.join(str(error).split())}")
            continue
        label, mask = record.get("label", _of(words, name)), None
        try:
            label = None if label is None else vit.class_id(label)
        except (ValueError, IndexError, TypeError) as error:
            label, _ = None, problems.append(f"The label of {name} is left out: {error}")
        try:
            mask = _mask(record, _of(boxes, name), masks, name, np.asarray(image).shape[:2])
        except (OSError, ValueError, TypeError) as error:
            problems.append(f"The mask of {name} is left out: {error}")
        digest = hashlib.sha256(values.cpu().float().numpy().tobytes())
        digest.update(repr((name, label)).encode())
        if mask is not None:
            digest.update(mask.numpy().tobytes())
        found.append(Photo(name, image, values, label, mask, digest.hexdigest()[:16]))
    twice = {p.key for p in found if [q.key for q in found].count(p.key) > 1}
    if twice:
        problems.append(f"{len(found) - len({p.key for p in found})} photos are there twice, and count once.")
        found = list({p.key: p for p in found}.values())
    if not found:
        raise ValueError("No photo can be used. " + " ".join(problems))
    return found, problems


def read_labels(labels: Mapping[str, str | int] | str | os.PathLike | None) -> tuple[dict, dict]:
    """{file: label} and {file: box} of a mapping or a CSV file. ValueError for another kind of table."""
    if labels is None:
        return {}, {}
    if isinstance(labels, Mapping):
        return {str(name): label for name, label in labels.items()}, {}
    with open(labels, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"file", "label"} <= set(rows[0]):
        raise ValueError(f"{str(labels)!r} must be a CSV file with the columns file and label, and one row a photo.")
    words = {r["file"]: r["label"].strip() for r in rows if (r["label"] or "").strip()}
    sides = ("x0", "y0", "x1", "y1")
    try:
        boxes = {r["file"]: [float(r[s]) for s in sides] for r in rows if all((r.get(s) or "").strip() for s in sides)}
    except ValueError as error:
        raise ValueError(f"The boxes in {str(labels)!r} must be numbers: {error}.") from None
    return words, boxes


def _listed(photos):
    """[(name, record)], folders opened; names are told apart."""
    if isinstance(photos, Mapping):
        pairs = [(str(name), {"image": image}) for name, image in photos.items()]
    elif hasattr(photos, "__getitem__") and len(photos) and isinstance(photos[0], Mapping):
        pairs = [(f"photo {i + 1}", photos[i]) for i in range(len(photos))]
    else:
        pairs = []
        for i, image in enumerate(as_list(photos)):
            if isinstance(image, str | os.PathLike) and Path(image).is_dir():
                inside = sorted(p for p in Path(image).rglob("*") if p.suffix.lower() in PICTURES)
                pairs += [(str(p.relative_to(image)), {"image": p}) for p in inside]
            else:
                named = Path(image).name if isinstance(image, str | os.PathLike) else f"photo {i + 1}"
                pairs.append((named, {"image": image}))
    seen: dict[str, int] = {}
    for i, (name, record) in enumerate(pairs):
        seen[name] = seen.get(name, 0) + 1
        pairs[i] = (name if seen[name] == 1 else f"{name} ({seen[name]})", record)
    return pairs


def _of(table, name):
    """An entry by the photo's path, its name, or its name without the ending."""
    path = Path(name)
    return next((table[k] for k in (name, path.as_posix(), path.name, path.stem) if k in table), None)


def _mask(record, box, masks, name, size):
    given = record.get("mask")
    if given is None and isinstance(masks, Mapping):
        given = _of(masks, name)
    elif given is None and masks is not None:
        given = next((p for p in sorted(Path(masks).rglob(f"{_escaped(Path(name).stem)}.*")) if p.is_file()), None)
    if given is None:
        box = record.get("box", box)
        return None if box is None else _filled(box, size)
    if isinstance(given, str | os.PathLike):
        with Image.open(given) as file:
            given = file if file.mode in ("1", "L", "P", "I", "I;16") else file.convert("L")
            given = np.array(given)
    mask = torch.from_numpy(np.array(given).astype(np.uint8))
    if tuple(mask.shape) != size:
        raise ValueError(f"it is {tuple(mask.shape)}, and the photo {size} (height, width).")
    if set(mask.unique().tolist()) <= {0, 255}:  # a binary mask saved as a picture
        mask = (mask > 0).to(torch.uint8)
    if not ((mask > 0) & (mask < 255)).any():
        raise ValueError("it marks no object.")
    return mask


def _escaped(stem):
    return "".join(f"[{c}]" if c in "*?[" else c for c in stem)


def _filled(box, size):
    x0, y0, x1, y1 = (round(float(v)) for v in box)
    mask = torch.zeros(size, dtype=torch.uint8)
    mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = 1
    if not mask.any():
        raise ValueError(f"the box ({x0}, {y0}, {x1}, {y1}) holds no pixel of the photo {size} (height, width).")
    return mask
