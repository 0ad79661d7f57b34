"""VOC 2012 segmentation: photos with masks, and which classes of a model count as a VOC class."""

from __future__ import annotations

import csv
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from .sources import decode, find_source, from_hub, open_picture

if TYPE_CHECKING:
    import datasets

VOC2012 = "nateraw/pascal-voc-2012"
VOID = 255


def _ids(text):
    """Class ids of spans: "11 20-22" → (11, 20, 21, 22)."""
    ends = [[int(end) for end in span.split("-")] for span in text.split()]
    return tuple(k for e in ends for k in range(e[0], e[-1] + 1))


# VOC's classes in their order, and which classes of a model count as one; person, for one, has no counterpart.
with Path(__file__).with_name("voc_classes.tsv").open(encoding="utf8", newline="") as file:
    _ROWS = list(csv.DictReader(file, delimiter="\t"))
VOC_CLASSES = tuple(row["class"] for row in _ROWS)
VOC_TO_TINY_IMAGENET, VOC_TO_IMAGENET = (
    {row["class"]: _ids(row[k]) for row in _ROWS if row[k]} for k in ("tiny_imagenet", "imagenet")
)


def voc2012(
    source: str | Path | None = None, split: str = "val", classes: int = 200, mapped: bool = True
) -> datasets.Dataset:
    """VOC 2012 segmentation, one record per image and object class in it, as the comparative report evaluates.

    Args:
        source: A VOCdevkit or VOC2012 folder, or a hub id with columns image and mask; default: GMAR_VOC2012, else the
            hub.
        split: val | train | trainval.
        classes: How many classes the model has: 200 (Tiny-ImageNet) or 1000 (ImageNet) choose the label table.
        mapped: False: the records whose class the model has no counterpart of, instead of the others.

    Returns:
        Records of ``image``, ``mask`` (uint8 PIL image: 1 the class, 0 everything else, 255 void), ``label`` (VOC
        class, 1 to 20), ``targets`` (the model's classes that count as this one), ``file`` (the image's id).

    Raises:
        FileNotFoundError: a file of the source is missing; it is named.
        ValueError: another number of classes, or a damaged file; it is named.
    """
    import datasets

    rows = [
        {"image": image, "mask": {**mask, "class": label}, "label": label, "targets": targets, "file": name}
        for name, image, mask, found in _voc_classes(source, split, classes)
        for label, targets in found.items()
        if bool(targets) == mapped
    ]
    features = {
        "image": datasets.Image(decode=False),
        "mask": _mask_feature(),
        "label": datasets.ClassLabel(names=list(VOC_CLASSES)),
        "targets": datasets.List(datasets.Value("int64")),
        "file": datasets.Value("string"),
    }
    return _dataset(rows, features)


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
    import datasets

    rows = []
    for name, image, mask, found in _voc_classes(source, split, classes):
        for pair in combinations([label for label, targets in found.items() if targets], 2):
            masks = [{**mask, "class": label} for label in pair]
            groups = [found[label] for label in pair]
            rows.append({"image": image, "masks": masks, "groups": groups, "file": name})
    features = {
        "image": datasets.Image(decode=False),
        "masks": datasets.List(_mask_feature()),
        "groups": datasets.List(datasets.List(datasets.Value("int64"))),
        "file": datasets.Value("string"),
    }
    return _dataset(rows, features)


def _mask_feature():
    import datasets

    return {"bytes": datasets.Value("binary"), "path": datasets.Value("string"), "class": datasets.Value("int64")}


def _dataset(rows, features):
    import datasets

    made = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    return made.with_transform(partial(decode, decode_mask=_class_mask))


def _voc_classes(source, split, classes):
    """(id, image, mask, {VOC class in it: the model's classes that count as it}) of each photo."""
    tables = {200: VOC_TO_TINY_IMAGENET, 1000: VOC_TO_IMAGENET}
    if classes not in tables:
        raise ValueError(f"expected classes 200 (Tiny-ImageNet) or 1000 (ImageNet), got {classes}.")
    path, hub = find_source(source, "GMAR_VOC2012", VOC2012)
    for name, image, mask in tqdm(_voc_hub(hub, split) if hub else _voc_folder(path, split), "VOC masks", delay=2):
        found = np.flatnonzero(np.bincount(_voc_mask(mask).ravel(), minlength=256)).tolist()
        labels = [label for label in found if label not in (0, VOID)]
        yield name, image, mask, {label: list(tables[classes].get(VOC_CLASSES[label], ())) for label in labels}


def _voc_folder(path, split):
    """[(id, image, mask)] of a VOCdevkit, VOC2012 or any folder above them."""
    roots = (path, path / "VOC2012", path / "VOCdevkit" / "VOC2012")
    root = next((r for r in roots if (r / "ImageSets").is_dir()), None)
    if root is None:
        raise FileNotFoundError(f"{path}: expected a VOCdevkit or VOC2012 folder with ImageSets in it.")
    listing = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not listing.exists():
        raise FileNotFoundError(f"{listing}: this list of images is missing. Unpack the archive again.")
    pairs = []
    for name in listing.read_text().split():
        files = root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png"
        for file in files:
            if not file.exists():
                raise FileNotFoundError(f"{file}: listed in {listing.name}, but missing. Unpack the archive again.")
        pairs.append((name, *({"bytes": None, "path": str(f)} for f in files)))
    return pairs


def _voc_hub(name, split):
    import datasets

    ds = from_hub(name, split, "GMAR_VOC2012")
    ds = ds.cast_column("image", datasets.Image(decode=False)).cast_column("mask", datasets.Image(decode=False))
    return [
        (str(i), *({**row[k], "path": f"{name} {split} row {i} ({k})"} for k in ("image", "mask")))
        for i, row in enumerate(ds)
    ]


def _voc_palette():
    """The colours (256, 3) of VOC masks: the bits of the class number dealt out to red, green and blue."""
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    colours = np.zeros((256, 3), int)
    for i in range(8):
        colours[:, i % 3] |= bits[:, i] << (7 - i // 3)
    return colours


def _voc_mask(mask):
    """Class numbers (height, width) of a mask file, checked; coloured masks are read through VOC's palette."""
    picture = open_picture(mask, mode=None)
    values = np.asarray(picture if picture.mode in ("P", "L") else picture.convert("RGB"))
    if values.ndim == 3:
        packed = values.astype(int) @ (65536, 256, 1)
        colours = _voc_palette() @ (65536, 256, 1)
        order = np.argsort(colours)
        found = order[np.searchsorted(colours, packed, sorter=order).clip(max=255)]
        values = np.where(colours[found] == packed, found, 254)
    wrong = np.flatnonzero(np.bincount(values.ravel(), minlength=256)[len(VOC_CLASSES) : VOID]) + len(VOC_CLASSES)
    if len(wrong):
        raise ValueError(f"{mask['path']}: mask values {wrong.tolist()}, expected 0 to 20 and 255. Fetch it again.")
    return values


def _class_mask(mask):
    values = _voc_mask(mask)
    return Image.fromarray(np.where(values == VOID, VOID, values == mask["class"]).astype(np.uint8))


def best_target(logits: torch.Tensor, targets: list[list[int]]) -> torch.Tensor:
    """The best-scoring of each record's ``targets``: logits (B, K) and B lists of class ids, to a (B,) tensor."""
    return torch.stack([ids[row[ids].argmax()] for row, ids in zip(logits, map(torch.tensor, targets), strict=True)])
