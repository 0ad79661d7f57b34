"""Sliders for α, norm, layers and heads that work in Jupyter, on Colab and in the static book without a kernel.

    ui = explore(vit, {"cat": cat, "coffee": coffee})     # α, norm, variant, class, opacity
    packed = pack(vit, photos, heads=True)                # several views of one set of photos: packed once
    explore(packed, show="heads")                         # needs all attention, heads=True

The page computes the maps itself: from a few vectors a photo, or from its attention (a byte an entry) and exact head
weights. `state_map` is the same picture as a plain function call; 'As code' under each view writes the call.
"""

import functools
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files

import anywidget
import ipywidgets as widgets
import traitlets
from torch import nn

from ..methods.weighting import VARIANTS
from ..model import Vit
from ..photo import Picture
from .packing import NORMS, PhotoData, pack

SHOW = ("ask", "map", "heads", "compare", "deletion")
MODULES = (
    "maths",
    "draw",
    "code",
    "link",
    "photo",
    "ask",
    "map",
    "heads",
    "compare",
    "deletion",
    "main",
)  # what one imports first
STYLES = ("frame", "panels", "controls")  # in the order that the page reads them


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf8")


# Settings worth a look; norm and variant are indices in NORMS and VARIANTS.
PRESETS: list[dict] = json.loads(_text("presets.json"))


class Script(widgets.Widget):
    """The view's modules and style, once for all views: a page with five would hold them five times."""

    modules = traitlets.List([[name, _text(f"js/{name}.js")] for name in MODULES]).tag(sync=True)
    style = traitlets.Unicode("".join(_text(f"{name}.css") for name in STYLES)).tag(sync=True)


@functools.cache
def _script() -> Script:
    return Script()


class ExplorerView(anywidget.AnyWidget):
    """The picture under the sliders. Every trait is what a slider, a button or a click last set."""

    # A page opened from disk may not import files: each module gets an address of its own, known to those after it.
    _esm = """
    async function load(shared) {
        const style = document.createElement("style");
        style.textContent = shared.get("style");
        document.head.append(style);
        const addresses = [];
        for (const [name, text] of shared.get("modules")) {
            const code = addresses.reduce((code, [file, url]) => code.replaceAll(`"./${file}.js"`, `"${url}"`), text);
            addresses.push([name, URL.createObjectURL(new Blob([code], { type: "text/javascript" }))]);
        }
        return import(addresses.at(-1)[1]);
    }
    export default { async render(context) {
        const id = context.model.get("script").replace("IPY_MODEL_", "");
        const shared = await context.model.widget_manager.get_model(id);
        shared.loaded ??= load(shared);
        return (await shared.loaded).render(context);
    } }"""
    script = traitlets.Instance(Script).tag(sync=True, **widgets.widget_serialization)
    photos = traitlets.List(traitlets.Instance(PhotoData)).tag(sync=True, **widgets.widget_serialization)
    presets = traitlets.List().tag(sync=True)
    show = traitlets.List(traitlets.Unicode()).tag(sync=True)
    link = traitlets.Unicode().tag(sync=True)  # this explorer's name in shared links
    answer = traitlets.Unicode().tag(sync=True)  # a sentence under the picture of show="ask"
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


def explore(
    source: Vit | str | os.PathLike | nn.Module | list[PhotoData],
    photos: Mapping[str, Picture] | Iterable[Picture] | None = None,
    show: str | Sequence[str] = "map",
    targets: int | Sequence[int] = 3,
    *,
    answer: str = "",
) -> widgets.VBox:
    """Sliders over a live map.

    Args:
        source: A model (Vit, bundled name, folder, hub id or model object) with `photos`, or what `pack` returned.
        photos: {name: photo} or a list; a photo is whatever `Vit.preprocess` takes. The code under the view calls them
            `photos` and the model `vit`.
        show: "ask" (a button for each class and each method) | "map" (α, norm, variant) | "heads" (board of head
            weights, click to mute or solo; where a patch looks) | "compare" (two maps, their difference, a swipe
            handle) | "deletion" (patches vanish, the probability falls), or several of them.
        targets: The classes that can be explained: the so many most probable ones, or a list of class ids.
        answer: A sentence under the picture of "ask".

    Returns:
        An ipywidgets box; its `.view` is the `ExplorerView`.

    Raises:
        ValueError: For an unknown `show`, for photos of different models, and where `pack` left out what `show` needs.
        TypeError: For a model without photos.
    """
    show = (show,) if isinstance(show, str) else tuple(show)
    if not show or set(show) - set(SHOW):
        raise ValueError(f"show must name {', '.join(SHOW)}; got {', '.join(sorted(set(show) - set(SHOW))) or 'none'}.")
    if isinstance(source, list) and source and all(isinstance(p, PhotoData) for p in source):
        packed = source
    elif not photos:
        raise TypeError("explore needs photos too: explore(vit, {'cat': cat}), or explore(pack(vit, photos)).")
    else:
        packed = pack(source, photos, targets, curves="deletion" in show, heads="heads" in show)
    if "deletion" in show and not all(p.curves for p in packed):
        raise ValueError("show='deletion' needs deletion curves: pack(model, photos, curves=True).")
    if "heads" in show and not all(p.attention for p in packed):
        raise ValueError("show='heads' needs the attention of every head: pack(model, photos, heads=True).")
    kinds = {(*p.info["shape"][:2], len(p.info["targets"]), tuple(p.info["methods"])) for p in packed}
    if len(kinds) != 1:
        raise ValueError(
            "The photos of one explorer need the same number of layers, heads and targets, and the same methods; got "
            f"{sorted(kinds)}. Make one explorer for each model."
        )

    info = packed[0].info
    depth = info["shape"][0]
    layout = widgets.Layout()  # one for all: each would be another kilobyte of the page
    view = ExplorerView(
        layout=layout,
        photos=packed,
        show=list(show),
        link=_link(show, packed),
        answer=answer,
        script=_script(),
        presets=PRESETS,
        choices=["Your settings", "Equal heads", *info["methods"]],
        target_names=info["target_names"],
        layers=[1, depth],
        look=depth,
    )
    controls = [_control(view, kind, depth, layout) for kind in _wanted(show, packed)]
    box = widgets.Box(controls, layout=layout)
    box.add_class("gmar-controls")
    ui = widgets.VBox([box, view], layout=layout)
    ui.add_class("gmar-explorer")
    ui.view = view
    return ui


def _link(show, packed):
    """The same from build to build, so that links keep their meaning, and another one for other pictures."""
    pictures = [[p.info["name"], p.info["targets"], p.info["methods"]] for p in packed]
    return f"{'-'.join(show)}-{zlib.crc32(json.dumps(pictures).encode()):08x}"


def _wanted(show, packed):
    kinds = ["photo"] if len(packed) > 1 else []
    if set(show) != {"ask"}:
        kinds.append("target")
    if set(show) & {"map", "heads", "compare"}:
        kinds += ["alpha", "norm", "variant"]
    if "map" in show:
        kinds += ["layers"] if all(p.attention for p in packed) else []
        kinds.append("opacity")
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
