"""Head ablation and parameter randomisation against slow definitions on models made for the purpose."""

import math

import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from gmar_utils import explain, metrics, trace
from gmar_utils.methods.weighting import head_weights


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_labels=5,
        initializer_range=0.3,
    )
    return ViTForImageClassification(config).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class TwoHeads(nn.Module):
    """Logit 0 is 3 × what head 0 gives + 1 × what head 1 gives, both 1 for the image of ones; logit 1 is 0."""

    def forward(self, x):
        tokens = x.flatten(1)[:, :4]  # (B, 4) values of ones
        value = tokens[:, None, :, None].expand(-1, 2, -1, 1)
        heads = F.scaled_dot_product_attention(value, value, value).mean((2, 3))
        y = heads @ torch.tensor([3.0, 1.0])
        return torch.stack([y, torch.zeros_like(y)], 1)


def test_by_hand():
    x = torch.ones(1, 1, 2, 2)
    effects = metrics.head_effects(TwoHeads(), x, 0)
    torch.testing.assert_close(effects, torch.tensor([[[3.0, 1.0]]]))
    weights = torch.tensor([[[0.9, 0.1]]])
    curves = {o: metrics.head_ablation(TwoHeads(), x, weights, 0, order=o, score="logit") for o in ("most", "least")}
    torch.testing.assert_close(curves["most"].scores, torch.tensor([[4.0, 1.0, 0.0]]))
    torch.testing.assert_close(curves["least"].scores, torch.tensor([[4.0, 3.0, 0.0]]))
    assert curves["most"].auc.item() == pytest.approx((2.5 + 0.5) / 2)
    assert metrics.rank_correlation(weights, effects).item() == pytest.approx(1)
    assert metrics.rank_correlation(-weights, effects).item() == pytest.approx(-1)
    assert math.isnan(metrics.rank_correlation(torch.ones(1, 1, 2), effects).item())


def slow_muted(vit, image, target, muted):
    """Mute by the weights: the output projection no longer reads the head's channels."""
    import copy

    model = copy.deepcopy(vit)
    projections = [
        m
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear)
        and m.in_features == 24
        and name.endswith(("attention.output.dense", "attention.o_proj", "attention.out_proj"))
    ]
    assert len(projections) == 3
    with torch.no_grad():
        for layer, head in muted:
            projections[layer].weight[:, 8 * head : 8 * head + 8] = 0
        return float(model(image[None]).logits[0, target])


def test_muting_equals_cutting_the_output_projection(vit, images):
    target = vit(images).logits.argmax(1)
    effects = metrics.head_effects(vit, images, batch_size=5)
    assert effects.shape == (2, 3, 3)
    for i in range(2):
        full = slow_muted(vit, images[i], target[i], [])
        for layer in range(3):
            for head in range(3):
                expected = abs(slow_muted(vit, images[i], target[i], [(layer, head)]) - full)
                assert float(effects[i, layer, head]) == pytest.approx(expected, abs=1e-4)


def test_ablation_mutes_in_the_order_of_importance(vit, images):
    importance = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(4))
    target = vit(images).logits.argmax(1)
    for order in ("most", "least"):
        curve = metrics.head_ablation(vit, images, importance, order=order, score="logit", batch_size=7)
        for i in range(2):
            heads = [(layer, h) for layer in range(3) for h in range(3)]
            heads.sort(key=lambda k: float(importance[i][k]), reverse=order == "most")
            assert curve.scores.shape == (2, len(heads) + 1)
            for count in range(len(heads) + 1):
                expected = slow_muted(vit, images[i], target[i], heads[:count])
                assert float(curve.scores[i, count]) == pytest.approx(expected, abs=1e-4)
    assert "unit head" in str(curve.protocol)


def test_random_order_is_seeded_and_nothing_stays_behind(vit, images):
    importance, before = torch.rand(2, 3, 3), vit(images).logits
    a, b, c = (metrics.head_ablation(vit, images, importance, order="random", seed=s).scores for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    torch.testing.assert_close(a[:, [0, -1]], c[:, [0, -1]])  # none muted, all muted
    torch.testing.assert_close(vit(images).logits, before)


def test_gmar_weights_go_straight_in(vit, images):
    weights = torch.stack(head_weights(trace(vit, images).gradients, "l1"), 1)
    assert metrics.head_ablation(vit, images, weights).scores.shape == (2, 10)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda v, x: metrics.head_ablation(v, x, torch.rand(2, 3)), "(B, L, H)"),
        (lambda v, x: metrics.head_ablation(v, x, torch.rand(2, 3, 3), order="up"), "'most', 'least'"),
        (lambda v, x: metrics.head_ablation(v, x, torch.rand(2, 4, 3)), "3 attention calls"),
        (lambda v, x: metrics.head_ablation(v, x, torch.rand(2, 2, 3)), "2 layers of 3 heads"),
        (lambda v, x: metrics.head_ablation(v, x, torch.rand(2, 3, 4)), "has 3 heads"),
        (lambda v, x: metrics.head_effects(nn.Sequential(nn.Flatten(), nn.Linear(3072, 4)), x), "0 attention calls"),
        (lambda v, x: next(metrics.randomized(nn.Linear(2, 2))), "no list of blocks"),
    ],
)
def test_errors_say_what_was_wrong(vit, images, call, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        call(vit, images)


# Parameter randomisation ---------------------------------------------------------------------------------------------


def test_the_cascade_goes_from_the_head_down(vit):
    original = {k: v.clone() for k, v in vit.state_dict().items()}
    names, changed = [], []
    for name, model in metrics.randomized(vit, seed=3):
        names.append(name)
        changed.append({k for k, v in model.state_dict().items() if not torch.equal(v, original[k])})
    assert names == ["head", "block 3", "block 2", "block 1", "embeddings"]
    assert all(a < b for a, b in zip(changed, changed[1:], strict=False))  # each stage keeps what was broken before
    assert changed[0] == {"classifier.weight", "classifier.bias"}
    assert not any("embedding" in k for k in changed[3]) and any("position_embeddings" in k for k in changed[4])
    assert all(torch.equal(v, original[k]) for k, v in vit.state_dict().items())
    again = [m.state_dict()["classifier.weight"].clone() for _, m in metrics.randomized(vit, seed=3)][0]
    other = next(metrics.randomized(vit, seed=4))[1].state_dict()["classifier.weight"]
    assert torch.equal(again, next(metrics.randomized(vit, seed=3))[1].state_dict()["classifier.weight"])
    assert not torch.equal(again, other)


def test_the_seed_of_the_caller_is_left_alone(vit):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    list(metrics.randomized(vit))
    assert torch.equal(torch.rand(3), expected)


def test_a_map_that_ignores_the_model_keeps_rank_and_ssim_of_1(vit, images):
    result = metrics.parameter_randomization(vit, images, lambda m, x: explain(m, x, "center"))
    assert result.rank.shape == result.ssim.shape == (5, 2) and result.stages[0] == "head"
    torch.testing.assert_close(result.rank, torch.ones(5, 2, dtype=torch.float64))
    torch.testing.assert_close(result.ssim, torch.ones(5, 2, dtype=torch.float64))


def test_a_map_of_the_attention_changes_when_the_attention_does(vit, images):
    result = metrics.parameter_randomization(vit, images, lambda m, x: explain(m, x, "rollout"))
    torch.testing.assert_close(result.rank[0], torch.ones(2, dtype=torch.float64))  # rollout never reads the head
    assert (result.rank[1:] < 0.999).all() and (result.ssim[1:] < 0.999).all()
    before = explain(vit, images, "rollout")
    after = explain(next(m for n, m in metrics.randomized(vit) if n == "block 3"), images, "rollout")
    expected = structural_similarity(before[1].numpy(), after[1].numpy(), win_size=7, data_range=1.0)
    assert result.ssim[1, 1].item() == pytest.approx(expected)
