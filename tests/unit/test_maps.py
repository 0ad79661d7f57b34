"""Every map against a slow implementation of its own, for every family; properties of whole models; bad input."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import (
    FAMILIES,
    PREFIX,
    build,
    grid,
    images,
    slow_forward,
    slow_logits,
    slow_minmax,
    slow_occlusion,
    slow_readout,
    slow_rollout,
    slow_weights,
)

from gmar_utils import METHODS, explain, explain_many, trace
from gmar_utils.methods import bind
from gmar_utils.methods.layerwise import layer_maps
from gmar_utils.methods.weighting import VARIANTS

TOLERANCE = 2e-4


@pytest.fixture(scope="module", params=FAMILIES)
def case(request):
    name = request.param
    model, x = build(name), images(name)
    target = [3, 1]
    fast = {
        label: explain(model, x, method, torch.tensor(target), upsample=False, **options)
        for label, (method, options) in RECIPES.items()
    }
    seen = trace(model, x, torch.tensor(target))
    assert len(seen.gradients) == 3  # before slow_forward makes the model float64
    return name, target, fast, seen, slow_forward(name, model, x, target), model


RECIPES = {
    **{f"rollout {v}": ("rollout", {"variant": v, "alpha": 0.7}) for v in VARIANTS},
    **{
        f"gmar {n} {v}": ("gmar", {"norm": n, "variant": v, "alpha": a})
        for v, a in zip(VARIANTS, (0.3, 1.0, 2.5), strict=True)
        for n in ("l1", "l2", None)
    },
    "legrad": ("legrad", {}),
    "legrad last 2, mean pool": ("legrad", {"layers": 2, "pool": "mean"}),
    "grad-cam": ("grad-cam", {}),
    "chefer": ("chefer", {}),
    "attention": ("attention", {}),
    "rollout with BT-H weights": ("gmar", {"norm": "bth", "variant": "output-first", "alpha": 1.0}),
    "cdam": ("cdam", {}),
    "occlusion": ("occlusion", {}),
    "occlusion, 3 patches, grey": ("occlusion", {"size": 3, "baseline": 0.5, "batch_size": 5}),
}


@pytest.mark.parametrize("label", RECIPES)
def test_agrees_with_slow_implementation(case, label):
    name, target, fast, _, slow, model = case
    attentions, gradients, outputs, norm, norm_gradient, _ = slow
    method, options = RECIPES[label]
    prefix, v0 = PREFIX[name], slow_readout(name, attentions[0].shape[-1])
    if method in ("rollout", "gmar"):
        weights = slow_weights(gradients, options.get("norm"), attentions)
        scores = slow_rollout(attentions, weights, v0, options["alpha"], options["variant"])[:, prefix:]
    elif method == "legrad":
        layers = []
        for a, tokens in zip(attentions, outputs, strict=True):
            if options.get("pool") == "mean":
                tokens = tokens.mean(1, keepdim=True).repeat(1, tokens.shape[1], 1)
            logits = slow_logits(name, model, tokens)
            s = sum(logits[i, t] for i, t in enumerate(target))
            (g,) = torch.autograd.grad(s, a, retain_graph=True)
            layers.append(g.relu().mean(1).mean(1)[:, prefix:])
        scores = torch.stack(layers[-options.get("layers", 3) :]).mean(0)
    elif method == "grad-cam":
        w = norm_gradient[:, prefix:].mean(1)
        scores = torch.einsum("bnd,bd->bn", norm[:, prefix:], w).relu()
    elif method == "cdam":
        scores = torch.einsum("bnd,bnd->bn", norm, norm_gradient)[:, prefix:].relu()
    elif method == "occlusion":
        scores = slow_occlusion(model, images(name), target, grid(name), **options).flatten(1).relu()
    elif method == "chefer":
        result = []
        for b in range(2):
            r = torch.eye(len(v0), dtype=torch.float64)
            for a, g in zip(attentions, gradients, strict=True):
                r = r + (a[b] * g[b]).relu().mean(0) @ r
            result.append(v0 @ r)
        scores = torch.stack(result)[:, prefix:]
    else:
        scores = torch.stack([v0 @ attentions[-1][b].mean(0) for b in range(2)])[:, prefix:]
    expected = slow_minmax(scores.detach().reshape(2, *grid(name)))
    torch.testing.assert_close(fast[label].double(), expected, atol=TOLERANCE, rtol=0)
    assert fast[label].dtype == torch.float32


def test_trace_sees_what_eager_attention_sees(case):
    name, _, _, seen, slow, _ = case
    torch.testing.assert_close(seen.logits.double(), slow[5].detach(), atol=1e-4, rtol=1e-4)
    for fast_a, fast_g, a, g in zip(seen.attentions, seen.gradients, slow[0], slow[1], strict=True):
        torch.testing.assert_close(fast_a.double(), a.detach(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(fast_g.double(), g, atol=1e-4 * g.abs().max().item(), rtol=1e-3)
    assert (seen.prefix_tokens, seen.grid) == (PREFIX[name], grid(name))
    assert torch.equal(seen.readout.double(), slow_readout(name, seen.readout.shape[1]).expand(2, -1))


# --- whole models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("upsample", [True, False])
def test_a_map_does_not_depend_on_its_batch(method, upsample):
    model, x = build("vit-wide"), images("vit-wide", 3)
    together = explain(model, x, method, upsample=upsample)
    alone = torch.cat([explain(model, x[i : i + 1], method, upsample=upsample) for i in range(3)])
    split = explain(model, x, method, upsample=upsample, batch_size=2)
    assert together.shape == ((3, 32, 48) if upsample else (3, 4, 6))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(split, together, atol=1e-5, rtol=0)
    assert together.amin() == 0 and (method == "grad-cam" or together.amax() == 1)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("random", "center")])
def test_permuting_patches_with_their_positions_permutes_the_map(method):
    model, x = build("vit"), images("vit", 1)
    options = {"size": 1} if method == "occlusion" else {}
    before = explain(model, x, method, 2, upsample=False, **options).flatten()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(5))
    patches = x.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)[:, :, order]  # (1, 3, 16, 8, 8)
    moved = patches.reshape(1, 3, 4, 4, 8, 8).transpose(3, 4).reshape(1, 3, 32, 32)
    with torch.no_grad():
        positions = model.vit.embeddings.position_embeddings
        positions[:, 1:] = positions[:, 1:][:, order]
    after = explain(model, moved, method, 2, upsample=False, **options).flatten()
    torch.testing.assert_close(after, before[order], atol=1e-4, rtol=0)


def test_scaling_the_logits_leaves_gmar_unchanged():
    model, x = build("vit"), images("vit")
    before = explain(model, x, "gmar", 2)
    with torch.no_grad():
        model.classifier.weight.mul_(37), model.classifier.bias.mul_(37)
    torch.testing.assert_close(explain(model, x, "gmar", 2), before, atol=1e-5, rtol=0)


SIGNED = [name for name, method in METHODS.items() if method.signed]


@pytest.mark.parametrize("method", SIGNED)
def test_signed_maps_keep_their_sign_and_unsigned_ones_show_what_speaks_for_the_class(method):
    model, x = build("vit-wide"), images("vit-wide", 3)
    seen = trace(model, x)
    scores = seen.patches(METHODS[method].function(seen))
    assert scores.min() < 0 < scores.max()
    signed = explain(model, x, method, upsample=False, signed=True)
    torch.testing.assert_close(signed, scores / scores.abs().amax((1, 2), keepdim=True), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        explain(model, x, method, upsample=False), slow_minmax(scores.clamp_min(0)), atol=1e-5, rtol=0
    )
    large = explain(model, x, method, signed=True)
    assert large.shape == (3, 32, 48)
    torch.testing.assert_close(large.abs().amax((1, 2)), torch.ones(3))
    assert large.min() < 0 < large.max()
    negative = explain(model, x, lambda t: -METHODS[method].function(t), upsample=False, signed=True)
    torch.testing.assert_close(negative, -signed, atol=1e-5, rtol=0)


def test_maps_without_a_sign_refuse_to_be_signed():
    model, x = build("vit"), images("vit")
    with pytest.raises(TypeError, match="gmar takes no option 'signed': .* libra, attnlrp, cdam, occlusion do"):
        explain(model, x, "gmar", signed=True)
    with pytest.raises(TypeError, match="rollout"):
        explain_many(model, x, {"a": "libra", "b": "rollout"}, signed=True)


def test_a_constant_signed_map_becomes_zero():
    model, x = build("vit"), images("vit")
    assert torch.equal(explain(model, x, lambda t: torch.zeros(2, 17), signed=True), torch.zeros(2, 32, 32))
    assert torch.equal(explain(model, x, "occlusion", size=4), torch.zeros(2, 32, 32))  # one square: a constant


def test_colours_and_names_are_declared_once():
    assert len({m.color for m in METHODS.values()}) == len(METHODS) == len({m.title for m in METHODS.values()})
    assert all(len(m.color) == 7 and m.color[0] == "#" and m.name == name for name, m in METHODS.items())


@pytest.mark.parametrize("method", METHODS)
def test_only_class_aware_maps_change_with_the_class(method):
    model, x = build("vit"), images("vit", 1)
    maps = [explain(model, x, method, t, upsample=False, signed=METHODS[method].signed) for t in (0, 1)]
    assert torch.equal(*maps) != METHODS[method].class_aware


def test_occlusion_finds_the_patch_that_the_class_needs():
    """A classifier that counts bright pixels in one square: nothing else is missed when it is hidden."""
    model, x = build("vit"), images("vit")
    model.forward = lambda pixels: SimpleNamespace(logits=pixels[:, :1, 16:32, :16].mean((2, 3)).repeat(1, 5))
    seen = trace(build("vit"), x, 2)
    seen.model, seen.logits = model, model(x).logits
    scores = seen.patches(METHODS["occlusion"].function(seen))
    wanted = torch.zeros(2, 4, 4)
    wanted[:, 2:, :2] = x[:, :1, 16:32, :16].mean((2, 3))[:, :, None]
    torch.testing.assert_close(scores, wanted, atol=1e-6, rtol=0)


def test_one_trace_serves_many_maps():
    model, x = build("vit"), images("vit")
    many = explain_many(
        model, x, {label: bind(m, **options) for label, (m, options) in RECIPES.items()}, upsample=False
    )
    assert list(many) == list(RECIPES)
    for label, (method, options) in RECIPES.items():
        torch.testing.assert_close(
            many[label], explain(model, x, method, upsample=False, **options), atol=1e-5, rtol=0, msg=label
        )


def test_legrad_of_means_does_not_change_what_is_explained():
    model, x = build("vit"), images("vit", 8)
    seen = trace(model, x, lazy=True)
    METHODS["legrad"].function(seen, pool="mean")
    torch.testing.assert_close(seen.logits, trace(model, x).logits)
    assert torch.equal(seen.target, model(x).logits.argmax(1))


def test_layer_maps_average_to_legrad():
    model, x = build("vit"), images("vit")
    seen = trace(model, x)
    layers = layer_maps(seen)
    assert layers.shape == (2, 3, 17)
    torch.testing.assert_close(
        slow_minmax(seen.patches(layers[:, 1:].mean(1))),
        explain(model, x, "legrad", upsample=False, layers=2),
        atol=1e-5,
        rtol=0,
    )


def test_random_has_a_seed_and_center_is_in_the_middle():
    model, x = build("vit"), images("vit")
    assert torch.equal(explain(model, x, "random"), explain(model, x, "random", seed=0))
    assert not torch.equal(explain(model, x, "random"), explain(model, x, "random", seed=1))
    middle = explain(model, x, "center", upsample=False)[0]
    assert middle.max() == middle[1, 1] == middle[2, 2] and middle.min() == middle[0, 0] == 0


def test_a_constant_map_becomes_zero():
    from gmar_utils.photo import minmax

    maps = torch.stack([torch.full((3, 4), 0.3), torch.arange(12.0).reshape(3, 4)])
    assert torch.equal(minmax(maps)[0], torch.zeros(3, 4))
    np.testing.assert_allclose(minmax(maps)[1].flatten(), np.arange(12) / 11, rtol=1e-6)


def test_a_constant_map_stays_constant_when_it_is_enlarged():
    model, x = build("vit-wide"), images("vit-wide", 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "query" in name:
                parameter.zero_()  # every token looks everywhere alike
    assert torch.equal(explain(model, x, "attention"), torch.zeros(1, 32, 48))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("alpha", [0.0, 1e4])
def test_extreme_alpha_stays_finite(variant, alpha):
    model, x = build("vit", num_hidden_layers=24), images("vit")
    assert torch.isfinite(explain(model, x, "gmar", alpha=alpha, variant=variant)).all()


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, options, error, words",
    [
        ("gmarr", {}, ValueError, "grad-cam, rollout, gmar"),
        ("gmar", {"layers": 2}, TypeError, "it takes norm, alpha, variant"),
        ("attention", {"alpha": 1}, TypeError, "it takes none"),
        ("gmar", {"alpha": float("nan")}, ValueError, "alpha"),
        ("gmar", {"alpha": -1.0}, ValueError, "alpha"),
        ("gmar", {"norm": "l3"}, ValueError, "norm"),
        ("rollout", {"variant": "abnar"}, ValueError, "output-first"),
        ("legrad", {"layers": 4}, ValueError, "from 1 to 3"),
        ("legrad", {"pool": "max"}, ValueError, "pool"),
        ("libra", {"layers": "last"}, ValueError, "'all', 'input', 'upper'"),
        ("occlusion", {"size": 0}, ValueError, "size"),
        ("occlusion", {"size": 1.5}, ValueError, "size"),
        ("occlusion", {"batch": 0}, TypeError, "it takes size, baseline, batch_size"),
        ("gmar", {"batch_size": 0}, ValueError, "batch_size"),
    ],
)
def test_bad_options_say_what_is_expected(method, options, error, words):
    with pytest.raises(error, match=words):
        explain(build("vit"), images("vit"), method, **options)
