"""Types of command-line arguments: text in, value out, or an error that says what was expected."""

import argparse
import re
from pathlib import Path

from ..methods.weighting import ALPHA_MAX


def alpha(text: str) -> float:
    """A number from 0 to a million."""
    value = float(text)
    if not 0 <= value <= ALPHA_MAX:
        raise argparse.ArgumentTypeError(f"alpha must be a finite number from 0 to {ALPHA_MAX:g}, got {text}")
    return value


def folder(text: str) -> Path:
    """A path that is not empty: an empty one would be the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a folder, got an empty path")
    return Path(text)


def image_size(text: str) -> int | tuple[int, int]:
    """Pixels: 112, or height x width as in 64x96."""
    if not re.fullmatch(r"[1-9][0-9]{0,5}(x[1-9][0-9]{0,5})?", text):
        raise argparse.ArgumentTypeError(f"image size must be pixels such as 112, or height x width, 64x96; got {text}")
    height, *width = map(int, text.split("x"))
    return (height, *width) if width else height


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not re.fullmatch(r"0*[1-9][0-9]{0,17}", text):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return int(text)
