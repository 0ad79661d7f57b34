"""Checkpoints are whole or refused; what belongs to the caller stays as it was; other sizes run or are refused."""

import json
import pickle

import numpy as np
import pytest
import torch
import transformers as hf
from families import build
from safetensors.torch import load_file, save_file

from gmar_utils import checkpoint, explain, load_model, trace
from gmar_utils.photo import resized_and_cropped

NOISE = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Saves a model of a family with its processor, then changes its config, weights or processor file."""

    def make(family="vit", config=None, weights=None, processor=None, **shape):
        build(family, **shape).save_pretrained(tmp_path)
        hf.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
        for name, change in (("config.json", config), ("preprocessor_config.json", processor)):
            if isinstance(change, str):
                (tmp_path / name).write_text(change)
            elif change:
                values = json.loads((tmp_path / name).read_text())
                values = change(values) or values if callable(change) else values | change
                (tmp_path / name).write_text(json.dumps(values))
        if weights:
            found = load_file(tmp_path / "model.safetensors")
            weights(found)
            save_file(found, tmp_path / "model.safetensors", metadata={"format": "pt"})
        return tmp_path

    return make


def without(word):
    def change(weights):
        for key in [k for k in weights if word in k]:
            del weights[key]

    return change


def renamed(old, new):
    def change(weights):
        for key in [k for k in weights if k.startswith(old)]:
            weights[key.replace(old, new, 1)] = weights.pop(key)

    return change


def spoiled(word, value):
    def change(weights):
        key = next(k for k in weights if word in k)
        weights[key] = torch.full_like(weights[key], value)

    return change


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(weights=without("layer.1.")), "not complete"),
        (dict(weights=without("position_embeddings")), "position_embeddings missing"),
        (dict(weights=without("query.bias")), "not complete"),
        (dict(weights=without("layernorm.weight"), family="dinov2"), "not complete"),
        (dict(weights=renamed("vit.", "backbone.")), "not complete"),
        (dict(weights=without("classifier")), "no trained classification head"),
        (dict(config={"num_hidden_layers": 5}), "not complete"),
        (dict(config={"num_hidden_layers": 2}), "more layers than its config.json"),
        (dict(config=lambda c: c["vision_config"].update(num_hidden_layers=2), family="clip"), "more layers"),
        (dict(config={"hidden_size": 64}), "do not fit each other"),
        (dict(config={"id2label": {str(i): f"w{i}" for i in range(3)}}), "do not fit each other"),
        (dict(config={"num_channels": 1}), "do not fit each other"),
        (dict(config={"patch_size": 5}), "do not fit each other"),
        (dict(config={"image_size": 0}), "do not fit each other"),
        (dict(weights=spoiled("query.weight", torch.nan)), "NaN or infinite"),
        (dict(weights=spoiled("classifier.bias", torch.inf)), "NaN or infinite"),
        (dict(weights=spoiled("position_embeddings", -torch.inf)), "NaN or infinite"),
        (dict(config={"id2label": {str(i + 1): f"w{i}" for i in range(5)}}), "counted from 0"),
        (dict(config={"id2label": {str(2 * i): f"w{i}" for i in range(5)}}), "counted from 0"),
        (dict(config={"num_attention_heads": 0}), "could not be loaded"),
        (dict(config={"num_attention_heads": 7}), "do not fit each other"),
        (dict(config={"num_attention_heads": -1}), "cannot run"),
        (dict(config={"patch_size": 0}), "could not be loaded"),
        (dict(config={"image_size": "large"}), "could not be loaded"),
        (dict(config={"model_type": "resnot"}), "could not be loaded"),
        (dict(config="{"), "could not be loaded"),
        (dict(processor="{"), "processor_config.json' of .* is broken"),
        (dict(processor="not json"), "is broken"),
        (dict(processor={"image_processor_type": "NoSuchProcessor"}), "is broken or of a kind"),
        (dict(processor={"image_std": [0, 0, 0]}), "no usable values"),
        (dict(processor={"image_std": [0.5, 0.5, 0]}), "no usable values"),
        (dict(processor={"image_std": [0.5, 0.5, -0.5]}), "no usable values"),
        (dict(processor={"image_std": [float("nan")] * 3}), "no usable values"),
        (dict(processor={"image_mean": [0.5, float("inf"), 0.5]}), "no usable values"),
        (dict(processor={"rescale_factor": 0}), "no usable values"),
        (dict(processor={"image_mean": [0.5] * 4}), "cannot prepare a picture"),
        (dict(processor={"size": {"height": 0, "width": 0}}), "cannot prepare a picture"),
        (dict(processor={"size": {"height": 48, "width": 48}}), "cannot run on the 48×48 pixels"),
        (dict(processor={"size": {"height": 4, "width": 4}}), "cannot run on the 4×4 pixels"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused(folder, change, words):
    with pytest.raises((OSError, ValueError), match=words) as caught:
        load_model(folder(**change))
    assert "\n" not in str(caught.value)


def test_what_the_logits_do_not_depend_on_may_be_missing(folder):
    whole = load_model(folder("dinov2"))
    x = torch.randn(1, 3, 32, 32)
    expected = whole.model(x).logits
    path = folder("dinov2", weights=without("mask_token"))
    torch.testing.assert_close(load_model(path).model(x).logits, expected)


def test_a_pickle_is_refused_without_advice_to_run_it(folder, capsys):
    class Harmful:
        def __reduce__(self):
            return print, ("it ran",)

    path = folder()
    (path / "model.safetensors").unlink()
    for raw in (pickle.dumps(Harmful()), None):
        if raw:
            (path / "pytorch_model.bin").write_bytes(raw)
        else:
            torch.save({"classifier.weight": Harmful()}, path / "pytorch_model.bin")
        with pytest.raises(OSError) as caught:
            load_model(path)
        assert "safetensors" in str(caught.value) and "weights_only" not in str(caught.value)
    assert "it ran" not in capsys.readouterr().out


@pytest.mark.parametrize("thing", [None, 5, b"vit", ["vit-shapes"], "", "  ", {}])
def test_what_is_no_model_is_refused(thing):
    with pytest.raises(TypeError, match="bundled name"):
        load_model(thing)


@pytest.mark.parametrize("device", ["cuda:77", "nonsense", 99, "meta:x"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(ValueError, match="cannot be used here"):
        load_model(build("vit"), device=device)


@pytest.mark.parametrize("size", [0, -3, 1.5, "32", (32,), (32, 0), (1, 2, 3), [], (None, 3)])
def test_a_size_is_whole_pixels(size):
    for given in ("size", "image_size"):
        with pytest.raises(ValueError, match="whole number of pixels"):
            load_model(build("vit"), mean=[0.5] * 3, std=[0.5] * 3, **{given: size})


# --- the caller's own things ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["vit", "clip", "beit", "dinov2", "siglip"])
def test_the_callers_model_and_processor_stay_as_they_were(family):
    model, processor = build(family), hf.ViTImageProcessorPil(size={"height": 32, "width": 32})
    before, x = processor.to_json_string(), torch.randn(1, 3, 32, 32)
    logits = model(x).logits
    for side in (48, 64):
        vit = load_model(model, processor=processor, image_size=side)
        assert vit.preprocess(NOISE).shape == (1, 3, side, side) and vit.explain(NOISE).map.shape == (side // 8,) * 2
    assert processor.to_json_string() == before
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    torch.testing.assert_close(model(x).logits, logits)
    shared = {p.data_ptr() for p in model.parameters()}
    assert type(vit.model) is type(model) and {p.data_ptr() for p in vit.model.parameters()} == shared


def test_a_multimodal_processor_is_read_at_its_image_side():
    class Both:  # what AutoProcessor gives for CLIP: words and pictures
        image_processor = hf.CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_convert_rgb=True
        )

    both = Both()
    vit = load_model(build("vit"), processor=both, image_size=48)
    assert vit.preprocess(NOISE).shape == (1, 3, 48, 48) and both.image_processor.crop_size["height"] == 32
    on_photo = vit.explain(NOISE).on_photo
    assert on_photo[:, :10].isnan().all() and on_photo[:, 10:50].isfinite().all() and on_photo[:, 50:].isnan().all()


@pytest.mark.parametrize("processor", [lambda x: x, torch.nn.Identity(), "bit", object()])
def test_another_kind_of_transform_is_refused(processor):
    with pytest.raises(TypeError, match="image processor of transformers"):
        load_model(build("vit"), processor=processor)


# --- other sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "beit", "clip", "siglip", "vit-msn", "metaclip2"])
def test_every_family_runs_at_another_size_or_says_that_it_cannot(family):
    preparation = dict(mean=[0.5] * 3, std=[0.5] * 3)
    vit = load_model(build(family), **preparation, image_size=48)
    x = vit.preprocess(NOISE)
    assert trace(vit.model, x).grid == (6, 6) and explain(vit.model, x).shape == (1, 48, 48)
    for side in (1, 7):
        with pytest.raises(ValueError, match=f"cannot run at {side}×{side}"):
            load_model(build(family), **preparation, image_size=side)


def test_a_model_that_takes_one_size_is_refused_at_another():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vit = build("vit")

        def forward(self, pixels):
            return self.vit(pixels).logits

    preparation = dict(mean=[0.5] * 3, std=[0.5] * 3, size=32)
    assert load_model(Own(), **preparation).explain(NOISE).map.shape == (4, 4)
    with pytest.raises(ValueError, match="Own cannot run at 48×48"):
        load_model(Own(), **preparation, image_size=48)


@pytest.mark.parametrize("size, words", [(100000, "GB are available"), ((60000, 60000), "GB are available")])
def test_a_size_that_cannot_fit_is_refused_before_anything_runs(size, words):
    with pytest.raises(MemoryError, match=words):
        load_model(build("vit"), mean=[0.5] * 3, std=[0.5] * 3, image_size=size)


def test_a_crop_after_a_square_resize_keeps_its_share():
    processor = hf.DeiTImageProcessorPil(size={"height": 40, "width": 40}, crop_size={"height": 32, "width": 32})
    vit = load_model(build("vit"), processor=processor, image_size=64)
    assert resized_and_cropped((90, 50), vit.processor) == ((80, 80), (8, 8, 64, 64))


# --- channels, labels, timm -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_models_of_any_number_of_channels(channels):
    mean, std = np.linspace(0.2, 0.6, channels), np.linspace(0.3, 0.5, channels)
    vit = load_model(build("vit", num_channels=channels), mean=mean, std=std, size=32)
    photo = np.random.default_rng(1).integers(0, 255, (32, 32, channels), dtype=np.uint8)
    x = vit.preprocess(photo)
    expected = (torch.from_numpy(photo).movedim(-1, 0) / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
        :, None, None
    ]
    torch.testing.assert_close(x[0], expected.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vit.preprocess(torch.from_numpy(photo).movedim(-1, 0)), x)
    why = vit.explain(photo)
    assert why.on_photo.shape == (32, 32) and why.photo.size == (32, 32) and len(why._repr_png_()) > 100
    if channels != 1:
        with pytest.raises(ValueError, match=f"{channels}"):
            vit.explain(NOISE)


def test_labels_that_do_not_fit_the_head_are_refused_where_they_are_words():
    class Headed(torch.nn.Module):
        def __init__(self, words):
            super().__init__()
            self.vit = build("vit", labels=5)
            self.config = hf.ViTConfig(id2label=dict(enumerate(words)))

        def forward(self, pixels):
            return self.vit(pixels).logits

    preparation = dict(mean=[0.5] * 3, std=[0.5] * 3, size=32)
    for words in (["cat", "dog"], [f"word {i}" for i in range(6)]):
        with pytest.raises(ValueError, match="5 logits"):
            load_model(Headed(words), **preparation).predict(NOISE)
    assert load_model(Headed(["LABEL_0", "LABEL_1"]), **preparation).predict(NOISE, 5).class_id.nunique() == 5


def test_a_timm_model_object_brings_its_own_preparation():
    model = build("vit")
    model.pretrained_cfg = {  # as timm.create_model leaves it on a model
        "input_size": (3, 32, 32),
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "crop_pct": 0.8,
        "interpolation": "bilinear",
        "crop_mode": "center",
    }
    vit = load_model(model)
    assert list(vit.processor.image_mean) == [0.1, 0.2, 0.3]
    assert resized_and_cropped((80, 80), vit.processor) == ((40, 40), (4, 4, 32, 32))
    assert vit.preprocess(NOISE).shape == (1, 3, 32, 32)
    model.pretrained_cfg["crop_mode"] = "border"
    with pytest.raises(ValueError, match="square centre crop"):
        load_model(model)


def test_a_processor_opens_without_torchvision_in_older_releases_too(monkeypatch):
    """transformers 5.15 refuses AutoImageProcessor as a whole where torchvision is missing."""
    folder = checkpoint.located(checkpoint.bundled()[0])
    known = checkpoint.image_processor(folder, torch.nn.Identity())

    def refuse(*_, **__):
        raise ImportError("AutoImageProcessor requires the Torchvision library")

    monkeypatch.setattr(hf.AutoImageProcessor, "from_pretrained", refuse)
    found = checkpoint.image_processor(folder, torch.nn.Identity())
    assert type(found) is type(known) and found.to_dict() == known.to_dict()
