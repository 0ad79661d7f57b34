"""Tiny-ImageNet: 200 classes, 64 × 64 pixels, with a box around each object."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from tqdm import tqdm

from .sources import decode, find_source, from_hub, open_picture

TINY_IMAGENET = "zh-plus/tiny-imagenet"


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
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=features)).with_transform(decode)


def tiny_imagenet_arrays(split="valid", source=None, size=64):
    """The same pictures decoded once, for training: uint8 (N, 3, size, size) and labels (N,). A local source needs no
    ``datasets`` package."""
    images, labels, _, _ = _tiny_imagenet(split, source)
    pictures = (open_picture(image.as_py()) for image in images)
    return _arrays(pictures, len(images), size), torch.tensor(labels.to_numpy())


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
    path, hub = find_source(source, "GMAR_TINY_IMAGENET", TINY_IMAGENET)
    if hub:
        ds = from_hub(hub, split, "GMAR_TINY_IMAGENET")
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
    config = json.loads((Path(__file__).parents[1] / "checkpoints/vit-tiny-imagenet/config.json").read_text())
    return [config["id2label"][str(i)] for i in range(200)]
