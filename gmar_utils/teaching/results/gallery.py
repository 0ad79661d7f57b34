"""The gallery: pictures that need no download, each under every method, made once and kept as patch scores."""

import base64
import html
import io
import time

import numpy as np
import pandas as pd
import torch
from IPython.display import HTML
from PIL import Image

from gmar_utils import METHODS, data, explain_many, load_model, probability, viz

from .. import samples
from . import RESULTS
from .work import MODEL, SEED

#: Every method that one trace can answer. Occlusion asks for a forward pass for each square, and is left out.
SHOWN = [name for name in METHODS if name not in ("occlusion", "random", "center")]
PATCHES = 256  # about so many: as a square of 224 pixels has them
MAPS = RESULTS / "gallery.npz"


def _motorcycle():
    import skimage.data

    return Image.fromarray(skimage.data.stereo_motorcycle()[0])


def _coins():
    import skimage.data

    return Image.fromarray(skimage.data.coins()).convert("RGB")


def _sample(name):
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image(name))


def _coffee_and_cat():
    picture = Image.new("RGB", (450, 300))
    picture.paste(samples.photo("coffee").crop((120, 0, 420, 400)).resize((225, 300)), (0, 0))
    picture.paste(samples.photo("cat").crop((60, 0, 285, 300)), (225, 0))
    return picture


def _cat_in_the_coffee():
    picture = samples.photo("coffee")
    picture.paste(samples.photo("cat").crop((60, 0, 360, 300)).resize((180, 180)), (20, 200))
    return picture


def _four():
    picture = Image.new("RGB", (600, 600))
    pieces = {"cat": (76, 0, 376, 300), "coffee": (100, 0, 500, 400), "rocket": (160, 0, 587, 427)}
    for k, (name, box) in enumerate((pieces | {"astronaut": (0, 0, 512, 512)}).items()):
        picture.paste(samples.photo(name).crop(box).resize((300, 300)), (300 * (k % 2), 300 * (k // 2)))
    return picture


def _small_coffee():
    picture = Image.new("RGB", (600, 400), (124, 116, 104))
    picture.paste(samples.photo("coffee").resize((150, 100)), (420, 30))
    return picture


def _noise():
    return Image.fromarray(np.random.default_rng(SEED).integers(0, 256, (28, 28, 3), np.uint8)).resize((448, 448), 0)


#: name: (picture, classes that are asked for; None: what the model says, model)
PICTURES = {
    "cat and coffee": (samples.cat_and_coffee, ("espresso", "Egyptian cat"), MODEL),
    "coffee and cat": (_coffee_and_cat, ("espresso", "Egyptian cat"), MODEL),
    "cat in the coffee": (_cat_in_the_coffee, ("espresso", "Egyptian cat"), MODEL),
    "four at once": (_four, ("espresso", "Egyptian cat"), MODEL),
    "cat": (lambda: samples.photo("cat"), None, MODEL),
    "coffee": (lambda: samples.photo("coffee"), None, MODEL),
    "rocket": (lambda: samples.photo("rocket"), None, MODEL),
    "astronaut": (lambda: samples.photo("astronaut"), None, MODEL),
    "camera": (lambda: samples.photo("camera"), None, MODEL),
    "temple": (lambda: _sample("china.jpg"), None, MODEL),
    "flower": (lambda: _sample("flower.jpg"), None, MODEL),
    "motorcycle": (_motorcycle, None, MODEL),
    "coins": (_coins, None, MODEL),
    "star and cross": (lambda: samples.star_and_cross()[0], ("star", "cross"), "vit-shapes"),
    "two shapes": (lambda: data.shapes(2, size=128, seed=1, objects=2)[2]["image"], ("crescent", "bar"), "vit-shapes"),
    "small coffee": (_small_coffee, ("ladybug", "espresso"), MODEL),
    "coffee upside down": (lambda: samples.photo("coffee").rotate(180), None, MODEL),
    "noise": (_noise, None, MODEL),
}


def model_for(name, photo):
    """The model of a picture, at the shape that gives about `PATCHES` patches and keeps the photo's own."""
    if name != MODEL:
        return load_model(name, device="cpu")
    rows = round((PATCHES * photo.height / photo.width) ** 0.5)
    return load_model(name, image_size=(14 * rows, 14 * round(PATCHES / rows)), device="cpu")


def answer(picture):
    """One picture of the gallery: lines (picture, class, its probability, the model's first guess) and scores.

    Returns:
        A list of dictionaries, one for each class, and {method: (classes, R, C)}: signed methods in [−1, 1].
    """
    make, asked, name = PICTURES[picture]
    photo = make()
    vit = model_for(name, photo)
    pixels, said = vit.preprocess([photo]), vit.predict(photo, top=1).iloc[0]
    classes = [vit.class_id(k) for k in asked] if asked else [int(said["class_id"])]
    with torch.inference_mode():
        logits = vit.model(pixels).logits
    lines, maps = [], {}
    for k in classes:
        p = probability(vit.model, logits, torch.tensor([k])).item()
        lines.append(
            {"picture": picture, "class": vit.label(k), "probability": p, "says": said["label"], "model": name}
        )
    many = pixels.expand(len(classes), -1, -1, -1)
    for signed in (False, True):
        chosen = {m: m for m in SHOWN if METHODS[m].signed == signed}
        maps |= explain_many(vit.model, many, chosen, classes, upsample=False, signed=signed)
    return lines, {method: maps[method].numpy() for method in SHOWN}


def coded(maps):
    """Scores in [−1, 1] as whole numbers from −127 to 127, as they are kept."""
    return np.rint(127 * maps).astype(np.int8)


def table(run):
    """Every picture under every method: a line for each question, and the scores as 8-bit numbers beside it."""
    started, lines, kept = time.perf_counter(), [], {}
    (run.work / "gallery").mkdir(parents=True, exist_ok=True)
    for picture in list(PICTURES)[: run.images(len(PICTURES))]:
        table, scores = (run.work / "gallery" / f"{picture}.{end}" for end in ("csv", "npz"))
        if not scores.exists():
            said, maps = answer(picture)
            pd.DataFrame(said).to_csv(table, index=False)
            np.savez(scores, **maps)
        lines.append(pd.read_csv(table))
        with np.load(scores) as maps:
            kept |= {f"{picture}/{m}": coded(maps[m]) for m in SHOWN}
    np.savez_compressed(run.out / MAPS.name, **kept)
    about = {
        "data": "photos of scikit-image and scikit-learn, put together, and generated scenes",
        "images": len(lines),
    }
    run.save("gallery", pd.concat(lines), load_model(MODEL, device="cpu"), started, **about)


def stored(picture):
    """What the job kept of a picture: its lines of the table, and {method: (classes, R, C) in [−1, 1]}."""
    table = pd.read_csv(MAPS.with_suffix(".csv"))
    with np.load(MAPS) as kept:
        return table[table["picture"] == picture], {m: kept[f"{picture}/{m}"] / np.float32(127) for m in SHOWN}


STYLE = """<style>
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr));
  gap: 0.4rem; margin: 0.3rem 0 1rem }
.bd-article .gallery details:not(.toggle-details),
.gallery details { border: 0; margin: 0; padding: 0; background: none }
.gallery summary { list-style: none; cursor: zoom-in; font-size: 0.8rem; font-weight: 400; line-height: 1.25 }
.gallery summary::-webkit-details-marker { display: none }
.gallery img { width: 100%; display: block; border-radius: 3px }
.gallery details[open] { grid-column: 1 / -1 } .gallery details[open] summary { cursor: zoom-out }
.gallery details[open] img { max-width: 34rem }
</style>"""


def show(picture, sentence=""):
    """A picture of the gallery as HTML: a row for each class, the photo and its maps; a press enlarges one."""
    table, maps = stored(picture)
    photo = PICTURES[picture][0]()
    parts = [f"<p><strong>{picture.capitalize()}.</strong> {html.escape(sentence)}</p>"]
    for i, line in enumerate(table.itertuples()):
        label, chance = line[2], line.probability
        said = f"Why {viz.heading(label, chance)}?" if 100 * chance >= 1 else f"Why {label}? below 1 %"
        said = said.replace(" %", "\u00a0%")
        cells = [_cell(photo, f"{picture}, as the model sees it", f"<strong>{html.escape(said)}</strong>")]
        for method, found in maps.items():
            signed = METHODS[method].signed
            alt = viz.caption(found[i], method, label, chance, **({"signed": True} if signed else {})).alt
            cells.append(_cell(viz.blend(photo, found[i], signed=signed), alt, METHODS[method].title))
        parts.append(f'<div class="gallery">{"".join(cells)}</div>')
    return HTML(STYLE + "".join(parts))


def _cell(picture, alt, title):
    small, file = picture.convert("RGB"), io.BytesIO()
    small.thumbnail((300, 300))
    small.save(file, "WEBP", quality=60)
    source = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
    return f'<details><summary><img src="{source}" alt="{html.escape(alt)}">{title}</summary></details>'
