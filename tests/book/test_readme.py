"""The README's lines run as they are printed, and on somebody's own model."""

import re
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

from gmar_utils.teaching.samples import cat_and_coffee

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf8")
FIRST, MORE = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """The figures that are on the screen at `plt.show()`, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    figures = []
    monkeypatch.setattr(plt, "show", lambda: figures.append(plt.gcf()))
    yield figures
    plt.close("all")


def test_three_lines_load_explain_and_show(shown):
    assert FIRST.count("\n") == 3
    cat_and_coffee().save("photo.png")
    names = {}
    exec(FIRST, names)
    (figure,) = shown
    assert [bool(a.images) for a in figure.axes] == [True, True]
    assert figure.axes[0].get_title() == names["why"].heading
    exec(MORE, names)
    assert Image.open("why.png").size == Image.open("photo.png").size
    assert names["why"].label == "tabby" and names["rather"].label == "tabby rather than espresso"


def test_explains_a_medical_model_without_processor_file(shown):
    """One channel, 384 px, three labels, 16-bit pictures."""
    torch.manual_seed(0)
    config = ViTConfig(
        num_channels=1,
        image_size=384,
        patch_size=32,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=3,
    )
    ViTForImageClassification(config).save_pretrained("scans")
    values = np.random.default_rng(0).integers(0, 4096, (500, 400)).astype(np.uint16)
    Image.fromarray(values).save("photo.png")
    names = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(FIRST.replace("vit-small-tiny-imagenet", "scans"), names)
    said = " ".join(str(w.message) for w in caught)
    assert said.count("stretched") == 1  # the grey values, and which they are: once
    assert names["why"].on_photo.shape == (500, 400) and names["why"].alt.startswith("GMAR map") and len(shown) == 1
