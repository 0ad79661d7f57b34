"""Tiny-ImageNet: 200 classes, 64 × 64 pixels, with a box around each object."""

import re
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from .sources import decode, find_source, from_hub, open_picture

CLASSES = Path(__file__).with_name("tiny_imagenet_classes.tsv")


def tiny_imagenet(split: str = "valid", source: str | Path | None = None) -> datasets.Dataset:
    """Tiny-ImageNet, decoded picture by picture.

    Args:
        split: train | valid.
        source: A folder of parquet files, or a hub id; default: GMAR_TINY_IMAGENET, else the hub.

    Returns:
        Records of ``image`` (RGB), ``label`` (0 to 199 in the order of the wnids) and ``box`` (x0, y0, x1, y1 in
        pixels, x1 and y1 exclusive; None where the source has no boxes).

    Raises:
        FileNotFoundError: a file of the source is missing; it is named.
        ValueError: a file of the source is damaged, or holds labels of no class; it is named with its row.
        ConnectionError: the hub does not answer.
    """
    if split not in ("train", "valid"):
        raise ValueError(f"expected split 'train' or 'valid', got {split!r}")
    path, hub = find_source(source, "GMAR_TINY_IMAGENET", "zh-plus/tiny-imagenet")
    if hub:
        parts = [_checked(from_hub(hub, split, "GMAR_TINY_IMAGENET"), f"{hub} {split}")]
    else:
        parts = [_checked(shard, file) for file, shard in _shards(path, split)]
    return datasets.concatenate_datasets(parts).with_transform(partial(decode, image=open_picture))


def tiny_imagenet_arrays(split: str = "valid", source: str | Path | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The same pictures decoded once, for training.

    Args:
        split: As for `tiny_imagenet`.
        source: As for `tiny_imagenet`.

    Returns:
        uint8 images (N, 3, 64, 64) and labels (N,).
    """
    records = tiny_imagenet(split, source)
    images = torch.empty(len(records), 3, 64, 64, dtype=torch.uint8)
    for i in tqdm(range(0, len(records), 500), "Decoding", delay=2):
        images[i : i + 500] = torch.from_numpy(np.stack(records[i : i + 500]["image"])).movedim(-1, 1)
    return images, torch.tensor(records["label"][:])


def words() -> list[str]:
    """Words for the 200 classes of Tiny-ImageNet, in the order of the wnids (the order of every source)."""
    return [line.split("\t")[1] for line in CLASSES.read_text(encoding="utf8").splitlines()[1:]]


def _shards(folder, split):
    """Each parquet file of a split, and what is in it."""
    files = sorted(folder.rglob(f"{split}-*.parquet"))
    if not files:
        raise FileNotFoundError(f"{folder}: expected a folder with {split}-*.parquet files.")
    if numbered := re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.parquet", files[0].name):
        for i in range(int(numbered[2])):
            file = files[0].with_name(f"{numbered[1]}-{i:05d}-of-{numbered[2]}.parquet")
            if not file.exists():
                raise FileNotFoundError(f"{file}: this shard is missing. Download it into the folder.")
    for file in files:
        try:
            shard = datasets.Dataset(pq.read_table(file))
        except (OSError, ValueError) as error:
            said = " ".join(str(error).split())
            raise ValueError(f"{file}: not a complete parquet file ({said}). Download it again.") from error
        yield file, shard


def _checked(shard, origin):
    """A shard of known columns; its pictures' paths say which row they are, for error messages."""
    if not {"image", "label"} <= set(shard.features):
        raise ValueError(f"{origin}: expected columns image and label, got {list(shard.features)}.")
    names = getattr(shard.features["label"], "names", ())
    if len(names) != 200:
        raise ValueError(f"{origin}: expected the names of 200 classes (wnids), got {len(names)}.")
    table, rows = shard.data.table, [f"{origin} row {i}" for i in range(len(shard))]
    labels = table["label"].to_numpy()
    for i in np.flatnonzero((labels < 0) | (labels > 199)):
        raise ValueError(f"{rows[i]}: label {labels[i]}, expected 0 to 199. Fetch it again.")
    pictures = table["image"].combine_chunks().field("bytes")
    boxes = table["bbox"].to_pylist() if "bbox" in shard.features else [None] * len(shard)
    columns = {
        "image": pa.StructArray.from_arrays([pictures, pa.array(rows)], ["bytes", "path"]),
        "label": labels,
        "box": [box and [box[0], box[1], box[2] + 1, box[3] + 1] for box in boxes],  # theirs include the last pixels
    }
    image, box = datasets.Image(decode=False), datasets.List(datasets.Value("int16"))
    features = datasets.Features(image=image, label=datasets.ClassLabel(names=names), box=box)
    return datasets.Dataset.from_dict(columns, features=features)
