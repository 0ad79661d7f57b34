"""Pictures: a map on its photo, methods side by side, means with their intervals, and the words that go with them."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from . import __version__
from .methods import METHODS, Method
from .photo import Picture, read_photo, resize

STYLE = str(files(__package__) / "book.mplstyle")  # plt.style.use(viz.STYLE)
OPACITY = 0.65  # of the map above the photo
Map = torch.Tensor | np.ndarray  # (r, c)


def style(label: str) -> Method:
    """The entry in METHODS, with its colour, of a method or of a variant of it: 'gmar', 'gmar-l2' and 'GMAR (L2)' look
    alike. What is not there is black."""
    words = label.lower().replace(" ", "-")
    names = {start: m for m in METHODS.values() for start in (m.name, m.title.lower().replace(" ", "-"))}
    found = max(filter(words.startswith, names), key=len, default=None)
    return names[found] if found else Method(label, label, None, "#000000")


def title_of(method: str) -> str:
    """A method's name in prose; of a function that is not in METHODS, its own name."""
    return METHODS[method].title if method in METHODS else method


def blend(photo: Picture, map: Map, *, signed: bool = False) -> Image.Image:
    """The photo in grey with the map above it, as an RGB picture of the photo's size.

    Args:
        photo: path, PIL image, array (height, width[, channels]) or tensor (channels, height, width).
        map: array or tensor (r, c) in [0, 1], of any size: it is stretched over the photo. NaN, outside the crop that
            the model saw, becomes plain grey.
        signed: the map is in [−1, 1] and shown from blue (against the class) over white to red, in place of magma.
    """
    grey, values = _pixels(photo).mean(2), torch.as_tensor(_map(map))
    if values.shape != grey.shape:
        values = resize(values[None], grey.shape)[0]
    values, colours = values.numpy(), plt.get_cmap("RdBu_r" if signed else "magma")
    values = values / 2 + 0.5 if signed else values
    picture = np.empty((*grey.shape, 3), np.uint8)
    for rows in (slice(i, i + 256) for i in range(0, len(grey), 256)):  # a large photo would take gigabytes at once
        colour = colours(np.nan_to_num(values[rows]))[..., :3]
        mixed = (1 - OPACITY) * grey[rows, :, None] + OPACITY * colour
        picture[rows] = (255 * np.where(np.isfinite(values[rows, :, None]), mixed, 0.6)).round()
    return Image.fromarray(picture)


def overlay(
    ax: plt.Axes,
    photo: Picture,
    map: Map | None = None,
    title: str | None = None,
    *,
    contour: bool = True,
    signed: bool = False,
) -> plt.Axes:
    """Draw a map on its photo: `blend`, with one white contour at half of the maximum. Without a map: the photo.

    Args:
        ax: axes to draw in, which are returned.
        photo: as `blend` takes it, and
        map: too.
        title: the class and its probability (`heading`), or the method's name.
        contour: False leaves it out.
        signed: as in `blend`.
    """
    pixels = _pixels(photo)
    ax.imshow(pixels if map is None else blend(photo, map, signed=signed), interpolation="bilinear")
    height, width = pixels.shape[:2]
    if map is not None and contour:
        values, place = _map(map), (-0.5, width - 0.5, -0.5, height - 0.5)
        if np.nanmin(values) < 0.5 < np.nanmax(values):
            style = {"colors": "black" if signed else "white", "linewidths": 1.2}
            ax.contour(np.nan_to_num(values), levels=[0.5], origin="lower", extent=place, **style)
    ax.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(title, parse_math=False)  # a label may hold a dollar sign
    return ax


def heading(label: str, probability: float) -> str:
    """The class and its probability, as they stand above an overlay: 'tabby 62 %'."""
    return f"{label.split(',')[0]} {100 * float(probability):.0f} %"


def grid(
    photos: Picture | list[Picture] | tuple[Picture, ...],
    maps: Mapping[str, torch.Tensor | Sequence[Map]],
    titles: Iterable[str] | None = None,
    *,
    columns: int | None = None,
    width: float = 2.1,
    signed: bool = False,
) -> plt.Figure:
    """A table of overlays: a row for each photo, first the photo itself, then a column for each entry of `maps`.

    Args:
        photos: B photos, or one.
        maps: {label: B maps}, as `explain_many` returns them; columns follow the dictionary's order.
        titles: B strings above the photos: the class that is explained and its probability (`heading`).
        columns: pictures in a row, for one photo with many methods; None puts a photo's maps into one row.
        width: inches of one picture.
        signed: as in `blend`.
    """
    photos = photos if isinstance(photos, list | tuple) else [photos]
    titles = list(titles) if titles is not None else [None] * len(photos)
    cells = []
    for i, photo in enumerate(photos):
        cells += [(photo, None, titles[i]), *((photo, m[i], label) for label, m in maps.items())]
    columns = columns or len(maps) + 1
    rows = -(-len(cells) // columns)
    ratio = np.mean([np.divide(*_pixels(p).shape[:2]) for p in photos])
    figure = _figure(width * columns, (width * ratio + 0.3) * rows)
    with plt.style.context(STYLE):
        axes = figure.subplots(rows, columns, squeeze=False)
        for ax, cell in zip(axes.flat, cells, strict=False):
            overlay(ax, *cell, signed=signed)
        for ax in axes.flat[len(cells) :]:
            ax.set_axis_off()
    return figure


def forest(summary: "pd.DataFrame", ax: plt.Axes | None = None, *, xlabel: str = "mean, 95 % interval") -> plt.Axes:  # noqa: F821 (slow to import)
    """Means with their intervals, one row for each method, in the order and the colours of METHODS.

    Args:
        summary: a table with the columns method (or label), mean, low, high.
        ax: axes to draw in; None makes a figure.
        xlabel: what is measured.
    """
    import seaborn.objects as so

    table = summary.rename(columns={"label": "method"}) if "method" not in summary else summary
    if missing := {"method", "mean", "low", "high"} - set(table):
        raise ValueError(f"forest needs the columns method, mean, low and high; {', '.join(sorted(missing))} missing.")
    order = {name: place for place, name in enumerate(METHODS)}
    names = sorted(table["method"].unique(), key=lambda n: (order.get(style(n).name, len(order)), n))
    figure = ax.figure if ax else _figure(6, 0.34 * len(names) + 0.7)
    with plt.style.context(STYLE):
        ax = ax or figure.subplots()
        plot = so.Plot(table, x="mean", y="method", color="method", xmin="low", xmax="high")
        plot = plot.add(so.Range(linewidth=2), legend=False).add(so.Dot(pointsize=7), legend=False)
        plot = plot.scale(y=so.Nominal(order=names), color={n: style(n).color for n in names})
        plot.label(x=xlabel, y="").on(ax).plot()
    for text in (ax.xaxis.label, *ax.get_yticklabels()):
        text.set_parse_math(False)
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    return ax


class Caption(NamedTuple):
    """alt: what the picture shows, for a reader who cannot see it. sentence: for the methods section of a report."""

    alt: str
    sentence: str


def caption(
    map: Map, method: str = "gmar", label: str | None = None, probability: float | None = None, **options: object
) -> Caption:
    """The words for one map (r, c): alt text, and a methods sentence with the citation key of the book's bibliography.

    Args:
        map: in [0, 1], or with signed=True among the options in [−1, 1]; NaN outside of what the model saw.
        method: a key of METHODS, or the name of another function.
        label: the class that is explained, and
        probability: its probability.
        **options: of the method.
    """
    signed, values = options.get("signed", False), np.nan_to_num(_map(map))
    row, column = np.unravel_index(values.argmax(), values.shape)
    place = ("upper", "middle", "lower")[3 * row // values.shape[0]]
    place += " " + ("left", "centre", "right")[3 * column // values.shape[1]]
    title, key = title_of(method), METHODS[method].citation if method in METHODS else None
    about = f" of the class {label}" if label else ""
    about += f" ({100 * float(probability):.0f} %)" if probability is not None else ""
    given = ", ".join(f"{name} = {value}" for name, value in options.items())
    cited = title + (f" [{key}]" if key else "") + (f" ({given})" if given else "")
    colours, scale = ("red for and blue against", "by the largest magnitude") if signed else ("magma", "to [0, 1]")
    return Caption(
        f"{title} map{about} in {colours} over the grey photo: strongest in the {place}; "
        f"{100 * (values > 0.5).mean():.0f} % of the picture lies above half of the maximum.",
        f"Maps were computed with {cited} as implemented in gmar_utils {__version__}, scaled {scale} for each image "
        "and interpolated bilinearly.",
    )


def _figure(width, height):
    # Not inside style.context: the first figure starts the notebook's backend, and leaving the context would undo that.
    return plt.figure(figsize=(width, height), dpi=120, facecolor="white", layout="constrained")


def _map(map) -> np.ndarray:
    values = np.asarray(map.detach().cpu() if isinstance(map, torch.Tensor) else map, dtype=np.float32)
    if values.ndim != 2:
        raise ValueError(f"Expected one map (r, c), got shape {values.shape}; take maps[i] of a batch.")
    return values


def _pixels(photo) -> np.ndarray:
    """(height, width, 3) in [0, 1] of a photo of any of the kinds that `blend` takes."""
    with warnings.catch_warnings():  # 16 bit: whoever prepared the photo for the model has been warned already
        warnings.simplefilter("ignore")
        return np.asarray(read_photo(photo), dtype=np.float32) / 255
