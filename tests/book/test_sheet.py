"""The key of the printed sheet, worked out again from the sheet's own numbers; and its PDF, which says the same."""

import re
import unicodedata
import zlib
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


# --- the PDF, as Chromium writes it: `make sheet` ---------------------------------------------------------------------

FILE = (TEACH.parent / "assets/sheet.pdf").read_bytes()
PDF = {int(n): body for n, body in re.findall(rb"(\d+) 0 obj\n(.*?)\nendobj", FILE, re.S)}


def part(body, key):
    """The object that another one names by a key, unpacked."""
    stream = re.search(rb"stream\r?\n(.*?)\r?\nendstream", PDF[int(re.search(key + rb" (\d+)", body)[1])], re.S)
    return zlib.decompress(stream[1]).decode("latin1")


def letters(font):
    """Glyph number to letters."""
    table, found = part(font, b"/ToUnicode"), {}
    for first, last, text in re.findall(r"^<(\w{4})> (?:<(\w{4})> )?<(\w+)>$", table, re.M):
        *before, final = bytes.fromhex(text).decode("utf-16-be")
        for k in range(int(first, 16), int(last or first, 16) + 1):
            found[k] = "".join(before) + chr(ord(final) + k - int(first, 16))
    return found


def pages():
    return [body for body in PDF.values() if re.search(rb"/Type\s*/Page\b", body)]


def test_the_pdf_is_one_a4_page():
    (page,) = pages()
    box = re.search(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", page)
    assert [float(v) / 72 * 25.4 for v in box.groups()] == pytest.approx([210, 297], abs=1)


def test_the_pdf_says_what_the_page_says():
    """`make sheet` makes it anew."""
    (page,) = pages()
    fonts = {n.decode(): letters(PDF[int(k)]) for n, k in re.findall(rb"/(F\d+) (\d+) 0 R", page)}
    printed, font = "", {}
    for name, glyphs in re.findall(r"/(F\d+) [\d.]+ Tf|<(\w+)> Tj", part(page, b"/Contents")):
        font = fonts[name] if name else font
        printed += "".join(font[int(glyphs[i : i + 4], 16)] for i in range(0, len(glyphs), 4))
    page = (TEACH / "sheet.md").read_text(encoding="utf8")
    page = re.sub(r"^```.*?^```|^#+ |^\|[-|]+\|$", "", page, flags=re.M | re.S)  # what stands on the screen only; marks
    printed = unicodedata.normalize("NFKC", printed)  # fi is two letters
    assert re.sub(r"[\s_]", "", printed) == re.sub(r"[\s_|*\\]", "", page)
