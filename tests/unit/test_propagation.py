"""LibraGrad, CP-LRP and AttnLRP: the sum they promise, and the same maps from a ViT written out in full."""

import pytest
import torch
import transformers as hf
from families import FAMILIES, MORE_FAMILIES, build, images
from test_capture import TimmStyle
from torch import nn

from gmar_utils import explain, trace
from gmar_utils.capture.layout import blocks
from gmar_utils.methods.propagation import Rules, attnlrp, libra

TOLERANCE = 2e-4
ACTIVATIONS = ["gelu", "gelu_pytorch_tanh", "gelu_python", "quick_gelu", "silu", "mish", "relu", "tanh"]
ADDED = (
    *("bias", "cls_token", "class_embedding", "distillation_token", "register_tokens", "prefix", "shift"),
    *("position_embeddings", "position_embedding.weight", "pos"),
)


class PoolerHead(nn.Module):
    """BERT's head in front of the classifier, as ViLT and FLAVA have it, and CLIP's: a tanh pooler, a unit vector."""

    def __init__(self, model, normalize):
        super().__init__()
        torch.manual_seed(1)
        self.inner, self.dense, self.normalize = model, nn.Linear(32, 32), normalize
        model.forward_head = self.head

    def head(self, tokens):
        pooled = self.dense(tokens[:, 0]).tanh()
        return self.inner.head(
            {
                "function": lambda: nn.functional.normalize(pooled, dim=-1),
                "norm": lambda: pooled / pooled.norm(dim=-1, keepdim=True),
                "vector_norm": lambda: pooled / torch.linalg.vector_norm(pooled, dim=-1, keepdim=True),
                "no": lambda: pooled,
            }[self.normalize]()
        )

    @property
    def blocks(self):
        return self.inner.blocks

    def forward(self, x):
        return self.inner(x)


class RMSNorm(nn.Module):
    """A norm as Llama writes it."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Gated(nn.Module):
    """A gated MLP: SwiGLU when the gate's function is silu, GLU when it is sigmoid."""

    def __init__(self, gate):
        super().__init__()
        self.gate, self.value, self.out, self.function = (*(nn.Linear(32, 48) for _ in "ab"), nn.Linear(48, 32), gate)

    def forward(self, x):
        return self.out(self.function(self.gate(x)) * self.value(x))


class QKNorm(TimmStyle.Block):
    """timm's `qk_norm` and a rotation by place, a layer scale, an RMSNorm."""

    def __init__(self, d, norm):
        super().__init__(d)
        self.q_norm, self.k_norm, self.norm2 = nn.LayerNorm(d // 4), nn.LayerNorm(d // 4), norm(d)
        self.gamma = nn.Parameter(torch.randn(d))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, 4, d // 4).permute(2, 0, 3, 1, 4)
        angle = torch.arange(n)[:, None] * torch.ones(d // 4)
        q, k = ((t * angle.cos() + t.flip(-1) * angle.sin()) for t in (self.q_norm(q), self.k_norm(k)))
        a = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.gamma * self.proj(a.transpose(1, 2).reshape(b, n, d))
        return x + self.gamma * self.mlp(self.norm2(x))


class AttentionPooling(nn.Module):
    """One learned query over all tokens, through torch's own attention module, as SigLIP pools."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(1)
        self.inner, self.probe, self.function = TimmStyle(), nn.Parameter(torch.randn(1, 1, 32)), function
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        nn.init.normal_(self.attention.in_proj_bias), nn.init.normal_(self.attention.out_proj.bias)
        self.inner.forward_head = self.head

    def head(self, tokens):
        probe = self.probe.expand(len(tokens), -1, -1)
        if self.function == "module":
            pooled = self.attention(probe, tokens, tokens)[0]
        else:
            probe, heads = (t.unflatten(2, (4, 8)).transpose(1, 2) for t in (probe, tokens))
            pooled = nn.functional.scaled_dot_product_attention(probe, heads, heads).transpose(1, 2).flatten(2)
        return self.inner.head(pooled[:, 0])

    @property
    def blocks(self):
        return self.inner.blocks

    def forward(self, x):
        return self.inner(x)


class ByName(nn.Module):
    """Arguments by their names, and constants shaped and typed as the stream is."""

    def __init__(self):
        super().__init__()
        self.linear, self.shift = nn.Linear(32, 32), nn.Parameter(torch.randn(1, 1, 32))

    def forward(self, x):
        x = nn.functional.layer_norm(input=x, normalized_shape=(32,), weight=None, bias=self.linear.bias, eps=1e-3)
        x = nn.functional.linear(input=x, weight=self.linear.weight, bias=self.linear.bias)
        x = torch.cat(tensors=[x, torch.zeros_like(x[:, :1]), self.shift.expand_as(x[:, :1])], dim=1)[:, : x.shape[1]]
        return torch.add(input=nn.functional.gelu(input=x), other=self.shift.to(x).expand_as(x))


def with_mlp(mlp):
    model = TimmStyle()
    for block in model.blocks:
        block.mlp = mlp()
    return model


def with_blocks(norm):
    model = TimmStyle()
    model.blocks = nn.Sequential(*[QKNorm(32, norm) for _ in range(3)])
    return model


MODELS = {
    **{name: lambda name=name: build(name) for name in [*FAMILIES, *MORE_FAMILIES]},
    **{f"vit with {act}": lambda act=act: build("vit", hidden_act=act) for act in ACTIVATIONS},
    "dinov2 with SwiGLU": lambda: build("dinov2", use_swiglu_ffn=True),
    "data2vec, last token": lambda: build("data2vec", use_mean_pooling=False),
    "vit, one logit": lambda: build("vit", labels=1),
    "timm": TimmStyle,
    "timm, patch mean": lambda: TimmStyle("avg"),
    "timm, GLU": lambda: with_mlp(lambda: Gated(torch.sigmoid)),
    "timm, SwiGLU": lambda: with_mlp(lambda: Gated(nn.functional.silu)),
    "timm, arguments by name": lambda: with_mlp(ByName),
    "timm, rotary, qk norm, layer scale": lambda: with_blocks(nn.LayerNorm),
    "timm, RMSNorm of torch": lambda: with_blocks(nn.RMSNorm),
    "timm, RMSNorm by hand": lambda: with_blocks(RMSNorm),
    **{
        f"timm, tanh pooler, norm: {n}": lambda n=n: PoolerHead(TimmStyle(), n)
        for n in ("function", "norm", "vector_norm", "no")
    },
    "timm, attention pooling": lambda: AttentionPooling("function"),
}
# its biases are in one parameter with those of query and key, which get a gradient only here: they are not frozen
SERVED = MODELS | {"timm, attention pooling by nn.MultiheadAttention": lambda: AttentionPooling("module")}


def pixels(name):
    return images("vit-wide" if name.startswith("timm") or name == "vit-wide" else "vit")


@pytest.mark.parametrize("name", MODELS)
def test_inputs_and_biases_times_their_gradients_sum_to_the_score(name):
    """From the pixels on, with the model's parameters by name: the rules' own bookkeeping of biases is not asked."""
    model, x = MODELS[name]().eval(), pixels(name)
    seen = trace(model, x)
    model.requires_grad_(False)
    added = [p for n, p in model.named_parameters() if n.endswith(ADDED)]
    inputs = [t.requires_grad_() for t in (x, *added)]
    with Rules():
        output = model(x)
    logits = getattr(output, "logits", output)
    torch.testing.assert_close(logits.detach(), seen.logits, atol=1e-5, rtol=1e-5)
    y = logits[:, 0].sum()
    gradients = torch.autograd.grad(y, inputs, allow_unused=True)
    products = torch.cat([(i * g).flatten() for i, g in zip(inputs, gradients, strict=True) if g is not None])
    assert products.sum().item() == pytest.approx(y.item(), rel=1e-4, abs=1e-6 * products.abs().sum().item())
    output = model(x)
    (plain,) = torch.autograd.grad(getattr(output, "logits", output)[:, 0].sum(), x)
    assert (plain * x).sum().item() != pytest.approx((gradients[0] * x).sum().item(), rel=1e-2)  # the rules did it


@pytest.mark.parametrize("name", SERVED)
def test_every_family_is_served(name):
    model, x = SERVED[name]().eval(), pixels(name)
    for method in ("libra", "attnlrp"):
        maps = explain(model, x, method, upsample=False)
        assert torch.isfinite(maps).all() and maps.amax() == 1


# --- models that the rules do not fit ---------------------------------------------------------------------------------


class Square(nn.Module):
    def forward(self, x):
        return x.square()


class Sine(nn.Module):
    def forward(self, x):
        return x.sin()


class OwnNorm(nn.Module):
    def forward(self, x):
        return x * torch.exp(-x.abs().mean(-1, keepdim=True))


class HalfHidden(nn.Module):
    """Part of the signal goes where no gradient follows it."""

    def __init__(self, hide):
        super().__init__()
        self.hide = hide

    def forward(self, x):
        return x + self.hide(x)


def no_grad(x):
    with torch.no_grad():
        return x * 2


REFUSED = {
    "relu squared": lambda: build("vit", hidden_act="relu2"),
    "GELU with tanh by hand": lambda: build("vit", hidden_act="gelu_new"),
    "a sigmoid that is no gate": lambda: build("vit", hidden_act="sigmoid"),
    "an activation of its own": lambda: with_mlp(Square),
    "another": lambda: with_mlp(Sine),
    "a normalisation of its own": lambda: with_mlp(OwnNorm),
    "detached": lambda: with_mlp(lambda: HalfHidden(lambda x: x.detach() * 2)),
    "through data": lambda: with_mlp(lambda: HalfHidden(lambda x: x.data * 2)),
    "under no_grad": lambda: with_mlp(lambda: HalfHidden(no_grad)),
    "rounded": lambda: with_mlp(lambda: HalfHidden(lambda x: (x > 0).float())),
}


@pytest.mark.parametrize("method", ["libra", "attnlrp"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_the_rules_do_not_know_is_refused(name, method):
    with pytest.raises(ValueError, match="rules of libra and attnlrp do not know"):
        explain(REFUSED[name](), pixels("timm" if isinstance(REFUSED[name](), TimmStyle) else "vit"), method)


def test_a_model_whose_layers_were_changed_after_the_trace_is_refused():
    model, x = build("vit"), images("vit")
    seen = trace(model, x)
    with torch.no_grad():
        model.classifier.weight.mul_(1.5)
    with pytest.raises(ValueError, match="logits change by"):
        libra(seen)


def test_layers_are_named():
    with pytest.raises(ValueError, match="layers must be one of 'all', 'input', 'upper', got 2"):
        explain(build("vit"), images("vit"), "libra", layers=2)


# --- the same from a ViT written out ----------------------------------------------------------------------------------


def share(x, part):
    return part * x + (1 - part) * x.detach()


def slow_layer_norm(x, weights, name):
    deviation = torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-12).detach()
    return weights[f"{name}.weight"] * (x - x.mean(-1, keepdim=True)) / deviation + weights[f"{name}.bias"]


def slow_linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def slow_tokens(model, image):
    """Tokens of one image (3, 32, 32), patch by patch."""
    embeddings = {k: v.double() for k, v in model.vit.embeddings.state_dict().items()}
    kernel = embeddings["patch_embeddings.projection.weight"].flatten(1)
    tokens = [embeddings["cls_token"][0, 0]]
    for row in range(4):
        for column in range(4):
            patch = image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].double().flatten()
            tokens.append(kernel @ patch + embeddings["patch_embeddings.projection.bias"])
    return torch.stack(tokens) + embeddings["position_embeddings"][0]


def slow_scores(model, image, target, method):
    """Σ_d X · ∂y/∂X of each of three blocks, as lists of tokens, under one method's rules."""
    weights = {k: v.double() for k, v in model.state_dict().items()}
    x, entering = slow_tokens(model, image).requires_grad_(), []
    for layer in range(3):
        entering.append(x)
        name = f"vit.layers.{layer}"
        normed = slow_layer_norm(x, weights, f"{name}.layernorm_before")
        query, key, value = (slow_linear(normed, weights, f"{name}.attention.{p}_proj") for p in "qkv")
        heads = []
        for h in range(4):
            q, k, v = (t[:, 8 * h : 8 * h + 8] for t in (query, key, value))
            if method == "libra":
                attention = torch.softmax(q @ k.T / 8**0.5, -1).detach()
            else:  # half for each factor of q·k, half for each of the attention and the value
                attention = share(torch.softmax(share(q, 0.5) @ share(k, 0.5).T / 8**0.5, -1), 0.5)
                v = share(v, 0.5)
            heads.append(attention @ v)
        x = x + slow_linear(torch.cat(heads, 1), weights, f"{name}.attention.o_proj")
        hidden = slow_linear(slow_layer_norm(x, weights, f"{name}.layernorm_after"), weights, f"{name}.mlp.fc1")
        normal = 0.5 * (1 + torch.erf(hidden / 2**0.5))
        x = x + slow_linear(hidden * normal.detach(), weights, f"{name}.mlp.fc2")
    y = slow_linear(slow_layer_norm(x, weights, "vit.layernorm")[0], weights, "classifier")[target]
    gradients = torch.autograd.grad(y, entering)
    return y, [(t * g).sum(-1).detach() for t, g in zip(entering, gradients, strict=True)]


@pytest.mark.parametrize("layers, chosen", [("all", [0, 1, 2]), ("input", [0]), ("upper", [1, 2])])
def test_libra_agrees_with_a_vit_written_out(layers, chosen):
    model, x, target = build("vit"), images("vit"), [3, 1]
    got = libra(trace(model, x, target), layers)
    for image, t, scores in zip(x, target, got, strict=True):
        y, slow = slow_scores(model, image, t, "libra")
        assert y.item() == pytest.approx(model(image[None]).logits[0, t].item(), rel=1e-4)
        expected = sum(slow[layer] for layer in chosen)
        torch.testing.assert_close(scores.double(), expected, rtol=TOLERANCE, atol=TOLERANCE * expected.abs().max())


def test_attnlrp_agrees_with_a_vit_written_out():
    model, x, target = build("vit"), images("vit"), [3, 1]
    for image, t, scores in zip(x, target, attnlrp(trace(model, x, target)), strict=True):
        expected = slow_scores(model, image, t, "attnlrp")[1][0]
        torch.testing.assert_close(scores.double(), expected, rtol=TOLERANCE, atol=TOLERANCE * expected.abs().max())


def test_a_contrast_is_the_difference_of_its_classes():
    model, x = build("vit"), images("vit")
    for method in (libra, attnlrp):
        both, a, b = (method(trace(model, x, t)) for t in ((3, 1), 3, 1))
        torch.testing.assert_close(both, a - b, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(method(trace(model, x, (1, 3))), -both, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [libra, attnlrp])
def test_the_patch_that_carries_the_class_is_found(method):
    """Every block copies the mean token to [CLS]; the class reads a channel that one patch alone fills."""
    model, x = TimmStyle(), torch.zeros(2, 3, 32, 48)
    with torch.no_grad():
        for block in model.blocks:
            block.qkv.weight.copy_(torch.cat([torch.zeros(64, 32), torch.eye(32)]))
            block.proj.weight.copy_(torch.eye(32))
            block.mlp[2].weight.zero_()
        model.head.weight.zero_()[2, 7] = 1.0
        model.pos[..., 7] = model.prefix[..., 7] = 0
        x[:, :, 8:16, 16:24] = model.patch_embed.weight[7].sign()
    maps = explain(model, x, method, 2, upsample=False)
    assert maps.shape == (2, 4, 6)
    assert (maps.flatten(1).argmax(1) == 6 + 2).all()


def test_nothing_is_left_behind():
    model, x = build("vit"), images("vit")
    model.train()
    before = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    seen = trace(model, x)
    with torch.no_grad(), torch.inference_mode():
        inside = libra(seen)
    torch.testing.assert_close(libra(seen), inside)
    with pytest.raises(ValueError, match="logits change"):
        model.classifier.weight.data.add_(1)
        libra(seen)
    assert before == [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert len(blocks(model)) == 3 and isinstance(model, hf.ViTForImageClassification)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.1), (torch.float16, 0.03)])
@pytest.mark.parametrize("method", ["libra", "attnlrp"])
def test_half_precision_gives_maps_close_to_float32(dtype, tolerance, method):
    model, x = build("vit", initializer_range=0.1), images("vit")
    expected = explain(model, x, method, 2)
    with torch.autocast("cpu", dtype=dtype):
        cast = explain(model, x, method, 2)
    half = explain(model.to(dtype), x.to(dtype), method, 2)
    for got in (cast, half):
        assert got.dtype == torch.float32
        assert (got - expected).abs().mean() < tolerance
