"""Loading, preprocessing and geometry: any checkpoint, any picture, and maps back on the photo's own pixels."""

import numpy as np
import pytest
import torch
from families import build
from PIL import Image
from transformers import AutoImageProcessor, ViTImageProcessorPil

from gmar_utils import explain, load_model, trace
from gmar_utils.model import bundled
from gmar_utils.photo import read_photo, resized_and_cropped, to_photo

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


# --- photos -----------------------------------------------------------------------------------------------------------


def test_pictures_of_every_kind(tmp_path):
    ramp = np.linspace(0, 255, 12).astype(np.uint8).reshape(3, 4)
    rgb = np.stack([ramp, 255 - ramp, ramp], -1)
    assert np.array_equal(read_photo(rgb), rgb)
    assert np.array_equal(read_photo(ramp), np.stack([ramp] * 3, -1))
    assert read_photo(rgb, channels=1).mode == "L"
    alpha = np.dstack([rgb, np.where(ramp > 100, 255, 0)]).astype(np.uint8)
    laid = np.asarray(read_photo(alpha))
    assert np.array_equal(laid[ramp > 100], rgb[ramp > 100]) and (laid[ramp <= 100] == 255).all()
    palette = Image.fromarray(rgb).convert("P")
    palette.save(tmp_path / "p.png", transparency=0)
    assert read_photo(tmp_path / "p.png").mode == "RGB"
    turned = Image.fromarray(rgb)
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held on its side
    turned.save(tmp_path / "t.png", exif=exif)
    assert np.array_equal(read_photo(tmp_path / "t.png"), np.rot90(rgb, -1))


def test_deep_pictures_use_the_window_or_their_own_range(tmp_path):
    deep = np.array([[0, 1000], [2000, 4000]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    with pytest.warns(UserWarning, match="from 0 to 4000"):
        assert np.asarray(read_photo(tmp_path / "deep.png", channels=1)).tolist() == [[0, 64], [128, 255]]
    windowed = read_photo(tmp_path / "deep.png", channels=1, window=(1000, 2000))
    assert np.asarray(windowed).tolist() == [[0, 0], [255, 255]]
    assert np.asarray(read_photo(np.array([[0.0, 0.5], [1.0, 0.25]]), channels=1)).tolist() == [[0, 128], [255, 64]]
    for bad in [(5, 5), (7, 2)]:
        with pytest.raises(ValueError, match="window"):
            read_photo(deep, window=bad)
    with pytest.raises(ValueError, match="NaN"):
        read_photo(np.array([[np.nan, 1.0]]))
    with pytest.raises(ValueError, match="height, width"):
        read_photo(np.zeros((3, 4, 5)))


def slow_to_photo(values, height, width, rows, columns, top, left, crop_h, crop_w):
    """Pixel by pixel: where does this pixel's centre fall in the crop, and what does the map say there?"""
    r, c = values.shape
    result = np.full((height, width), np.nan)
    for i in range(height):
        for j in range(width):
            y = ((i + 0.5) * rows / height - top) / crop_h * r - 0.5
            x = ((j + 0.5) * columns / width - left) / crop_w * c - 0.5
            if not (-0.5 <= y <= r - 0.5 and -0.5 <= x <= c - 0.5):
                continue
            y, x = np.clip(y, 0, r - 1), np.clip(x, 0, c - 1)
            a, b = int(y), int(x)
            p, q = min(a + 1, r - 1), min(b + 1, c - 1)
            u, v = y - a, x - b
            result[i, j] = (
                values[a, b] * (1 - u) * (1 - v) + values[p, b] * u * (1 - v)
                + values[a, q] * (1 - u) * v + values[p, q] * u * v
            )  # fmt: skip
    return result


@pytest.mark.parametrize("size", [(50, 90), (90, 50), (40, 40), (33, 64)])
def test_maps_go_back_through_resize_and_crop(folder, size):
    processor = load_model(folder).processor
    maps = torch.rand(1, 4, 5, generator=torch.Generator().manual_seed(0))
    (rows, columns), crop = resized_and_cropped(size, processor)
    got = to_photo(maps, [size], processor)[0]
    expected = slow_to_photo(maps[0].numpy(), *size, rows, columns, *crop)
    assert got.shape == size and got.dtype == torch.float32
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_without_a_crop_the_whole_photo_is_covered():
    vit = load_model(build("vit"), mean=[0.5] * 3, std=[0.5] * 3)
    photos = [np.zeros((50, 90, 3), np.uint8), np.zeros((7, 8, 3), np.uint8)]
    x = vit.preprocess(photos)
    maps = vit.to_photo(explain(vit.model, x), photos)
    assert [tuple(m.shape) for m in maps] == [(50, 90), (7, 8)]
    assert all(torch.isfinite(m).all() for m in maps)
    with pytest.raises(ValueError, match="2 maps for 1 photos"):
        vit.to_photo(explain(vit.model, x), photos[:1])
