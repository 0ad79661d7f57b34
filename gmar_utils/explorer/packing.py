"""What the page needs of a photo, and the same pictures as plain function calls."""

import io
import zlib
from collections.abc import Mapping, Sequence

import ipywidgets as widgets
import numpy as np
import torch
import traitlets
from PIL import ImageOps

from ..capture import probability, trace
from ..capture.layout import logits_of
from ..methods import explain_many
from ..methods.weighting import VARIANTS, head_weights, weighted_rollout
from ..metrics import deletion
from ..model import Vit, load_model
from ..photo import minmax, read_photo
from ..viz import style

NORMS = ("l1", "l2", None)
PHOTO_PIXELS = 416  # longer side of the picture in the page
STEPS = 16  # of the deletion curves
LEVELS = 100  # of attention in the page: more make it larger, and its maps hardly more exact

# Maps that do not follow the sliders, for comparison and deletion: label → (method, options).
METHODS_SHOWN = {
    "GMAR L1": ("gmar", {"norm": "l1"}),
    "GMAR L2": ("gmar", {"norm": "l2"}),
    "Attention rollout": ("rollout", {}),
    "LeGrad": ("legrad", {}),
    "Grad-CAM": ("grad-cam", {}),
    "Random": ("random", {}),
}


class PhotoData(widgets.Widget):
    """A photo's numbers for the view, without a view of its own; several views can share it."""

    info = traitlets.Dict().tag(sync=True)
    image = traitlets.Bytes().tag(sync=True)  # JPEG
    attention = traitlets.Bytes().tag(sync=True)  # uint8 (L, H, N, N), quantise; rows less the row above; deflated
    readout = traitlets.Bytes().tag(sync=True)  # float32 (N,)
    weights = traitlets.Bytes().tag(sync=True)  # float32 (targets, 2 norms, L, H)
    maps = traitlets.Bytes().tag(sync=True)  # float32 (targets, methods, R·C)
    curves = traitlets.Bytes().tag(sync=True)  # float32 (targets, methods, S + 1), may be empty

    @property
    def size(self) -> int:
        """Bytes of this photo in the page."""
        return sum(len(getattr(self, k)) for k in ("image", "attention", "readout", "weights", "maps", "curves"))


def pack(model, photos, targets: int | Sequence[int] = 3, curves: bool = False) -> list[PhotoData]:
    """What the view needs of each photo, to be shared by several `explore(packed, show=…)`.

    model, photos, targets as in `explore`; curves=True computes the deletion curves too: STEPS + 1 forwards a photo,
    class and method.
    """
    vit = model if isinstance(model, Vit) else load_model(model)
    keyed = photos.items() if isinstance(photos, Mapping) else enumerate(photos)
    return [_pack(vit, key, photo, targets, curves) for key, photo in keyed]


def _pack(vit, key, photo, targets, curves):
    pixels = vit.preprocess([photo])
    with torch.no_grad():
        logits = logits_of(vit.model(pixels))
    ranked = logits[0].argsort(descending=True, stable=True)
    top = ranked[:targets] if isinstance(targets, int) else torch.tensor(targets, device=ranked.device)
    many = pixels.expand(len(top), *pixels.shape[1:])
    t = trace(vit.model, many, target=top)
    chances = probability(vit.model, t.logits, top)
    weights = torch.stack([torch.stack(head_weights(t.gradients, n), 1) for n in NORMS[:2]], 1)
    maps = torch.stack(list(explain_many(vit.model, many, METHODS_SHOWN, target=top, upsample=False).values()), 1)
    found = None
    if curves:  # every class and method in one batch
        rows, m = maps.flatten(0, 1), maps.shape[1]
        found = deletion(
            vit.model, pixels.expand(len(rows), *pixels.shape[1:]), rows, target=top.repeat_interleave(m),
            steps=min(STEPS, t.grid[0] * t.grid[1]),
        )  # fmt: skip
    attention = torch.stack([a[0] for a in t.attentions]).cpu().numpy()
    codes = quantise(attention)
    inside = ~vit.to_photo(torch.ones(1, *t.grid), [photo])[0].isnan()
    height, width = inside.shape
    rows, columns = inside.any(1).nonzero()[[0, -1], 0].tolist(), inside.any(0).nonzero()[[0, -1], 0].tolist()
    picture = ImageOps.contain(read_photo(photo).convert("RGB"), (PHOTO_PIXELS, PHOTO_PIXELS))
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=75)
    return PhotoData(
        info={
            "name": key if isinstance(key, str) else f"photo {key + 1}",
            "key": repr(key),
            "shape": list(attention.shape[:3]),
            "grid": list(t.grid),
            "crop": [columns[0] / width, rows[0] / height, (columns[1] + 1) / width, (rows[1] + 1) / height],
            "fill": [round(255 * m) for m in vit.processor.image_mean],  # what zero in normalised space looks like
            "targets": top.tolist(),
            "target_names": [
                f"{vit.label(k)} {100 * c:.{int(c < 0.095)}f} %"
                for k, c in zip(top.tolist(), chances.tolist(), strict=True)
            ],
            "methods": list(METHODS_SHOWN),
            "colours": [style(m).color for m in METHODS_SHOWN],
            "calls": [", ".join([f'"{m}"', *(f"{k}={v!r}" for k, v in o.items())]) for m, o in METHODS_SHOWN.values()],
            "fractions": found.fractions.tolist() if found else [],
            "error": _error(t, codes),
        },
        image=jpeg.getvalue(),
        attention=zlib.compress(np.diff(codes, axis=2, prepend=np.uint8(0)).tobytes(), 9),
        readout=_bytes(t.readout),
        weights=_bytes(weights),
        maps=_bytes(maps),
        curves=_bytes(found.scores) if found else b"",
    )


def _bytes(x):
    return x.detach().float().cpu().contiguous().numpy().tobytes()


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


def _error(t, codes):
    """Largest difference that quantising makes in a map (whose range is 1), over norms, variants and three α."""
    coarse = [torch.from_numpy(a)[None].expand(len(t.target), -1, -1, -1) for a in dequantise(codes)]
    worst = 0.0
    for norm in NORMS:
        weights = [w.cpu() for w in head_weights(t.gradients, norm)]
        for variant in VARIANTS:
            for alpha in (0.0, 1.0, 10.0):
                pair = [
                    minmax(t.patches(weighted_rollout(a, weights, t.readout.cpu(), alpha, variant)))
                    for a in ([a.cpu() for a in t.attentions], coarse)
                ]
                worst = max(worst, float((pair[0] - pair[1]).abs().max()))
    return worst


def state_map(
    model,
    photo,
    target: int | None = None,
    norm: str | None = "l1",
    alpha: float = 1.0,
    variant: str = "paper",
    layers: tuple[int, int] | None = None,
    muted: Sequence[tuple[int, int]] = (),
) -> torch.Tensor:
    """The explorer's map as a function of its settings: float32 (R, C) in [0, 1], at full precision.

    model, photo   as in `explore`; one photo
    target         class id; None: the predicted class
    norm, alpha, variant   as in `gmar_utils.rollout.gmar`
    layers         (first, last) layer that takes part, counted from 1; None: all
    muted          (layer, head) pairs, counted from 1, that get weight 0; the layer's other weights grow in proportion.
                   A layer with no weight left is passed over, like one outside `layers`

    >>> state_map(vit, photos["cat"], norm="l2", alpha=0.5, layers=(2, 6), muted=[(3, 1)])  # doctest: +SKIP
    """
    vit = model if isinstance(model, Vit) else load_model(model)
    t = trace(vit.model, vit.preprocess([photo]), target=target)
    scores = muted_rollout(t.attentions, head_weights(t.gradients, norm), t.readout, alpha, variant, layers, muted)
    return minmax(t.patches(scores))[0]


def muted_rollout(attentions, weights, readout, alpha=1.0, variant="paper", layers=None, muted=()) -> torch.Tensor:
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
