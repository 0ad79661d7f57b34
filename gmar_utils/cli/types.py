"""Types of command-line arguments: text in, value out, or an error that says what was expected."""

import argparse
import math


def alpha(text: str) -> float:
    """A finite number of at least 0."""
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"alpha must be a finite number of at least 0, got {text}")
    return value


def image_size(text: str) -> int | tuple[int, int]:
    """Pixels: 112, or height x width as in 64x96."""
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(
            f"image size must be pixels such as 112, or height x width such as 64x96, got {text}"
        )
    return int(text) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return int(text)
