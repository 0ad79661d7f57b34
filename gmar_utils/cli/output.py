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
