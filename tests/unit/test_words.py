"""Models of words: maps over tokens, each against a slow implementation of its own; what is refused, and why."""

import pytest
import torch
import transformers as hf
from families import slow_minmax, slow_rollout, slow_weights
from torch import nn

from gmar_utils import METHODS, explain, trace
from gmar_utils.methods import bind

TOLERANCE = 2e-4
IDS = torch.tensor([[1, 7, 9, 30, 12, 5, 2], [1, 8, 3, 11, 44, 6, 2]])
TARGET = [2, 0]
SHAPE = dict(vocab_size=50, num_labels=3, initializer_range=0.3, max_position_embeddings=32, pad_token_id=0)
WIDTHS = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
SPECIAL = dict(bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)
KINDS = {
    "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**SHAPE, **WIDTHS)),
    "electra": lambda: hf.ElectraForSequenceClassification(hf.ElectraConfig(**SHAPE, **WIDTHS, embedding_size=32)),
    "distilbert": lambda: hf.DistilBertForSequenceClassification(
        hf.DistilBertConfig(**SHAPE, dim=32, n_layers=3, n_heads=4, hidden_dim=64)
    ),
    "roberta": lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**SHAPE, **WIDTHS)),
    "modernbert": lambda: hf.ModernBertForSequenceClassification(hf.ModernBertConfig(**SHAPE, **WIDTHS, **SPECIAL)),
    "gpt2": lambda: hf.GPT2ForSequenceClassification(
        hf.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, pad_token_id=0)
    ),
    "deberta": lambda: hf.DebertaV2ForSequenceClassification(hf.DebertaV2Config(**SHAPE, **WIDTHS)),
}


def build(kind):
    torch.manual_seed(0)
    model = KINDS[kind]()
    for parameter in model.parameters():
        if parameter.abs().sum() == 0:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def layers_of(model):
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 3)


def slow_logits(kind, model, tokens):
    """What each family's head does with a layer's output, spelled out."""
    first = tokens[:, 0]
    if kind == "bert":
        return model.classifier(model.bert.pooler.dense(first).tanh())
    if kind == "distilbert":
        return model.classifier(model.pre_classifier(first).relu())
    activation = nn.functional.gelu if kind == "electra" else torch.tanh
    return model.classifier.out_proj(activation(model.classifier.dense(first)))


@pytest.fixture(scope="module", params=["bert", "electra", "distilbert", "roberta"])
def case(request):
    """(fast maps, attentions, gradients, LeGrad's gradients): the slow ones by eager attention in float64."""
    kind, model = request.param, build(request.param)
    methods = {
        "rollout": ("rollout", {}),
        "gmar": ("gmar", {}),
        "gmar l2 report": ("gmar", {"norm": "l2", "variant": "report", "alpha": 0.7}),
        "legrad": ("legrad", {}),
        "chefer": ("chefer", {}),
        "attention": ("attention", {}),
    }
    fast = {k: explain(model, IDS, m, TARGET, **options) for k, (m, options) in methods.items()}
    model, outputs = model.double(), []
    model.set_attn_implementation("eager")
    hooks = [
        m.register_forward_hook(lambda m, i, o: outputs.append(o[0] if isinstance(o, tuple) else o))
        for m in layers_of(model)
    ]
    found = model(IDS, output_attentions=True)
    for hook in hooks:
        hook.remove()
    attentions = found.attentions
    gradients = torch.autograd.grad(found.logits[[0, 1], TARGET].sum(), attentions, retain_graph=True)
    own = [
        torch.autograd.grad(slow_logits(kind, model, o)[[0, 1], TARGET].sum(), a, retain_graph=True)[0]
        for o, a in zip(outputs, attentions, strict=True)
    ]
    torch.testing.assert_close(slow_logits(kind, model, outputs[-1]), found.logits)
    return fast, attentions, gradients, own


@pytest.mark.parametrize("label", ["rollout", "gmar", "gmar l2 report", "legrad", "chefer", "attention"])
def test_agrees_with_slow_implementation(case, label):
    fast, attentions, gradients, own = case
    v0 = torch.eye(7, dtype=torch.float64)[0]
    if label == "legrad":
        scores = torch.stack([g.relu().mean((1, 2)) for g in own]).mean(0)
    elif label == "attention":
        scores = attentions[-1].mean(1)[:, 0]
    elif label == "chefer":
        rows = []
        for b in range(2):
            r = torch.eye(7, dtype=torch.float64)
            for a, g in zip(attentions, gradients, strict=True):
                r = r + (a[b] * g[b]).relu().mean(0) @ r
            rows.append(v0 @ r)
        scores = torch.stack(rows)
    else:
        norm = {"rollout": None, "gmar": "l1", "gmar l2 report": "l2"}[label]
        variant, alpha = {"rollout": ("output-first", 1.0), "gmar": ("paper", 1.0)}.get(label, ("report", 0.7))
        scores = slow_rollout(attentions, slow_weights(gradients, norm), v0, alpha, variant)
    expected = slow_minmax(scores[:, 1:].detach().reshape(2, 1, 6))
    torch.testing.assert_close(fast[label].double(), expected, atol=TOLERANCE, rtol=0)


def slow_norm(norm, x):
    centred = x - x.mean(-1, keepdim=True)
    return norm.weight * centred / (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt().detach() + norm.bias


def slow_libra(model, ids, target):
    """BERT written out, one sentence, in float64. Constant: attention, the norms' deviations, the gates."""
    x, entering = model.bert.embeddings(ids[None])[0].detach().requires_grad_(), []
    for layer in model.bert.encoder.layer:
        entering.append(x)
        inner, width = layer.attention.self, 32 // 4
        query, key, value = inner.query(x), inner.key(x), inner.value(x)
        heads = []
        for h in range(4):
            part = slice(h * width, (h + 1) * width)
            heads.append((query[:, part] @ key[:, part].T / width**0.5).softmax(-1).detach() @ value[:, part])
        x = slow_norm(layer.attention.output.LayerNorm, x + layer.attention.output.dense(torch.cat(heads, 1)))
        hidden = layer.intermediate.dense(x)
        hidden = hidden * (0.5 * (1 + torch.erf(hidden / 2**0.5))).detach()
        x = slow_norm(layer.output.LayerNorm, x + layer.output.dense(hidden))
    pooled = model.bert.pooler.dense(x[0])
    y = model.classifier(pooled * (pooled.tanh() / pooled).detach())[target]
    return [(e * g).sum(1) for e, g in zip(entering, torch.autograd.grad(y, entering), strict=True)]


def test_libra_agrees_with_a_bert_written_out():
    model = build("bert")
    got = bind("libra")(trace(model, IDS, TARGET))
    model = model.double()
    for scores, ids, target in zip(got, IDS, TARGET, strict=True):
        expected = sum(slow_libra(model, ids, target)).detach()
        torch.testing.assert_close(scores.double(), expected, atol=TOLERANCE * expected.abs().max().item(), rtol=0)


def test_a_trace_of_words_knows_its_tokens():
    model = build("bert")
    seen = trace(model, IDS, TARGET)
    assert (seen.prefix_tokens, seen.grid) == (1, (1, 6))
    assert torch.equal(seen.readout, torch.eye(7)[:1].expand(2, -1))
    torch.testing.assert_close(seen.logits, model(IDS).logits.detach(), atol=1e-5, rtol=0)
    assert len(seen.attentions) == len(seen.gradients) == 3 and seen.attentions[0].shape == (2, 4, 7, 7)


@pytest.mark.parametrize("kind", ["bert", "electra", "distilbert", "roberta", "modernbert"])
def test_every_method_gives_a_map_over_the_tokens_or_says_why_not(kind):
    model, refused = build(kind), set()
    for method in METHODS:
        try:
            assert explain(model, IDS, method, TARGET).shape == (2, 1, 6)
        except ValueError as error:
            assert ("no norm in front of its attention" if method in ("grad-cam", "cdam") else "words") in str(error)
            refused.add(method)
    assert refused == ({"occlusion"} if kind == "modernbert" else {"occlusion", "grad-cam", "cdam"})


@pytest.mark.parametrize("kind, words", [("gpt2", "reads its tokens is not known"), ("deberta", "no attention maps")])
def test_other_models_are_refused(kind, words):
    with pytest.raises(ValueError, match=words):
        trace(build(kind), IDS)


def test_what_a_tokenizer_returns_goes_in_unless_it_is_padded():
    model = build("bert")
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    torch.testing.assert_close(explain(model, given), explain(model, IDS))
    given["attention_mask"] = given["attention_mask"].tril(5)
    with pytest.raises(ValueError, match="padded"):
        explain(model, given)


def test_ids_are_refused_by_a_model_of_pictures():
    from families import build as build_vit

    with pytest.raises(ValueError, match="floating-point"):
        trace(build_vit("vit"), IDS)
