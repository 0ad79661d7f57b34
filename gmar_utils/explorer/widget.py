"""Sliders for α, norm, layers and heads that work in Jupyter, on Colab and in the static book without a kernel.

    ui = explore(vit, {"cat": cat, "coffee": coffee})         # α, norm, variant, class, layers, opacity
    packed = pack(vit, photos); explore(packed, show="heads") # several views of one set of photos: packed once

The page computes the maps itself, from the photo's attention (a byte an entry) and exact head weights. `state_map` is
the same picture as a plain function call; 'As code' under each view writes that call.
"""

import functools
import io
import re
import zlib
from collections.abc import Mapping, Sequence
from importlib.resources import files

import anywidget
import ipywidgets as widgets
import matplotlib
import numpy as np
import torch
import traitlets
from PIL import ImageOps

from ..capture import probability, trace
from ..capture.layout import logits_of
from ..methods import bind, explain_many
from ..methods.weighting import VARIANTS, head_weights, weighted_rollout
from ..metrics import deletion
from ..model import Vit, load_model
from ..photo import minmax, read_photo
from ..viz import style

NORMS = ("l1", "l2", None)
SHOW = ("map", "heads", "compare", "deletion")
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

# Settings worth a look; norm and variant are indices in NORMS and VARIANTS.
PRESETS = (
    {
        "label": "α = 0",
        "state": {"alpha": 0.0, "norm": 0, "variant": 0},
        "say": "No residual path. The map mixes what all tokens look at in the last layer. Remember it; press α = 10.",
    },
    {
        "label": "α = 1",
        "state": {"alpha": 1.0, "norm": 0, "variant": 0},
        "say": "Residual path and attention count the same. In the paper’s recursion every term still ends in the last "
        "layer, so α only changes the mixture.",
    },
    {
        "label": "α = 10",
        "state": {"alpha": 10.0, "norm": 0, "variant": 0},
        "say": "The residual path rules: this is close to the map for α → ∞. Now choose the variant ‘report’ and move "
        "α again: there it changes more.",
    },
    {
        "label": "equal heads",
        "state": {"alpha": 1.0, "norm": 2, "variant": 0},
        "say": "Every head counts the same: GMAR without its weights. What moved since α = 1 is all that the head "
        "weights do on this photo.",
    },
    {
        "label": "classical rollout",
        "state": {"alpha": 1.0, "norm": 2, "variant": 2},
        "say": "Equal heads, the last layer first: the order of Abnar and Zuidema. Only the order and the recursion "
        "changed since ‘equal heads’.",
    },
)


def _text(name):
    """A file of the package without indentation and comment lines, which a page need not carry."""
    text = files(__package__).joinpath(name).read_text(encoding="utf8")
    return re.sub(r"^\s*(//.*)?\n|^[ ]+", "", text, flags=re.M)


class Script(widgets.Widget):
    """The view's script and style, once for all views: a page with five would hold them five times."""

    code = traitlets.Unicode(_text("view.js")).tag(sync=True)
    style = traitlets.Unicode(_text("view.css")).tag(sync=True)


@functools.cache
def _script() -> Script:
    return Script()


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


class ExplorerView(anywidget.AnyWidget):
    """The picture under the sliders. Every trait is what a slider, a button or a click last set."""

    _esm = """export default { async render(context) {
        const id = context.model.get("script").replace("IPY_MODEL_", "");
        const shared = await context.model.widget_manager.get_model(id);
        if (!document.getElementById("gmar-style")) {
            const style = document.createElement("style");
            style.id = "gmar-style";
            style.textContent = shared.get("style");
            document.head.append(style);
        }
        const address = URL.createObjectURL(new Blob([shared.get("code")], { type: "text/javascript" }));
        return (await import(address)).render(context);
    } }"""
    script = traitlets.Instance(Script).tag(sync=True, **widgets.widget_serialization)
    photos = traitlets.List(traitlets.Instance(PhotoData)).tag(sync=True, **widgets.widget_serialization)
    magma = traitlets.Bytes().tag(sync=True)  # uint8 (256, 3)
    presets = traitlets.List().tag(sync=True)
    show = traitlets.List(traitlets.Unicode()).tag(sync=True)
    choices = traitlets.List(traitlets.Unicode()).tag(sync=True)  # names that left and right count in
    target_names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    photo = traitlets.Int(0).tag(sync=True)
    target = traitlets.Int(0).tag(sync=True)  # index among the photo's top classes
    norm = traitlets.Int(0).tag(sync=True)  # index in NORMS
    variant = traitlets.Int(0).tag(sync=True)  # index in VARIANTS
    alpha = traitlets.Float(1.0).tag(sync=True)
    layers = traitlets.List(traitlets.Int()).tag(sync=True)  # first and last, from 1
    muted = traitlets.List().tag(sync=True)  # [layer, head] pairs, from 1
    opacity = traitlets.Float(0.65).tag(sync=True)
    query = traitlets.Int(-1).tag(sync=True)  # patch whose attention is shown; -1: the classifier's tokens
    look = traitlets.Int(1).tag(sync=True)  # the layer it is shown of
    left = traitlets.Int(1).tag(sync=True)
    right = traitlets.Int(0).tag(sync=True)
    method = traitlets.Int(0).tag(sync=True)
    step = traitlets.Int(0).tag(sync=True)

    def arguments(self) -> dict:
        """The picture's settings as keyword arguments of `state_map`."""
        return {
            "target": self.photos[self.photo].info["targets"][self.target],
            "norm": NORMS[self.norm],
            "alpha": self.alpha,
            "variant": VARIANTS[self.variant],
            "layers": tuple(self.layers),
            "muted": [tuple(pair) for pair in self.muted],
        }


def explore(source, photos=None, show: str | Sequence[str] = "map", targets: int | Sequence[int] = 3) -> widgets.VBox:
    """Sliders over a live map: an ipywidgets box, `.view` its `ExplorerView`.

    source   a model (Vit, bundled name, folder, hub id or model object) with `photos`, or what `pack` returned
    photos   {name: photo} or a list; a photo is whatever `Vit.preprocess` takes. The code under the view calls them
             `photos` and the model `vit`
    show     "map" | "heads" (board of head weights, click to mute or solo; where a patch looks) | "compare" (two maps,
             their difference, a swipe handle) | "deletion" (patches vanish, the probability falls), or several of them
    targets  the classes that can be explained: the so many most probable ones, or a list of class ids

    For a model with 6 layers, 6 heads and 96 patches a photo takes about 260 kB of the page. It grows with L·H·N²:
    ViT-B/16 takes 5 MB, fine in a live notebook, too much for a page.
    """
    show = (show,) if isinstance(show, str) else tuple(show)
    if unknown := set(show) - set(SHOW):
        raise ValueError(f"show must name {', '.join(SHOW)}; got {', '.join(sorted(unknown))}.")
    if isinstance(source, list) and all(isinstance(p, PhotoData) for p in source):
        packed = source
    elif photos is None:
        raise TypeError("explore needs photos too: explore(vit, {'cat': cat}), or explore(pack(vit, photos)).")
    else:
        packed = pack(source, photos, targets, curves="deletion" in show)
    if "deletion" in show and not all(p.curves for p in packed):
        raise ValueError("show='deletion' needs deletion curves: pack(model, photos, curves=True).")
    kinds = {(*p.info["shape"][:2], len(p.info["targets"])) for p in packed}
    if len(kinds) != 1:
        raise ValueError(
            "The photos of one explorer need the same number of layers, heads and targets; got "
            f"{sorted(kinds)}. Make one explorer for each model."
        )

    info = packed[0].info
    depth = info["shape"][0]
    layout = widgets.Layout()  # one for all: each would be another kilobyte of the page
    view = ExplorerView(
        layout=layout,
        photos=packed,
        show=list(show),
        script=_script(),
        magma=(255 * matplotlib.colormaps["magma"](np.arange(256))[:, :3]).round().astype(np.uint8).tobytes(),
        presets=[dict(p) for p in PRESETS],
        choices=["Your settings", "Equal heads", *info["methods"]],
        target_names=info["target_names"],
        layers=[1, depth],
        look=depth,
    )
    controls = [_control(view, kind, depth, layout) for kind in _wanted(show, len(packed))]
    box = widgets.Box(controls, layout=layout)
    box.add_class("gmar-controls")
    ui = widgets.VBox([box, view], layout=layout)
    ui.add_class("gmar-explorer")
    ui.view = view
    return ui


def _wanted(show, photos):
    kinds = ["photo"] if photos > 1 else []
    kinds.append("target")
    if show != ("deletion",):
        kinds += ["alpha", "norm", "variant"]
    if "map" in show:
        kinds += ["layers", "opacity"]
    kinds += ["look"] if "heads" in show else []
    kinds += ["left", "right"] if "compare" in show else []
    return kinds + (["method", "step"] if "deletion" in show else [])


def _control(view, kind, depth, layout):
    """One of ipywidgets' own controls, linked to the view in the browser: it works with a kernel and without."""
    menus = {
        "photo": ("photo", [p.info["name"] for p in view.photos]),
        "target": ("class", view.target_names),
        "norm": ("head weights", ["L1 norm", "L2 norm", "equal"]),
        "variant": ("variant", VARIANTS),
        "left": ("left map", view.choices),
        "right": ("right map", view.choices),
        "method": ("order by", view.photos[0].info["methods"]),
    }
    value = getattr(view, kind)
    if kind in menus:
        description, options = menus[kind]
        numbered = [(option, i) for i, option in enumerate(options)]
        control = widgets.Dropdown(description=description, options=numbered, index=value, layout=layout)
        widgets.jslink((control, "index"), (view, kind))
        if kind == "target":  # another photo has other top classes
            widgets.jslink((view, "target_names"), (control, "_options_labels"))
        return control
    sliders = {
        "alpha": (widgets.FloatSlider, "α", 0, 10, 0.05),
        "opacity": (widgets.FloatSlider, "opacity", 0, 1, 0.05),
        "layers": (widgets.IntRangeSlider, "layers", 1, depth, 1),
        "look": (widgets.IntSlider, "look in layer", 1, depth, 1),
        "step": (widgets.IntSlider, "steps", 0, len(view.photos[0].info["fractions"]) - 1, 1),
    }
    slider, description, low, high, step = sliders[kind]
    control = slider(description=description, min=low, max=high, step=step, value=value, layout=layout)
    widgets.jslink((control, "value"), (view, kind))
    return control


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
    shown = {label: bind(name, **options) for label, (name, options) in METHODS_SHOWN.items()}
    maps = torch.stack(list(explain_many(vit.model, many, shown, target=top, upsample=False).values()), 1)
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
        readout=_bytes(t.readout[0]),
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
