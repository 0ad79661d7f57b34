"""Where pictures come from: a hub id or a local path; broken files are named."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

from PIL import Image


def find_source(source, variable, hub):
    """(folder or file, hub id), one of them None."""
    source = str(source or os.environ.get(variable) or hub)
    path = Path(source).expanduser()
    if path.exists():
        return path, None
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not path.parent.is_dir():
        return None, source
    raise FileNotFoundError(f"{source}: no such file or folder. Give a local path or a hub id, or set {variable}.")


def from_hub(name, split, variable, streaming=False):
    import datasets

    try:
        return datasets.load_dataset(name, split=split, streaming=streaming)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise ConnectionError(
            f"The data set {name} (split {split}) could not be fetched from the hub: {error}. Without a network, give "
            f"a local folder as source or set {variable}."
        ) from error


def open_picture(image, mode="RGB"):
    """Decode {'bytes', 'path'}; a broken picture raises ValueError with its file."""
    try:
        with Image.open(io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]) as picture:
            return picture.convert(mode) if mode else picture.copy()
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{image['path']}: not a complete picture ({error}). Fetch this file again.") from error


def decode(batch, decode_mask=None):
    """The transform of every picture data set: decode ``image`` columns, pass the rest on."""
    decoded = dict(batch)
    if "image" in batch:
        decoded["image"] = [open_picture(v) for v in batch["image"]]
    if "mask" in batch:
        decoded["mask"] = [decode_mask(v) for v in batch["mask"]]
    return decoded
