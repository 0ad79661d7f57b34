"""The folder of a run: one run a folder, one file a block, each whole or absent, each checked when it is read.

A block file starts with a line of JSON: the digest of the run's settings, the number of rows, a checksum of what
follows, and how each metric was measured. So a damaged file is found and computed again, a file of another run is
refused, and no other file is needed to go on.
"""

import hashlib
import io
import json
import warnings
import zlib
from pathlib import Path

import pandas as pd
from filelock import FileLock

from ..files import atomic
from .provenance import shown

WAY_OUT = "Give another folder (--out), or delete this one to start again."


def claim(folder: Path, settings: dict, files: list[Path]) -> None:
    """Make `folder` this run's, or make sure that it is; of two runs that start at once, one gets it.

    Raises:
        ValueError: when the folder holds a run with other settings; it names them.
        OSError: when it cannot be written.
    """
    try:
        (folder / "parts").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{shown(str(folder))!r} cannot be used as the folder of a run ({error.strerror}).") from error
    file = folder / "run.json"
    with FileLock(folder / "parts" / ".lock"):
        before = _json(file.read_bytes()) if file.exists() else {}
        if not before:
            for part in files:  # blocks whose run.json is lost or damaged must be this run's
                read_block(part, settings)
            if file.exists():
                warnings.warn(f"{_name(file)} is damaged; it is written again from this call's settings.", stacklevel=3)
            write(file, json.dumps(settings, indent=1))
            before = settings
    if changed := [k for k in settings | before if before.get(k) != settings.get(k)]:
        raise ValueError(f"The folder {shown(str(folder))!r} holds a run with another {', '.join(changed)}. {WAY_OUT}")


def read_block(file: Path, settings: dict) -> tuple[pd.DataFrame, dict] | None:
    """Rows and protocols of a finished block; None where it is missing or damaged (with a warning).

    Raises ValueError for a block of a run with other settings.
    """
    if not file.exists():
        return None
    head, _, body = file.read_bytes().partition(b"\n")
    header = _json(head)
    if header.keys() >= {"settings", "rows", "crc32", "protocol"}:
        if header["settings"] != digest(settings):
            raise ValueError(f"{_name(file)} belongs to a run with other settings. {WAY_OUT}")
        if header["crc32"] == zlib.crc32(body):
            rows = pd.read_csv(io.BytesIO(body), keep_default_na=False, na_values=[""])
            if header["rows"] == len(rows):
                return rows, header["protocol"]
    warnings.warn(f"{_name(file)} is damaged: this block is computed again.", stacklevel=3)
    return None


def write_block(file: Path, rows: pd.DataFrame, protocol: dict, settings: dict) -> None:
    """Put a finished block in place."""
    body = rows.to_csv(index=False)
    header = {"settings": digest(settings), "rows": len(rows), "crc32": zlib.crc32(body.encode()), "protocol": protocol}
    write(file, json.dumps(header) + "\n" + body)


def write(file: Path, text: str) -> None:
    """All of the file or none of it, whenever the process is killed or the power fails."""
    try:
        with atomic(file) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise OSError(
            f"{_name(file)} could not be written ({error.strerror or error}). Make room, or give another --out; the "
            "blocks that are finished stay, and the same call goes on from there."
        ) from error


def digest(settings: dict) -> str:
    """A short name of these settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _json(text):
    """The dictionary that bytes of JSON hold; {} where they are damaged."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _name(file):
    return shown(str(file)) if file.parent.name != "parts" else f"parts/{file.name}"
