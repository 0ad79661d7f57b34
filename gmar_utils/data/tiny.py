"""Tiny-ImageNet: 200 classes, 64 × 64 pixels, with a box around each object."""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from tqdm import tqdm

from .sources import decode, find_source, from_hub, open_picture, quiet

if TYPE_CHECKING:
    from datasets import Dataset

TINY_IMAGENET = "zh-plus/tiny-imagenet"
CLASSES = Path(__file__).with_name("tiny_imagenet_classes.tsv")


def tiny_imagenet(split: str = "valid", source: str | Path | None = None) -> Dataset:
    """Tiny-ImageNet, decoded picture by picture.

    Args:
        split: train | valid.
        source: A folder of parquet files, the original folder or its zip, or a hub id; default: GMAR_TINY_IMAGENET,
            else the hub.

    Returns:
        Records of ``image`` (RGB), ``label`` (0 to 199 in the order of the wnids) and ``box`` (x0, y0, x1, y1 in
        pixels, x1 and y1 exclusive; None where the source has no boxes).

    Raises:
        FileNotFoundError: a file of the source is missing; it is named.
        ValueError: a file of the source is damaged, or holds labels of no class; it is named with its row.
        ConnectionError: the hub does not answer.
    """
    import datasets

    images, labels, boxes, names = _tiny_imagenet(split, source)
    features = datasets.Features(
        {
            "image": datasets.Image(decode=False),
            "label": datasets.ClassLabel(names=names),
            "box": datasets.List(datasets.Value("int16")),
        }
    )
    table = pa.table({"image": images, "label": labels, "box": boxes}).cast(features.arrow_schema)
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=features)).with_transform(decode)


def tiny_imagenet_arrays(
    split: str = "valid", source: str | Path | None = None, size: int = 64
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same pictures decoded once, for training.

    Args:
        split: As for `tiny_imagenet`.
        source: As for `tiny_imagenet`.
        size: Pixels; pictures of another size are resized.

    Returns:
        uint8 images (N, 3, size, size) and labels (N,).
    """
    images, labels, _, _ = _tiny_imagenet(split, source)
    pictures = (open_picture(image.as_py()) for image in images)
    return _arrays(pictures, len(images), size), torch.tensor(labels.to_numpy())


def words() -> list[str]:
    """Words for the 200 classes of Tiny-ImageNet, in the order of the wnids (the order of every source)."""
    with CLASSES.open(encoding="utf-8", newline="") as file:
        return [row["words"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def _arrays(pictures: Iterable[Image.Image], n: int, size: int) -> torch.Tensor:
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
        return _columns([(ds.data.table, f"{hub} {split}")], getattr(ds.features["label"], "names", None))
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
    shards = [_shard(file) for file in tqdm(files, desc="Reading shards", delay=2)]
    return _columns([(table, file) for (table, _), file in zip(shards, files, strict=True)], shards[0][1])


def _shard(file):
    """The table of one parquet file, from the cache of ``datasets``, and the names of its classes."""
    import datasets

    try:
        features = datasets.Features.from_arrow_schema(pq.read_schema(file))
        # plain numbers: `_columns` says which row has a label of no class, ClassLabel would not
        plain = datasets.Features(features | {"label": datasets.Value("int64"), "image": datasets.Image(decode=False)})
        if set(plain) == set(features):
            with quiet():
                shard = datasets.load_dataset("parquet", data_files=str(file), split="train", features=plain)
            return shard.data.table, getattr(features["label"], "names", None)
    except (OSError, ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        reason = error.__cause__ or error
        if getattr(reason, "errno", None):  # of the machine, such as a full disk, not of the file
            raise reason from None
        said = " ".join(str(reason).split())
        raise ValueError(f"{file}: not a complete parquet file ({said}). Download it again.") from error
    raise ValueError(f"{file}: expected columns image and label, got {list(features)}.")


def _columns(tables, names):
    """Columns of several (table, origin); the images' paths say which row they are, for error messages."""
    if names is None or len(names) != 200:
        origin = tables[0][1]
        raise ValueError(f"{origin}: expected the names of 200 classes (wnids), got {len(names or ())}.")
    images, labels, boxes = [], [], []
    for table, origin in tables:
        rows = [f"{origin} row {i}" for i in range(len(table))]
        image, label = (table[k].combine_chunks() for k in ("image", "label"))
        wrong = np.flatnonzero((label.to_numpy() < 0) | (label.to_numpy() > 199))
        if len(wrong):
            raise ValueError(f"{rows[wrong[0]]}: label {label[wrong[0]]}, expected 0 to 199. Fetch it again.")
        images.append(pa.StructArray.from_arrays([image.field("bytes"), pa.array(rows)], ["bytes", "path"]))
        labels.append(label)
        boxes += table["bbox"].to_pylist() if "bbox" in table.column_names else [None] * len(table)
    return pa.chunked_array(images), pa.chunked_array(labels).combine_chunks(), _exclusive(boxes), list(names)


def _exclusive(boxes):
    """Boxes that include their last pixels, as the data set writes them, to x1 and y1 exclusive."""
    return pa.array([box and [box[0], box[1], box[2] + 1, box[3] + 1] for box in boxes], pa.list_(pa.int16()))


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
    if len(wnids) != 200:
        raise ValueError(f"{path / 'wnids.txt'}: expected 200 classes (wnids), got {len(wnids)}.")
    return images, pa.array(labels, pa.int64()), _exclusive(boxes), wnids
