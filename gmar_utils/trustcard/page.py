"""The card as one HTML file: every picture, style and line of program is inside, and no request leaves it."""

import base64
import io
import json
import re
from importlib.resources import files

import jinja2
import numpy as np
import torch
from PIL import Image

from .. import viz
from ..capture import trace
from ..explorer.packing import encode, polynomials
from ..photo import minmax, resize
from .card import TrustCard
from .lights import CHECKS, LEVEL, NEEDED

PHOTO_PIXELS = 360  # longer side of the photo under the sliders
THUMB_PIXELS = 168  # of each method's picture
MODULES = ("maths", "draw", "photo")  # of the explorer: they make the maps in the page
MODEL_TITLES = {
    "answers": "Answers its photos",
    "last-block": "Last block is trained",
    "place": "Looks everywhere",
    "right": "Right on labelled photos",
}
COLOURS = {"green": "green", "red": "red", "amber": "cannot be told", "none": "no light"}
MARKS = {"green": "✓", "red": "✕", "amber": "?", "none": "–"}


def as_html(card: TrustCard) -> str:
    """The HTML of a card."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": _percent, "number": _number}
    here = files(__package__)
    template = environment.from_string((here / "page.html.j2").read_text(encoding="utf-8"))
    shown = [_shown(card, photo, result) for photo, result in zip(card.photos, card.results, strict=True)]
    labels = [k for k, m in card.methods.items() if not m.reference]
    by = {(light.check, light.method): light for light in card.lights}
    asked = [c for c in CHECKS if any(by[c.name, k].photos for k in labels)]
    return template.render(
        card=card,
        photos=shown,
        labels=labels,
        titles={k: m.title for k, m in card.methods.items()},
        signed=any(card.methods[k].signed for k in labels),
        checks=CHECKS,
        asked=asked,
        light=by,
        model_titles=MODEL_TITLES,
        colours=COLOURS,
        marks=MARKS,
        needed=NEEDED,
        level=LEVEL,
        chapter=lambda name: f"{card.book.rstrip('/') + '/' if card.book else ''}{name}.html",
        css=jinja2.utils.markupsafe.Markup((here / "page.css").read_text(encoding="utf-8")),
        program=jinja2.utils.markupsafe.Markup(_program()),
        data=jinja2.utils.markupsafe.Markup(_embedded([p["live"] for p in shown])),
    )


def _program():
    """The explorer's modules and the page's own, as one: a page opened from disk may import no files."""
    folder = files("gmar_utils.explorer") / "js"
    texts = [(folder / f"{name}.js").read_text(encoding="utf-8") for name in MODULES]
    texts.append((files(__package__) / "page.js").read_text(encoding="utf-8"))
    joined = "\n".join(texts)
    joined = re.sub(r'^import .*? from "\./[^"]+";\n', "", joined, flags=re.MULTILINE)
    return re.sub(r"^export ", "", joined, flags=re.MULTILINE)


def _embedded(value):
    """JSON that can end no script element."""
    return json.dumps(value, ensure_ascii=True).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _shown(card, photo, result):
    """What the page needs of a photo."""
    said, made = result["answers"], result["maps"]
    words = {t["class_id"]: t for t in said["top"]}
    targets = [said["target"], *([said["second"]] if said["strong"] else [])]
    rows = []
    for target, maps in zip(targets, (made["maps"], made["second"]), strict=False):
        pictures = [(k, _overlay(card, photo, maps[k])) for k in card.methods if k in maps]
        rows.append({"why": _answer(words, target), "pictures": pictures})
    return {
        "name": photo.name,
        "picture": _data(photo.picture, PHOTO_PIXELS, 80),
        "size": photo.picture.size,
        "top": said["top"],
        "label": None if photo.label is None else card.vit.label(photo.label),
        "right": photo.label == said["target"],
        "rows": rows,
        "live": _live(card, photo, said, made, targets),
        "outliers": result["tokens"]["outliers"],
        "failed": {card.methods[k].title: why for k, why in made["failed"].items()},
    }


def _answer(words, target):
    found = words.get(target)
    if found is None:
        return f"class {target}"
    return found["label"] if found["probability"] is None else f"{found['label']} {_percent(found['probability'])}"


def _overlay(card, photo, values):
    """A map on its photo, as a small JPEG in a data address."""
    small = photo.picture.copy()
    small.thumbnail((THUMB_PIXELS, THUMB_PIXELS))
    at_input = minmax(resize(torch.tensor([values]), photo.pixel_values.shape[-2:]))
    try:
        on_photo = card.vit.to_photo(at_input, [photo.image])[0]
    except ValueError:  # it is not known where the processor looks: the map alone
        return _data(viz.blend(Image.new("RGB", small.size, "white"), at_input[0]), THUMB_PIXELS, 70)
    sampled = on_photo[_spread(len(on_photo), small.height)][:, _spread(on_photo.shape[1], small.width)]
    return _data(viz.blend(small, sampled), THUMB_PIXELS, 70)


def _spread(length, count):
    return ((torch.arange(count, dtype=torch.float64) + 0.5) * length / count).long()


def _live(card, photo, said, made, targets):
    """What the explorer's photo.js reads: every α, norm and variant from a few vectors; None where a model has none.

    Its maps are the page's: methods in their order, a map for each target."""
    labels = [k for k in card.methods if k in made["maps"]]
    words = {t["class_id"]: t for t in said["top"]}
    x = photo.pixel_values
    try:
        seen = trace(card.vit.model, x.expand(len(targets), *x.shape[1:]), targets)
        codes, scales = encode(polynomials(seen))
        crop = _crop(card.vit, photo, seen.grid)
    except (ValueError, RuntimeError, MemoryError):  # no gradient, or no known place in the photo: pictures only
        return None
    maps = np.array([[source[k] for k in labels] for source in (made["maps"], made["second"])[: len(targets)]])
    return {
        "info": {
            "name": photo.name,
            "shape": [len(seen.attentions), *seen.attentions[0].shape[1:3]],
            "grid": list(seen.grid),
            "crop": crop,
            "targets": targets,
            "words": [_answer(words, t) for t in targets],
            "target_names": [_answer(words, t) for t in targets],
            "methods": [card.methods[k].title for k in labels],
            "fractions": [],
        },
        "image": _base64(_jpeg(photo.picture, PHOTO_PIXELS, 80)),
        "maps": _base64((65535 * maps).round().astype("<u2").tobytes()),
        "polynomials": _base64(codes.astype("<u2").tobytes()),
        "scales": _base64(scales.astype("<f4").tobytes()),
    }


def _crop(vit, photo, grid):
    """Where the model looked, (x0, y0, x1, y1) as shares of the photo."""
    inside = ~vit.to_photo(torch.ones(1, *grid), [photo.image])[0].isnan()
    (height, width), rows, columns = inside.shape, inside.any(1).nonzero(), inside.any(0).nonzero()
    edges = (columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height)
    return [edge.item() for edge in edges]


def _jpeg(picture, pixels, quality):
    small, file = picture.copy(), io.BytesIO()
    small.thumbnail((pixels, pixels))
    small.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _data(picture, pixels, quality):
    return f"data:image/jpeg;base64,{_base64(_jpeg(picture, pixels, quality))}"


def _base64(data):
    return base64.b64encode(data).decode()


def _percent(p):
    return f"{100 * p:.{int(p < 0.095)}f} %"


def _number(x):
    return f"{round(x, 2) + 0.0:.2f}".replace("-", "−")  # no −0.00
