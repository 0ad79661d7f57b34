"""What the command line prints and writes into tables: one line a message, nothing that a terminal or sheet runs."""

import sys


def printable(text: object) -> str:
    """The text on one line, without control characters: a label could hold a terminal's escape sequences."""
    return "".join(c if c.isprintable() else "�" for c in " ".join(str(text).split()))


def say(text: object, *, error: bool = False) -> None:
    """Print one line, to standard error when it is a problem or a warning; "?" for what the terminal cannot show."""
    stream = sys.stderr if error else sys.stdout
    encoding = stream.encoding or "utf-8"
    print(printable(text).encode(encoding, "replace").decode(encoding), file=stream)


def plain_cell(text: object) -> str:
    """A table's cell that no spreadsheet takes for a formula, and without control characters."""
    text = printable(text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def described(error: Exception) -> str:
    """An error in one line. What this package did not raise on purpose says its type, and how to see more of it."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError | ValueError | TypeError | IndexError | MemoryError) and text:
        return text
    return f"{type(error).__name__}: {text or 'no more is known'} (GMAR_DEBUG=1 shows where)"
