"""Six scripts as users write them, one for each question that once took a detour."""

import functools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as hf
from families import build

import gmar_utils
from gmar_utils import explain, explain_many, load_model
from gmar_utils.data import shapes

WORDS = ["tabby, tabby cat", "star", "espresso", "cup", "cross"]


@pytest.fixture(scope="module")
def vit():
    model = build("vit", labels=len(WORDS), image_size=64)
    model.config.id2label = dict(enumerate(WORDS))
    return load_model(model, processor=hf.ViTImageProcessorPil(size={"height": 64, "width": 64}), device="cpu")


@pytest.fixture(scope="module")
def photo():
    return np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)


def test_1_one_photo(vit, photo, tmp_path):
    why = vit.explain(photo)
    why.save(tmp_path / "why.png")
    assert why.on_photo.shape == photo.shape[:2]


def test_2_what_does_the_model_say_and_why(vit, photo):
    why = vit.explain(photo)
    said = f"{why.label} {why.probability:.0%}"
    best = vit.predict(photo, top=1).iloc[0]
    assert said == f"{best.label} {best.probability:.0%}"


def test_3_a_class_by_its_name(vit, photo):
    why = vit.explain(photo, target="espresso")
    assert why.target == vit.class_id("espresso") == 2
    rather = vit.explain(photo, target=("espresso", "tabby"))
    assert not torch.equal(rather.map, why.map)


def test_4_my_own_method(vit, photo):
    def last_layer(trace, head=0):
        return trace.attentions[-1][:, head, 0]

    why = vit.explain(photo, last_layer, head=1)
    assert (why.method, why.options) == ("last_layer", {"head": 1})
    torch.testing.assert_close(
        explain(vit.model, vit.preprocess(photo), last_layer, upsample=False, head=1)[0], why.map
    )


def test_5_two_settings_side_by_side(vit, photo):
    from gmar_utils.methods.weighting import gmar

    settings = {f"GMAR {norm}": functools.partial(gmar, norm=norm) for norm in ("l1", "l2")} | {"LeGrad": "legrad"}
    maps = explain_many(vit.model, vit.preprocess([photo, photo[::-1]]), settings)
    assert list(maps) == ["GMAR l1", "GMAR l2", "LeGrad"] and maps["LeGrad"].shape == (2, 64, 64)


def test_6_a_table_over_records(vit):
    records = shapes(3, seed=1)
    table = pd.concat([vit.predict(r["image"], top=1).assign(truth=r["label"]) for r in records])
    assert table.columns.tolist() == ["file", "rank", "label", "class_id", "probability", "truth"] and len(table) == 3


def test_importing_it_costs_little_beyond_torch():
    """What needs transformers, pandas, scipy, datasets or matplotlib is imported when it is used."""
    heavy = {"transformers", "pandas", "scipy", "datasets", "matplotlib", "seaborn", "sklearn", "skimage", "ipywidgets"}
    code = f"import sys, gmar_utils; print(sorted({heavy!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"
    assert all(hasattr(gmar_utils, name) for name in gmar_utils.__all__)
