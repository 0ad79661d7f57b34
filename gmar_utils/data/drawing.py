"""Pictures whose truth is known: textured shapes on textured ground, with an exact mask and box for every object.

Only the outline tells the class. Size, place, rotation, colours and texture are drawn without looking at it, and all
outlines cover the same area at the same size. Same seed, same bytes; scene i does not depend on how many are made.
"""

from functools import cache, partial
from typing import NamedTuple

import datasets
import numpy as np
import scipy.fft
from PIL import Image
from tqdm import tqdm

BLOCK = 64  # scenes drawn together; each block has its own random stream
SUPERSAMPLE = 3  # odd, so that the middle sample of a pixel is its centre, which decides the mask


def _polygon(points, u, v):
    """Inside a polygon, by counting the edges that a ray to the right crosses."""
    inside = np.zeros(u.shape, bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 != y1:
            inside ^= ((v >= min(y0, y1)) & (v < max(y0, y1))) & (u < x0 + (v - y0) * ((x1 - x0) / (y1 - y0)))
    return inside


def _regular(n, inner=1.0):
    """Vertices of a regular polygon, or of a star when every second radius is ``inner``."""
    angle = np.arange(n) * 2 * np.pi / n - np.pi / 2
    radius = np.where(np.arange(n) % 2, inner, 1.0)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


NOTCH, QUARTER = np.array([(-1, -3), (1, -3), (1, -1)]), np.array([(0, 1), (-1, 0)])
OUTLINES = {  # at size 1: of points (u, v), any array shape, whether each lies inside
    "disc": lambda u, v: u * u + v * v < 1,
    "ring": lambda u, v: (u * u + v * v < 1) & (u * u + v * v > 0.3),
    "crescent": lambda u, v: (u * u + v * v < 1) & ((u - 0.55) ** 2 + v * v > 0.7),
    "half disc": lambda u, v: (u * u + (v + 0.4) ** 2 < 1) & (v > -0.4),
    "square": partial(_polygon, _regular(4)),
    "triangle": partial(_polygon, _regular(3)),
    "bar": partial(_polygon, [(-1, -0.25), (1, -0.25), (1, 0.25), (-1, 0.25)]),
    "cross": partial(_polygon, np.concatenate([NOTCH @ np.linalg.matrix_power(QUARTER, k) for k in range(4)]) / 3),
    "star": partial(_polygon, _regular(10, inner=0.4)),
    "bow tie": partial(_polygon, [(-1, -0.7), (0, -0.12), (1, -0.7), (1, 0.7), (0, 0.12), (-1, 0.7)]),
    "corner": partial(_polygon, [(-0.8, -0.8), (-0.2, -0.8), (-0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (-0.8, 0.8)]),
}
CLASSES = tuple(OUTLINES)


@cache
def unit_scale() -> tuple[dict[str, float], dict[str, float]]:
    """Per class the factor that gives every outline the area of the unit disc's half, and the radius that holds it."""
    axis = np.linspace(-1.2, 1.2, 481)
    u, v = np.meshgrid(axis, axis)
    scale, reach = {}, {}
    for name, outline in OUTLINES.items():
        points = outline(u, v)
        scale[name] = np.sqrt(points.sum() * (axis[1] - axis[0]) ** 2 / (np.pi / 2))
        reach[name] = np.hypot(u, v)[points].max() / scale[name]
    return scale, reach


class Scenes(NamedTuple):
    """``images`` uint8 (n, size, size, 3); ``labels`` (n, K); ``masks`` bool (n, K, size, size), visible part of each
    object; ``boxes`` (n, K, 4): x0, y0, x1, y1 in pixels, x1 and y1 exclusive."""

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray


def _palettes(rng, n, against=None):
    """Three related colours for each of n textures: (n, 3, 3). With ``against``, the one of four that differs most."""
    colours = rng.uniform(0, 1, (4, n, 3, 3))
    first, share = colours[:, :, :1], rng.uniform(0.2, 0.7, (4, n, 1, 1))
    colours[:, :, 1:] = first + share * (colours[:, :, 1:] - first)
    far = 0 if against is None else np.linalg.norm(colours.mean(2) - against.mean(1), axis=-1).argmax(0)
    return colours[far, np.arange(n)]


def textures(rng: np.random.Generator, colours: np.ndarray, size: int) -> np.ndarray:
    """Fractal noise between three colours (n, 3, 3), stretched in a random direction: float32 (n, size, size, 3)."""
    n = len(colours)
    frequency = np.fft.fftfreq(size).astype(np.float32) * 64  # detail is tied to the picture, not to its pixels
    fy, fx = frequency[None, :, None], frequency[None, None, :]
    angle, stretch, slope = (rng.uniform(*r, (n, 1, 1)).astype(np.float32) for r in ((0, np.pi), (0, 1.5), (0.8, 2.0)))
    c, s = np.cos(angle), np.sin(angle)
    power = 1 + (c * fx + s * fy) ** 2 + ((c * fy - s * fx) * np.exp(stretch)) ** 2
    noise = rng.standard_normal((n, size, size, 2), dtype=np.float32).view(np.complex64)[..., 0]
    field = scipy.fft.ifft2(noise * power ** (-slope / 2)).view(np.float32).reshape(n, size, size, 2)
    field -= field.mean((1, 2), keepdims=True)
    share = np.clip(0.5 + 0.25 * field / field.std((1, 2), keepdims=True), 0, 1)  # of the second and third colour
    colours = colours.astype(np.float32)
    return np.clip(colours[:, None, None, 0] + share @ (colours[:, 1:] - colours[:, :1])[:, None], 0, 1)


def _blob(waves, u, v):
    """An irregular outline of no class: radius 1 with random waves, ``waves`` (harmonics, 2)."""
    angle = np.arctan2(v, u)
    radius = 0.8 + sum(a * np.cos((k + 2) * angle + p) for k, (a, p) in enumerate(waves))
    return u * u + v * v < radius * radius


def _cover(shape, size, place, radius, turn, scale=1.0):
    """Supersampled coverage (size, size) in 0..1 of an outline and whether each pixel's centre is inside it.

    Only the square around the object is computed: everything outside is empty.
    """
    s = SUPERSAMPLE
    lo = np.floor(np.clip((place - 1.9 * radius) * size, 0, size)).astype(int)
    hi = np.ceil(np.clip((place + 1.9 * radius) * size, 0, size)).astype(int)
    x, y = ((np.arange(a * s, b * s) + 0.5) / (s * size) - at for a, b, at in zip(lo, hi, place, strict=True))
    c, n = np.cos(turn) / radius, np.sin(turn) / radius
    u = c * x[None, :] + n * y[:, None]
    v = c * y[:, None] - n * x[None, :]
    fine = shape(u * scale, v * scale)
    (w, h), empty = hi - lo, ((lo[1], size - hi[1]), (lo[0], size - hi[0]))
    alpha = fine.reshape(h, s, w, s).mean((1, 3)).astype(np.float32)
    return np.pad(alpha, empty), np.pad(fine[s // 2 :: s, s // 2 :: s], empty)


def _place(rng, reach, taken):
    """A place for a circle of radius ``reach`` inside the unit square that touches none of ``taken`` [(place, reach)],
    or the least bad of 40 tries and how much room it has (negative: it overlaps)."""
    tries = rng.uniform(reach, 1 - reach, (40, 2))
    room = np.full(40, np.inf)
    for place, other in taken:
        room = np.minimum(room, np.hypot(*(tries - place).T) - reach - other)
    best = np.argmax(room > 0) if (room > 0).any() else np.argmax(room)
    return tries[best], room[best]


def _block(seed, block, size, objects, occlusion):
    """One block of scenes. The layout is drawn before the textures, so it is the same at every size."""
    scale, reach = unit_scale()
    layout, paint = np.random.default_rng((seed, block, objects)).spawn(2)
    labels = np.argsort(layout.uniform(size=(BLOCK, len(CLASSES))), axis=1)[:, :objects]
    ground = _palettes(paint, BLOCK)
    base = textures(paint, ground, size)
    paints = [textures(paint, _palettes(paint, BLOCK, ground), size) for _ in range(objects + 1)]
    masks = np.zeros((BLOCK, objects, size, size), bool)
    for i in range(BLOCK):
        image, taken = base[i], []
        sizes = layout.uniform(*((0.24, 0.36) if objects == 1 else (0.18, 0.25)), objects)
        for j, radius in enumerate(sizes):
            name = CLASSES[labels[i, j]]
            place, _ = _place(layout, radius * reach[name], taken)
            taken.append((place, radius * reach[name]))
            turn = layout.uniform(0, 2 * np.pi)
            alpha, masks[i, j] = _cover(OUTLINES[name], size, place, radius, turn, scale[name])
            image += alpha[..., None] * (paints[j][i] - image)
            masks[i, :j] &= ~masks[i, j]  # the second may touch the first where both are large
        for j in range(layout.integers(0, 4)):
            radius, turn = layout.uniform(0.06, 0.12), layout.uniform(0, 2 * np.pi)
            waves = layout.uniform((0.05, 0), (0.2, 2 * np.pi), (5, 2))
            place, room = _place(layout, 1.4 * radius, taken)
            if room > 0:
                taken.append((place, 1.4 * radius))
                alpha, _ = _cover(partial(_blob, waves), size, place, radius, turn)
                image += alpha[..., None] * (paints[-1][(i + j) % BLOCK] - image)
        if occlusion:
            alpha = _occluder(layout, masks[i, 0], taken[0], occlusion * layout.uniform(), size)
            image += alpha[..., None] * (paints[-1][i - 1] - image)
            masks[i] &= alpha < 0.5
    return base, labels, masks


def _occluder(rng, mask, taken, limit, size):
    """Coverage of a blob that hides at most the share ``limit`` of ``mask``: it moves in from afar until it would."""
    (place, reach), turn, direction = taken, rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)
    waves = rng.uniform((0.05, 0), (0.2, 2 * np.pi), (5, 2))
    ahead = reach * np.array([np.cos(direction), np.sin(direction)])
    best = np.zeros((size, size), np.float32)
    for distance in np.linspace(1.8, 0.2, 17):
        alpha, _ = _cover(partial(_blob, waves), size, place + distance * ahead, 0.6 * reach, turn)
        if (mask & (alpha >= 0.5)).sum() > limit * mask.sum():
            break
        best = alpha
    return best


def scenes(n: int, size: int = 64, seed: int = 0, objects: int = 1, occlusion: float = 0.0) -> Scenes:
    """Scenes with 0 to 3 blobs of no class beside their objects.

    Args:
        n: How many.
        size: Pixels.
        seed: Same seed, same bytes.
        objects: 1, or 2 of different classes.
        occlusion: The largest share of the (first) object that one more blob may hide; the mask is the visible part.

    Raises:
        ValueError: no scenes, another number of objects, or an occlusion outside [0, 1).
    """
    if n < 1 or objects not in (1, 2) or not 0 <= occlusion < 1:
        got = f"{n}, {objects} and {occlusion}"
        raise ValueError(f"expected at least one scene, objects 1 or 2 and occlusion in [0, 1), got {got}")
    numbers = tqdm(range(-(-n // BLOCK)), desc="Drawing scenes", unit="block", delay=2, disable=None)
    blocks = [_block(seed, block, size, objects, occlusion) for block in numbers]
    images, labels, masks = (np.concatenate(part)[:n] for part in zip(*blocks, strict=True))
    return Scenes((images * 255 + 0.5).astype(np.uint8), labels, masks, _boxes(masks))


def _boxes(masks):
    """(…, h, w) bool to (…, 4): x0, y0, x1, y1, the last two exclusive."""
    hits = masks.any(-2), masks.any(-1)
    first = [hit.argmax(-1) for hit in hits]
    last = [hit.shape[-1] - hit[..., ::-1].argmax(-1) for hit in hits]
    return np.stack([*first, *last], -1)


def shapes(n: int, size: int = 64, seed: int = 0, objects: int = 1, occlusion: float = 0.0) -> datasets.Dataset:
    """Generated scenes, one record per object.

    Args:
        n: Scenes.
        size: Pixels.
        seed: Same seed, same scenes.
        objects: 1 or 2 in a scene.
        occlusion: The largest share of the (first) object that may be hidden.

    Returns:
        Records of ``image``, ``label``, ``mask`` (uint8 PIL image, 1 the visible object, 0 the rest), ``box`` (x1 and
        y1 exclusive), ``scene`` (0 to n − 1).

    Raises:
        ValueError: no scenes, another number of objects, or an occlusion outside [0, 1).
    """
    made = scenes(n, size, seed, objects, occlusion)
    which = np.repeat(np.arange(n), objects)
    masks = made.masks.reshape(-1, size, size).astype(np.uint8)
    columns = {
        "image": [Image.fromarray(made.images[i]) for i in which],
        "label": made.labels.ravel(),
        "mask": [Image.fromarray(m) for m in masks],
        "box": made.boxes.reshape(-1, 4),
        "scene": which,
    }
    picture, whole = datasets.Image(), datasets.Value("int64")
    label, box = datasets.ClassLabel(names=list(CLASSES)), datasets.List(whole)
    features = datasets.Features(image=picture, label=label, mask=picture, box=box, scene=whole)
    return datasets.Dataset.from_dict(columns, features=features)  # a cast would show a bar


def shape_pairs(n: int, size: int = 64, seed: int = 0) -> datasets.Dataset:
    """Generated scenes of two objects of different classes, one record per scene: the layout of `voc_pairs`.

    Args:
        n: Scenes.
        size: Pixels.
        seed: Same seed, same scenes.

    Returns:
        Records of ``image``, ``masks`` (two uint8 PIL images, 1 the object), ``groups`` (the class of each, as a list
        of one) and ``file`` (the number of the scene).

    Raises:
        ValueError: no scenes.
    """
    made = scenes(n, size, seed, objects=2)
    columns = {
        "image": [Image.fromarray(image) for image in made.images],
        "masks": [[Image.fromarray(m) for m in some] for some in made.masks.astype(np.uint8)],
        "groups": made.labels[:, :, None],
        "file": [f"scene {i}" for i in range(n)],
    }
    return datasets.Dataset.from_dict(columns)
