"""Loading and preprocessing: any checkpoint, with the preparation it was trained with."""

import numpy as np
import pytest
import torch
from families import build
from PIL import Image
from transformers import AutoImageProcessor, ViTImageProcessorPil

from gmar_utils import explain, load_model, trace
from gmar_utils.model import bundled
from gmar_utils.photo import resized_and_cropped

BUNDLED = bundled()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a processor that resizes the shorter side and crops the centre, as DeiT's and DINOv2's do."""
    path = tmp_path_factory.mktemp("model")
    build("vit").save_pretrained(path)
    ViTImageProcessorPil(
        size={"shortest_edge": 40}, do_center_crop=True, crop_size={"height": 32, "width": 32}
    ).save_pretrained(path)
    return path


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_models_load_in_eval_mode_and_float32(name):
    vit = load_model(name)
    assert not vit.model.training and next(vit.model.parameters()).dtype == torch.float32
    assert len(vit.labels) == vit.model.config.num_labels and not vit.labels[0].startswith("LABEL")
    x = vit.preprocess(np.zeros((50, 70, 3), dtype=np.uint8))
    assert explain(vit.model, x).shape == (1, *x.shape[-2:])


def test_preprocessing_is_the_checkpoints_own_on_the_pil_path(folder):
    vit = load_model(folder)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 90, 3), dtype=np.uint8))
    expected = AutoImageProcessor.from_pretrained(folder, backend="pil")(photo, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(vit.preprocess([photo, photo]), expected.repeat(2, 1, 1, 1))
    assert type(vit.processor).__name__.endswith("Pil")


def test_a_model_object_goes_in_with_its_preprocessing():
    model = build("vit")
    with pytest.warns(UserWarning, match="No processor file"):
        vit = load_model(model)
    assert vit.preprocess(np.zeros((9, 9, 3), np.uint8)).shape == (1, 3, 32, 32)
    vit = load_model(model, mean=[0, 0, 0], std=[1, 1, 1], size=(32, 48))
    white = vit.preprocess(np.full((9, 9, 3), 255, np.uint8))
    assert white.shape == (1, 3, 32, 48) and white.min() == white.max() == 1
    assert vit.label(3) == "LABEL_3" and vit.label(99) == "class 99"


@pytest.mark.parametrize("family", ["vit", "deit", "deit-distilled", "dinov2", "dinov2-registers", "beit"])
def test_another_resolution_interpolates_position_embeddings(family):
    vit = load_model(build(family), mean=[0.5] * 3, std=[0.5] * 3, image_size=(64, 96))
    x = vit.preprocess(np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8))
    assert x.shape == (1, 3, 64, 96)
    assert trace(vit.model, x).grid == (8, 12)
    assert explain(vit.model, x, "legrad").shape == (1, 64, 96)


def test_another_resolution_scales_a_centre_crop(folder):
    vit = load_model(folder, image_size=64)
    assert vit.preprocess(np.zeros((90, 50, 3), np.uint8)).shape == (1, 3, 64, 64)
    assert resized_and_cropped((90, 50), vit.processor) == ((144, 80), (40, 8, 64, 64))


def test_a_checkpoint_without_a_trained_head_is_refused(tmp_path):
    build("dinov2").dinov2.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no trained classification head"):
        load_model(tmp_path)


def test_unknown_names_say_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr("gmar_utils.checkpoint._hub_answers", lambda name: False)
    with pytest.raises(OSError, match="out of reach"):
        load_model("nobody/no-such-model")
    with pytest.raises(OSError, match="could not be loaded"):
        load_model(tmp_path)
