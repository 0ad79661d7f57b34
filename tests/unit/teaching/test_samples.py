"""The book's picture on the bundled model: a class-aware map walks with the question."""

import pytest

from gmar_utils import load_model
from gmar_utils.teaching import samples


@pytest.fixture(scope="module")
def vit():
    return load_model("vit-small-tiny-imagenet", image_size=(224, 336), device="cpu")


@pytest.mark.parametrize("method", ["grad-cam", "chefer"])
@pytest.mark.parametrize(("word", "left"), [("tabby", True), ("Egyptian cat", True), ("espresso", False)])
def test_a_map_that_follows_the_class_lies_in_its_half(vit, method, word, left):
    """At least 65 % of its energy: the cat is on the left, the cup on the right."""
    found = vit.explain(samples.cat_and_coffee(), method, word).on_photo
    half = found.shape[1] // 2
    part = found[:, :half] if left else found[:, half:]
    assert part.sum() / found.sum() >= 0.65
