"""The weighted rollout on random stochastic stacks: its forms agree, its properties hold, planted truth is found."""

import pytest
import torch
from families import slow_rollout
from hypothesis import given, settings
from hypothesis import strategies as st

from gmar_utils.methods.weighting import VARIANTS, alpha_polynomial, head_weights, weighted_rollout


def stack(seed, layers=3, batch=2, heads=3, tokens=7):
    g = torch.Generator().manual_seed(seed)
    attentions = [(2 * torch.randn(batch, heads, tokens, tokens, generator=g)).softmax(-1) for _ in range(layers)]
    gradients = [torch.randn(batch, heads, tokens, tokens, generator=g) for _ in range(layers)]
    readout = torch.zeros(tokens)
    readout[0] = 1
    return attentions, gradients, readout


seeds = st.integers(0, 10_000)
norms = st.sampled_from(["l1", "l2", None])
variants = st.sampled_from(VARIANTS)
alphas = st.floats(0, 20, allow_nan=False)


@settings(deadline=None, max_examples=40)
@given(seeds, norms, variants, alphas)
def test_vector_form_equals_matrix_form(seed, norm, variant, alpha):
    attentions, gradients, v0 = stack(seed)
    weights = head_weights(gradients, norm)
    expected = slow_rollout(attentions, [w.double() for w in weights], v0.double(), alpha, variant)
    torch.testing.assert_close(
        weighted_rollout(attentions, weights, v0, alpha, variant).double(), expected, rtol=1e-5, atol=1e-7
    )


@settings(deadline=None, max_examples=40)
@given(seeds, norms, variants, alphas)
def test_alpha_polynomial_equals_direct_evaluation(seed, norm, variant, alpha):
    attentions, gradients, v0 = stack(seed)
    weights = head_weights(gradients, norm)
    coefficients = alpha_polynomial(attentions, weights, v0, variant).double()
    assert coefficients.shape[1] == (2 if variant == "paper" else len(attentions) + 1)
    value = sum(c * alpha**k for k, c in enumerate(coefficients.unbind(1)))
    scale = 1 if variant == "paper" else (1 + alpha) ** len(attentions)
    direct = weighted_rollout(attentions, weights, v0, alpha, variant).double()
    torch.testing.assert_close(value / scale, direct, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(seeds, st.sampled_from(["l1", "l2"]), st.floats(1e-3, 1e3))
def test_weights_sum_to_one_follow_heads_and_ignore_the_scale_of_the_logit(seed, norm, scale):
    _, gradients, _ = stack(seed)
    order = torch.randperm(3, generator=torch.Generator().manual_seed(seed))
    weights = head_weights(gradients, norm)
    scaled = head_weights([g * scale for g in gradients], norm)
    permuted = head_weights([g[:, order] for g in gradients], norm)
    for w, s, p in zip(weights, scaled, permuted, strict=True):
        torch.testing.assert_close(w.sum(1), torch.ones(2))
        torch.testing.assert_close(s, w)
        torch.testing.assert_close(p, w[:, order])


@settings(deadline=None, max_examples=30)
@given(seeds, variants, alphas)
def test_products_keep_rows_summing_to_one_and_heads_may_be_permuted(seed, variant, alpha):
    attentions, gradients, v0 = stack(seed)
    order = torch.randperm(3, generator=torch.Generator().manual_seed(seed))
    scores = weighted_rollout(attentions, head_weights(gradients), v0, alpha, variant)
    total = 1 + len(attentions) * alpha if variant == "paper" else 1.0
    torch.testing.assert_close(scores.sum(1), torch.full((2,), total), rtol=1e-4, atol=1e-4)
    swapped = weighted_rollout(
        [a[:, order] for a in attentions], head_weights([g[:, order] for g in gradients]), v0, alpha, variant
    )
    torch.testing.assert_close(swapped, scores)


@pytest.mark.parametrize("variant", VARIANTS)
def test_order_and_recursion_are_different_readings(variant):
    attentions, gradients, v0 = stack(0)
    weights = head_weights(gradients)
    others = [weighted_rollout(attentions, weights, v0, 1.0, v) for v in VARIANTS if v != variant]
    mine = weighted_rollout(attentions, weights, v0, 1.0, variant)
    assert all((mine / mine.sum() - o / o.sum()).abs().max() > 1e-3 for o in others)


# --- planted truth ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("patch", [1, 4, 6])
def test_attention_that_points_at_one_patch_is_found(variant, patch):
    attentions, gradients, v0 = stack(3)
    for a in attentions:
        a.mul_(0.4)
        a[..., patch] += 0.6
    scores = weighted_rollout(attentions, head_weights(gradients), v0, 1.0, variant)[:, 1:]
    assert (scores.argmax(1) == patch - 1).all()


def test_gradient_finds_the_head_that_matters():
    attentions, gradients, v0 = stack(4)
    for a, g in zip(attentions, gradients, strict=True):
        a.fill_(1 / 7)
        a[:, 1] = torch.eye(7)[5]  # head 1 looks at patch 5, the others look everywhere
        g[:, [0, 2]] *= 1e-3
    plain = weighted_rollout(attentions, head_weights(gradients, None), v0)[:, 1:]
    gmar = weighted_rollout(attentions, head_weights(gradients), v0)[:, 1:]
    assert (gmar.argmax(1) == 4).all()
    assert (gmar[:, 4] / gmar.sum(1) > 1.5 * plain[:, 4] / plain.sum(1)).all()


# --- bad input --------------------------------------------------------------------------------------------------------


def test_zero_gradients_give_equal_weights_and_a_warning():
    with pytest.warns(UserWarning, match="equal weights"):
        (w,) = head_weights([torch.zeros(2, 4, 3, 3)])
    assert torch.equal(w, torch.full((2, 4), 0.25))


def test_bth_weights_need_attention():
    _, gradients, _ = stack(0)
    with pytest.raises(ValueError, match="attentions="):
        head_weights(gradients, "bth")
