"""The README's six lines run as they are printed, and on somebody's own model."""

import re
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

from gmar_utils.teaching.samples import cat_and_coffee

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf8")
SNIPPET = re.search(r"```python\n(.*?)```", README, re.S)[1]
PRINTED = re.search(r"```text\n(.*?)```", README, re.S)[1]


def test_has_six_lines():
    assert SNIPPET.count("\n") == 6


def test_prints_what_the_readme_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cat_and_coffee().save("photo.png")
    exec(SNIPPET, {})
    assert capsys.readouterr().out == PRINTED, "copy what it prints into README.md"
    assert Image.open("why.png").size == Image.open("photo.png").size


def test_explains_a_medical_model_without_processor_file(tmp_path, monkeypatch, capsys):
    """One channel, 384 px, three labels, 16-bit pictures."""
    monkeypatch.chdir(tmp_path)
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
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(SNIPPET.replace("vit-tiny-imagenet", "scans"), {})
    said = " ".join(str(w.message) for w in caught)
    assert "stretched" in said  # the grey values, and which they are
    assert capsys.readouterr().out.startswith("GMAR map")
    assert Image.open("why.png").size == (400, 500)
