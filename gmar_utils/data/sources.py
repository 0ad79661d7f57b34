"""Where pictures come from: a hub id or a local path; broken files are named."""

import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import datasets
from PIL import Image


def find_source(source: str | Path | None, variable: str, hub: str) -> tuple[Path | None, str | None]:
    """(folder or file, hub id), one of them None."""
    if source == "":
        raise ValueError(f"The source is empty. Give a local path or a hub id, or leave it out and set {variable}.")
    source = str(source or os.environ.get(variable) or hub)
    path = Path(source).expanduser()
    if path.exists():
        return path, None
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not path.parent.is_dir():
        return None, source
    raise FileNotFoundError(f"{source}: no such file or folder. Give a local path or a hub id, or set {variable}.")


def from_hub(name: str, split: str, variable: str) -> datasets.Dataset:
    """A split of a data set of the hub; ConnectionError where it does not answer."""
    try:
        return datasets.load_dataset(name, split=split)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise ConnectionError(
            f"The data set {name} (split {split}) could not be fetched from the hub: {error}. Without a network, give "
            f"a local folder as source or set {variable}."
        ) from error


def open_picture(image: dict, mode: str | None = "RGB") -> Image.Image:
    """Decode {'bytes', 'path'}; a broken picture raises ValueError with its file."""
    try:
        with Image.open(io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]) as picture:
            return picture.convert(mode) if mode else picture.copy()
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{image['path']}: not a complete picture ({error}). Fetch this file again.") from error


def decode(batch: dict, **readers: Callable[[dict], object]) -> dict:
    """The transform of a picture data set: what is in a column with a reader is read, the rest passed on."""
    return {k: list(map(readers[k], values)) if k in readers else values for k, values in batch.items()}
