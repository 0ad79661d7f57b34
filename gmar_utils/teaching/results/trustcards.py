"""The job `trust-cards`: two cards for the page 'Your own model', of the bundled model and of a broken copy of it."""

import copy
import time
from dataclasses import replace

import pandas as pd
import torch

from gmar_utils import Vit, load_model, trust
from gmar_utils.capture.layout import blocks

from .. import samples
from . import RESULTS
from .work import MODEL, PIXELS

CARDS = RESULTS.parent / "assets/cards"  # copied into the book's _static, two folders below its pages


def photos():
    """12 photos {name: picture}: scikit-image's own, cuts of them, and the cat beside its coffee both ways round."""
    cat, coffee, rocket, astronaut, camera = map(samples.photo, samples.PHOTOS)
    both = samples.cat_and_coffee()
    other = both.copy()
    other.paste(both.crop((225, 0, 450, 300)), (0, 0))
    other.paste(both.crop((0, 0, 225, 300)), (225, 0))
    return {
        "cat": cat,
        "coffee": coffee,
        "cat and coffee": both,
        "coffee and cat": other,
        "cat, closer": cat.crop((113, 0, 413, 300)),
        "cat, its face": cat.crop((50, 20, 300, 270)),
        "coffee, closer": coffee.crop((150, 0, 550, 400)),
        "coffee, the spoon": coffee.crop((0, 100, 400, 400)),
        "rocket": rocket,
        "rocket, closer": rocket.crop((200, 50, 520, 400)),
        "astronaut": astronaut,
        "camera": camera,
    }


def broken(vit: Vit) -> Vit:
    """The model with a last block of random weights."""
    model = copy.deepcopy(vit.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in blocks(model)[-1].modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return replace(vit, model=model, name=f"{vit.name}, its last block random")


def cards(run):
    """Both cards as pages, and their lights as a table."""
    started, found = time.perf_counter(), []
    vit = load_model(MODEL, image_size=PIXELS, device="cpu")
    out = run.out if run.small else CARDS
    out.mkdir(parents=True, exist_ok=True)
    shown = dict(list(photos().items())[: run.most])
    labels = {k: "tabby" if k.startswith("cat") else "espresso" for k in shown if k.startswith(("cat", "coffee"))}
    few = ["gmar", "legrad", "grad-cam"]  # enough to see the warning
    for name, model, methods in (("bundled", vit, None), ("broken", broken(vit), few)):
        work = run.work / "trust-cards" / name
        card = trust(model, shown, labels, methods=methods, quick=True, book="../..", work=work)
        card.save(out / f"{name}.html")
        said = card.recommendation
        found.append(card.frame().assign(card=name, show=said.show, recommendation=said.sentence))
    data = "scikit-image's photos, cuts and composites of them"
    run.save("trust-cards", pd.concat(found), vit, started, data=data, images=len(shown), image_size=PIXELS, quick=True)
