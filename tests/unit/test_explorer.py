"""The explorer's numbers: attention in bytes, muted heads, and the function that repeats a picture found by hand."""

import io
import re
import zlib
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

from gmar_utils import METHODS, explain, explorer, load_model, metrics, trace
from gmar_utils.explorer import packing, widget
from gmar_utils.methods.weighting import VARIANTS, head_weights, weighted_rollout
from gmar_utils.photo import minmax
from gmar_utils.teaching.samples import cat_and_coffee

L, H, B, N = 3, 4, 2, 10


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=L,
        num_attention_heads=H,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_labels=5,
        initializer_range=0.4,
        id2label={i: f"class {i}, of five" for i in range(5)},
    )
    return load_model(ViTForImageClassification(config), mean=[0.5] * 3, std=[0.25] * 3, size=32, device="cpu")


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    sizes = {"one": (48, 64, 3), "two": (40, 40, 3)}
    return {name: rng.integers(0, 256, size, dtype=np.uint8) for name, size in sizes.items()}


@pytest.fixture(scope="module")
def packed(vit, photos):
    return explorer.pack(vit, photos, targets=2, curves=True, heads=True)


@pytest.fixture(scope="module")
def light(vit, photos):
    return explorer.pack(vit, photos, targets=2)


def codes(p):
    """What `quantise` gave: the page holds each row less the one above it."""
    return np.frombuffer(zlib.decompress(p.attention), np.uint8).reshape(L, H, 17, 17).cumsum(2, dtype=np.uint8)


def stack(seed=0):
    generator = torch.Generator().manual_seed(seed)
    attentions = [torch.softmax(2 * torch.randn(B, H, N, N, generator=generator), -1) for _ in range(L)]
    weights = [torch.softmax(torch.randn(B, H, generator=generator), -1) for _ in range(L)]
    return attentions, weights, torch.eye(N)[0]


def slowly(attentions, weights, readout, alpha, variant, layers, muted):
    """The definition, written with N×N matrices and one head at a time."""
    fused = []
    for number, (a, w) in enumerate(zip(attentions, weights, strict=True), start=1):
        left = [h for h in range(H) if (number, h + 1) not in muted]
        if layers[0] <= number <= layers[1] and left:
            total = sum(w[:, h] for h in left)
            fused.append(sum((w[:, h] / total)[:, None, None] * a[:, h] for h in left))
    eye = torch.eye(N)
    product = eye.expand(B, N, N)
    for a in reversed(fused) if variant == "output-first" else fused:
        product = product @ a + alpha * eye if variant == "paper" else product @ (a + alpha * eye)
    return (readout @ product).reshape(B, N)


@settings(max_examples=60, deadline=None)
@given(
    alpha=st.floats(0, 10),
    variant=st.sampled_from(VARIANTS),
    layers=st.tuples(st.integers(1, L), st.integers(1, L)).map(lambda p: (min(p), max(p))),
    muted=st.sets(st.tuples(st.integers(1, L), st.integers(1, H))),
)
def test_muted_rollout_is_the_definition(alpha, variant, layers, muted):
    attentions, weights, readout = stack()
    fast = packing.muted_rollout(attentions, weights, readout, alpha, variant, layers, sorted(muted))
    slow = slowly(attentions, weights, readout, alpha, variant, layers, muted)
    torch.testing.assert_close(fast / fast.sum(1, keepdim=True), slow / slow.sum(1, keepdim=True), atol=1e-5, rtol=1e-4)


def test_nothing_muted_is_the_plain_rollout():
    attentions, weights, readout = stack()
    same = packing.muted_rollout(attentions, weights, readout, 0.7, "report")
    assert torch.allclose(same, weighted_rollout(attentions, weights, readout, 0.7, "report"), atol=1e-6)


def test_a_solo_head_is_all_of_its_layer():
    attentions, weights, readout = stack()
    solo = packing.muted_rollout(attentions, weights, readout, 0.0, muted=[(1, 1), (1, 3), (1, 4)], layers=(1, 1))
    assert torch.allclose(solo, attentions[0][:, 1, 0], atol=1e-6)


@pytest.mark.parametrize("wrong", [{"layers": p} for p in ((0, 2), (2, 1), (1, L + 1))] + [{"muted": [(1, H + 1)]}])
def test_places_that_do_not_exist(wrong):
    with pytest.raises(ValueError, match=f"1 to {H}|≤ {L}"):
        packing.muted_rollout(*stack(), **wrong)


@given(st.integers(0, 1000), st.sampled_from([0.1, 2.0, 8.0]))
@settings(max_examples=30, deadline=None)
def test_a_byte_keeps_attention(seed, contrast):
    z = contrast * np.random.default_rng(seed).normal(size=(2, 3, N, N))
    a = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    back = packing.dequantise(packing.quantise(a))
    assert np.allclose(back.sum(-1), 1, atol=1e-6)
    # half a step in (a/largest)^⅔ moves an entry by at most `moves`; the row's sum, which divides it, by their sum
    largest = a.max(-1, keepdims=True)
    moves = largest * (((a / largest) ** (2 / 3) + 0.5 / packing.LEVELS) ** 1.5 - a / largest)
    total = moves.sum(-1, keepdims=True)
    assert (abs(back - a) <= (moves + a * total) / (1 - total) + 1e-6).all()


@pytest.mark.parametrize("norm", ["l1", "l2", None])
def test_state_map_is_gmar_when_nothing_is_touched(vit, photos, norm):
    for variant in VARIANTS:
        mine = explorer.state_map(vit, photos["one"], target=3, norm=norm, alpha=0.4, variant=variant)
        pixels = vit.preprocess([photos["one"]])
        theirs = explain(vit.model, pixels, "gmar", target=3, upsample=False, norm=norm, alpha=0.4, variant=variant)[0]
        assert torch.allclose(mine, theirs, atol=1e-5)
        assert mine.shape == (4, 4) and mine.min() == 0 and mine.max() == 1


def test_all_heads_muted_is_a_constant_map(vit, photos):
    everything = [(layer + 1, head + 1) for layer in range(L) for head in range(H)]
    assert explorer.state_map(vit, photos["one"], muted=everything).count_nonzero() == 0


def test_what_the_page_holds(vit, photos, packed):
    """Attention and weights of the trace, maps and curves of the library, the photo as the reader sees it."""
    p = packed[0]
    pixels = vit.preprocess([photos["one"]])
    top = vit.model(pixels).logits[0].argsort(descending=True)[:2].tolist()
    assert p.info["targets"] == top and p.info["grid"] == [4, 4] and p.info["shape"] == [L, H, 17]
    assert p.info["target_names"][0].startswith(f"class {top[0]} ") and p.info["target_names"][0].endswith(" %")
    t = trace(vit.model, pixels.expand(2, -1, -1, -1), target=torch.tensor(top))
    assert np.allclose(packing.dequantise(codes(p)), torch.stack([a[0] for a in t.attentions]), atol=0.01)
    weights = np.frombuffer(p.weights, np.float32).reshape(2, 2, L, H)
    for k, norm in enumerate(("l1", "l2")):
        assert np.allclose(weights[:, k], torch.stack(head_weights(t.gradients, norm), 1), atol=1e-5)
    maps = np.frombuffer(p.maps, np.uint16).reshape(2, len(explorer.METHODS_SHOWN), 16) / np.float32(65535)
    curves = np.frombuffer(p.curves, np.float32).reshape(2, len(explorer.METHODS_SHOWN), -1)
    m = torch.from_numpy(maps[1, 3].reshape(1, 4, 4).copy())
    curve = metrics.deletion(vit.model, pixels, m, target=top[1], steps=16)
    assert np.allclose(curves[1, 3], curve.scores[0], atol=1e-5)
    assert np.allclose(p.info["fractions"], curve.fractions)
    assert Image.open(io.BytesIO(p.image)).size == (416, 312) and p.info["crop"] == [0, 0, 1, 1]
    assert p.info["fill"] == [128] * 3


def test_the_stated_error_is_the_error(vit, photos, packed):
    """The number shown to the reader bounds what one byte an entry does to the maps that the sliders can make."""
    p = packed[0]
    weights = torch.from_numpy(np.frombuffer(p.weights, np.float32).reshape(2, 2, L, H).copy())
    coarse = [torch.from_numpy(a)[None] for a in packing.dequantise(codes(p))]
    worst = 0.0
    for variant in VARIANTS:
        for k, norm in enumerate(("l1", "l2")):
            scores = weighted_rollout(coarse, list(weights[0, k][:, None]), torch.eye(17)[0], 1.0, variant)
            page = minmax(scores[:, 1:])[0].reshape(4, 4)
            exact = explorer.state_map(vit, photos["one"], p.info["targets"][0], norm, 1.0, variant)
            worst = max(worst, float((page - exact).abs().max()))
    assert 0 < worst <= p.info["error"] + 1e-5 < 0.05


def from_page(p, norm, variant, alpha, target=0):
    """The map (R·C,) of a light photo, read from its bytes as the page reads them."""
    groups, depth = 1 + 2 * len(p.info["targets"]), p.info["shape"][0]
    codes = np.frombuffer(p.polynomials, np.uint16).reshape(groups, 2 * depth + 4, -1)
    values = codes * np.frombuffer(p.scales, np.float32).reshape(groups, -1, 1)
    group = 0 if norm is None else 1 + 2 * target + ("l1", "l2").index(norm)
    first, count = {"paper": (0, 2), "report": (2, depth + 1), "output-first": (depth + 3, depth + 1)}[variant]
    scores = sum(alpha**k * values[group, first + k] for k in range(count))
    return (scores - scores.min()) / np.ptp(scores)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("norm", ["l1", "l2", None])
def test_a_light_photo_gives_every_setting(vit, photos, light, norm, variant):
    """A few vectors a photo are the map at any α, within the error that the page states."""
    p = light[1]
    assert not p.attention and 0 <= p.info["error"] < 1e-3
    for target, alpha in ((0, 0.0), (1, 0.35), (0, 2.0), (1, 10.0)):
        exact = explorer.state_map(vit, photos["two"], p.info["targets"][target], norm, alpha, variant)
        page = from_page(p, norm, variant, alpha, target)
        assert abs(page - exact.flatten().numpy()).max() <= p.info["error"] + 1e-5


def test_the_error_of_a_light_photo_is_what_its_bytes_do(monkeypatch, vit, photos):
    """Codes of four bits move the maps, and the stated error says by how much."""
    exact = packing.encode
    monkeypatch.setattr(packing, "encode", lambda v: ((exact(v)[0] // 4096) * 4096, exact(v)[1]))
    (p,) = explorer.pack(vit, [photos["one"]], targets=1)
    exact_map = explorer.state_map(vit, photos["one"], p.info["targets"][0], "l1", 1.0, "report").flatten().numpy()
    moved = abs(from_page(p, "l1", "report", 1.0) - exact_map).max()
    assert 0.005 < moved <= p.info["error"] + 1e-6


@given(st.integers(0, 1000), st.floats(1e-12, 1e6))
@settings(max_examples=50, deadline=None)
def test_codes_keep_a_vector_but_for_its_lowest_entry(seed, size):
    vectors = size * torch.randn(3, 7, generator=torch.Generator().manual_seed(seed))
    vectors[1] = 0.5
    codes, scales = packing.encode(vectors)
    back = codes * scales[..., None]
    raised = (vectors - vectors.amin(-1, keepdim=True)).numpy()
    assert np.allclose(back, raised, rtol=0, atol=0.51 * max(1e-38, np.ptp(vectors.numpy(), 1).max()) / 65535)
    assert (codes[1] == 0).all()


def test_methods_of_the_user_are_packed_and_named(vit, photos):
    def brightest(trace):
        return trace.attentions[-1].sum((1, 2))

    methods = {"rollout, report": partial(METHODS["rollout"].function, variant="report"), "mine": brightest}
    (p,) = explorer.pack(vit, [photos["one"]], targets=[2], methods=methods)
    pixels = vit.preprocess([photos["one"]])
    assert p.info["methods"] == list(methods) and p.info["calls"] == ["\"rollout\", variant='report'", "brightest"]
    assert p.info["follows"] == [[2, 1], None]
    maps = np.frombuffer(p.maps, np.uint16).reshape(2, 16) / 65535
    for label, mine in zip(methods, maps, strict=True):
        exact = explain(vit.model, pixels, methods[label], target=2, upsample=False)[0].flatten()
        assert np.allclose(mine, exact, atol=1e-5)


def test_every_method_that_follows_alpha_starts_as_packed(light):
    """At α = 1 the page's own map is the one that the library packed: the button's name keeps its meaning."""
    p = light[0]
    maps = np.frombuffer(p.maps, np.uint16).reshape(2, len(p.info["methods"]), 16) / 65535
    followers = [(m, f) for m, f in enumerate(p.info["follows"]) if f]
    assert len(followers) == 3
    for m, (norm, variant) in followers:
        for target in (0, 1):
            page = from_page(p, explorer.NORMS[norm], VARIANTS[variant], 1.0, target)
            assert abs(page - maps[target, m]).max() < 1e-3


def test_bytes_of_a_photo_of_the_bundled_model():
    vit = load_model("vit-small-tiny-imagenet", image_size=112, device="cpu")
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)  # the largest JPEG
    p, book = explorer.pack(vit, [noise, cat_and_coffee()], heads=True)
    assert max(p.size, book.size) <= 600_000
    assert book.info["error"] <= 0.01  # of the picture that readers see; the worst pixel of noise moves twice as far
    assert p.info["error"] <= 0.02
    assert p.info["name"] == "photo 1" and p.info["key"] == "0"


def test_bytes_of_a_light_photo():
    """12 layers and 16 × 16 patches: 14 kB, and 29 kB a class, besides the JPEG and the other methods' maps."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=12,
        num_hidden_layers=12,
        num_attention_heads=2,
        intermediate_size=12,
        image_size=64,
        patch_size=4,
        num_labels=3,
    )
    vit = load_model(ViTForImageClassification(config), mean=[0.5] * 3, std=[0.5] * 3, size=64, device="cpu")
    (p,) = explorer.pack(vit, [np.zeros((64, 64, 3), np.uint8)], targets=2)
    assert p.info["grid"] == [16, 16] and not p.attention and not p.weights
    assert len(p.polynomials) == (1 + 2 * 2) * 28 * 256 * 2
    assert p.size < 90_000


def test_a_centre_crop_is_drawn_where_the_model_looked(vit, photos):
    cropping = load_model(vit.model, mean=[0.5] * 3, std=[0.5] * 3, size=32, device="cpu")
    cropping.processor.do_center_crop = True
    cropping.processor.size = {"shortest_edge": 32}
    cropping.processor.crop_size = {"height": 32, "width": 32}
    (p,) = explorer.pack(cropping, {"wide": np.zeros((40, 80, 3), np.uint8)})
    assert p.info["crop"] == pytest.approx([0.25, 0, 0.75, 1], abs=0.02)


def test_the_modules_are_complete_and_in_order():
    """Each file of js/ is in the view, after those it imports, with no import that the loader would not find."""
    modules = dict(widget.Script().modules)
    folder = Path(widget.__file__).parent / "js"
    assert set(modules) == {f.stem for f in folder.glob("*.js")}
    for number, (name, text) in enumerate(modules.items()):
        imported = re.findall(r'from "([^"]+)"', text)
        assert imported == [f"./{Path(i).stem}.js" for i in imported]
        assert {Path(i).stem for i in imported} <= set(list(modules)[:number]), name
        assert len(text.splitlines()) <= 300
    assert "import" not in re.sub(r"//.*", "", modules["maths"])  # other pages use it alone


def test_the_page_s_magma_is_matplotlib_s():
    text = dict(widget.Script().modules)["maths"]
    stops = [[int(code[k : k + 2], 16) for k in (0, 2, 4)] for code in re.findall(r"\b[0-9a-f]{6}\b", text)]
    x = np.linspace(0, 255, len(stops))
    mine = np.stack([np.interp(np.arange(256), x, channel) for channel in np.array(stops).T], 1)
    assert abs(mine - 255 * matplotlib.colormaps["magma"](np.arange(256))[:, :3]).max() < 1.5


def test_a_link_names_the_same_pictures_after_another_build(vit, photos, light):
    name = explorer.explore(light).view.link
    again = explorer.pack(vit, photos, targets=2)
    assert explorer.explore(again).view.link == name and re.fullmatch(r"map-[0-9a-f]{8}", name)
    others = [
        explorer.explore(light, show="compare"),
        explorer.explore(light[:1]),
        explorer.explore(explorer.pack(vit, photos, targets=[4, 3])),
    ]
    assert len({name, *(ui.view.link for ui in others)}) == 4


def test_a_light_photo_has_no_slider_for_layers(light, packed):
    def names(ui):
        return [c.description for c in ui.children[0].children]

    assert "layers" in names(explorer.explore(packed)) and "layers" not in names(explorer.explore(light))
    assert names(explorer.explore(light, show="ask")) == ["photo"]
    assert names(explorer.explore(light[:1], show="ask", answer="So it is.")) == []


@pytest.mark.parametrize("show", explorer.SHOW)
def test_every_control_is_linked(packed, show):
    ui = explorer.explore(packed, show=show)
    controls = ui.children[0].children
    assert controls[0].description == "photo" and len({c.description for c in controls}) == len(controls)
    assert all(c.description for c in controls)
    assert ui.view.photos == packed and ui.view.show == [show]


def test_arguments_of_the_view_repeat_its_picture(vit, photos, packed):
    ui = explorer.explore(packed)
    ui.view.set_trait("alpha", 0.3)
    ui.view.set_trait("norm", 1)
    ui.view.set_trait("variant", 2)
    ui.view.set_trait("layers", [2, 3])
    ui.view.set_trait("muted", [[2, 1]])
    ui.view.set_trait("target", 1)
    assert ui.view.arguments() == {
        "target": packed[0].info["targets"][1],
        "norm": "l2",
        "alpha": 0.3,
        "variant": "output-first",
        "layers": (2, 3),
        "muted": [(2, 1)],
    }
    assert explorer.state_map(vit, photos["one"], **ui.view.arguments()).shape == (4, 4)


def test_explore_says_what_is_wrong(vit, photos, packed):
    for show in ("everything", ()):
        with pytest.raises(ValueError, match="ask, map, heads, compare, deletion"):
            explorer.explore(packed, show=show)
    with pytest.raises(ValueError, match="heads=True"):
        explorer.explore(explorer.pack(vit, photos, targets=1), show=("map", "heads"))
    for nothing in (0, -1, []):
        with pytest.raises(ValueError, match="targets must be"):
            explorer.explore(vit, photos, targets=nothing)
    for nothing in ({}, []):
        with pytest.raises(TypeError, match="needs photos"):
            explorer.explore(vit, nothing)
    with pytest.raises(TypeError, match="photos"):
        explorer.explore(vit)
    with pytest.raises(ValueError, match="curves=True"):
        explorer.explore(explorer.pack(vit, photos, targets=1), show="deletion")
    with pytest.raises(ValueError, match="same number of layers, heads and targets"):
        explorer.explore(packed + explorer.pack(vit, photos, targets=[0]))
