"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name beside `path` to write to; put in its place at the end, removed after an error.

    What was written is on the disk before it gets the name, so that a power failure, too, leaves all of it or none.

    Raises:
        OSError: Naming `path`, when it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # the suffix stays: savers go by it
    try:
        yield temporary
        with open(temporary, "r+b") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)
