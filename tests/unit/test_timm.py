"""timm's own models, where timm is installed (it needs torchvision): the workflow `bounds` has it, `make test` not."""

import json

import pytest
import torch
from transformers import AutoImageProcessor, TimmWrapperConfig, TimmWrapperForImageClassification

from gmar_utils import explain, load_model, trace
from gmar_utils.methods.layerwise import legrad
from gmar_utils.teaching import samples

timm = pytest.importorskip("timm", reason="timm is not installed; test_capture.py has a ViT in its manner")

LAYOUTS = {  # name: (prefix tokens, patch grid, what the classifier reads of the first token)
    "vit_tiny_patch16_224": (1, (14, 14), 1),
    "deit_tiny_distilled_patch16_224": (2, (14, 14), 0.5),
    "vit_mediumd_patch16_reg4_gap_256": (4, (16, 16), 0),
    "beit_base_patch16_224": (1, (14, 14), 0),
    "eva02_tiny_patch14_224": (1, (16, 16), 0),
    "vit_small_patch16_rope_224": (1, (14, 14), 1),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_logits_and_legrad(name):
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=7).eval()
    x = torch.randn(2, *model.default_cfg["input_size"])
    seen = trace(model, x)
    assert (seen.prefix_tokens, seen.grid, seen.readout[0, 0].item()) == LAYOUTS[name]
    torch.testing.assert_close(seen.logits, model(x).detach(), atol=1e-4, rtol=1e-4)
    last = seen.gradients[-1].relu().mean((1, 2))  # the last layer's own logit is the model's
    torch.testing.assert_close(legrad(seen, layers=1), last, atol=1e-6, rtol=1e-3)
    for method in ("grad-cam", "libra", "attnlrp", "cdam"):  # rotary positions, gated MLPs, registers: or refused
        assert explain(model, x, method).shape == (2, *x.shape[2:])


def test_the_wrapper_of_transformers_is_read_as_the_model_in_it():
    config = TimmWrapperConfig(architecture="beit_base_patch16_224", num_labels=7, model_args={"depth": 2})
    model, x = TimmWrapperForImageClassification(config).eval(), torch.randn(1, 3, 224, 224)
    wrapped, inner = trace(model, x), trace(model.timm_model, x)
    assert wrapped.readout[0, 0] == 0  # BEiT reads the patches' mean
    torch.testing.assert_close(wrapped.gradients, inner.gradients)
    torch.testing.assert_close(explain(model, x, "legrad"), explain(model.timm_model, x, "legrad"))


@pytest.mark.parametrize("crop_pct, interpolation", [(0.9, "bicubic"), (1.0, "bilinear")])
def test_photos_are_prepared_as_timm_prepares_them(tmp_path, crop_pct, interpolation):
    cfg = {"input_size": [3, 224, 224], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "crop_pct": crop_pct}
    cfg |= {"interpolation": interpolation, "crop_mode": "center", "num_classes": 7}
    config = TimmWrapperConfig(architecture="vit_tiny_patch16_224", num_labels=7, model_args={"depth": 1})
    TimmWrapperForImageClassification(config).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict() | {"pretrained_cfg": cfg}, default=str))
    photo = samples.photo("cat")
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(photo)["pixel_values"]
    torch.testing.assert_close(load_model(tmp_path).preprocess(photo), theirs, atol=1e-5, rtol=0)


def test_attention_pooling_is_where_the_map_starts():
    model = timm.create_model("vit_base_patch16_siglip_224", pretrained=False, num_classes=7, depth=2).eval()
    pool, x = model.attn_pool, torch.randn(2, 3, 224, 224)
    torch.nn.init.normal_(pool.latent, std=3)
    seen, tokens = trace(model, x), model.forward_features(x)
    query = pool.q(pool.latent).reshape(1, 1, pool.num_heads, -1).transpose(1, 2)
    key = pool.kv(tokens).unflatten(2, (2, pool.num_heads, -1))[:, :, 0].transpose(1, 2)
    expected = (query @ key.mT * pool.head_dim**-0.5).softmax(-1).mean(1)[:, 0]
    torch.testing.assert_close(seen.readout, expected.detach(), atol=1e-6, rtol=1e-3)
    assert seen.readout.std() > 1e-5


@pytest.mark.parametrize("size", [64, 70, 90])
def test_a_picture_that_timm_pads_keeps_its_grid(size):
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, dynamic_img_size=True, dynamic_img_pad=True, depth=2)
    seen = trace(model, torch.randn(1, 3, size, size))
    assert (seen.prefix_tokens, seen.grid) == (1, (-(-size // 16), -(-size // 16)))
