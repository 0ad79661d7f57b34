"""VOC 2012 segmentation: photos with masks, and which classes of a model count as a VOC class."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from .sources import decode, find_source, from_hub, open_picture

VOC2012 = "nateraw/pascal-voc-2012"
VOID = 255
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
# Which classes of a model count as a VOC class. Classes without an entry (person, for one) have no counterpart.
VOC_TO_TINY_IMAGENET = {
    "bird": (11, 20, 21, 22),  # goose, black stork, king penguin, albatross
    "boat": (108, 115),  # gondola, lifeboat
    "bottle": (73, 130, 135),  # beer, pill and pop bottle
    "bus": (145, 166),  # school bus, trolleybus
    "car": (70, 94, 116, 133, 153),  # beach wagon, convertible, limousine, police van, sports car
    "cat": (30, 31, 32),  # tabby, Persian and Egyptian cat
    "chair": (142,),  # rocking chair
    "cow": (49,),  # ox
    "diningtable": (98,),
    "dog": (24, 25, 26, 27, 28, 29),  # Chihuahua to standard poodle
    "sheep": (51,),  # bighorn
    "train": (81, 103),  # bullet train, freight car
}
VOC_TO_IMAGENET = {
    "aeroplane": (404, 895),  # airliner, warplane
    "bicycle": (444, 671),  # tandem, mountain bike
    "bird": (*range(7, 25), *range(80, 101), *range(127, 147)),
    "boat": (472, 484, 554, 576, 625, 628, 724, 780, 814, 871, 914),
    "bottle": (440, 720, 737, 898, 899, 907),
    "bus": (654, 779, 874),
    "car": (407, 436, 468, 511, 609, 627, 656, 661, 751, 817),
    "cat": (281, 282, 283, 284, 285),
    "chair": (423, 559, 765),
    "cow": (345,),  # ox
    "diningtable": (532,),
    "dog": tuple(range(151, 269)),
    "horse": (339,),  # sorrel
    "motorbike": (665, 670),  # moped, motor scooter
    "pottedplant": (738,),
    "sheep": (348, 349),  # ram, bighorn
    "sofa": (831,),  # studio couch
    "train": (466, 547, 565, 705, 820),
    "tvmonitor": (664, 782, 851),
}


def voc2012(source=None, split="val", classes=200, mapped=True):
    """VOC 2012 segmentation, one record per image and object class in it, as the comparative report evaluates:
    ``image``, ``mask`` (uint8 PIL image: 1 the class, 0 everything else, 255 void), ``label`` (VOC class, 1 to 20),
    ``targets`` (the model's classes that count as this one), ``file`` (the image's id).

    source   a VOCdevkit or VOC2012 folder, or a hub id with columns image and mask; default: GMAR_VOC2012, else the hub
    classes  how many classes the model has: 200 (Tiny-ImageNet) or 1000 (ImageNet) choose the label table
    mapped   False: the records whose class the model has no counterpart of, instead of the others
    """
    import datasets

    tables = {200: VOC_TO_TINY_IMAGENET, 1000: VOC_TO_IMAGENET}
    if classes not in tables:
        raise ValueError(f"expected classes 200 (Tiny-ImageNet) or 1000 (ImageNet), got {classes}.")
    path, hub = find_source(source, "GMAR_VOC2012", VOC2012)
    pairs = _voc_hub(hub, split) if hub else _voc_folder(path, split)
    rows = []
    for name, image, mask in tqdm(pairs, desc="VOC masks", delay=2):
        for label in np.unique(_voc_mask(mask)):
            if label not in (0, VOID):
                targets = list(tables[classes].get(VOC_CLASSES[label], ()))
                rows.append({"image": image, "mask": {**mask, "class": int(label)}, "label": int(label),
                             "targets": targets, "file": name})  # fmt: skip
    rows = [r for r in rows if bool(r["targets"]) == mapped]
    picture = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({
        "image": datasets.Image(decode=False),
        "mask": {**picture, "class": datasets.Value("int64")},
        "label": datasets.ClassLabel(names=list(VOC_CLASSES)),
        "targets": datasets.List(datasets.Value("int64")),
        "file": datasets.Value("string"),
    })  # fmt: skip
    return datasets.Dataset.from_list(rows, features=features).with_transform(partial(decode, decode_mask=_class_mask))


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
    values = np.asarray(picture if picture.mode in ("P", "L") else picture.convert("RGB")).astype(int)
    if values.ndim == 3:
        packed = values @ (65536, 256, 1)
        colours = _voc_palette() @ (65536, 256, 1)
        order = np.argsort(colours)
        found = order[np.searchsorted(colours, packed, sorter=order).clip(max=255)]
        values = np.where(colours[found] == packed, found, 254)
    wrong = np.setdiff1d(values, [*range(len(VOC_CLASSES)), VOID])
    if len(wrong):
        raise ValueError(f"{mask['path']}: mask values {wrong.tolist()}, expected 0 to 20 and 255. Fetch it again.")
    return values


def _class_mask(mask):
    values = _voc_mask(mask)
    return Image.fromarray(np.where(values == VOID, VOID, values == mask["class"]).astype(np.uint8))


def best_target(logits, targets):
    """The best-scoring of each record's ``targets``: logits (B, K) and B lists of class ids, to a (B,) tensor."""
    return torch.stack([ids[row[ids].argmax()] for row, ids in zip(logits, map(torch.tensor, targets), strict=True)])
