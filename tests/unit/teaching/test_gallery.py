"""The stored gallery: every picture has its maps, and a page of it says what each of them shows."""

import re

import numpy as np
import pytest

from gmar_utils.teaching.results import gallery


@pytest.mark.parametrize("picture", gallery.PICTURES)
def test_every_picture_has_a_map_of_each_method_for_each_class(picture):
    table, maps = gallery.stored(picture)
    asked = gallery.PICTURES[picture][1]
    assert len(table) == len(asked or [0]) and table["probability"].between(0, 1).all()
    assert not asked or list(table["class"].str.split(",").str[0]) == list(asked)
    assert all(m.shape[0] == len(table) and 0.9 < np.abs(m).max() <= 1 for m in maps.values())


def test_a_page_describes_every_picture():
    page = gallery.show("star and cross", "A < B.").data
    alts = re.findall(r'<img src="data:image/webp;base64,[^"]+" alt="([^"]+)">', page)
    assert len(alts) == 2 * (1 + len(gallery.SHOWN)) and min(map(len, alts)) > 20 and "A &lt; B." in page
    assert len(set(alts)) > len(gallery.SHOWN)


def test_scores_survive_their_code():
    scores = np.linspace(-1, 1, 1001)
    assert np.abs(gallery.coded(scores) / 127 - scores).max() <= 0.5 / 127 + 1e-9
