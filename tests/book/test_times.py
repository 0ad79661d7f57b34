"""The table of times says what the chapters say."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "book/start/ways.md").read_text(encoding="utf8")
ROWS = re.findall(r"^\| \[.+?\]\(../../notebooks/(\w+)\.ipynb\) \| (\d+) \| (\d+) \|$", TABLE, re.M)


def test_there_are_rows():
    assert len(ROWS) > 10


@pytest.mark.parametrize("name, read, do", ROWS)
def test_chapter_states_the_same_minutes(name, read, do):
    notebook = json.loads((ROOT / f"notebooks/{name}.ipynb").read_text(encoding="utf8"))
    text = "".join(notebook["cells"][0]["source"])
    assert re.search(rf"\*\*Time\*\*: {read} minutes to read, {do} to (do|play)\b", text), text[-200:]


def test_the_last_line_is_the_sum():
    lines = re.findall(r"^\| \[.+?\]\(.+?\) \| (\d*) *\| (\d*).*\|$", TABLE, re.M)
    sums = [sum(int(n) for n in column if n) for column in zip(*lines, strict=True)]
    assert f"| **all** | **{sums[0]}** | **{sums[1]}** |" in TABLE
