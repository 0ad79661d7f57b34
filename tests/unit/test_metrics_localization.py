"""Localisation metrics against hand-computed cases, slow definitions, scikit-learn and torchmetrics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torchmetrics.functional.classification import binary_accuracy, binary_average_precision, binary_jaccard_index

from gmar_utils import metrics

# Four pixels each: foreground 1, background 0, void 255.
MAP = torch.tensor([[0.9, 0.6], [0.2, 0.55]])
MASK = torch.tensor([[1, 0], [1, 255]])


def random_case(seed, images=4, sizes=((9, 7), (5, 12), (8, 8), (3, 3))):
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.rand(sizes[i % 4], generator=generator) for i in range(images)]
    masks = [(torch.rand(m.shape, generator=generator) > 0.6).long() for m in maps]
    for mask in masks:
        mask[torch.rand(mask.shape, generator=generator) > 0.9] = 255
        mask[0, 0] = 1
    return maps, masks


def test_by_hand():
    # Without the void: found (1, 1, 0), truth (1, 0, 1): one true positive, one false positive, one false negative.
    assert metrics.counts([MAP], [MASK]).tolist() == [[1, 1, 1, 0]]
    assert metrics.pixel_accuracy([MAP], [MASK]).tolist() == pytest.approx([100 / 3])
    assert metrics.iou([MAP], [MASK]).tolist() == pytest.approx([100 / 3])
    # Background: found (0.2) is wrong, truth (0.6) is missed: 0 of 2.
    assert metrics.iou([MAP], [MASK], iou="mean").tolist() == pytest.approx([(100 / 3 + 0) / 2])
    # Ranking 0.9 (yes), 0.6 (no), 0.2 (yes): precision 1 at recall 1/2, 2/3 at recall 1.
    assert metrics.average_precision([MAP], [MASK]).tolist() == pytest.approx([100 * (1 / 2 + 2 / 3 / 2)])
    # The mean of 0.9, 0.6, 0.2 is 0.5667: the same pixels.
    assert metrics.counts([MAP], [MASK], threshold="mean").tolist() == [[1, 1, 1, 0]]
    assert metrics.counts([MAP], [MASK], threshold=0.15).tolist() == [[2, 1, 0, 0]]


def test_the_threshold_is_strict():
    assert metrics.counts(torch.tensor([[[0.5, 0.6]]]), torch.tensor([[[1, 1]]])).tolist() == [[1, 0, 1, 0]]


@pytest.mark.parametrize("threshold", [0.5, 0.3, "mean"])
def test_against_torchmetrics_and_a_slow_definition(threshold):
    maps, masks = random_case(0)
    accuracy, foreground = metrics.pixel_accuracy(maps, masks, threshold), metrics.iou(maps, masks, threshold)
    both = metrics.iou(maps, masks, threshold, iou="mean")
    for i, (m, t) in enumerate(zip(maps, masks, strict=True)):
        kept = [(float(v), int(k)) for v, k in zip(m.flatten(), t.flatten(), strict=True) if k != 255]
        limit = sum(v for v, _ in kept) / len(kept) if threshold == "mean" else threshold
        assert float(accuracy[i]) == pytest.approx(100 * sum((v > limit) == (k == 1) for v, k in kept) / len(kept))
        ious = [
            sum((v > limit) == side and (k == 1) == side for v, k in kept)
            / sum((v > limit) == side or (k == 1) == side for v, k in kept)
            for side in (True, False)
        ]
        assert float(foreground[i]) == pytest.approx(100 * ious[0])
        assert float(both[i]) == pytest.approx(100 * sum(ious) / 2)
        if threshold != "mean":
            options = {"threshold": threshold, "ignore_index": 255}
            assert float(accuracy[i]) == pytest.approx(100 * float(binary_accuracy(m, t, **options)), abs=1e-4)
            assert float(foreground[i]) == pytest.approx(100 * float(binary_jaccard_index(m, t, **options)), abs=1e-4)


def test_average_precision_against_torchmetrics_and_scikit_learn():
    maps, masks = random_case(1)
    for i, (m, t) in enumerate(zip(maps, masks, strict=True)):
        ours = metrics.average_precision(maps, masks)[i]
        assert float(ours) == pytest.approx(100 * float(binary_average_precision(m, t, ignore_index=255)), abs=1e-3)
        keep = (t != 255).numpy()
        truth, values = t.numpy()[keep], m.numpy()[keep].astype(float)
        pooled = average_precision_score(np.r_[1 - truth, truth], np.r_[1 - values, values])
        assert float(metrics.average_precision(maps, masks, ap="two-class")[i]) == pytest.approx(100 * pooled)


def test_dataset_figures_come_from_summed_counts():
    maps, masks = random_case(2)
    total = metrics.counts(maps, masks).sum(0)
    tp, fp, fn, tn = total.tolist()
    assert float(metrics.iou(maps, masks, aggregate="dataset")) == pytest.approx(100 * tp / (tp + fp + fn))
    assert float(metrics.pixel_accuracy(maps, masks, aggregate="dataset")) == pytest.approx(
        100 * (tp + tn) / (tp + fp + fn + tn)
    )
    chefer = {k: v for k, v in metrics.PRESETS["chefer"].items() if k != "ap"}
    tp, fp, fn, tn = metrics.counts(maps, masks, "mean").sum(0).tolist()
    expected = 100 * (tp / (tp + fp + fn) + tn / (tn + fp + fn)) / 2
    assert float(metrics.iou(maps, masks, **chefer)) == pytest.approx(expected)
    assert set(metrics.PRESETS) == {"report", "chefer"} and metrics.PRESETS["report"]["iou"] == "foreground"


def test_no_foreground_and_all_void_give_nan_and_are_counted():
    maps = [MAP, MAP, MAP]
    masks = [MASK, torch.zeros(2, 2), torch.full((2, 2), 255)]
    for function in (metrics.pixel_accuracy, metrics.iou, metrics.average_precision):
        values = function(maps, masks)
        assert values.isnan().tolist() == [False, True, True]
    assert metrics.iou(maps, masks, iou="mean").isnan().tolist() == [False, True, True]
    # Images without foreground stay out of the sums too.
    assert float(metrics.iou(maps, masks, aggregate="dataset")) == pytest.approx(100 / 3)
    assert math.isnan(metrics.iou(maps[1:], masks[1:], aggregate="dataset"))


def test_all_foreground_and_constant_maps():
    ones, zeros = torch.ones(1, 2, 2), torch.zeros(1, 2, 2)
    assert metrics.iou(ones, ones, iou="mean").tolist() == [100]  # there is no background to miss
    assert metrics.iou(zeros, ones).tolist() == [0] and metrics.pixel_accuracy(zeros, ones).tolist() == [0]
    half = torch.tensor([[[1, 0], [1, 0]]])
    assert metrics.average_precision(zeros, half).tolist() == [50]  # the share of foreground
    assert metrics.counts(zeros, half, threshold="mean").tolist() == [[0, 0, 2, 2]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_properties(seed):
    maps, masks = random_case(seed, 3)
    accuracy, overlap = metrics.pixel_accuracy(maps, masks), metrics.iou(maps, masks)
    assert ((overlap >= 0) & (overlap <= accuracy + 1e-9)).all() and (accuracy <= 100).all()
    perfect = [(t == 1).float() for t in masks]
    for function in (metrics.pixel_accuracy, metrics.iou, metrics.average_precision):
        assert function(perfect, masks).tolist() == pytest.approx([100] * 3)
    squares = [m**2 for m in maps]  # a monotone change leaves the ranking, so AP, as it was
    torch.testing.assert_close(metrics.average_precision(squares, masks), metrics.average_precision(maps, masks))


def test_boxes_by_hand():
    single = torch.tensor([[0.0, 1.0, 0.0], [0.0, 2.0, 4.0], [0.0, 0.0, 1.0]])
    maps = [single, single, torch.ones(3, 3), torch.zeros(3, 3)]
    boxes = torch.tensor([[2, 1, 3, 2], [0, 0, 2, 2], [0, 0, 3, 1], [0, 0, 2, 2]])
    assert metrics.pointing_game(maps, boxes).tolist() == pytest.approx([100, 0, 100 / 3, 400 / 9])
    assert metrics.energy_in_box(maps, boxes).tolist() == pytest.approx([50, 37.5, 100 / 3, 0])


def test_outside_the_crop_is_void():
    seen = MAP.clone()
    seen[0, 0] = torch.nan
    maps, masks = metrics.outside_is_void([seen], [torch.tensor([[1, 0], [1, 0]])])
    assert masks[0].tolist() == [[255, 0], [1, 0]] and maps[0][0, 0] == 0
    assert metrics.counts(maps, masks).tolist() == [[0, 2, 1, 0]]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: metrics.iou([MAP / 0], [MASK]), "outside_is_void"),
        (lambda: metrics.iou([MAP], [MASK, MASK]), "1 maps but 2 masks"),
        (lambda: metrics.iou([MAP], [MASK[:1]]), "to_photo"),
        (lambda: metrics.iou([MAP], [MASK], iou="both"), "'foreground', 'mean'"),
        (lambda: metrics.iou([MAP], [MASK], aggregate="all"), "'image', 'dataset'"),
        (lambda: metrics.iou([MAP], [MASK], threshold="median"), "number or 'mean'"),
        (lambda: metrics.average_precision([MAP], [MASK], ap="macro"), "'foreground', 'two-class'"),
        (lambda: metrics.pointing_game([MAP], [(5, 5, 6, 6)]), "holds no pixel"),
        (lambda: metrics.energy_in_box([MAP], []), "1 maps but 0 boxes"),
        (lambda: metrics.pointing_game([MAP * torch.nan], [(0, 0, 1, 1)]), "NaN"),
    ],
)
def test_errors_say_what_was_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


NO_BATCH = {
    "nothing": None,
    "a word": "map",
    "a number": 3.0,
    "complex": torch.ones(1, 4, 4) * 1j,
    "empty": torch.ones(1, 0, 4),
}


@pytest.mark.parametrize("name", NO_BATCH)
@pytest.mark.parametrize(
    "metric", [metrics.iou, metrics.average_precision, metrics.pointing_game, metrics.energy_in_box]
)
def test_what_is_no_map_is_refused_in_words(metric, name):
    boxes = metric in (metrics.pointing_game, metrics.energy_in_box)
    with pytest.raises(ValueError, match=r"^map(s| 0) must (be a tensor or a list|hold real numbers)"):
        metric(NO_BATCH[name], torch.tensor([[0, 0, 2, 2]]) if boxes else torch.ones(1, 4, 4, dtype=torch.bool))


@pytest.mark.parametrize("boxes", [[[0, 0, 2]], [5], [[[0, 0, 2, 2]]], None, "abcd"])
def test_what_is_no_box_is_refused_in_words(boxes):
    with pytest.raises(ValueError, match="must be (a tensor or a list|.*four numbers)"):
        metrics.pointing_game(torch.rand(1, 4, 4), boxes)


@pytest.mark.parametrize("masks", [torch.ones(1, 4, 4) * 1j, None, "mask"])
def test_what_is_no_mask_is_refused_in_words(masks):
    with pytest.raises(ValueError, match="mask"):
        metrics.iou(torch.rand(1, 4, 4), masks)


def test_complex_maps_have_no_order():
    with pytest.raises(ValueError, match="real numbers"):
        metrics.insertion(torch.nn.Identity(), torch.rand(1, 3, 4, 4), torch.ones(1, 4, 4) * 1j)
