"""The key of the printed sheet, worked out again from the sheet's own numbers."""

import re
from pathlib import Path

import pytest
import torch

from gmar_utils.metrics import average_drop, average_increase

TEACH = Path(__file__).parents[2] / "book/teach"


def rows(start):
    """The numbers of the sheet's table rows that begin with `start`."""
    text = (TEACH / "sheet.md").read_text(encoding="utf8")
    found = re.findall(rf"^\| {start} \| (.+)\|$", text, re.M)
    return torch.tensor([[float(v) for v in line.split("|") if v.strip()] for line in found])


def key(part):
    line = re.search(rf"^\*\*{part}\.\*\* (.+)$", (TEACH / "plan-90.md").read_text(encoding="utf8"), re.M)[1]
    return [float(v) for v in re.findall(r"\d+(?:\.\d+)?", line)]


def test_heads():
    heads = rows(r"head \d")
    sizes = torch.tensor(
        [float(v) for v in re.search(r"gradients are (\d+) and (\d+)", (TEACH / "sheet.md").read_text()).groups()]
    )
    weights = sizes / sizes.sum()
    want = [*heads.mean(0), *sizes, *weights, *(weights @ heads)]
    assert key("B") == pytest.approx([float(v) for v in want], abs=1e-6)


def test_drop():
    full, masked = rows(r"\d").T
    drops = average_drop(full, masked, per_image=True)
    want = [*drops, average_drop(full, masked), average_increase(full, masked)]
    assert key("D")[:5] == pytest.approx([float(v) for v in want], abs=0.05)
