"""Pictures to explain and to train on: Tiny-ImageNet, VOC 2012 with masks, generated shapes, scikit-image's photos.

Every loader returns a Hugging Face ``datasets.Dataset`` whose pictures are decoded when they are read. A source is a
hub id or a local path, given as an argument or by environment variable; what is missing or broken is named with its
file.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from tqdm import tqdm

from . import shapes as _shapes

TINY_IMAGENET = "zh-plus/tiny-imagenet"
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


def _source(source, variable, hub):
    """(folder or file, hub id), one of them None."""
    source = str(source or os.environ.get(variable) or hub)
    path = Path(source).expanduser()
    if path.exists():
        return path, None
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not path.parent.is_dir():
        return None, source
    raise FileNotFoundError(f"{source}: no such file or folder. Give a local path or a hub id, or set {variable}.")


def _from_hub(name, split, variable, streaming=False):
    import datasets

    try:
        return datasets.load_dataset(name, split=split, streaming=streaming)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise ConnectionError(
            f"The data set {name} (split {split}) could not be fetched from the hub: {error}. Without a network, give "
            f"a local folder as source or set {variable}."
        ) from error


def _open(image, mode="RGB"):
    """Decode {'bytes', 'path'}; a broken picture raises ValueError with its file."""
    try:
        with Image.open(io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]) as picture:
            return picture.convert(mode) if mode else picture.copy()
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{image['path']}: not a complete picture ({error}). Fetch this file again.") from error


def _decode(batch):
    """The transform of every picture data set: decode ``image`` columns, pass the rest on."""
    decoded = dict(batch)
    if "image" in batch:
        decoded["image"] = [_open(v) for v in batch["image"]]
    if "mask" in batch:
        decoded["mask"] = [_class_mask(v) for v in batch["mask"]]
    return decoded


# --- Tiny-ImageNet


def tiny_imagenet(split="valid", source=None):
    """Tiny-ImageNet: ``image`` (RGB), ``label`` (0 to 199 in the order of the wnids), ``box`` (x0, y0, x1, y1 in
    pixels, x1 and y1 exclusive; None where the source has no boxes).

    source  a folder of parquet files, the original folder or its zip, or a hub id; default: GMAR_TINY_IMAGENET,
            else the hub
    """
    import datasets

    images, labels, boxes, names = _tiny_imagenet(split, source)
    features = datasets.Features({
        "image": datasets.Image(decode=False),
        "label": datasets.ClassLabel(names=names),
        "box": datasets.List(datasets.Value("int16")),
    })  # fmt: skip
    table = pa.table({"image": images, "label": labels, "box": boxes}).cast(features.arrow_schema)
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=features)).with_transform(_decode)


def tiny_imagenet_arrays(split="valid", source=None, size=64):
    """The same pictures decoded once, for training: uint8 (N, 3, size, size) and labels (N,). A local source needs no
    ``datasets`` package."""
    images, labels, _, _ = _tiny_imagenet(split, source)
    return _arrays((_open(image.as_py()) for image in images), len(images), size), torch.tensor(labels.to_numpy())


def _arrays(pictures, n, size):
    out = torch.empty(n, 3, size, size, dtype=torch.uint8)
    for i, picture in enumerate(tqdm(pictures, total=n, desc="Decoding", delay=2)):
        picture = picture if picture.size == (size, size) else picture.resize((size, size), Image.Resampling.BICUBIC)
        out[i] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return out


def _tiny_imagenet(split, source):
    """Pyarrow columns image (bytes, path), label, box, and the 200 wnids."""
    if split not in ("train", "valid"):
        raise ValueError(f"expected split 'train' or 'valid', got {split!r}")
    path, hub = _source(source, "GMAR_TINY_IMAGENET", TINY_IMAGENET)
    if hub:
        ds = _from_hub(hub, split, "GMAR_TINY_IMAGENET")
        table = ds.data.table.combine_chunks()
        return _columns(_named(table["image"], f"{hub} {split}"), table["label"], None, ds.features["label"].names, hub)
    if path.is_file():
        path = _unzip(path)
    if (path / "tiny-imagenet-200").is_dir():
        path = path / "tiny-imagenet-200"
    if (path / "wnids.txt").exists():
        return _original(path, split)
    files = sorted(path.rglob(f"{split}-*.parquet"))
    if not files:
        raise FileNotFoundError(
            f"{path}: expected {split}-*.parquet files or the original tiny-imagenet-200 folder with wnids.txt in it."
        )
    return _parquet(files)


def _unzip(path):
    from datasets import DownloadManager

    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not a complete zip file. Download it again.")
    return Path(DownloadManager().extract(str(path)))


def _parquet(files):
    shard = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.parquet", files[0].name)
    for i in range(int(shard[2]) if shard else 0):
        file = files[0].with_name(f"{shard[1]}-{i:05d}-of-{shard[2]}.parquet")
        if not file.exists():
            raise FileNotFoundError(f"{file}: this shard is missing. Download it into the folder.")
    images, tables = [], []
    for file in files:
        try:
            table = pq.read_table(file).combine_chunks()
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{file}: not a complete parquet file ({error}). Download it again.") from error
        if not {"image", "label"} <= set(table.column_names):
            raise ValueError(f"{file}: expected columns image and label, got {table.column_names}.")
        _check_labels(table["label"].to_numpy(), [f"{file} row {i}" for i in range(len(table))])
        images += _named(table["image"], file).chunks
        tables.append(table)
    table = pa.concat_tables(t.drop_columns("image") for t in tables)
    boxes = np.array(table["bbox"].to_pylist()) if "bbox" in table.column_names else None
    info = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    names = info.get("info", {}).get("features", {}).get("label", {}).get("names")
    return _columns(pa.chunked_array(images), table["label"], boxes, names, files[0])


def _named(images, origin):
    """Image structs whose path says where they come from (shards leave it empty), for error messages."""
    images = images.chunk(0)
    paths = pa.array([f"{origin} row {i}" for i in range(len(images))])
    return pa.chunked_array([pa.StructArray.from_arrays([images.field("bytes"), paths], ["bytes", "path"])])


def _columns(images, labels, boxes, names, origin):
    if names is None or len(names) != 200:
        raise ValueError(f"{origin}: expected the names of 200 classes (wnids), got {len(names or ())}.")
    boxes = (
        pa.nulls(len(labels)) if boxes is None else pa.array((boxes + [0, 0, 1, 1]).tolist())
    )  # they include the end
    return images, labels, boxes, list(names)


def _check_labels(labels, files, classes=200):
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise ValueError(f"{files[wrong[0]]}: label {labels[wrong[0]]}, expected 0 to {classes - 1}. Fetch it again.")


def _original(path, split):
    """The folder as Stanford ships it. Listing files only; pictures are read when asked for."""
    wnids = sorted((path / "wnids.txt").read_text().split())
    number = {w: i for i, w in enumerate(wnids)}
    files, labels, boxes = [], [], []

    def annotation(file):
        if not file.exists():
            raise FileNotFoundError(f"{file}: this annotation file is missing. Unpack the archive again.")
        for k, line in enumerate(file.read_text().splitlines(), 1):
            try:
                name, *middle, x0, y0, x1, y1 = line.split("\t")
                yield name, middle, [int(x0), int(y0), int(x1), int(y1)]
            except ValueError:
                raise ValueError(f"{file} line {k}: expected a file name and a box, got {line!r}.") from None

    if split == "valid":
        for name, (wnid,), box in annotation(path / "val" / "val_annotations.txt"):
            if wnid not in number:
                raise ValueError(f"{path / 'val' / 'val_annotations.txt'}: {name} has label {wnid}, not in wnids.txt.")
            files.append(path / "val" / "images" / name)
            labels.append(number[wnid])
            boxes.append(box)
    else:
        for wnid in wnids:
            for name, _, box in annotation(path / "train" / wnid / f"{wnid}_boxes.txt"):
                files.append(path / "train" / wnid / "images" / name)
                labels.append(number[wnid])
                boxes.append(box)
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"{file}: listed in the annotations, but missing. Unpack the archive again.")
    names = pa.array([str(f) for f in files])
    empty = pa.nulls(len(files), pa.binary())
    images = pa.chunked_array([pa.StructArray.from_arrays([empty, names], ["bytes", "path"])])
    return _columns(images, pa.array(labels), np.array(boxes), wnids, path)


def words():
    """Words for the 200 classes of Tiny-ImageNet, in the order of the wnids (the order of every source)."""
    config = json.loads((Path(__file__).parent / "checkpoints/vit-tiny-imagenet/config.json").read_text())
    return [config["id2label"][str(i)] for i in range(200)]


# --- VOC 2012 segmentation


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
    path, hub = _source(source, "GMAR_VOC2012", VOC2012)
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
    return datasets.Dataset.from_list(rows, features=features).with_transform(_decode)


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

    ds = _from_hub(name, split, "GMAR_VOC2012")
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
    picture = _open(mask, mode=None)
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


# --- Generated shapes


def shapes(n, size=64, seed=0, objects=1, occlusion=0.0):
    """Generated scenes (see `gmar_utils.shapes`), one record per object: ``image``, ``label``, ``mask`` (uint8 PIL
    image, 1 the visible object, 0 the rest), ``box`` (x1 and y1 exclusive), ``scene`` (0 to n − 1), ``hidden`` (share
    covered)."""
    import datasets

    made = _shapes.scenes(n, size, seed, objects, occlusion)
    which = np.repeat(np.arange(n), objects)
    masks = made.masks.reshape(-1, size, size).astype(np.uint8)
    features = datasets.Features({
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list(_shapes.CLASSES)),
        "mask": datasets.Image(),
        "box": datasets.List(datasets.Value("int64")),
        "scene": datasets.Value("int64"),
        "hidden": datasets.Value("float64"),
    })  # fmt: skip
    columns = {
        "image": [Image.fromarray(made.images[i]) for i in which],
        "label": made.labels.ravel(),
        "mask": [Image.fromarray(m) for m in masks],
        "box": made.boxes.reshape(-1, 4),
        "scene": which,
        "hidden": np.repeat(made.hidden, objects),
    }
    return datasets.Dataset.from_dict(columns, features=features)


# --- Photos that need no download

PHOTOS = {"cat": "chelsea", "coffee": "coffee", "rocket": "rocket", "astronaut": "astronaut", "camera": "camera"}


def photo(name):
    """One of scikit-image's own photos (`PHOTOS`, all inside its wheel), as an RGB picture."""
    if name not in PHOTOS:
        raise ValueError(f"expected one of {', '.join(PHOTOS)}, got {name!r}")
    import skimage.data

    return Image.fromarray(getattr(skimage.data, PHOTOS[name])()).convert("RGB")


def cat_and_coffee():
    """The book's picture: the cat beside its coffee, 450 × 300; 3 : 2, like both photos it is cut from.

    Show it to a model at that shape, such as `load_model("vit-tiny-imagenet", image_size=(64, 96))`."""
    cat, coffee = photo("cat"), photo("coffee")
    picture = Image.new("RGB", (450, 300))
    picture.paste(cat.crop((113, 0, 338, 300)), (0, 0))
    picture.paste(coffee.crop((150, 0, 450, 400)).resize((225, 300), Image.Resampling.LANCZOS), (225, 0))
    return picture


def star_and_cross():
    """A scene of two generated shapes that vit-shapes both names, for questions about two classes: the picture,
    256 × 256, and the mask of each object, {"star": (256, 256) bool array, "cross": …}."""
    made = _shapes.scenes(1, 256, seed=8, objects=2, start=20)
    names = [_shapes.CLASSES[k] for k in made.labels[0]]
    return Image.fromarray(made.images[0]), dict(zip(names, made.masks[0], strict=True))
