"""Where the patches are, which layers there are and what the classifier reads: measured in the pass, or refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from families import build, images
from torch import nn

from gmar_utils import explain, trace
from gmar_utils.capture.layout import blocks
from gmar_utils.methods.layerwise import legrad


class Own(nn.Module):
    """A ViT whose tokens are put together, and read, in many ways."""

    def __init__(self, tokens="plain", reads="cls"):
        super().__init__()
        donor = build("vit")
        torch.manual_seed(0)
        self.patch, self.layers, self.norm, self.head = nn.Conv2d(3, 32, 8, 8), donor.vit.layers, nn.LayerNorm(32), None
        self.cls, self.registers = nn.Parameter(torch.randn(1, 1, 32)), nn.Parameter(torch.randn(1, 3, 32))
        self.positions, self.query, self.head = nn.Parameter(torch.randn(1, 16, 32)), nn.Linear(32, 1), nn.Linear(32, 5)
        self.tokens, self.reads = tokens, reads

    def embed(self, x):
        p = self.patch(x)
        p = (p.mT if self.tokens == "transposed" else p).flatten(2).mT + self.positions
        cls, registers = (t.expand(len(x), -1, -1) for t in (self.cls, self.registers))
        return {
            "plain": [cls, p],
            "transposed": [cls, p],
            "registers in front": [cls, registers, p],
            "registers behind": [cls, p, registers],
            "backwards": [cls, p.flip(1)],
            "twice": [cls, p, p],
            "a mean in front": [p.mean(1, keepdim=True), p],
            "cls behind": [p, cls],
        }[self.tokens]

    def forward(self, x):
        t = torch.cat(self.embed(x), 1)
        for layer in self.layers:
            t = layer(t)
        t = self.norm(t)
        read = {
            "cls": lambda: t[:, 0],
            "mean of patches": lambda: t[:, 1:].mean(1),
            "mean of all": lambda: t.mean(1),
            "cls and mean": lambda: t[:, 0] + t[:, 1:].mean(1),
            "max": lambda: t[:, 1:].amax(1),
            "learned weights": lambda: (t[:, 1:] * self.query(t[:, 1:]).softmax(1)).sum(1),
            "one patch": lambda: t[:, 7],
            "nothing": lambda: 0 * t[:, 0],
        }[self.reads]()
        return self.head(read)


class Inside(nn.Module):
    """A ViT that gets another picture than the one that went in."""

    def __init__(self, change):
        super().__init__()
        self.vit, self.change = build("vit"), change

    def forward(self, x):
        return self.vit(self.change(x)).logits


# --- the patch grid ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, size",
    [
        (lambda x: F.interpolate(x, 32), (8, 8)),
        (lambda x: F.interpolate(x, 32), (16, 24)),
        (lambda x: F.interpolate(x, 32), (64, 64)),
        (lambda x: F.pad(x, (0, 32 - x.shape[-1], 0, 32 - x.shape[-2])), (20, 27)),
        (lambda x: x[..., 4:36, 4:36], (40, 40)),
        (lambda x: F.avg_pool2d(x, 2), (64, 64)),
    ],
)
def test_the_grid_is_that_of_the_picture_that_the_patch_embedding_sees(change, size):
    model, x = Inside(change), torch.randn(2, 3, *size)
    seen = trace(model, x)
    assert (seen.prefix_tokens, seen.grid) == (1, (4, 4))
    for method in ("gmar", "rollout", "legrad", "grad-cam"):
        expected = explain(model.vit, change(x), method, 1, upsample=False)
        torch.testing.assert_close(explain(model, x, method, 1, upsample=False), expected, atol=1e-5, rtol=0)


def test_registers_in_front_are_prefix_tokens():
    seen = trace(Own("registers in front"), images("vit"))
    assert (seen.prefix_tokens, seen.grid) == (4, (4, 4))


@pytest.mark.parametrize(
    "tokens", ["transposed", "registers behind", "backwards", "twice", "a mean in front", "cls behind"]
)
@pytest.mark.parametrize("method", ["gmar", "rollout", "legrad", "grad-cam"])
def test_tokens_in_another_order_are_refused(tokens, method):
    with pytest.raises(ValueError, match="reading order"):
        explain(Own(tokens), images("vit"), method)


def test_a_layout_that_the_caller_gives_is_taken():
    seen = trace(Own("a mean in front"), images("vit"), prefix_tokens=1, grid=(4, 4))
    assert (seen.prefix_tokens, seen.grid) == (1, (4, 4))


def test_no_convolution_no_grid():
    class Patchify(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.layers, self.head = nn.Linear(192, 32), build("vit").vit.layers, nn.Linear(32, 5)

        def forward(self, x):
            t = self.embed(x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2))
            for layer in self.layers:
                t = layer(t)
            return self.head(t.mean(1))

    model, x = Patchify(), images("vit")
    with pytest.raises(ValueError, match=r"Pass grid=\(rows, columns\)"):
        trace(model, x)
    seen = trace(model, x, prefix_tokens=0, grid=(4, 4))
    torch.testing.assert_close(seen.readout, torch.full((2, 16), 1 / 16))
    assert explain(model, x, "legrad", prefix_tokens=0, grid=(4, 4)).shape == (2, 32, 32)


def test_a_model_that_changes_is_measured_again():
    model, x = Own("plain"), images("vit")
    trace(model, x)
    model.tokens = "registers in front"
    assert trace(model, x).prefix_tokens == 4


# --- one chain of layers ----------------------------------------------------------------------------------------------


class Passes(nn.Module):
    """Several passes in one."""

    def __init__(self, kind, *models):
        super().__init__()
        self.kind, self.models = kind, nn.ModuleList(models)

    def forward(self, x):
        first, last = self.models[0], self.models[-1]
        return {
            "flips": lambda: first(x).logits + first(x.flip(-1)).logits,
            "views": lambda: first(torch.cat([x, x.flip(-1)])).logits.unflatten(0, (2, -1)).mean(0),
            "scales": lambda: first(x).logits + last(F.interpolate(x, 64)).logits,
            "ensemble": lambda: first(x).logits + last(x).logits,
            "last first": lambda: last(x).logits + first(x).logits,
        }[self.kind]()


@pytest.mark.parametrize("method", ["gmar", "rollout", "legrad", "grad-cam", "chefer", "attention"])
@pytest.mark.parametrize(
    "kind, names",
    [
        ("flips", [{}]),
        ("views", [{}]),
        ("scales", [{}, {"image_size": 64}]),
        ("ensemble", [{}, {}]),
        ("ensemble", [{}, {"patch_size": 16}]),
        ("last first", [{}, {"patch_size": 16}]),
        ("ensemble", [{}, {"num_hidden_layers": 2}]),
    ],
)
def test_several_passes_in_one_are_refused(kind, names, method):
    model = Passes(kind, *(build("vit", **config) for config in names))
    with pytest.raises(ValueError, match="one chain|B = 2"):
        explain(model, images("vit"), method)


@pytest.mark.parametrize("method", ["gmar", "rollout", "legrad"])
@pytest.mark.parametrize("change", ["early exit", "a block twice", "two attentions", "recurrent"])
def test_every_block_attends_once_or_the_model_is_refused(change, method):
    model = Own()
    if change == "early exit":
        model.layers = nn.ModuleList([*model.layers[:2], nn.Sequential(nn.Sequential(nn.Identity()))])
    elif change == "a block twice":
        model.layers = nn.ModuleList([model.layers[0], model.layers[1], model.layers[1]])
    elif change == "two attentions":
        model.layers = nn.ModuleList([nn.Sequential(model.layers[0], model.layers[1]), nn.Sequential(model.layers[2])])
    else:
        model.layers = nn.ModuleList([nn.Sequential(*model.layers[:1]), model.layers[0]])
    with pytest.raises(ValueError, match="one chain"):
        explain(model, images("vit"), method)


def test_the_blocks_are_found_whatever_they_are_called():
    for name in ("vit", "clip", "siglip", "beit"):
        assert len(blocks(build(name))) == 3
    model = build("vit", num_hidden_layers=1)
    assert blocks(nn.Sequential(nn.Sequential(model)))[0] is blocks(model)[0]
    assert len(trace(model, images("vit")).attentions) == 1
    with pytest.raises(ValueError, match="no list of blocks"):
        blocks(nn.Sequential(nn.Linear(2, 2)))


# --- what the classifier reads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reads, expected",
    [
        ("cls", [1] + 16 * [0]),
        ("mean of patches", [0] + 16 * [1 / 16]),
        ("mean of all", 17 * [1 / 17]),
        ("cls and mean", [1] + 16 * [0]),  # DINOv2's choice: [CLS]
    ],
)
@pytest.mark.parametrize("gradients", [True, False])
def test_the_readout_is_measured(reads, expected, gradients):
    seen = trace(Own(reads=reads), images("vit"), gradients=gradients)
    torch.testing.assert_close(seen.readout, torch.tensor(expected, dtype=torch.float32).expand(2, -1))


@pytest.mark.parametrize("reads", ["max", "learned weights", "one patch", "nothing"])
@pytest.mark.parametrize("method", ["gmar", "rollout", "attention", "chefer"])
def test_a_readout_that_is_not_known_is_refused(reads, method):
    with pytest.raises(ValueError, match="reads its tokens"):
        explain(Own(reads=reads), images("vit"), method)


def slow_chefer(model, x, target, v0):
    model = copy.deepcopy(model)
    seen = trace(model, x, target)
    r = torch.eye(17).expand(2, -1, -1)
    for a, g in zip(seen.attentions, seen.gradients, strict=True):
        r = r + (a * g).relu().mean(1) @ r
    return v0 @ r


@pytest.mark.parametrize("kind", ["config kept", "subclass", "named like another"])
def test_a_head_of_ones_own_is_read_as_it_is_and_not_as_its_configuration_says(kind):
    class Subclass(hf.ViTForImageClassification):
        def forward(self, pixel_values):
            return self.classifier(self.vit(pixel_values).last_hidden_state[:, 1:].mean(1))

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.vit, self.classifier = build("vit").vit, nn.Linear(32, 5)
            self.config = copy.deepcopy(self.vit.config)
            self.config.model_type = {"config kept": "vit", "named like another": "clip"}.get(kind, "vit")

        forward = Subclass.forward

    x = images("vit")
    model = Subclass(build("vit").config).eval() if kind == "subclass" else Head().eval()
    mean = torch.tensor([0] + 16 * [1 / 16])
    seen = trace(model, x, 1)
    torch.testing.assert_close(seen.readout, mean.expand(2, -1))
    expected = seen.patches(slow_chefer(model, x, 1, mean))
    got = explain(model, x, "chefer", 1, upsample=False).flatten(1)
    assert all(torch.corrcoef(torch.stack(pair))[0, 1] > 0.9999 for pair in zip(got, expected.flatten(1), strict=True))
    last = seen.gradients[-1].relu().mean((1, 2))  # LeGrad's last layer is read as the model reads it
    torch.testing.assert_close(legrad(seen, layers=1), last, atol=1e-6, rtol=1e-3)


# --- text prompts -----------------------------------------------------------------------------------------------------


class Prompts(nn.Module):
    """The scores of text prompts, from the images' embeddings alone, or with the text tower in the same pass."""

    def __init__(self, model, together, config):
        super().__init__()
        self.model, self.together = model.eval(), together
        self.ids = torch.randint(1, 90, (4, 16), generator=torch.Generator().manual_seed(0))
        if config:
            self.config = model.config
        with torch.no_grad():
            text = self.model.get_text_features(self.ids)
        self.text = F.normalize(getattr(text, "pooler_output", text), dim=-1)

    def forward(self, x):
        if self.together:
            return self.model(input_ids=self.ids, pixel_values=x).logits_per_image
        image = self.model.get_image_features(pixel_values=x)
        return 100 * F.normalize(getattr(image, "pooler_output", image), dim=-1) @ self.text.T


def two_towers(name):
    torch.manual_seed(0)
    tower = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
    vision, text = (
        tower | {"image_size": 32, "patch_size": 8},
        tower | {"vocab_size": 99, "max_position_embeddings": 16},
    )
    if name == "clip":
        text |= {"bos_token_id": 1, "eos_token_id": 2}
        return hf.CLIPModel(hf.CLIPConfig(vision_config=vision, text_config=text, projection_dim=16))
    return hf.SiglipModel(hf.SiglipConfig(vision_config=vision, text_config=text))


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize("together", [True, False])
def test_clip_with_prompts_starts_from_cls_and_sees_the_image_tower_alone(together, config):
    model, x = Prompts(two_towers("clip"), together, config), images("vit")
    seen = trace(model, x, 2)
    tower = model.model.vision_model
    tower.set_attn_implementation("eager")
    expected = tower(x, output_attentions=True).attentions
    torch.testing.assert_close(seen.attentions, tuple(a.detach() for a in expected), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen.readout, torch.eye(17)[:1].expand(2, -1))
    assert (seen.prefix_tokens, seen.grid) == (1, (4, 4))
    last = seen.gradients[-1].relu().mean((1, 2))
    torch.testing.assert_close(legrad(seen, layers=1), last, atol=1e-6, rtol=1e-3)
    assert explain(model, x, "grad-cam", 2).shape == (2, 32, 32)


@pytest.mark.parametrize("together", [True, False])
def test_siglip_with_prompts_starts_from_its_attention_pooling(together):
    model, x = Prompts(two_towers("siglip"), together, True), images("vit")
    with torch.no_grad():
        model.model.vision_model.head.probe.mul_(30)
    seen, head = trace(model, x, 2), model.model.vision_model.head
    tokens = model.model.vision_model(x).last_hidden_state
    _, expected = head.attention(head.probe.expand(2, -1, -1), tokens, tokens, need_weights=True)
    torch.testing.assert_close(seen.readout, expected[:, 0].detach(), atol=1e-6, rtol=1e-4)
    assert seen.readout.std() > 1e-3 and not torch.allclose(seen.readout[0], seen.readout[1])
    torch.testing.assert_close(seen.logits, model(x).detach(), atol=1e-4, rtol=1e-4)


def test_pooling_by_several_queries_is_refused():
    model = two_towers("siglip")
    model.vision_model.head.probe = nn.Parameter(torch.randn(1, 3, 32))
    with pytest.raises(ValueError, match="3 queries"):
        trace(Prompts(model, False, False), images("vit"))
