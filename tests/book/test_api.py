"""The examples of the API page run, on the small model of shapes."""

import re
from pathlib import Path

import pytest

from gmar_utils import data

PAGE = (Path(__file__).parents[2] / "book/api.md").read_text(encoding="utf8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
SLOW = ("export(", "trust(")  # each has its own tests


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data.shapes(1, size=128, seed=1)[0]["image"].save("photo.png")
    space, run = {}, [block for block in BLOCKS if not any(name in block for name in SLOW)]
    assert len(run) > 5
    for block in run:
        exec(block.replace("vit-small-tiny-imagenet", "vit-shapes"), space)
    assert Path("why.png").exists() and space["maps"].shape == space["mine"].shape == (2, 64, 64)


@pytest.mark.parametrize("block", BLOCKS)
def test_an_example_fits_a_page(block):
    assert max(map(len, block.splitlines())) <= 88
