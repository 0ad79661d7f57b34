"""What a model says of a photo, and why: from one pass, in words and as a picture."""

import functools
import html
import json
import warnings

import matplotlib
import numpy as np
import pytest
import torch
import transformers as hf
from families import build
from PIL import Image

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

from gmar_utils import METHODS, Explanation, Vit, explain, load_model, probability, trace  # noqa: E402
from gmar_utils.methods.weighting import gmar  # noqa: E402

WORDS = ["tabby, tabby cat", "tiger cat", "espresso", "cup, teacup", "Egyptian cat, tabby kitten"]
RNG = np.random.default_rng(0)
PHOTOS = [RNG.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((40, 60), (33, 30), (64, 64))]
PHOTO = PHOTOS[0]


def load(family="vit", words=WORDS, **shape):
    model = build(family, labels=len(words), **shape)
    model.config.id2label = dict(enumerate(words))
    processor = hf.BitImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    return load_model(model, processor=processor, device="cpu")


@pytest.fixture(scope="module")
def vit():
    return load()


@pytest.fixture
def passes(monkeypatch):
    """Counts forward and backward passes of a model."""

    def watch(model):
        counts = {"forward": 0, "backward": 0}
        grad = torch.autograd.grad

        def counted(outputs, inputs, *args, **kwargs):
            layers = 1 if isinstance(inputs, torch.Tensor) else len(inputs)  # one: within the head alone
            counts["backward"] += layers >= model.config.num_hidden_layers
            return grad(outputs, inputs, *args, **kwargs)

        monkeypatch.setattr(torch.autograd, "grad", counted)
        forward = type(model).forward

        def run(self, *args, **kwargs):
            counts["forward"] += 1
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(type(model), "forward", run)
        return counts

    return watch


@pytest.mark.parametrize(
    "method, backward",
    [
        ("rollout", 0),
        ("attention", 0),
        ("random", 0),
        ("center", 0),
        ("gmar", 1),
        ("grad-cam", 0),
        ("chefer", 1),
        ("legrad", 1),
    ],
)
@pytest.mark.parametrize("images", [PHOTO, PHOTOS])
def test_class_and_map_come_from_the_same_pass(vit, passes, method, backward, images):
    """Grad-CAM's backward pass ends at the last block; rollout needs none."""
    counts = passes(vit.model)
    vit.explain(images, method)
    assert counts == {"forward": 1, "backward": backward}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["vit", "beit", "siglip"])
def test_is_what_explain_and_the_model_say(family, method):
    vit = load(family)
    why = vit.explain(PHOTO, method)
    x = vit.preprocess(PHOTO)
    logits = vit.model(x).logits.detach()
    assert why.target == logits.argmax().item() and why.label == WORDS[why.target].split(",")[0]
    assert why.probability == pytest.approx(logits.softmax(-1).max().item(), abs=1e-5)
    assert isinstance(why, Explanation) and why.map.shape == (4, 4) and why.map.dtype == torch.float32
    torch.testing.assert_close(why.map, explain(vit.model, x, method, upsample=False)[0])
    torch.testing.assert_close(
        why.on_photo, vit.to_photo(explain(vit.model, x, method), [PHOTO])[0], atol=1e-5, rtol=0, equal_nan=True
    )
    assert why.on_photo.shape == (40, 60) and why.on_photo.isnan().any() and np.array_equal(why.photo, PHOTO)
    assert (why.method, why.options, why.signed) == (method, {}, False)


def test_several_pictures_give_a_list_in_their_order(vit):
    together = vit.explain(PHOTOS, batch_size=2)
    assert isinstance(together, list) and isinstance(vit.explain([PHOTO]), list)
    for one, alone in zip(together, (vit.explain(p) for p in PHOTOS), strict=True):
        assert one.target == alone.target and one.on_photo.shape == alone.on_photo.shape
        torch.testing.assert_close(one.map, alone.map, atol=1e-4, rtol=0)


def test_photos_of_different_input_shapes_go_together():
    processor = hf.BitImageProcessorPil(size={"shortest_edge": 32}, do_center_crop=False)
    vit = load_model(build("dinov2"), processor=processor)
    photos = [np.zeros((40, 60, 3), np.uint8), np.zeros((60, 40, 3), np.uint8), np.ones((40, 60, 3), np.uint8)]
    assert [tuple(e.map.shape) for e in vit.explain(photos)] == [(4, 6), (6, 4), (4, 6)]
    assert len(vit.predict(photos, 1)) == 3
    with pytest.raises(ValueError, match="no batch"):
        vit.preprocess(photos)


# --- targets ----------------------------------------------------------------------------------------------------------


def test_a_target_is_a_word_an_id_or_one_for_each_picture(vit):
    x = vit.preprocess(PHOTO)
    for target in ("espresso", "Espresso ", 2, np.int64(2), torch.tensor(2), "2"):
        why = vit.explain(PHOTO, target=target)
        assert (why.target, why.label) == (2, "espresso")
        torch.testing.assert_close(why.map, explain(vit.model, x, target=2, upsample=False)[0])
        assert why.probability == pytest.approx(vit.model(x).logits.softmax(-1)[0, 2].item(), abs=1e-5)
    for targets in (["teacup", 0, "espresso"], np.array([3, 0, 2]), torch.tensor([3, 0, 2])):
        assert [e.target for e in vit.explain(PHOTOS, target=targets, batch_size=2)] == [3, 0, 2]


def test_a_pair_is_a_contrast(vit):
    why = vit.explain(PHOTO, target=("espresso", 0))
    assert why.target == (2, 0) and why.label == "espresso rather than tabby"
    x = vit.preprocess(PHOTO)
    torch.testing.assert_close(why.map, explain(vit.model, x, target=(2, 0), upsample=False)[0])
    assert why.probability == pytest.approx(vit.model(x).logits.softmax(-1)[0, 2].item(), abs=1e-5)
    assert not torch.allclose(why.map, vit.explain(PHOTO, target=2).map)


@pytest.mark.parametrize(
    "target, error, words",
    [
        ("", ValueError, "no label"),
        ("golfish", ValueError, "no label"),
        ("expresso", ValueError, "near it: espresso"),
        ("cat", ValueError, "near it: tabby, tiger cat"),
        ("²", ValueError, "no label"),
        ("--", ValueError, "no label"),
        ("99999999999999999999", IndexError, "classes 0 to 4"),
        (5, IndexError, "0 to 4"),
        (-1, IndexError, "0 to 4"),
        (10**30, IndexError, "0 to 4"),
        (1.0, TypeError, "label word or a whole number"),
        (True, TypeError, "word"),
        ((0, 1, 2), ValueError, r"contrast \(a, b\) of two"),
        ((0,), ValueError, r"contrast \(a, b\) of two"),
        ([0], ValueError, r"ids of shape \(3,\), got shape \(1,\)"),
        ([0, 1], ValueError, r"ids of shape \(3,\), got shape \(2,\)"),
        (["tabby", 1, 7], IndexError, "0 to 4"),
        ({}, TypeError, "word"),
        ([[0], [1], [2]], TypeError, "word"),
        (torch.tensor([0.0, 1.0, 2.0]), TypeError, "word"),
    ],
)
def test_a_target_that_is_none_is_refused_before_anything_runs(vit, passes, target, error, words):
    counts = passes(vit.model)
    with pytest.raises(error, match=words):
        vit.explain(PHOTOS, target=target)
    assert counts["forward"] == 0


def test_words_of_two_classes_and_words_that_are_numbers():
    twice = load(words=["crane", "crane", "bus"])
    with pytest.raises(ValueError, match=r"2 classes have the label 'crane': 0 \(crane\), 1 \(crane\)"):
        twice.class_id("crane")
    digits = load(words=["1", "2", "3"])
    assert digits.class_id("1") == 0 and digits.class_id("0") == 0 and digits.class_id(1) == 1
    assert twice.label(1) == "crane"
    with pytest.raises(IndexError, match="from 0"):
        twice.label(-1)


# --- methods ----------------------------------------------------------------------------------------------------------


def last_row(trace, layer=-1):
    """The reader's own method."""
    return trace.attentions[layer].mean(1)[:, 0]


def test_a_method_is_a_name_or_a_function_of_a_trace(vit):
    own = vit.explain(PHOTO, last_row)
    assert own.method == "last_row" and "last_row map" in own.alt and "[" not in own.caption.split("scaled")[0]
    torch.testing.assert_close(own.map, vit.explain(PHOTO, "attention").map)
    first = vit.explain(PHOTO, functools.partial(last_row, layer=0))
    assert (first.method, first.options) == ("last_row", {"layer": 0})
    torch.testing.assert_close(first.map, vit.explain(PHOTO, last_row, layer=0).map)
    bound = vit.explain(PHOTO, functools.partial(gmar, norm="l2"), alpha=0.5)
    assert (bound.method, bound.options) == ("gmar", {"norm": "l2", "alpha": 0.5})
    torch.testing.assert_close(bound.map, vit.explain(PHOTO, "gmar", norm="l2", alpha=0.5).map)


@pytest.mark.parametrize(
    "method, options, error, words",
    [
        ("gmarr", {}, ValueError, "there are"),
        ("gmar", {"layers": 2}, TypeError, "it takes"),
        ("rollout", {"norm": "l1"}, TypeError, "it takes"),
        ("gmar", {"signed": True}, TypeError, "no option 'signed'"),
        (functools.partial(gmar, norm="l1"), {"signed": True}, TypeError, "signed"),
        (last_row, {"depth": 1}, TypeError, "depth"),
        (lambda: None, {}, TypeError, "argument"),
        (None, {}, ValueError, "Unknown method"),
        ("gmar", {"batch_size": 0}, ValueError, "batch_size"),
        ("gmar", {"window": (1, 1)}, ValueError, "window"),
    ],
)
def test_methods_and_options_are_checked_before_anything_runs(vit, passes, method, options, error, words):
    counts = passes(vit.model)
    with pytest.raises(error, match=words):
        vit.explain(PHOTO, method, **options)
    assert counts["forward"] == 0


@pytest.mark.parametrize("alpha", [-1, float("nan"), float("inf"), 1e308, 1e39, "1", None, [1]])
@pytest.mark.parametrize("method", ["gmar", "rollout"])
def test_alpha_is_a_number_that_a_map_can_hold(vit, method, alpha):
    with pytest.raises(ValueError, match="alpha must be a finite number"):
        vit.explain(PHOTO, method, alpha=alpha)


@pytest.mark.parametrize("method", [m.name for m in METHODS.values() if m.signed])
def test_signed_methods_show_what_speaks_for_the_class_or_with_signed_both(vit, method):
    x = vit.preprocess(PHOTO)
    for options in ({}, {"signed": True}):
        why = vit.explain(PHOTO, method, **options)
        torch.testing.assert_close(why.map, explain(vit.model, x, method, upsample=False, **options)[0])
        large = explain(vit.model, x, method, **options)
        torch.testing.assert_close(why.on_photo, vit.to_photo(large, [PHOTO])[0], atol=1e-5, rtol=0, equal_nan=True)
        assert why.signed is bool(options) and why.options == options and why._repr_png_()


def test_a_signed_map_keeps_its_zero_and_has_a_palette_of_its_own(vit):
    def signed_scores(trace):
        return torch.linspace(-2, 1, trace.attentions[0].shape[-1]).expand(len(trace.logits), -1)

    why = vit.explain(PHOTO, signed_scores, signed=True)
    assert why.signed and why.map.min() == -1 and 0 < why.map.max() < 1
    assert "red for and blue against" in why.alt
    shown = np.asarray(why.picture(), dtype=int)
    upper, lower = shown[2:12, 15:45].mean((0, 1)), shown[-12:-2, 15:45].mean((0, 1))
    assert upper[2] > upper[0] and lower[0] > lower[2]  # blue above, red below


# --- heads ------------------------------------------------------------------------------------------------------------


def test_heads_without_softmax():
    many = load(problem_type="multi_label_classification")
    logits = many.model(many.preprocess(PHOTO)).logits[0].detach()
    table = many.predict(PHOTO, 5)
    np.testing.assert_allclose(table.probability, logits.sigmoid().sort(descending=True)[0], atol=1e-5)
    assert many.explain(PHOTO).probability == pytest.approx(logits.sigmoid().max().item(), abs=1e-5)

    regression = load(words=["depth"], problem_type="regression")
    why = regression.explain(PHOTO)
    assert why.probability is None and why.heading == "class 1" and why.alt
    assert regression.predict(PHOTO).probability.isna().all()

    one = load(words=["no", "yes"][:1])
    logit = one.model(one.preprocess(PHOTO)).logits.item()
    table = one.predict(PHOTO)
    assert table.class_id.tolist() == ([1, 0] if logit > 0 else [0, 1]) and table.probability.sum() == pytest.approx(1)
    assert one.explain(PHOTO).target == table.class_id[0]


def test_predict_is_a_table(vit, tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "cat.png")
    table = vit.predict([tmp_path / "cat.png", PHOTOS[1]], top=3, batch_size=1)
    assert list(table.columns) == ["file", "rank", "label", "class_id", "probability"]
    assert table.file.tolist() == [str(tmp_path / "cat.png")] * 3 + ["picture 1"] * 3
    assert table["rank"].tolist() == [1, 2, 3] * 2
    expected = vit.model(vit.preprocess(PHOTO)).logits.softmax(-1)[0].topk(3)
    assert table.class_id.tolist()[:3] == expected.indices.tolist()
    np.testing.assert_allclose(table.probability[:3], expected.values.detach(), atol=1e-5)
    assert len(vit.predict(PHOTO, top=99)) == len(WORDS)
    assert table.label[0] == vit.label(int(table.class_id[0]))
    for top in (0, -1, 1.5, True, "5"):
        with pytest.raises(ValueError, match="top must be"):
            vit.predict(PHOTO, top)


def test_logits_that_are_nan_are_refused():
    vit = load()
    broken = Vit(build("vit"), vit.processor, vit.labels, "broken")
    torch.nn.init.constant_(broken.model.classifier.weight, torch.nan)
    for ask in (broken.predict, broken.explain):
        with pytest.raises(ValueError, match="NaN or inf"):
            ask(PHOTO)


def test_one_patch_is_no_map():
    vit = load_model(build("dinov2"), mean=[0.5] * 3, std=[0.5] * 3, image_size=9)
    with pytest.raises(ValueError, match="one patch"):
        vit.explain(PHOTO)


def test_a_picture_that_cannot_fit_is_refused_before_the_first_forward(vit, passes, monkeypatch):
    counts = passes(vit.model)
    monkeypatch.setattr("gmar_utils.memory.available", lambda device: 12_000)
    with pytest.raises(MemoryError, match=r"1.23e-05 GB; 1.2e-05 GB are available"):
        vit.explain(PHOTO)  # 4 B × 3 layers × 4 heads × 16² tokens = 12288 B
    assert counts["forward"] == 0


# --- shown and kept ---------------------------------------------------------------------------------------------------


def test_it_is_shown_in_a_notebook_with_words(vit):
    why = vit.explain(PHOTO, target="espresso")
    assert why._repr_png_().startswith(b"\x89PNG")
    page = why._repr_html_()
    assert html.escape(why.alt) in page and "data:image/png;base64," in page and why.heading in page
    assert "espresso" in why.alt and "[jo2025gmar]" in why.caption
    assert repr(why).startswith("Explanation(espresso") and len(repr(why)) < 120
    large = vit.explain(np.zeros((900, 1300, 3), np.uint8))
    assert len(large._repr_png_()) < 500_000


def test_show_draws_photo_and_map(vit, monkeypatch):
    plt.close("all")
    shown = []
    monkeypatch.setattr(plt, "show", lambda *a, **k: shown.append(plt.gcf()))
    assert vit.explain(PHOTO).show() is None
    (figure,) = shown
    assert [bool(a.images) for a in figure.axes] == [True, True] and figure.axes[1].get_title() == "GMAR"
    plt.close("all")


@pytest.mark.parametrize(
    "word", ["$\\foo$", "50 $ or $100", "<script>alert(1)</script>", "a_b^c$", 'say "&quot;"', "\x1b[31m"]
)
def test_labels_of_every_kind_are_drawn_and_escaped(word):
    vit = load(words=[word, "other"])
    why = vit.explain(PHOTO, target=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*non-interactive")
        warnings.filterwarnings("ignore", message="Glyph")
        why.show()
    plt.gcf().canvas.draw()
    plt.close("all")
    assert "<script" not in why._repr_html_() and '"&quot;"' not in why._repr_html_()
    json.dumps(why.alt)


def test_save_writes_the_picture_or_the_map(vit, tmp_path):
    why = vit.explain(PHOTO)
    why.save(tmp_path / "why.png")
    why.save(str(tmp_path / "why.npy"))
    with Image.open(tmp_path / "why.png") as picture:
        assert picture.size == (60, 40)
    kept = np.load(tmp_path / "why.npy")
    assert kept.dtype == np.float32 and np.array_equal(kept, why.on_photo.numpy(), equal_nan=True)
    for name in ("why", "why.txt", "why.csv", ""):
        with pytest.raises(ValueError, match="why.png"):
            why.save(tmp_path / name if name else "")
    with pytest.raises(OSError, match="nowhere"):
        why.save(tmp_path / "nowhere" / "why.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["why.npy", "why.png"]


def test_a_write_that_fails_leaves_the_old_file(vit, tmp_path, monkeypatch):
    why, path = vit.explain(PHOTO), tmp_path / "why.png"
    why.save(path)
    before = path.read_bytes()

    def cut(self, place, *args, **kwargs):
        place.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", cut)
    with pytest.raises(OSError, match="No space left.*why.png"):
        why.save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["why.png"]


def test_the_pieces_still_fit_together(vit):
    """What vit.explain saves its callers: the same by hand."""
    x = vit.preprocess(PHOTO)
    seen = trace(vit.model, x)
    why = vit.explain(PHOTO)
    assert why.probability == pytest.approx(probability(vit.model, seen.logits, seen.target).item(), abs=1e-6)
