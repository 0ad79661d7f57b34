"""VOC 2012 segmentation: photos with masks, and which classes of a model count as a VOC class."""

from functools import partial
from itertools import combinations
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from .sources import decode, find_source, from_hub, open_picture

VOID = 255


def _ids(text):
    """Class ids of spans: "11 20-22" → (11, 20, 21, 22)."""
    ends = [[int(end) for end in span.split("-")] for span in text.split()]
    return tuple(k for e in ends for k in range(e[0], e[-1] + 1))


# VOC's classes in their order, and which classes of a model count as one; person, for one, has no counterpart.
_LINES = Path(__file__).with_name("voc_classes.tsv").read_text(encoding="utf8").splitlines()
_ROWS = [line.split("\t") for line in _LINES[1:]]
VOC_CLASSES = tuple(name for name, *_ in _ROWS)
VOC_TO_TINY_IMAGENET = {name: _ids(tiny) for name, tiny, _, _ in _ROWS if tiny}
VOC_TO_IMAGENET = {name: _ids(imagenet) for name, _, imagenet, _ in _ROWS if imagenet}


def voc2012(source: str | Path | None = None, split: str = "val", classes: int = 200) -> datasets.Dataset:
    """VOC 2012 segmentation, one record per image and object class in it that the model has labels for.

    Args:
        source: A VOCdevkit or VOC2012 folder, or a hub id with columns image and mask; default: GMAR_VOC2012, else the
            hub.
        split: val | train | trainval.
        classes: How many classes the model has: 200 (Tiny-ImageNet) or 1000 (ImageNet) choose the label table.

    Returns:
        Records of ``image``, ``mask`` (uint8 PIL image: 1 the class, 0 everything else, 255 void), ``label`` (VOC
        class, 1 to 20), ``targets`` (the model's classes that count as this one), ``file`` (the image's id).

    Raises:
        FileNotFoundError: a file of the source is missing; it is named.
        ValueError: another number of classes, or a damaged file; it is named.
    """
    return _dataset(
        {"image": image, "mask": mask, "label": label, "targets": targets, "file": name}
        for name, image, found in _voc_classes(source, split, classes)
        for mask, label, targets in found
    )


def voc_pairs(source: str | Path | None = None, split: str = "val", classes: int = 200) -> datasets.Dataset:
    """Photos of VOC 2012 with two object classes that a model has labels for: the same photo, two questions.

    A photo of three such classes gives three records of the same ``file``: intervals are to be drawn by file.

    Args:
        source: As for `voc2012`.
        split: As for `voc2012`.
        classes: As for `voc2012`.

    Returns:
        Records of ``image``, ``masks`` (two uint8 PIL images: 1 the class, 0 everything else, 255 void), ``groups``
        (for each of the two the model's classes that count as it) and ``file``; `shape_pairs` has the same layout.

    Raises:
        FileNotFoundError, ValueError: as `voc2012`.
    """
    return _dataset(
        {"image": image, "masks": masks, "groups": groups, "file": name}
        for name, image, found in _voc_classes(source, split, classes)
        for masks, _, groups in (zip(*pair, strict=True) for pair in combinations(found, 2))
    )


def _dataset(rows):
    readers = {"image": open_picture, "mask": _class_mask, "masks": lambda masks: [_class_mask(m) for m in masks]}
    return datasets.Dataset.from_list(list(rows)).with_transform(partial(decode, **readers))


def _voc_classes(source, split, classes):
    """(id, image, [(mask, VOC class, the model's classes that count as it)] for each class that the model knows)."""
    tables = {200: VOC_TO_TINY_IMAGENET, 1000: VOC_TO_IMAGENET}
    if classes not in tables:
        raise ValueError(f"expected classes 200 (Tiny-ImageNet) or 1000 (ImageNet), got {classes}.")
    known = {VOC_CLASSES.index(name): targets for name, targets in tables[classes].items()}
    path, hub = find_source(source, "GMAR_VOC2012", "nateraw/pascal-voc-2012")
    photos = list(_voc_hub(hub, split) if hub else _voc_folder(path, split))
    for name, image, mask in tqdm(photos, "VOC masks", delay=2):
        labels = [label for label in _values(_voc_mask(mask)) if label in known]
        yield name, image, [({**mask, "class": label}, label, known[label]) for label in labels]


def _voc_folder(path, split):
    """(id, image, mask) of each photo of a VOCdevkit, VOC2012 or any folder above them."""
    roots = (path, path / "VOC2012", path / "VOCdevkit" / "VOC2012")
    root = next((r for r in roots if (r / "ImageSets").is_dir()), None)
    if root is None:
        raise FileNotFoundError(f"{path}: expected a VOCdevkit or VOC2012 folder with ImageSets in it.")
    listing = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not listing.exists():
        raise FileNotFoundError(f"{listing}: this list of images is missing. Unpack the archive again.")
    for name in listing.read_text().split():
        files = root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png"
        for file in files:
            if not file.exists():
                raise FileNotFoundError(f"{file}: listed in {listing.name}, but missing. Unpack the archive again.")
        yield name, *({"bytes": None, "path": str(file)} for file in files)


def _voc_hub(name, split):
    ds = from_hub(name, split, "GMAR_VOC2012")
    ds = ds.cast_column("image", datasets.Image(decode=False)).cast_column("mask", datasets.Image(decode=False))
    for i, row in enumerate(ds):
        yield str(i), *({**row[k], "path": f"{name} {split} row {i} ({k})"} for k in ("image", "mask"))


def _voc_palette():
    """The colours (256, 3) of VOC masks: the bits of the class number dealt out to red, green and blue."""
    bits = np.arange(256)[:, None] >> np.arange(3)
    return sum((bits >> 3 * i & 1) << 7 - i for i in range(3))


def _voc_mask(mask):
    """Class numbers (height, width) of a mask file, checked; coloured masks are read through VOC's palette."""
    picture = open_picture(mask, mode=None)
    values = np.asarray(picture if picture.mode in ("P", "L") else picture.convert("RGB"))
    if values.ndim == 3:
        colours, where = np.unique(values @ np.array([65536, 256, 1]), return_inverse=True)
        numbers = {colour: k for k, colour in enumerate(_voc_palette() @ (65536, 256, 1))}
        values = np.array([numbers.get(colour, 254) for colour in colours])[where]
    if wrong := [value for value in _values(values) if len(VOC_CLASSES) <= value < VOID]:
        raise ValueError(f"{mask['path']}: mask values {wrong}, expected 0 to 20 and 255. Fetch it again.")
    return values


def _values(mask):
    return np.flatnonzero(np.bincount(mask.ravel())).tolist()


def _class_mask(mask):
    values = _voc_mask(mask)
    return Image.fromarray(np.where(values == VOID, VOID, values == mask["class"]).astype(np.uint8))


def best_target(logits: torch.Tensor, targets: list[list[int]]) -> torch.Tensor:
    """The best-scoring of each record's ``targets``: logits (B, K) and B lists of class ids, to a (B,) tensor."""
    return torch.stack([ids[row[ids].argmax()] for row, ids in zip(logits, map(torch.tensor, targets), strict=True)])
