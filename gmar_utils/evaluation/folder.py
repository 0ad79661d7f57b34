"""The folder of a run: one run a folder, one file a block, each whole or absent, each checked when it is read.

A block file is two lines: a checksum, and JSON with the digest of the run's settings, how each metric was measured, and
the rows. So a damaged file is found and computed again, a file of another run is refused, and no other file is needed
to go on.
"""

import hashlib
import json
import warnings
import zlib
from pathlib import Path

from filelock import FileLock

from ..files import atomic

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
        raise OSError(f"{str(folder)!r} cannot be used as the folder of a run ({error.strerror}).") from error
    file, changed = folder / "run.json", None
    with FileLock(folder / "parts" / ".lock"):
        try:
            before = json.loads(file.read_bytes())
            changed = [k for k in settings | before if before.get(k) != settings.get(k)]
        except (FileNotFoundError, ValueError, TypeError):  # none yet, lost, or damaged: what blocks are there must fit
            for part in files:
                read_block(part, settings)
            write(file, json.dumps(settings, indent=1))
    if changed:
        raise ValueError(f"The folder {str(folder)!r} holds a run with another {', '.join(changed)}. {WAY_OUT}")


def read_block(file: Path, settings: dict) -> dict | None:
    """What `write_block` was given; None where the file is missing or damaged (with a warning).

    Raises ValueError for a block of a run with other settings.
    """
    if not file.exists():
        return None
    checksum, _, text = file.read_bytes().partition(b"\n")
    if checksum != b"%d" % zlib.crc32(text):
        warnings.warn(f"{file} is damaged: this block is computed again.", stacklevel=3)
        return None
    block = json.loads(text)
    if block["settings"] != digest(settings):
        raise ValueError(f"{file} belongs to a run with other settings. {WAY_OUT}")
    return block


def write_block(file: Path, block: dict, settings: dict) -> None:
    """Put a finished block in place: its rows and its protocol, ready for JSON."""
    text = json.dumps({"settings": digest(settings)} | block)
    write(file, f"{zlib.crc32(text.encode())}\n{text}")


def write(file: Path, text: str) -> None:
    """All of the file or none of it, whenever the process is killed or the power fails."""
    try:
        with atomic(file) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise OSError(
            f"{file} could not be written ({error.strerror or error}). Make room, or give another --out; the "
            "blocks that are finished stay, and the same call goes on from there."
        ) from error


def digest(settings: dict) -> str:
    """A short name of these settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
