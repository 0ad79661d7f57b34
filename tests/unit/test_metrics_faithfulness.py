"""Faithfulness metrics against definitions written out slowly, cases done by hand, and every edge."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from gmar_utils import metrics
from gmar_utils.metrics.imputation import blur


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=32,
        image_size=24,
        patch_size=4,
        num_labels=5,
        initializer_range=0.5,
    )
    return ViTForImageClassification(config).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def maps():
    return torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(2))


class MeanPixel(nn.Module):
    """Two logits: the mean of the image, and 0. Every score can be written down."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([mean, torch.zeros_like(mean)], 1)


def slow_curve(model, image, patch_map, target, steps, inserting, fill, descending=True, score="probability"):
    """One forward at a time, one patch at a time, in NumPy order."""
    rows, columns = patch_map.shape
    ph, pw = image.shape[1] // rows, image.shape[2] // columns
    order = sorted(range(rows * columns), key=lambda k: (-1 if descending else 1) * float(patch_map.flatten()[k]))
    fractions, scores = [], []
    for step in range(steps + 1):
        count = int(np.round(step * rows * columns / steps))
        current = fill.clone() if inserting else image.clone()
        source = image if inserting else fill
        for k in order[:count]:
            r, c = divmod(k, columns)
            current[:, r * ph : (r + 1) * ph, c * pw : (c + 1) * pw] = source[
                :, r * ph : (r + 1) * ph, c * pw : (c + 1) * pw
            ]
        with torch.no_grad():
            out = model(current[None])
            logits = getattr(out, "logits", out)[0]
        scores.append(float(logits.softmax(0)[target] if score == "probability" else logits[target]))
        fractions.append(count / (rows * columns))
    area = sum((fractions[i + 1] - fractions[i]) * (scores[i + 1] + scores[i]) / 2 for i in range(steps))
    return fractions, scores, area


@pytest.mark.parametrize("steps, score", [(None, "probability"), ("patch", "logit"), (5, "probability"), (7, "logit")])
def test_insertion_and_deletion_follow_the_slow_definition(vit, images, maps, steps, score):
    number = {None: 32, "patch": 36}.get(steps, steps)
    predicted = vit(images).logits.argmax(1)
    zeros = torch.zeros_like(images[0])
    for function, inserting in ((metrics.insertion, True), (metrics.deletion, False)):
        curve = function(vit, images, maps, steps=steps, score=score, batch_size=7)
        assert curve.scores.shape == (3, number + 1) and curve.auc.shape == (3,)
        for i in range(3):
            fractions, scores, area = slow_curve(
                vit, images[i], maps[i], predicted[i], number, inserting, zeros, score=score
            )
            np.testing.assert_allclose(curve.fractions, fractions, atol=1e-6)
            np.testing.assert_allclose(curve.scores[i], scores, atol=2e-5)
            assert float(curve.auc[i]) == pytest.approx(area, abs=2e-5)


def test_least_relevant_first_and_given_target(vit, images, maps):
    curve = metrics.deletion(vit, images, maps, target=3, order="least", steps=6)
    for i in range(3):
        _, scores, _ = slow_curve(vit, images[i], maps[i], 3, 6, False, torch.zeros_like(images[0]), descending=False)
        np.testing.assert_allclose(curve.scores[i], scores, atol=2e-5)
    assert curve.protocol.target == "label" and curve.protocol.order == "least"


def test_by_hand():
    # 2 × 2 patches of one pixel, values 4, 0, 0, 8; the logit is the mean. Ordered by the image itself: 8, then 4.
    image = torch.tensor([[[[4.0, 0.0], [0.0, 8.0]]]])
    curve = metrics.insertion(MeanPixel(), image, image[:, 0] / 8, target=0, score="logit", grid=(2, 2))
    assert curve.fractions.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert curve.scores.tolist() == [[0, 2, 3, 3, 3]]
    assert curve.auc.item() == pytest.approx((1 + 2.5 + 3 + 3) / 4)
    curve = metrics.deletion(MeanPixel(), image, image[:, 0] / 8, target=0, score="logit", grid=(2, 2))
    assert curve.scores.tolist() == [[3, 1, 0, 0, 0]]
    assert curve.baseline.tolist() == [0] and curve.full.tolist() == [3] and curve.baseline_kept.tolist() == [0]
    morf, lerf, difference = metrics.morf_lerf(MeanPixel(), image, image[:, 0] / 8, 0, score="logit", grid=(2, 2))
    # 0 and 0 go first (ties in reading order), then 4, then 8.
    assert lerf.scores.tolist() == [[3, 3, 3, 2, 0]]
    assert difference.item() == pytest.approx(2.375 - 0.625) and morf.auc.item() == pytest.approx(0.625)


def test_a_constant_score_has_itself_as_area(images, maps):
    class Constant(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 4)

    for function in (metrics.insertion, metrics.deletion):
        torch.testing.assert_close(function(Constant(), images, maps).auc, torch.full((3,), 0.25))


def test_lerf_is_insertion_read_backwards_without_ties(vit, images, maps):
    inserted = metrics.insertion(vit, images, maps, steps=12)
    removed = metrics.deletion(vit, images, maps, steps=12, order="least")
    torch.testing.assert_close(removed.scores.flip(1), inserted.scores, atol=1e-5, rtol=0)


def test_full_size_maps_are_averaged_per_patch(vit, images):
    full = torch.rand(3, 24, 24)
    per_patch = full.unflatten(1, (6, 4)).unflatten(3, (6, 4)).mean((2, 4))
    a, b = metrics.deletion(vit, images, full), metrics.deletion(vit, images, per_patch)
    torch.testing.assert_close(a.scores, b.scores, atol=1e-5, rtol=0)


def test_pixels_as_rise_orders_them(vit, images):
    full = torch.rand(3, 24, 24)
    curve = metrics.deletion(vit, images, full, unit="pixel", steps=9)
    predicted = vit(images).logits.argmax(1)
    for i in range(3):
        _, scores, area = slow_curve(vit, images[i], full[i], predicted[i], 9, False, torch.zeros_like(images[0]))
        np.testing.assert_allclose(curve.scores[i], scores, atol=2e-5)
    assert metrics.insertion(vit, images, torch.rand(3, 6, 6), unit="pixel").scores.shape == (3, 33)


def test_ties_keep_reading_order(vit, images):
    flat = torch.zeros(3, 6, 6)
    reading = -torch.arange(36.0).reshape(1, 6, 6).expand(3, -1, -1)
    for order in ("most", "least"):
        ranked = reading if order == "most" else -reading
        a = metrics.deletion(vit, images, flat, order=order)
        b = metrics.deletion(vit, images, ranked, order=order)
        torch.testing.assert_close(a.scores, b.scores)


def test_the_batch_size_and_the_company_change_nothing(vit, images, maps):
    whole = metrics.insertion(vit, images, maps, batch_size=64)
    for size in (1, 5):
        torch.testing.assert_close(
            metrics.insertion(vit, images, maps, batch_size=size).scores, whole.scores, atol=1e-5, rtol=0
        )
    alone = metrics.insertion(vit, images[1:2], maps[1:2])
    torch.testing.assert_close(alone.scores, whole.scores[1:2], atol=1e-5, rtol=0)


def test_one_patch_and_grids_that_are_not_square(images):
    one = metrics.insertion(MeanPixel(), images, torch.rand(3, 1, 1), target=0)
    assert one.fractions.tolist() == [0, 1]
    torch.testing.assert_close(one.scores[:, 0], torch.full((3,), 0.5))
    wide = metrics.deletion(MeanPixel(), torch.randn(2, 3, 8, 24), torch.rand(2, 2, 6))
    assert wide.scores.shape == (2, 13)
    # Pixels outside the last whole patch (26 = 6·4 + 2) belong to the last patch.
    assert (
        metrics.deletion(MeanPixel(), torch.randn(2, 3, 26, 26), torch.rand(2, 6, 6), target=0)
        .scores[:, -1]
        .allclose(torch.tensor(0.5))
    )


# Drop and increase ---------------------------------------------------------------------------------------------------


def test_drop_and_increase_by_hand():
    full, masked = torch.tensor([0.8, 0.5, 0.4, 0.2]), torch.tensor([0.4, 0.6, 0.4, 0.0])
    assert float(metrics.average_drop(full, masked)) == pytest.approx(100 * (0.5 + 0 + 0 + 1) / 4)
    assert float(metrics.average_increase(full, masked)) == pytest.approx(25)
    torch.testing.assert_close(metrics.average_drop(full, masked, per_image=True), torch.tensor([50.0, 0, 0, 100]))
    assert metrics.average_increase(full, masked, per_image=True).tolist() == [0, 100, 0, 0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 1)), min_size=1, max_size=20))
def test_drop_lies_in_0_to_100_and_ignores_order(pairs):
    full, masked = torch.tensor(pairs).T
    drop = metrics.average_drop(full, masked)
    assert 0 <= drop <= 100 + 1e-4
    torch.testing.assert_close(metrics.average_drop(full.flip(0), masked.flip(0)), drop)
    assert drop == 0 or metrics.average_increase(full, masked) < 100


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_a_score_of_zero_or_below_raises(bad):
    with pytest.raises(ValueError, match="must be > 0"):
        metrics.average_drop([0.5, bad], [0.1, 0.1])
    with pytest.raises(ValueError, match="finite"):
        metrics.average_drop([0.5, float("nan")], [0.1, 0.1])
    with pytest.raises(ValueError, match="same images"):
        metrics.average_drop([0.5], [0.1, 0.1])


def test_masking_multiplies_at_image_size(vit, images):
    full_maps = torch.rand(3, 24, 24)
    result = metrics.masked_scores(vit, images, full_maps)
    with torch.no_grad():
        y = vit(images).logits.softmax(1)
        o = vit(images * full_maps[:, None]).logits.softmax(1)
    predicted = y.argmax(1, keepdim=True)
    torch.testing.assert_close(result.full, y.gather(1, predicted)[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(result.masked, o.gather(1, predicted)[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(result.coverage, 100 * full_maps.mean((1, 2)))


def test_patch_maps_come_up_bilinearly_then_minmax(vit, images, maps):
    up = F.interpolate(maps[:, None], (24, 24), mode="bilinear", align_corners=False)[:, 0]
    up = torch.stack([(m - m.min()) / (m.max() - m.min()) for m in up])
    a, b = metrics.masked_scores(vit, images, maps), metrics.masked_scores(vit, images, up)
    torch.testing.assert_close(a.masked, b.masked, atol=1e-5, rtol=0)


def test_raw_masking_goes_towards_black(vit, images):
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    black = metrics.masked_scores(vit, images, torch.zeros(3, 24, 24), target=1, masking="raw", mean=mean, std=std)
    image = (-torch.tensor(mean) / torch.tensor(std)).reshape(3, 1, 1).expand(3, 24, 24)
    expected = vit(image[None]).logits.softmax(1)[0, 1]
    torch.testing.assert_close(black.masked, expected.detach().expand(3), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="mean="):
        metrics.masked_scores(vit, images, torch.zeros(3, 24, 24), masking="raw")


def test_top_masking_keeps_half_of_the_patches(images):
    patch_map = torch.arange(36.0).reshape(1, 6, 6).expand(3, -1, -1)  # the lower three rows are the top half
    expected = images.clone()
    expected[:, :, :12] = 0
    result = metrics.masked_scores(MeanPixel(), images, patch_map, target=0, score="logit", masking="top")
    torch.testing.assert_close(result.masked, expected.flatten(1).mean(1))
    assert result.coverage.tolist() == [50, 50, 50]


def test_a_constant_map_lets_nothing_through(images):
    result = metrics.masked_scores(MeanPixel(), images, torch.full((3, 6, 6), 0.7), target=0, score="logit")
    assert result.masked.tolist() == [0, 0, 0] and result.coverage.tolist() == [0, 0, 0]


# Baselines -----------------------------------------------------------------------------------------------------------


def test_insertion_from_blur_starts_there(vit, images, maps):
    curve = metrics.insertion(vit, images, maps, baseline="blur", target=0)
    with torch.no_grad():
        expected = vit(blur(images)).logits.softmax(1)[:, 0]
    torch.testing.assert_close(curve.scores[:, 0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(curve.baseline, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(curve.baseline_kept, 100 * expected / curve.full, atol=1e-3, rtol=1e-4)


def test_road_runs_and_says_so(vit, images, maps):
    morf, lerf, difference = metrics.morf_lerf(vit, images, maps, baseline="linear", steps=4, seed=9)
    assert "baseline linear" in str(morf.protocol) and morf.protocol.seed == 9
    torch.testing.assert_close(difference, lerf.auc - morf.auc)
    torch.testing.assert_close(morf.scores[:, 0], lerf.scores[:, 0])


# Heads, protocol, errors ---------------------------------------------------------------------------------------------


class OneLogit(nn.Module):
    def forward(self, x):
        return x.flatten(1).mean(1, keepdim=True) * 10


def test_one_logit_uses_the_sigmoid_and_two_targets():
    images = torch.stack([torch.full((1, 4, 4), 0.2), torch.full((1, 4, 4), -0.2)])
    maps = torch.rand(2, 2, 2)
    predicted = metrics.deletion(OneLogit(), images, maps)
    torch.testing.assert_close(predicted.scores[:, 0], torch.sigmoid(torch.tensor([2.0, 2.0])))
    torch.testing.assert_close(predicted.scores[:, -1], torch.tensor([0.5, 0.5]))
    swapped = metrics.deletion(OneLogit(), images, maps, target=torch.tensor([0, 1]))
    torch.testing.assert_close(swapped.scores[:, 0], torch.sigmoid(torch.tensor([-2.0, -2.0])))


def test_regression_has_no_probability(images, maps):
    config = ViTConfig(
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=24,
        patch_size=4,
        num_labels=1,
        problem_type="regression",
    )
    model = ViTForImageClassification(config)
    with pytest.raises(ValueError, match="score='logit'"):
        metrics.insertion(model, images, maps)
    assert metrics.insertion(model, images, maps, score="logit").auc.shape == (3,)


def test_training_mode_and_eager_attention_are_put_back(images, maps):
    config = ViTConfig(
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=24,
        patch_size=4,
        hidden_dropout_prob=0.9,
        attn_implementation="eager",
    )
    model = ViTForImageClassification(config).train()
    a, b = metrics.insertion(model, images, maps), metrics.insertion(model, images, maps)
    torch.testing.assert_close(a.scores, b.scores)
    assert model.training and model.config._attn_implementation == "eager"


def test_the_protocol_prints_as_one_line_and_is_frozen(vit, images, maps):
    protocol = metrics.insertion(vit, images, maps).protocol
    assert str(protocol) == (
        "insertion: score probability · target predicted · baseline zero · steps 32 · unit patch · "
        "precision float32 · images 3"
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        protocol.steps = 3
    assert "masking top" in str(metrics.masked_scores(vit, images, maps, masking="top").protocol)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda v, x, m: metrics.insertion(v, x, m.where(m < 0.99 * m.max(), torch.nan)), "NaN"),
        (lambda v, x, m: metrics.masked_scores(v, x, m / 0), "infinity"),
        (lambda v, x, m: metrics.insertion(v, x, m[:2]), "B = 3"),
        (lambda v, x, m: metrics.insertion(v, x, m[:, None]), "must be a tensor"),
        (lambda v, x, m: metrics.insertion(v, x, m, steps=37), "1 to 36"),
        (lambda v, x, m: metrics.insertion(v, x, m, steps=0), "1 to 36"),
        (lambda v, x, m: metrics.insertion(v, x, m, steps="patch", unit="pixel"), "unit='patch'"),
        (lambda v, x, m: metrics.insertion(v, x, m, baseline="black"), "'zero', 'blur'"),
        (lambda v, x, m: metrics.insertion(v, x, m, score="loss"), "'probability', 'logit'"),
        (lambda v, x, m: metrics.deletion(v, x, m, order="random"), "'most', 'least'"),
        (lambda v, x, m: metrics.masked_scores(v, x, m, masking="mul"), "'multiply'"),
        (lambda v, x, m: metrics.masked_scores(v, x, torch.full((3, 24, 24), 1.5)), r"\[0, 1\]"),
        (lambda v, x, m: metrics.insertion(v, x[0], m), "pixel_values|B ="),
        (lambda v, x, m: metrics.insertion(v, x, torch.rand(3, 48, 48)), "larger than the image"),
    ],
)
def test_errors_say_what_was_wrong(vit, images, maps, call, message):
    with pytest.raises(ValueError, match=message):
        call(vit, images, maps)


def test_a_class_outside_the_model_raises(vit, images, maps):
    with pytest.raises(IndexError, match="0 to 4"):
        metrics.insertion(vit, images, maps, target=5)
