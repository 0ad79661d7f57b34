import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

from gmar_utils import METHODS, viz  # noqa: E402

PHOTO = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_every_method_has_its_own_colour():
    assert len({viz.style(name).color for name in METHODS}) == len(METHODS)


@pytest.mark.parametrize("label", ["gmar", "gmar-l2", "GMAR (L2)", "GMAR L1"])
def test_variants_look_like_their_method(label):
    assert viz.style(label) is METHODS["gmar"]


def test_titles_find_their_style():
    for name, method in METHODS.items():
        assert viz.style(method.title) is viz.style(name) is method
    assert viz.style("somebody else's").color == "#000000"


def test_blend_has_the_photos_size_and_is_grey_outside_the_crop():
    values = np.full((30, 40), np.nan, np.float32)
    values[:, 5:35] = 1.0
    picture = np.asarray(viz.blend(PHOTO, values), dtype=int)
    assert picture.shape == (30, 40, 3)
    assert (picture[:, :5] == round(0.6 * 255)).all() and (picture[:, 35:] == round(0.6 * 255)).all()
    assert (picture[:, 5:35, 0] > picture[:, 5:35, 2]).all()  # the upper end of magma is warm


def test_blend_brightens_with_the_map_and_stretches_small_maps():
    ramp = torch.linspace(0, 1, 8).repeat(6, 1)
    picture = np.asarray(viz.blend(np.full((30, 40), 128, np.uint8), ramp), dtype=float).mean((0, 2))
    assert picture.shape == (40,) and (np.diff(picture) >= -1).all() and picture[-1] > picture[0] + 50


@pytest.mark.parametrize(
    "photo",
    [
        Image.fromarray(PHOTO),
        Image.fromarray(PHOTO).convert("RGBA"),
        Image.fromarray(PHOTO).convert("P"),
        PHOTO[..., 0],
        PHOTO.astype(np.uint16) * 256,
        torch.from_numpy(PHOTO).movedim(-1, 0) / 255,
    ],
    ids=["rgb", "rgba", "palette", "grey", "16 bit", "tensor"],
)
def test_photos_of_every_kind(photo):
    assert viz.blend(photo, np.zeros((3, 4))).size == (40, 30)


def test_a_batch_instead_of_a_map_says_what_to_do():
    with pytest.raises(ValueError, match=r"maps\[i\]"):
        viz.blend(PHOTO, np.zeros((1, 3, 4)))


def test_overlay_draws_one_contour_at_half_of_the_maximum():
    ax = plt.figure().subplots()
    values = np.zeros((3, 4), np.float32)
    values[1, 1] = 1
    viz.overlay(ax, PHOTO, values, "espresso 62 %")
    (contour,) = [c for c in ax.collections if hasattr(c, "levels")]
    assert contour.levels.tolist() == [0.5]
    assert ax.get_title() == "espresso 62 %"
    x, y = np.concatenate([p.vertices for p in contour.get_paths()]).mean(0)
    assert (round(x), round(y)) == (round(1.5 * 10 - 0.5), round(1.5 * 10 - 0.5))  # around the middle of patch (1, 1)


def test_overlay_without_a_map_keeps_the_photos_colours():
    ax = viz.overlay(plt.figure().subplots(), PHOTO)
    assert np.allclose(ax.images[0].get_array(), PHOTO / 255, atol=1e-6) and not ax.collections


def test_grid_is_photos_by_methods():
    maps = {"GMAR": torch.rand(2, 3, 4), "LeGrad": torch.rand(2, 3, 4)}
    axes = viz.grid([PHOTO, PHOTO], maps, ["tabby 60 %", "espresso 20 %"]).axes
    assert [a.get_title() for a in axes] == ["tabby 60 %", "GMAR", "LeGrad", "espresso 20 %", "GMAR", "LeGrad"]


def test_grid_wraps_one_photo_with_many_methods():
    figure = viz.grid(PHOTO, {str(i): torch.rand(1, 3, 4) for i in range(4)}, columns=3)
    assert [bool(a.images) for a in figure.axes] == [True] * 5 + [False]


def test_forest_orders_and_colours_methods():
    table = pd.DataFrame({"method": ["random", "gmar-l2", "grad-cam"], "mean": [1, 2, 3.0], "low": 0.5, "high": 4.0})
    ax = viz.forest(table)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["grad-cam", "gmar-l2", "random"]
    assert ax.yaxis_inverted() or ax.get_ylim()[0] > ax.get_ylim()[1]  # the first on top
    every = pd.DataFrame({"method": ["own", *reversed(METHODS)], "mean": 1.0, "low": 0.5, "high": 4.0})
    assert [t.get_text() for t in viz.forest(every).get_yticklabels()] == [*METHODS, "own"]
    with pytest.raises(ValueError, match="low"):
        viz.forest(table.drop(columns="low"))


def test_captions_say_where_and_cite():
    values = np.zeros((6, 6), np.float32)
    values[0, 5] = 1
    words = viz.caption(values, "gmar", "espresso", 0.62, norm="l2")
    assert "espresso (62 %)" in words.alt and "upper right" in words.alt
    assert "[jo2025gmar]" in words.sentence and "norm = l2" in words.sentence
    assert "[" not in viz.caption(values, "random").sentence.split("scaled")[0]


def test_heading_is_class_and_probability():
    assert viz.heading("tabby, tabby cat", 0.624) == "tabby 62 %"


def test_signed_maps_diverge_from_zero():
    values = np.array([[-1.0, 0.0, 1.0]], np.float32).repeat(10, 1)
    left, middle, right = (
        np.asarray(viz.blend(np.full((10, 30), 128, np.uint8), values, signed=True), int)[5, x] for x in (4, 14, 25)
    )
    assert left[2] > left[0] + 30 and right[0] > right[2] + 30 and np.ptp(middle) < 25
    assert "red for and blue against" in viz.caption(values, "gmar", signed=True).alt


@pytest.mark.parametrize("words", ["$\\foo$", "$5 or 6$", "a_{b}^", "<i>"])
def test_words_are_never_formulas(words):
    figure = viz.grid([PHOTO], {words: torch.rand(1, 3, 4)}, [words])
    figure.canvas.draw()
    table = pd.DataFrame({"method": [words], "mean": [1.0], "low": [0.5], "high": [2.0]})
    viz.forest(table, xlabel=words).figure.canvas.draw()


def test_a_large_photo_is_drawn_in_strips_without_seams():
    ramp = np.linspace(0, 255, 700).astype(np.uint8)[:, None].repeat(3, 1)
    values = torch.linspace(0, 1, 700)[:, None].repeat(1, 3)
    rows = np.asarray(viz.blend(ramp, values), dtype=int).sum((1, 2))
    assert np.abs(np.diff(rows)).max() < 60
