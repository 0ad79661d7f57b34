"""CLIP and SigLIP asked by text prompts: logits, read-out and maps, each against a slow implementation of its own."""

import numpy as np
import pytest
import torch
import transformers as hf
from families import slow_minmax, slow_rollout, slow_weights
from PIL import Image
from torch import nn

from gmar_utils import METHODS, explain, load_model, probability, trace
from gmar_utils.prompts import ZeroShot

TOLERANCE = 2e-4
PROMPTS = ["a cat", "a dog , asleep", "a cup"]
WIDTHS = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
TARGET = [2, 0]


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {w: i for i, w in enumerate("[PAD] [UNK] [BOS] a cat dog cup asleep photo of , [EOS]".split())}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 11)]
    )
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", eos_token="[EOS]", bos_token="[BOS]")


def build(kind):
    torch.manual_seed(0)
    text = WIDTHS | {"vocab_size": 12, "max_position_embeddings": 10, "bos_token_id": 2, "eos_token_id": 11}
    vision = WIDTHS | {"image_size": 32, "patch_size": 8}
    if kind == "clip":
        model = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    else:
        model = hf.SiglipModel(hf.SiglipConfig(text_config=text | {"projection_size": 32}, vision_config=vision))
    for parameter in model.parameters():
        if parameter.ndim > 1 or parameter.numel() > 1 and parameter.abs().sum() == 0:
            nn.init.normal_(parameter, std=0.3)
    nn.init.constant_(model.logit_scale, 2.0)
    return model.eval()


def images():
    torch.manual_seed(1)
    return torch.randn(2, 3, 32, 32)


@pytest.fixture(scope="module", params=["clip", "siglip"])
def kind(request):
    return request.param


def own_logits(kind, model, x):
    """As transformers' own forward pass of both towers gives them."""
    padding = "max_length" if kind == "siglip" else True
    ids = tokenizer()(PROMPTS, padding=padding, truncation=True, max_length=10, return_tensors="pt")
    return model(pixel_values=x, **{k: v for k, v in ids.items() if k != "token_type_ids"}).logits_per_image


def test_logits_are_those_of_the_two_towers(kind):
    model, x = build(kind), images()
    asked = ZeroShot(model, tokenizer(), PROMPTS)
    torch.testing.assert_close(asked(x), own_logits(kind, model, x), atol=1e-5, rtol=1e-5)
    other = asked.asking(["a photo of a cat"])
    assert other(x).shape == (2, 1) and asked(x).shape == (2, 3) and other.towers is model


def pooled(kind, model, tokens):
    """The image embedding that the last tokens (B, N, D) give, spelled out; and the pooling attention of SigLIP."""
    vision = model.vision_model
    if kind == "clip":
        return model.visual_projection(vision.post_layernorm(tokens[:, 0])), None
    head, tokens = vision.head, vision.post_layernorm(tokens)
    width, weight, bias = 32, head.attention.in_proj_weight, head.attention.in_proj_bias
    probe = head.probe.repeat(len(tokens), 1, 1)
    q, k, v = (
        (t @ weight[i * width : (i + 1) * width].T + bias[i * width : (i + 1) * width]).unflatten(2, (4, 8))
        for i, t in enumerate((probe, tokens, tokens))
    )
    attention = (torch.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5).softmax(-1)
    pooled = head.attention.out_proj(torch.einsum("bhqk,bkhd->bqhd", attention, v).flatten(2))
    return (pooled + head.mlp(head.layernorm(pooled)))[:, 0], attention.mean(1)[:, 0]


@pytest.fixture(scope="module")
def case(kind):
    """Fast maps and trace; slow attentions, gradients, LeGrad's gradients, v₀, last norm, its gradient, in float64."""
    model, x = build(kind), images()
    asked = ZeroShot(model, tokenizer(), PROMPTS)
    labels = ("rollout", "gmar", "legrad", "chefer", "attention", "grad-cam", "cdam", "occlusion")
    fast = {m: explain(asked, x, m, TARGET, upsample=False) for m in labels}
    seen = trace(asked, x, TARGET)
    assert len(seen.gradients) == 3
    model, x, texts, bias = model.double(), x.double(), asked.texts.double(), getattr(model, "logit_bias", 0)
    model.set_attn_implementation("eager")
    outputs, norms, layers = [], [], model.vision_model.encoder.layers
    hooks = [
        m.register_forward_hook(lambda m, i, o: outputs.append(o[0] if isinstance(o, tuple) else o)) for m in layers
    ]
    hooks.append(layers[-1].layer_norm1.register_forward_hook(lambda m, i, o: norms.append(o)))
    attentions = model.vision_model(x, output_attentions=True).attentions
    for hook in hooks:
        hook.remove()

    def score(tokens):
        image = pooled(kind, model, tokens)[0]
        image = image / image.pow(2).sum(1, keepdim=True).sqrt()
        logits = model.logit_scale.exp() * image @ texts.T + bias
        return logits[[0, 1], TARGET].sum()

    found = torch.autograd.grad(score(outputs[-1]), [*attentions, norms[0]], retain_graph=True)
    own = [torch.autograd.grad(score(o), a, retain_graph=True)[0] for o, a in zip(outputs, attentions, strict=True)]
    v0 = pooled(kind, model, outputs[-1])[1]
    v0 = torch.eye(17, dtype=torch.float64)[:1].expand(2, -1) if v0 is None else v0.detach()
    drops = torch.zeros(2, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        for i, target in enumerate(TARGET):
            full = asked(x[i : i + 1])[0, target]
            for row in (0, 2):
                for column in (0, 2):
                    hidden = x[i : i + 1].clone()
                    hidden[:, :, 8 * row : 8 * row + 16, 8 * column : 8 * column + 16] = 0
                    drops[i, row : row + 2, column : column + 2] = full - asked(hidden)[0, target]
    return fast, seen, attentions, found[:-1], own, v0, norms[0].detach(), found[-1], drops


def test_the_read_out_is_cls_for_clip_and_the_pooling_attention_for_siglip(case, kind):
    seen, v0 = case[1], case[5]
    assert (seen.prefix_tokens, seen.grid) == (1 if kind == "clip" else 0, (4, 4))
    torch.testing.assert_close(seen.readout.double(), v0, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "method", ["rollout", "gmar", "legrad", "chefer", "attention", "grad-cam", "cdam", "occlusion"]
)
def test_agrees_with_slow_implementation(case, kind, method):
    fast, _, attentions, gradients, own, v0, norm, norm_gradient, drops = case
    prefix = 1 if kind == "clip" else 0
    if method == "legrad":
        scores = torch.stack([g.relu().mean((1, 2)) for g in own]).mean(0)
    elif method == "attention":
        scores = torch.einsum("bn,bnm->bm", v0, attentions[-1].mean(1))
    elif method == "grad-cam":
        scores = torch.einsum("bnd,bd->bn", norm, norm_gradient[:, prefix:].mean(1)).relu()
    elif method == "cdam":
        scores = (norm * norm_gradient).sum(-1).relu()
    elif method == "chefer":
        rows = []
        for b in range(2):
            r = torch.eye(attentions[0].shape[-1], dtype=torch.float64)
            for a, g in zip(attentions, gradients, strict=True):
                r = r + (a[b] * g[b]).relu().mean(0) @ r
            rows.append(v0[b] @ r)
        scores = torch.stack(rows)
    elif method == "occlusion":
        scores = torch.cat([drops.new_zeros(2, prefix), drops.flatten(1)], 1).relu()
    else:
        norms, variant = (None, "output-first") if method == "rollout" else ("l1", "paper")
        weights = slow_weights(gradients, norms)
        each = [[t[b : b + 1] for t in group] for b in range(2) for group in (attentions, weights)]
        pairs = [(each[0], each[1]), (each[2], each[3])]
        scores = torch.cat([slow_rollout(a, w, v0[b], 1.0, variant) for b, (a, w) in enumerate(pairs)])
    expected = slow_minmax(scores[:, prefix:].detach().reshape(2, 4, 4))
    torch.testing.assert_close(fast[method].double(), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("method", ["libra", "attnlrp"])
def test_the_rules_of_libra_hold(kind, method):
    """The completeness sum, the embedding's length held constant, is checked inside; here the map changes with the
    prompt."""
    asked, x = ZeroShot(build(kind), tokenizer(), PROMPTS), images()
    one, two = (explain(asked, x, method, target, signed=True, upsample=False) for target in (0, 2))
    assert (one - two).abs().max() > 0.05


def test_probability_is_a_softmax_over_the_prompts_or_siglips_sigmoid(kind):
    asked, x = ZeroShot(build(kind), tokenizer(), PROMPTS), images()
    logits = asked(x).detach()
    got = probability(asked, logits, torch.tensor(TARGET))
    expected = logits.sigmoid() if kind == "siglip" else logits.softmax(1)
    torch.testing.assert_close(got, expected[[0, 1], TARGET])


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    path = tmp_path_factory.mktemp(kind)
    build(kind).save_pretrained(path)
    tokenizer().save_pretrained(path)
    hf.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(path)
    return path


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))


def test_a_folder_is_loaded_and_asked_in_words(folder):
    vit = load_model(folder, device="cpu")
    found = vit.explain(PHOTO, target="a photo of a cat")
    assert found.label == "a photo of a cat" and found.on_photo.shape == (40, 60) and 0 <= found.probability <= 1
    asked = vit.asking(*PROMPTS)
    table = asked.predict(PHOTO)
    assert sorted(table["label"]) == sorted(PROMPTS) and asked.label(1) == "a dog , asleep"
    same = explain(asked.model, asked.preprocess(PHOTO), "legrad", 2, upsample=False)[0]
    torch.testing.assert_close(asked.explain(PHOTO, "legrad", target="a cup").map, same)
    assert asked.explain(PHOTO, target=("a cup", "a dog")).target == (2, 3)  # a prompt that is not there is added
    assert vit.labels == [] and asked.labels == PROMPTS


def test_at_another_size(folder):
    vit = load_model(folder, device="cpu", image_size=48)
    assert vit.explain(PHOTO, target="a cat").map.shape == (6, 6)


def test_a_model_without_prompts_says_how_to_ask(folder):
    vit = load_model(folder, device="cpu")
    for call in (vit.predict, vit.explain):
        with pytest.raises(ValueError, match="asking"):
            call(PHOTO)


def test_a_model_object_needs_a_tokenizer(kind):
    processor = hf.CLIPProcessor(hf.ViTImageProcessorPil(size={"height": 32, "width": 32}), tokenizer())
    vit = load_model(build(kind), processor=processor, device="cpu")
    assert vit.asking("a cat", "a cup").predict(PHOTO)["probability"].notna().all()
    with pytest.raises(TypeError, match="tokenizer"):
        load_model(build(kind))


def test_a_classifier_takes_no_prompts():
    with pytest.raises(TypeError, match="no prompts"):
        load_model("vit-shapes").asking("a cat")


def test_a_missing_weight_is_refused(folder, tmp_path):
    model = build("clip" if "clip" == folder.name.rstrip("0") else "siglip")
    state = {k: v for k, v in model.state_dict().items() if "layers.1.self_attn.q_proj.weight" not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    tokenizer().save_pretrained(tmp_path)
    hf.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not complete"):
        load_model(tmp_path)


def test_every_method_applies(kind):
    asked, x = ZeroShot(build(kind), tokenizer(), PROMPTS), images()
    assert all(explain(asked, x, m, 1).shape == (2, 32, 32) for m in METHODS)
