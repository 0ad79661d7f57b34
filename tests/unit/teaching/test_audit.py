"""The audit's readings: each does what its row in the audit says, shown on attention made for the purpose."""

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

import gmar_utils
from gmar_utils.capture import Trace
from gmar_utils.methods import weighting as rollout
from gmar_utils.teaching.results.readings import (
    READINGS,
    SOURCES,
    chains_readout,
    layernorm_weights,
    reading,
    released,
    released_chains,
)


def stack(layers=3, heads=2, side=3, seed=0, batch=2):
    """A trace with random attention and gradients."""
    n = side * side + 1
    g = torch.Generator().manual_seed(seed)
    attentions = tuple(torch.randn(batch, heads, n, n, generator=g).mul(2).softmax(-1) for _ in range(layers))
    gradients = tuple(torch.randn(batch, heads, n, n, generator=g) for _ in range(layers))
    target = torch.zeros(batch).long()
    return made(attentions, gradients, target, side)


def made(attentions, gradients, target, side):
    readout = torch.eye(attentions[0].shape[-1])[:1].expand(len(target), -1)
    return Trace(
        attentions=attentions,
        gradients=gradients,
        logits=torch.zeros(len(target), 2),
        target=target,
        prefix_tokens=1,
        grid=(side, side),
        readout=readout,
    )


def replaced(trace, **fields):
    """The same trace with other attentions or gradients."""
    return made(
        **{"attentions": trace.attentions, "gradients": trace.gradients} | fields,
        target=trace.target,
        side=trace.grid[0],
    )


def changed(trace, layer, heads=slice(None), seed=9):
    """The same trace with other attention in some heads of one layer."""
    other = stack(len(trace.attentions), trace.attentions[0].shape[1], trace.grid[0], seed).attentions[layer]
    attentions = list(trace.attentions)
    attentions[layer] = attentions[layer].clone()
    attentions[layer][:, heads] = other[:, heads]
    return replaced(trace, attentions=tuple(attentions))


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=5,
        initializer_range=0.3,
    )
    model = ViTForImageClassification(config).eval()
    return model, torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("paper", {}),
        ("report", {"recursion": "product"}),
        ("output-first", {"recursion": "product", "order": "output-first"}),
    ],
)
@pytest.mark.parametrize("norm", ["l1", "l2", None])
def test_slow_form_is_the_library(variant, options, norm):
    t = stack()
    slow, fast = reading(t, norm, 0.7, **options), rollout.gmar(t, norm, 0.7, variant)
    scale = 1 if variant == "paper" else 1.7 ** len(t.attentions)  # the library divides by 1 + α a layer
    torch.testing.assert_close(slow / scale, fast, atol=1e-6, rtol=1e-5)


def test_recursion_decides_whether_the_first_layer_meets_alpha():
    """Eq. 3 multiplies α by the later layers only; the product lets α skip any layer, the first kept."""
    t = stack()
    slope = {
        r: lambda trace, r=r: reading(trace, alpha=1.0, recursion=r) - reading(trace, alpha=0.0, recursion=r)
        for r in ("eq3", "product")
    }
    torch.testing.assert_close(slope["eq3"](t), slope["eq3"](changed(t, 0)))
    assert not torch.allclose(slope["product"](t), slope["product"](changed(t, 0)), atol=1e-3)


@pytest.mark.parametrize(("order", "last_to_act"), [("input-first", 2), ("output-first", 0)])
def test_order_decides_which_layer_places_the_map(order, last_to_act):
    """The rightmost matrix puts the scores on patches: one whose rows all point at patch 4 fixes the map (α = 0)."""
    t = stack()
    attentions = list(t.attentions)
    attentions[last_to_act] = torch.eye(10)[5].expand_as(attentions[0])
    pointed = replaced(t, attentions=tuple(attentions))
    torch.testing.assert_close(reading(pointed, alpha=0.0, order=order), torch.eye(10)[5].expand(2, 10))
    other = {"input-first": "output-first", "output-first": "input-first"}[order]
    assert reading(pointed, alpha=0.0, order=other)[:, 5].max() < 0.99


def test_a_chain_for_each_head_loses_paths_that_change_heads():
    """[CLS] → token 1 in head 0, token 1 → patch 7 in head 1: fused attention sees the path, separate chains do not."""
    stay = torch.eye(10)
    first, second = stay.clone(), stay.clone()
    first[0], second[1] = stay[1], stay[8]
    t = stack(layers=2, batch=1)
    t = replaced(t, attentions=(torch.stack([first, stay])[None], torch.stack([stay, second])[None]))
    assert reading(t, alpha=0.0, heads="fused")[0, 8] > 0.1
    assert reading(t, alpha=0.0, heads="chains")[0, 8] == 0


def test_one_weight_vector_is_ruled_by_the_layer_with_large_gradients():
    t = stack()
    gradients = list(t.gradients)
    gradients[0] = gradients[0] * torch.tensor([1e6, 1.0])[:, None, None]
    t = replaced(t, gradients=tuple(gradients))
    other = changed(changed(t, 1, heads=1), 2, heads=1)  # head 1 of the later layers
    torch.testing.assert_close(reading(t, scope="network"), reading(other, scope="network"), atol=1e-4, rtol=0)
    assert not torch.allclose(reading(t), reading(other), atol=1e-3)


def test_released_map_ignores_every_head_but_the_first():
    t = stack(heads=4, side=4)
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 2)
    other = t
    for layer in range(3):
        other = changed(other, layer, heads=slice(1, None))
    ours, theirs = (chains_readout(released_chains(x.attentions, weights), "shipped") for x in (t, other))
    torch.testing.assert_close(ours, theirs, atol=0, rtol=1e-5)
    correct = [chains_readout(released_chains(x.attentions, weights), "all heads") for x in (t, other)]
    assert not torch.allclose(*correct, rtol=1e-2, atol=0)


def test_released_map_is_the_same_for_l1_l2_and_uniform_weights(vit):
    model, x = vit
    weights = [layernorm_weights(gmar_utils.trace(model, x, 0), norm) for norm in ("l1", "l2", None)]
    assert (weights[0] - weights[2]).abs().max() > 0.01  # the weights themselves do differ
    maps = [released(gmar_utils.trace(model, x, 0), norm)[:, 1:] for norm in ("l1", "l2", None)]
    for i in range(2):
        assert torch.corrcoef(torch.stack([m[i] for m in maps])).min() > 0.9999


def test_released_map_of_attention_that_points_at_one_patch_is_flat():
    pointed = tuple(torch.eye(17)[6].expand(1, 4, 17, 17) for _ in range(3))
    chains = released_chains(pointed, torch.full((1, 4), 0.25))
    shipped = chains_readout(chains, "shipped")[0, 1:]
    assert shipped.std() < 1e-4 * shipped.mean()
    assert chains_readout(chains, "head 0")[0, 1:].argmax() == 5  # the same chains, read at [CLS], find the patch


def test_released_needs_one_prefix_token():
    with pytest.raises(ValueError, match="one prefix token"):
        chains_readout(torch.rand(1, 2, 10, 10), "shipped", prefix_tokens=2)


def test_every_reading_runs_and_says_where_it_comes_from(vit):
    model, x = vit
    assert set(READINGS) == set(SOURCES)
    for method in READINGS.values():
        scores = method(gmar_utils.trace(model, x))
        assert scores.shape == (2, 17) and scores.isfinite().all()
