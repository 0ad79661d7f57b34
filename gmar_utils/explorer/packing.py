"""What the page needs of a photo, and the same pictures as plain function calls."""

import io
import itertools
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence

import ipywidgets as widgets
import numpy as np
import torch
import traitlets
from PIL import ImageOps
from torch import nn

from ..capture import Trace, probability, trace
from ..capture.layout import logits_of
from ..methods import METHODS, bind, explain_many
from ..methods.weighting import VARIANTS, Layers, alpha_polynomial, head_weights, weighted_rollout
from ..metrics import deletion
from ..model import Vit, load_model
from ..photo import Picture, minmax, read_photo
from ..viz import style

NORMS = ("l1", "l2", None)
PHOTO_PIXELS = 416  # longer side of the picture in the page
STEPS = 16  # of the deletion curves
LEVELS = 100  # of attention in the page: more make it larger, and its maps hardly more exact

# The maps beside GMAR under the sliders: label → method, as in `explain_many`.
METHODS_SHOWN = {
    "GMAR L1": bind("gmar", norm="l1"),
    "GMAR L2": bind("gmar", norm="l2"),
    **{
        METHODS[name].title: bind(name)
        for name in ("rollout", "legrad", "grad-cam", "libra", "random")
        if name in METHODS
    },
}


class PhotoData(widgets.Widget):
    """A photo's numbers for the view, without a view of its own; several views can share it.

    Light: `polynomials` give every α, norm and variant, but no single head. With heads: all attention in their place.
    """

    info = traitlets.Dict().tag(sync=True)
    image = traitlets.Bytes().tag(sync=True)  # JPEG
    maps = traitlets.Bytes().tag(sync=True)  # uint16 (targets, methods, R·C), value = code / 65535
    curves = traitlets.Bytes().tag(sync=True)  # float32 (targets, methods, S + 1), may be empty
    polynomials = traitlets.Bytes().tag(sync=True)  # uint16 (1 + 2·targets, 2 + 2(L + 1), R·C), see `polynomials`
    scales = traitlets.Bytes().tag(sync=True)  # float32 (1 + 2·targets, 2 + 2(L + 1)), value = code · scale
    attention = traitlets.Bytes().tag(sync=True)  # uint8 (L, H, N, N), quantise; rows less the row above; deflated
    readout = traitlets.Bytes().tag(sync=True)  # float32 (N,)
    weights = traitlets.Bytes().tag(sync=True)  # float32 (targets, 2 norms, L, H)

    @property
    def size(self) -> int:
        """Bytes of this photo in the page; text in base64 makes them a third more."""
        return sum(len(value) for value in self.get_state().values() if isinstance(value, bytes))


def pack(
    model: Vit | str | os.PathLike | nn.Module,
    photos: Mapping[str, Picture] | Iterable[Picture],
    targets: int | Sequence[int] = 3,
    *,
    methods: Mapping | None = None,
    curves: bool = False,
    heads: bool = False,
) -> list[PhotoData]:
    """What the view needs of each photo, to be shared by several `explore(packed, show=…)`.

    Args:
        model, photos, targets: As in `explore`.
        methods: {label: method} as in `explain_many`, the maps beside GMAR under the sliders; None: `METHODS_SHOWN`.
        curves: Compute the deletion curves too: STEPS + 1 forwards a photo, class and method.
        heads: Keep all attention, for the board of heads and the layers' slider. It grows with L·H·N²: 260 kB for 6
            layers, 6 heads and 96 patches, several MB at 16 × 16 patches and 12 layers. Without it a photo of 16 × 16
            patches takes 14 kB, and 30 kB a class more, plus its JPEG.

    Returns:
        One `PhotoData` a photo.
    """
    vit = model if isinstance(model, Vit) else load_model(model)
    keyed = photos.items() if isinstance(photos, Mapping) else enumerate(photos)
    return [_pack(vit, key, photo, targets, methods or METHODS_SHOWN, curves, heads) for key, photo in keyed]


def _pack(vit, key, photo, targets, methods, curves, heads):
    pixels = vit.preprocess([photo])
    top = _targets(vit, pixels, targets)
    many = pixels.expand(len(top), *pixels.shape[1:])
    t = trace(vit.model, many, target=top)
    chances = probability(vit.model, t.logits, top).tolist()
    words = [vit.label(k) for k in top.tolist()]
    maps = torch.stack(list(explain_many(vit.model, many, methods, target=top, upsample=False).values()), 1)
    found = _curves(vit, pixels, maps, top) if curves else None
    data, error = (_with_heads if heads else _light)(t)
    return PhotoData(
        info={
            "name": f"photo {key + 1}" if isinstance(key, int) else str(key),
            "key": repr(key),
            "shape": [len(t.attentions), *t.attentions[0].shape[1:3]],
            "grid": list(t.grid),
            "crop": _crop(vit, photo, t.grid),
            "fill": [round(255 * m) for m in vit.processor.image_mean],  # what zero in normalised space looks like
            "targets": top.tolist(),
            "words": words,
            "target_names": [f"{w} {100 * c:.{int(c < 0.095)}f} %" for w, c in zip(words, chances, strict=True)],
            "methods": list(methods),
            "colours": [style(m).color for m in methods],
            "calls": [_call(m) for m in methods.values()],
            "follows": [_follows(m) for m in methods.values()],
            "fractions": found.fractions.tolist() if found else [],
            "error": error,
        },
        image=_jpeg(photo),
        maps=_codes(maps.flatten(2)),
        curves=_bytes(found.scores) if found else b"",
        **data,
    )


def _targets(vit, pixels, targets):
    """Class ids: the so many most probable ones, or those given."""
    if not (targets >= 1 if isinstance(targets, int) else len(targets)):
        raise ValueError(f"targets must be a number of classes ≥ 1, or a list of class ids; got {targets!r}.")
    if not isinstance(targets, int):
        return torch.tensor(list(targets), device=pixels.device)
    with torch.no_grad():
        logits = logits_of(vit.model(pixels))
    return logits[0].argsort(descending=True, stable=True)[:targets]


def _curves(vit, pixels, maps, top):
    """The deletion curves of every class and method, in one batch."""
    rows = maps.flatten(0, 1)
    many = pixels.expand(len(rows), *pixels.shape[1:])
    each = top.repeat_interleave(maps.shape[1])
    return deletion(vit.model, many, rows, target=each, steps=min(STEPS, rows[0].numel()))


def _crop(vit, photo, grid):
    """Where the model looked, (x0, y0, x1, y1) as shares of the photo."""
    inside = ~vit.to_photo(torch.ones(1, *grid), [photo])[0].isnan()
    (height, width), rows, columns = inside.shape, inside.any(1).nonzero(), inside.any(0).nonzero()
    edges = (columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height)
    return [edge.item() for edge in edges]


def _jpeg(photo):
    picture = ImageOps.contain(read_photo(photo).convert("RGB"), (PHOTO_PIXELS, PHOTO_PIXELS))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=75)
    return file.getvalue()


def _call(method):
    """A method as the arguments of `Vit.explain`; a function of the user's own goes by its name."""
    bound = bind(method)
    own = getattr(bound.func, "__name__", "method")
    name = next((f'"{m.name}"' for m in METHODS.values() if m.function is bound.func), own)
    return ", ".join([name, *(f"{k}={v!r}" for k, v in bound.keywords.items())])


def _follows(method):
    """(norm, variant), as indices, of a map that the page can draw at any α; None for other maps."""
    bound = bind(method)
    defaults = {"gmar": ("l1", "paper"), "rollout": (None, "output-first")}
    for name, (norm, variant) in defaults.items():
        if bound.func is METHODS[name].function and "alpha" not in bound.keywords:
            norm, variant = bound.keywords.get("norm", norm), bound.keywords.get("variant", variant)
            return [NORMS.index(norm), VARIANTS.index(variant)] if norm in NORMS else None
    return None


def _with_heads(t):
    codes = quantise(torch.stack([a[0] for a in t.attentions]).cpu().numpy())
    coarse = [torch.from_numpy(a)[None].expand(len(t.target), -1, -1, -1) for a in dequantise(codes)]
    weights = torch.stack([torch.stack(head_weights(t.gradients, n), 1) for n in NORMS[:2]], 1)

    def page(norm, variant, alpha):
        return weighted_rollout(coarse, _weights(t, norm), t.readout.cpu(), alpha, variant)[:, t.prefix_tokens :]

    return {
        "attention": zlib.compress(np.diff(codes, axis=2, prepend=np.uint8(0)).tobytes(), 9),
        "readout": _bytes(t.readout[0]),
        "weights": _bytes(weights),
    }, _error(t, page)


def _light(t):
    exact = polynomials(t)
    codes, scales = encode(exact)
    coarse = torch.from_numpy(codes * scales[..., None])
    depth = len(t.attentions)
    starts = (0, 2, 3 + depth, 4 + 2 * depth)

    def page(norm, variant, alpha):
        n, v = NORMS.index(norm), VARIANTS.index(variant)
        groups = [0] * len(t.target) if norm is None else [1 + 2 * k + n for k in range(len(t.target))]
        powers = coarse[groups, starts[v] : starts[v + 1]]
        return sum(alpha**k * powers[:, k] for k in range(powers.shape[1]))

    return {"polynomials": codes.tobytes(), "scales": scales.tobytes()}, _error(t, page)


def _weights(t, norm):
    return [w.cpu() for w in head_weights(t.gradients, norm)]


def _bytes(x):
    return x.detach().float().cpu().contiguous().numpy().tobytes()


def _codes(maps):
    """Maps in [0, 1] as uint16."""
    return (65535 * maps.detach().cpu().double()).round().numpy().astype(np.uint16).tobytes()


def polynomials(t: Trace) -> torch.Tensor:
    """Every α, norm, variant and target of a trace: float32 (1 + 2B, 2 + 2(L + 1), R·C), lowest power first.

    Group 0 has equal heads, group 1 + 2b + n target b and norm n of NORMS. A group holds the coefficients of the
    variants one after the other: 2 of `paper`, L + 1 of `report`, L + 1 of `output-first` (`alpha_polynomial`).
    """
    attentions, readout = [a.cpu() for a in t.attentions], t.readout.cpu()
    by_norm = [
        torch.cat([alpha_polynomial(attentions, _weights(t, norm), readout, v) for v in VARIANTS], 1)
        for norm in (*NORMS[:2], None)
    ]
    l1, l2, equal = (coefficients[:, :, t.prefix_tokens :] for coefficients in by_norm)
    return torch.cat([equal[:1], torch.stack([l1, l2], 1).flatten(0, 1)])


def encode(vectors: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (…, n) as uint16 codes (…, n) and float32 scales (…): code · scale is a vector less its lowest entry.

    As many bytes as half precision and at least eight times as exact. What is the same at every patch does not move a
    map, which is min–max scaled in the end, so the lowest entry need not be kept.
    """
    raised = (vectors - vectors.amin(-1, keepdim=True)).double().numpy()
    scales = (raised.max(-1) / 65535).astype(np.float32)
    codes = np.rint(raised / np.where(scales > 0, scales, 1)[..., None]).clip(0, 65535).astype(np.uint16)
    return codes, scales


def quantise(attention: np.ndarray) -> np.ndarray:
    """Attention (…, N, N) as uint8, companded: q = LEVELS · (a / largest of the row)^⅔.

    So small entries keep their shape. The row's scale is not stored: rows sum to 1, which gives it back (`dequantise`).
    """
    largest = attention.max(-1, keepdims=True)
    return np.rint(LEVELS * (attention / largest) ** (2 / 3)).astype(np.uint8)


def dequantise(q: np.ndarray) -> np.ndarray:
    """Codes (…, N, N) of `quantise` → float32 attention whose rows sum to 1: a = q^1.5 / Σ q^1.5."""
    powers = q.astype(np.float32) ** 1.5
    return powers / powers.sum(-1, keepdims=True)


def _error(t, page):
    """Largest difference that the page's bytes make in a map (whose range is 1), over norms, variants and three α.

    page(norm, variant, alpha) → patch scores (B, R·C) from what the page holds.
    """
    attentions, worst = [a.cpu() for a in t.attentions], 0.0
    for norm in NORMS:
        weights = _weights(t, norm)
        for variant, alpha in itertools.product(VARIANTS, (0.0, 1.0, 10.0)):
            exact = weighted_rollout(attentions, weights, t.readout.cpu(), alpha, variant)[:, t.prefix_tokens :]
            moved = minmax(page(norm, variant, alpha)) - minmax(exact)
            worst = max(worst, float(moved.abs().max()))
    return worst


def state_map(
    model: Vit | str | os.PathLike | nn.Module,
    photo: Picture,
    target: int | None = None,
    norm: str | None = "l1",
    alpha: float = 1.0,
    variant: str = "paper",
    layers: tuple[int, int] | None = None,
    muted: Sequence[tuple[int, int]] = (),
) -> torch.Tensor:
    """The explorer's map as a function of its settings: float32 (R, C) in [0, 1], at full precision.

    Args:
        model: as in `explore`, and
        photo: too; one photo.
        target: class id; None: the predicted class.
        norm: as in `gmar_utils.methods.weighting.gmar`, and
        alpha: too, and
        variant: too.
        layers: (first, last) layer that takes part, counted from 1; None: all.
        muted: (layer, head) pairs, counted from 1, that get weight 0; the layer's other weights grow in proportion. A
            layer with no weight left is passed over, like one outside `layers`.

    >>> state_map(vit, photos["cat"], norm="l2", alpha=0.5, layers=(2, 6), muted=[(3, 1)])  # doctest: +SKIP
    """
    vit = model if isinstance(model, Vit) else load_model(model)
    t = trace(vit.model, vit.preprocess([photo]), target=target)
    scores = muted_rollout(t.attentions, head_weights(t.gradients, norm), t.readout, alpha, variant, layers, muted)
    return minmax(t.patches(scores))[0]


def muted_rollout(
    attentions: Layers,
    weights: Layers,
    readout: torch.Tensor,
    alpha: float = 1.0,
    variant: str = "paper",
    layers: tuple[int, int] | None = None,
    muted: Sequence[tuple[int, int]] = (),
) -> torch.Tensor:
    """`weighted_rollout` (B, N) over some layers and with some heads muted: `layers` and `muted` as in `state_map`."""
    depth, heads = len(attentions), weights[0].shape[1]
    first, last = layers or (1, depth)
    if not 1 <= first <= last <= depth:
        raise ValueError(f"layers must be (first, last) with 1 ≤ first ≤ last ≤ {depth}, got ({first}, {last}).")
    if wrong := [p for p in muted if not (1 <= p[0] <= depth and 1 <= p[1] <= heads)]:
        raise ValueError(f"muted counts layers 1 to {depth} and heads 1 to {heads}; got {wrong}.")
    weights = [w.clone() for w in weights]
    for layer, head in muted:
        weights[layer - 1][:, head - 1] = 0
    kept = [k for k in range(first - 1, last) if bool((weights[k].sum(1) > 0).all())]
    if not kept:
        return readout.float().expand(len(attentions[0]), -1)
    return weighted_rollout(
        [attentions[k] for k in kept],
        [weights[k] / weights[k].sum(1, keepdim=True) for k in kept],
        readout,
        alpha,
        variant,
    )
