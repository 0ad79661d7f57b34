"""The stored trust cards: of the bundled weights, within a page's limit, and the broken model is warned of."""

import hashlib
import html
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from gmar_utils.teaching.results import trustcards as cards

ROOT = Path(__file__).parents[2]
LIGHTS = pd.read_csv(ROOT / "book/results/trust-cards.csv").set_index("card")
WEIGHTS = ROOT / f"gmar_utils/checkpoints/{cards.MODEL}/model.safetensors"


def page(name):
    return (cards.CARDS / f"{name}.html").read_text(encoding="utf8")


@pytest.mark.parametrize("name", ["bundled", "broken"])
def test_a_card_is_one_page_that_says_what_the_table_says(name):
    text = page(name)
    assert len(text.encode()) < 3_000_000
    assert LIGHTS.loc[name, "recommendation"].iloc[0] in html.unescape(text)
    assert text.count("<article") == len(cards.photos())
    assert not re.search(r"""(src|href)=["'](https?:)?//""", text)
    chapters = re.findall(r'href="\.\./\.\./([^"]+)\.html"', text)
    assert chapters and all((ROOT / f"{c}.ipynb").exists() for c in chapters)
    notebook = (ROOT / "notebooks/your_model.ipynb").read_text(encoding="utf8")
    assert f"../_static/cards/{name}.html" in notebook


def test_the_cards_belong_to_the_bundled_weights():
    found = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert json.loads((ROOT / "book/results/trust-cards.json").read_text())["weights_sha256"] == found
    assert found[:16] in page("bundled") and found[:16] not in page("broken")


def test_the_broken_model_is_warned_of_and_the_sound_one_is_not():
    of_model = LIGHTS[LIGHTS["method"].isna()].set_index("check", append=True)["colour"]
    assert of_model["broken", "last-block"] == "red"
    assert "red" not in set(of_model["bundled"])
    said = LIGHTS.loc["broken"].iloc[0]
    assert pd.isna(said["show"]) and said["recommendation"].startswith("Show no map of this model")
    assert "Show no map</p>" in page("broken") and "Show no map</p>" not in page("bundled")


def test_all_maps_of_the_quick_card_are_judged():
    judged = LIGHTS.loc["bundled"].dropna(subset="method")
    assert judged["method"].nunique() == 6 and judged.groupby("method").size().nunique() == 1
