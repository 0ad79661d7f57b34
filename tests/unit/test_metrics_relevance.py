"""SRG and SaCo by hand and against slow definitions; which and AUROC of two objects."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from gmar_utils import metrics


class MeanPixel(nn.Module):
    """Two logits: the mean of the image, and 0. Every score can be written down."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([mean, torch.zeros_like(mean)], 1)


class Weighted(nn.Module):
    """Logit 0 is a weighted sum of the pixels of a 4 × 4 image; logit 1 is 0."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, x):
        y = (x[:, 0] * self.weights).sum((1, 2))
        return torch.stack([y, torch.zeros_like(y)], 1)


LOGIT = {"target": 0, "score": "logit", "grid": (2, 2)}


# SRG -----------------------------------------------------------------------------------------------------------------


def test_srg_by_hand():
    # values 4, 0, 0, 8, ordered by the image itself: insertion 0 2 3 3 3, deletion 3 1 0 0 0 (score: the mean)
    image = torch.tensor([[[[4.0, 0.0], [0.0, 8.0]]]])
    assert metrics.srg(MeanPixel(), image, image[:, 0], **LOGIT).item() == pytest.approx(2.375 - 0.625)
    assert metrics.srg(MeanPixel(), image, -image[:, 0], **LOGIT).item() == pytest.approx(0.625 - 2.375)


@pytest.mark.parametrize("baseline", ["zero", "mean", "blur"])
def test_srg_is_lerf_minus_morf_and_insertion_minus_deletion(baseline):
    x, maps = torch.randn(3, 1, 4, 4), torch.rand(3, 4, 4)
    model = Weighted(torch.randn(4, 4))
    options = {"target": 0, "score": "logit", "baseline": baseline, "grid": (4, 4)}
    gain = metrics.srg(model, x, maps, **options)
    torch.testing.assert_close(gain, metrics.morf_lerf(model, x, maps, **options)[2], atol=1e-5, rtol=1e-5)
    inserted = metrics.insertion(model, x, maps, **options).auc
    torch.testing.assert_close(gain, inserted - metrics.deletion(model, x, maps, **options).auc)


def test_srg_of_random_orders_is_zero_on_average_whatever_the_baseline():
    torch.manual_seed(0)
    x = (torch.rand(1, 1, 4, 4) + 0.5).expand(400, -1, -1, -1)
    for baseline in ("zero", lambda x, shown: torch.where(shown[:, None], x, 3 * torch.ones_like(x))):
        options = {"target": 0, "score": "logit", "grid": (4, 4), "baseline": baseline}
        values = metrics.srg(MeanPixel(), x, torch.rand(400, 4, 4), **options)
        assert abs(values.mean()) < 4 * values.std() / 20


# SaCo ----------------------------------------------------------------------------------------------------------------


def slow_saco(scores, drops):
    """The definition, pair by pair; groups in order of their score, highest first."""
    up, total = 0.0, 0.0
    for i in range(len(scores)):
        for j in range(i + 1, len(scores)):
            gap = scores[i] - scores[j]
            up += gap if drops[i] >= drops[j] else -gap
            total += abs(gap)
    return up / total if total else 0.0


def test_saco_by_hand():
    # 2 × 2 patches of one pixel, K = 4 groups of one. The score is the mean, and so is the replacement, 3: what is lost
    # without patch k is (value − 3)/4. The map orders the patches 4, 8, 0, 2 with scores 1, 0.7, 0.3, 0.
    image = torch.tensor([[[[4.0, 0.0], [2.0, 6.0]]]])
    maps = torch.tensor([[[1.0, 0.3], [0.0, 0.7]]])
    # drops in the map's order: 0.25, 0.75, −0.75, −0.25. Pairs that disagree: (1, 2) with gap 0.3 and (3, 4) with 0.3.
    total = 0.3 + 0.7 + 1.0 + 0.4 + 0.7 + 0.3
    expected = (total - 2 * 0.6) / total
    assert metrics.saco(MeanPixel(), image, maps, **LOGIT).item() == pytest.approx(expected, abs=1e-6)
    assert metrics.saco(MeanPixel(), image, image[:, 0], **LOGIT).item() == pytest.approx(1)
    assert metrics.saco(MeanPixel(), image, -image[:, 0], **LOGIT).item() == pytest.approx(-1)
    assert metrics.saco(MeanPixel(), image, torch.ones(1, 2, 2), **LOGIT).item() == 0
    assert metrics.consistency(torch.tensor([[3.0, 1, 0]]), torch.tensor([[1.0, 1, 2]])).tolist() == pytest.approx(
        [(2 - 3 - 1) / 6]  # equal drops count as agreement
    )


@pytest.mark.parametrize("groups, score", [(10, "probability"), (3, "logit"), (16, "probability"), (40, "logit")])
def test_saco_follows_the_slow_definition(groups, score):
    generator = torch.Generator().manual_seed(groups)
    x, maps = torch.randn(3, 1, 4, 4, generator=generator), torch.rand(3, 4, 4, generator=generator)
    model = Weighted(torch.randn(4, 4, generator=generator))
    found = metrics.saco(model, x, maps, 0, groups=groups, score=score, grid=(4, 4), batch_size=5)

    def value(image):
        logits = model(image[None])[0]
        return float(logits[0] if score == "logit" else logits.softmax(0)[0])

    for i in range(3):
        order = np.argsort(-maps[i].flatten().numpy(), kind="stable")
        scores, drops = [], []
        for part in np.array_split(order, min(groups, 16)):
            image = x[i].clone()
            image.flatten()[part] = x[i].mean()
            scores.append(float(maps[i].flatten()[part].mean()))
            drops.append(value(x[i]) - value(image))
        assert float(found[i]) == pytest.approx(slow_saco(scores, drops), abs=1e-5)


def test_saco_of_random_maps_is_near_zero():
    torch.manual_seed(1)
    x, maps = torch.randn(300, 1, 4, 4), torch.rand(300, 4, 4)
    values = metrics.saco(Weighted(torch.randn(4, 4)), x, maps, 0, score="logit", grid=(4, 4))
    assert abs(values.mean()) < 4 * values.std() / 17 and (values.abs() <= 1 + 1e-9).all()


def test_saco_replaces_by_each_channels_own_mean():
    seen = []

    class Watch(MeanPixel):
        def forward(self, x):
            seen.append(x.clone())
            return super().forward(x)

    image = torch.tensor([[[[1.0, 2], [3, 4]], [[10.0, 20], [30, 40]]]])
    metrics.saco(Watch(), image, torch.tensor([[[0.9, 0.5], [0.2, 0.1]]]), **LOGIT)
    rows = torch.cat(seen)
    assert any(torch.equal(r, torch.tensor([[[2.5, 2], [3, 4]], [[25.0, 20], [30, 40]]])) for r in rows)


@pytest.mark.parametrize(
    "options",
    [{"groups": 1}, {"groups": 2.5}, {"groups": True}, {"score": "loss"}, {"batch_size": 0}],
)
def test_saco_refuses(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        metrics.saco(MeanPixel(), torch.randn(1, 1, 4, 4), torch.rand(1, 2, 2), 0, **options)


# Two objects ---------------------------------------------------------------------------------------------------------

FIRST = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]])
OTHER = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 255]])


def test_which_and_auroc_by_hand():
    values = torch.tensor([[0.9, 0.3, 0.0, 1.0], [1.0, 0.5, 0.1, 1.0]])
    # means 0.6 and 0.3; of the four pairs (0.9, 0.3) × (0.5, 0.1) three are in order
    maps = [values, values, torch.ones(2, 4)]
    masks, others = [FIRST, OTHER, FIRST], [OTHER, FIRST, OTHER]
    assert metrics.which(maps, masks, others).tolist() == [1, 0, 0.5]
    assert metrics.auroc(maps, masks, others).tolist() == pytest.approx([0.75, 0.25, 0.5])


def test_energy_counts_per_pixel_and_not_in_all():
    large = torch.tensor([[1, 1, 1, 0]])
    small = torch.tensor([[0, 0, 0, 1]])
    values = torch.tensor([[0.2, 0.2, 0.2, 0.5]])  # 0.6 in all against 0.5
    assert metrics.which([values], [small], [large]).tolist() == [1]


def test_two_questions_to_a_blind_map_sum_to_one():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(20, 6, 6, generator=generator).round(decimals=1)
    kinds = torch.randint(0, 3, (20, 6, 6), generator=generator)
    a, b = (kinds == 1).int(), (kinds == 2).int()
    for function in (metrics.which, metrics.auroc):
        torch.testing.assert_close(function(maps, a, b) + function(maps, b, a), torch.ones(20, dtype=torch.float64))
    for m, t, o, found in zip(maps, a, b, metrics.auroc(maps, a, b), strict=True):
        chosen = (t + o) > 0
        assert float(found) == pytest.approx(roc_auc_score(t[chosen], m[chosen]))


def test_what_the_model_did_not_see_belongs_to_neither():
    values = torch.tensor([[math.nan, 0.3, 0.0, 1.0], [1.0, 0.5, 0.1, 1.0]])
    assert metrics.auroc([values], [FIRST], [OTHER]).tolist() == [0.5]  # 0.3 against 0.5 and 0.1
    gone = torch.tensor([[math.nan, math.nan, 0, 0], [0, 0, 0, 0]])
    assert metrics.which([gone], [FIRST], [OTHER]).isnan().all()
    assert metrics.auroc([gone], [FIRST], [OTHER]).isnan().all()


def test_two_objects_refuse():
    values = torch.rand(2, 4)
    with pytest.raises(ValueError, match="overlap"):
        metrics.which([values], [FIRST], [FIRST])
    with pytest.raises(ValueError, match="1 maps but 2 other masks"):
        metrics.auroc([values], [FIRST], [OTHER, OTHER])
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(1, 4\)"):
        metrics.which([values], [FIRST], [OTHER[:1]])
    with pytest.raises(ValueError, match="NaN"):
        metrics.which([values / 0 * 0], [FIRST], [OTHER])
