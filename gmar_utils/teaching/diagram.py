"""One grammar for all diagrams of the book: a token is a square, a head is a strip, data flows along arrows.

Units are token sides: draw on the axes that `canvas` returns, whose aspect is equal.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyBboxPatch, Rectangle

CLS, PATCH, CAT, CUP = "#4A4A4A", "#DADADA", "#F6BE8C", "#A8CFEA"  # fills; text on them is chosen to be readable
INK = "#262626"


def canvas(width: float, height: float, inches: float = 8.0):
    """Axes without frame, `width` × `height` token sides, the origin at the upper left."""
    figure, ax = plt.subplots(figsize=(inches, inches * height / width))
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    ax.set_axis_off()
    return ax


def token(ax, x: float, y: float, text: str = "", fill: str = PATCH, size: float = 0.9, image=None, **font):
    """A token: a square with its centre at (x, y), with a text or a small image in it."""
    half = size / 2
    if image is not None:
        ax.imshow(image, extent=(x - half, x + half, y + half, y - half), interpolation="nearest", zorder=2)
    ax.add_patch(
        Rectangle(
            (x - half, y - half),
            size,
            size,
            facecolor="none" if image is not None else fill,
            edgecolor=INK,
            linewidth=0.8,
            zorder=3,
        )
    )
    ax.text(x, y, text, ha="center", va="center", color=_ink_on(fill), zorder=4, **{"fontsize": 9, **font})


def head(ax, x: float, y: float, weight: float | None = None, text: str = "", width: float = 2.4, height: float = 0.55):
    """A head: a strip with its centre at (x, y). `weight` in [0, 1] fills its left part, like a gauge."""
    corner = (x - width / 2, y - height / 2)
    ax.add_patch(
        FancyBboxPatch(
            corner,
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.12",
            facecolor="white",
            edgecolor=INK,
            linewidth=0.8,
            zorder=2,
        )
    )
    if weight is not None:
        ax.add_patch(
            FancyBboxPatch(
                corner,
                width * weight,
                height,
                boxstyle="round,pad=0,rounding_size=0.12",
                facecolor="#F3B58B",
                edgecolor="none",
                zorder=2.5,
            )
        )
    ax.text(x, y, text, ha="center", va="center", fontsize=9, color=INK, zorder=4)


def box(ax, x: float, y: float, text: str, width: float = 2.4, height: float = 1.0, fill: str = "#F2F2F2"):
    """An operation: a rounded box with its centre at (x, y)."""
    ax.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            facecolor=fill,
            edgecolor="0.55",
            boxstyle="round,pad=0,rounding_size=0.2",
            linewidth=0.8,
            zorder=2,
        )
    )
    ax.text(x, y, text, ha="center", va="center", fontsize=9, color=INK, zorder=4)


def arrow(ax, start, end, text: str = "", color: str = INK, width: float = 1.2, bend: float = 0.0):
    """Data that flows from `start` to `end`; `bend` curves the arrow, `text` stands above its middle."""
    style = {
        "arrowstyle": "-|>",
        "color": color,
        "linewidth": width,
        "shrinkA": 1,
        "shrinkB": 1,
        "connectionstyle": f"arc3,rad={bend}",
    }
    ax.annotate("", end, start, arrowprops=style, zorder=1)
    if text:
        ax.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 - 0.18, text, ha="center", va="bottom", fontsize=9)


def matrix(ax, values, rows=(), columns=(), title: str = "", top: float | None = None, form: str = "{:.2g}"):
    """A small matrix (n, m) as shaded squares with their numbers. `top` is the value of the darkest shade."""
    values = np.asarray(values, dtype=float)
    top = top or np.abs(values).max() or 1.0
    ax.imshow(values, cmap="Purples", vmin=0, vmax=2 * top)
    for (i, j), value in np.ndenumerate(values):
        ax.text(j, i, form.format(value), ha="center", va="center", fontsize=10, color=INK)
    ax.set_xticks(range(values.shape[1]), columns or [""] * values.shape[1], fontsize=9)
    ax.set_yticks(range(values.shape[0]), rows or [""] * values.shape[0], fontsize=9)
    ax.set_title(title)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def table(ax, x: float, y: float, values, rows=(), columns=(), title: str = "", top: float | None = None, size=1.1):
    """A `matrix` on a canvas, its upper left corner at (x, y), `size` units a number."""
    n, m = np.shape(values)
    place = ax.inset_axes((x, y, size * m, size * n), transform=ax.transData)
    return matrix(place, values, rows, columns, title, top)


def scores(ax, x: float, y: float, values, names, title: str = ""):
    """The map of a few tokens: a square for each, with its score, the smallest dark; the first one stands at (x, y)."""
    values = np.asarray(values, dtype=float)
    shades = (values - values.min()) / (np.ptp(values) or 1.0)
    for i, (value, shade, name) in enumerate(zip(values, shades, names, strict=True)):
        token(ax, x + 1.2 * i, y, f"{value:.2f}", plt.cm.magma(shade), size=1.15, fontsize=11)
        ax.text(x + 1.2 * i, y + 1, name, ha="center", fontsize=10)
    ax.text(x + 0.6 * (len(values) - 1), y - 0.8, title, ha="center", fontsize=11)


def _ink_on(fill):
    red, green, blue = plt.matplotlib.colors.to_rgb(fill)
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else INK
