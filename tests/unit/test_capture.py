"""The hooks leave nothing behind, serve any module, and say why they cannot serve the rest."""

import threading

import pytest
import torch
import transformers as hf
from families import FAMILIES, MORE_FAMILIES, build, images
from torch import nn

from gmar_utils import explain, probability, trace
from gmar_utils.methods.layerwise import legrad


def state(model):
    return (
        [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        [(p.requires_grad, p.grad) for p in model.parameters()],
        [p.clone() for p in model.parameters()],
        model.config._attn_implementation,
        torch.is_grad_enabled(),
    )


def assert_same(before, after):
    assert before[0] == after[0] and before[1] == after[1] and before[3:] == after[3:]
    assert all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))


class Stop(nn.Module):
    """An activation that raises: an error in the middle of the forward pass."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


@pytest.mark.parametrize("method", ["gmar", "legrad", "grad-cam"])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_everything_is_put_back(method, frozen, implementation):
    model, x = build("vit"), images("vit")
    model.set_attn_implementation(implementation)
    model.requires_grad_(not frozen)
    model.train()
    model.vit.layers[0].eval() if hasattr(model.vit, "layers") else None
    before = state(model)
    reference = explain(build("vit"), x, method)
    with torch.no_grad():
        torch.testing.assert_close(explain(model, x, method), reference, atol=1e-5, rtol=0)
        assert not torch.is_grad_enabled()
    assert_same(before, state(model))
    assert x.grad is None and not x.requires_grad


@pytest.mark.parametrize("method", ["gmar", "legrad", "grad-cam"])
@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_everything_is_put_back_after_an_error(method, error):
    model, x = build("vit"), images("vit")
    model.set_attn_implementation("eager")
    model.train()
    before = state(model)
    classifier, model.classifier = model.classifier, Stop(error)
    with pytest.raises(type(error)):
        explain(model, x, method)
    model.classifier = classifier
    assert_same(before, state(model))
    assert nn.functional.scaled_dot_product_attention is torch._C._nn.scaled_dot_product_attention


def test_inside_inference_mode_and_with_a_compiled_model():
    model, x = build("vit"), images("vit")
    expected = explain(model, x)
    with torch.inference_mode():
        torch.testing.assert_close(explain(model, x + 0), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(explain(torch.compile(model), x), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.15), (torch.float16, 0.03)])
@pytest.mark.parametrize("method", ["gmar", "legrad", "grad-cam", "chefer"])
def test_autocast_and_half_precision_weights_give_float32_maps_close_to_float32(dtype, tolerance, method):
    model, x = build("vit", initializer_range=0.1), images("vit")
    expected = explain(model, x, method, 2)
    with torch.autocast("cpu", dtype=dtype):
        cast = explain(model, x, method, 2)
    half = explain(model.to(dtype), x.to(dtype), method, 2)
    for got in (cast, half):
        assert got.dtype == torch.float32
        assert (got - expected).abs().mean() < tolerance


def test_tiny_float16_gradients_do_not_vanish():
    model, x = build("vit", initializer_range=0.1), images("vit")
    with torch.no_grad():
        model.classifier.weight.mul_(1e-5)
    expected = explain(model, x, "gmar", 2)
    got = explain(model.half(), x.half(), "gmar", 2)
    assert (got - expected).abs().mean() < 0.05


class TimmStyle(nn.Module):
    """A ViT in timm's manner: fused qkv, `blocks`, `norm`, `forward_head`; one [CLS] and two register tokens."""

    class Block(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.norm1, self.qkv, self.proj = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)
            self.norm2, self.mlp = nn.LayerNorm(d), nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

        def forward(self, x):
            b, n, d = x.shape
            q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, 4, d // 4).permute(2, 0, 3, 1, 4)
            a = nn.functional.scaled_dot_product_attention(q, k, v)
            x = x + self.proj(a.transpose(1, 2).reshape(b, n, d))
            return x + self.mlp(self.norm2(x))

    def __init__(self, global_pool="token"):
        super().__init__()
        torch.manual_seed(0)
        self.global_pool = global_pool
        self.patch_embed = nn.Conv2d(3, 32, 8, 8)
        self.prefix = nn.Parameter(torch.randn(1, 3, 32))
        self.pos = nn.Parameter(torch.randn(1, 3 + 24, 32))
        self.blocks = nn.Sequential(*[self.Block(32) for _ in range(3)])
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 5)

    def forward_head(self, x):
        return self.head(x[:, 0] if self.global_pool == "token" else x[:, 3:].mean(1))

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], 1) + self.pos
        return self.forward_head(self.norm(self.blocks(x)))


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("layout", [{}, {"prefix_tokens": 3, "grid": (4, 6)}])
def test_a_timm_style_model_is_served(pool, layout):
    model, x = TimmStyle(pool), images("vit-wide")
    seen = trace(model, x, **layout)
    torch.testing.assert_close(seen.logits, model(x).detach(), atol=1e-5, rtol=1e-4)
    assert (seen.prefix_tokens, seen.grid) == (3, (4, 6))
    assert seen.readout[0].sum() == pytest.approx(1) and (seen.readout[0, 0] == 1) == (pool == "token")
    for method in ("gmar", "rollout", "legrad", "grad-cam", "chefer", "attention", "random", "center"):
        assert explain(model, x, method, **layout).shape == (2, 32, 48)
    # LeGrad's last layer reads the same logit as the model: its gradient is the trace's own
    torch.testing.assert_close(legrad(seen, layers=1), seen.gradients[-1].relu().mean((1, 2)), atol=1e-6, rtol=1e-3)


def test_wrong_layout_is_refused():
    with pytest.raises(ValueError, match="27 tokens"):
        trace(TimmStyle(), images("vit-wide"), prefix_tokens=1, grid=(5, 5))


# --- what the classifier reads --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FAMILIES, *MORE_FAMILIES])
def test_the_readout_names_the_tokens_that_the_classifier_reads(name):
    """After the last attention nothing mixes tokens: only queries that the classifier reads have a gradient there."""
    seen = trace(build(name), images(name))
    read = seen.gradients[-1].abs().sum((0, 1, 3)) > 0
    if name.startswith("dinov2"):  # reads [CLS] and the patches' mean; METHODS' choice is [CLS]
        assert read[0] and read[-16:].all() and seen.readout[0, 0] == 1
    else:
        assert torch.equal(seen.readout > 0, read.expand(2, -1))
    assert seen.readout[0].sum() == pytest.approx(1)


@pytest.mark.parametrize("name", MORE_FAMILIES)
def test_legrad_reads_the_last_layer_as_the_model_does(name):
    model, x = build(name), images(name)
    seen = trace(model, x)
    last = seen.gradients[-1].relu().mean((1, 2))
    torch.testing.assert_close(legrad(seen, layers=1), last, atol=1e-6, rtol=1e-3)
    for method in ("gmar", "grad-cam"):
        assert explain(model, x, method).shape == (2, 32, 32)


class OwnAttention(nn.Module):
    """An attention that somebody put into a ViT, and that transformers does not know."""

    def forward(self, x, *args, **kwargs):
        heads = x.unflatten(2, (4, 8)).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2), None


def test_an_attention_that_transformers_does_not_know_is_seen_too():
    model, x = build("vit"), images("vit")
    model.vit.layers[1].attention = OwnAttention()
    seen = trace(model, x)
    assert len(seen.attentions) == 3
    torch.testing.assert_close(seen.logits, model(x).logits.detach(), atol=1e-5, rtol=1e-4)


def test_another_thread_may_run_the_model_during_a_trace():
    model, x = build("vit"), images("vit")
    expected, others = model(x).logits.detach(), []

    def run_beside(*_):
        if not others:
            others.append(None)
            thread = threading.Thread(target=lambda: others.append(model(x).logits.detach()))
            thread.start()
            thread.join()

    hook = model.vit.layers[1].register_forward_pre_hook(run_beside)
    seen = trace(model, x)
    hook.remove()
    assert len(seen.attentions) == 3
    torch.testing.assert_close(others[1], expected, atol=1e-5, rtol=1e-4)


# --- targets and heads ------------------------------------------------------------------------------------------------


def test_targets():
    model, x = build("vit"), images("vit", 3)
    predicted = model(x).logits.argmax(1)
    assert torch.equal(trace(model, x).target, predicted)
    assert trace(model, x, 4).target.tolist() == [4, 4, 4]
    assert trace(model, x, torch.tensor([0, 1, 2])).target.tolist() == [0, 1, 2]
    assert not torch.equal(explain(model, x, "gmar", 0), explain(model, x, "gmar", 1))
    for bad, error in [(5, IndexError), (-1, IndexError), (torch.tensor([0, 1]), ValueError), (1.5, TypeError)]:
        with pytest.raises(error, match="target"):
            trace(model, x, bad)


def test_one_logit_explains_both_sides():
    model, x = build("vit", labels=1), images("vit")
    seen = trace(model, x)
    assert torch.equal(seen.target, (seen.logits[:, 0] > 0).long())
    yes, no = trace(model, x, 1), trace(model, x, 0)
    for a, b in zip(yes.gradients, no.gradients, strict=True):
        torch.testing.assert_close(a, -b)
    p1, p0 = (probability(model, seen.logits, torch.full((2,), t)) for t in (1, 0))
    torch.testing.assert_close(p1 + p0, torch.ones(2))
    torch.testing.assert_close(p1, seen.logits[:, 0].sigmoid())


def test_multi_label_and_regression_heads():
    model, x = build("vit"), images("vit")
    target = torch.tensor([3, 1])
    logits = model(x).logits.detach()
    torch.testing.assert_close(probability(model, logits, target), logits.softmax(1)[[0, 1], target])
    model.config.problem_type = "multi_label_classification"
    torch.testing.assert_close(probability(model, logits, target), logits[[0, 1], target].sigmoid())
    model.config.problem_type = "regression"
    assert explain(model, x, "gmar", 0).shape == (2, 32, 32)
    with pytest.raises(ValueError, match="regression"):
        probability(model, logits, target)
    single = build("vit", labels=1, problem_type="regression")
    assert trace(single, x).target.tolist() == [1, 1]  # the number itself, whatever its sign


# --- models that cannot be served -------------------------------------------------------------------------------------


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 8, 8)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.layer(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.parametrize(
    "model, reason",
    [
        (
            lambda: hf.SwinForImageClassification(
                hf.SwinConfig(image_size=32, patch_size=2, depths=[1, 1], num_heads=[2, 2], embed_dim=16, window_size=4)
            ),
            "Windowed",
        ),
        (
            lambda: hf.ResNetForImageClassification(
                hf.ResNetConfig(depths=[1, 1], hidden_sizes=[8, 16], embedding_size=8, layer_type="basic")
            ),
            "a CNN has no attention",
        ),
        (Encoder, "nn.MultiheadAttention"),
        (
            lambda: hf.ViTModel(
                hf.ViTConfig(
                    image_size=32,
                    patch_size=8,
                    hidden_size=16,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    intermediate_size=8,
                )
            ),
            "classification head",
        ),
    ],
)
def test_models_without_usable_attention_say_why(model, reason):
    with pytest.raises(ValueError, match=reason):
        explain(model(), images("vit"))
