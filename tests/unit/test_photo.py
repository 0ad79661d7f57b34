"""Pictures of every kind, what a processor does to them, and maps back on the photo's own pixels."""

import warnings

import numpy as np
import pytest
import torch
import transformers as hf
from families import build
from PIL import Image

from gmar_utils import explain, load_model
from gmar_utils.photo import (
    as_list,
    check_geometry,
    minmax,
    read_photo,
    resize,
    resized_and_cropped,
    to_photo,
)

NOISE = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)


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
            result[i, j] = values[a, b] * (1 - u) * (1 - v) + values[p, b] * u * (1 - v)
            result[i, j] += values[a, q] * (1 - u) * v + values[p, q] * u * v
    return result


@pytest.mark.parametrize("size", [(50, 90), (90, 50), (40, 40), (33, 64)])
def test_maps_go_back_through_resize_and_crop(size):
    processor = hf.ViTImageProcessorPil(
        size={"shortest_edge": 40}, do_center_crop=True, crop_size={"height": 32, "width": 32}
    )
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


# --- what is no picture -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "picture, error, words",
    [
        (np.zeros((0, 0, 3), np.uint8), ValueError, "no pixels"),
        (np.zeros((5, 0), np.uint8), ValueError, "no pixels"),
        (Image.new("RGB", (0, 4)), ValueError, "no pixels"),
        (torch.zeros(3, 0, 4), ValueError, "no pixels"),
        (np.zeros((3, 40, 60), np.uint8), ValueError, "channels last"),
        (torch.zeros(40, 60, 3), ValueError, "first in a tensor"),
        (np.zeros(7), ValueError, "height, width"),
        (np.zeros((2, 2), complex), TypeError, "numbers"),
        (np.array([["a"]]), TypeError, "numbers"),
        (torch.full((3, 8, 8), 2.5), ValueError, "prepared"),
        (torch.randn(3, 8, 8), ValueError, "prepared"),
        (torch.full((3, 8, 8), torch.nan), ValueError, "uint8, or float in"),
        ([[0, 1], [1, 0]], TypeError, "got list"),
        (None, TypeError, "got NoneType"),
        (7, TypeError, "got int"),
    ],
)
def test_what_is_no_picture_is_refused(picture, error, words):
    with pytest.raises(error, match=words):
        read_photo(picture)


@pytest.mark.parametrize("window", [(5, 5), (5, 1), (np.nan, 1), (0, np.inf), (-np.inf, 0)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, float])
def test_a_window_that_is_none_is_refused_for_every_kind_of_picture(window, kind):
    with pytest.raises(ValueError, match="window"):
        read_photo(np.zeros((4, 4), kind), window=window)


@pytest.mark.parametrize("images", [[], (), iter([]), np.zeros((0, 4, 4, 3), np.uint8), torch.zeros(0, 3, 4, 4)])
def test_nothing_to_explain_is_refused(images):
    with pytest.raises(ValueError, match="at least one picture"):
        as_list(images)


@pytest.mark.parametrize(
    "images",
    [{"pixel_values": torch.zeros(1, 3, 4, 4)}, hf.BatchFeature({"pixel_values": torch.zeros(1)}), b"x", 3, None],
)
def test_what_holds_no_pictures_is_refused(images):
    with pytest.raises(TypeError, match="xpected"):
        as_list(images)


def test_pictures_in_every_container_are_the_same(tmp_path):
    vit = load_model(build("vit"), mean=[0.5] * 3, std=[0.5] * 3)
    Image.fromarray(NOISE).save(tmp_path / "noise.png")
    expected = vit.preprocess(NOISE)
    chw = torch.from_numpy(NOISE).movedim(-1, 0)
    files = [tmp_path / "noise.png", str(tmp_path / "noise.png"), Image.fromarray(NOISE)]
    tensors = [chw, chw / 255, (chw / 255).double(), chw[None], NOISE[None], NOISE / 255]
    several = [[NOISE], (NOISE,), (p for p in [NOISE]), {"a": NOISE}.values()]
    for same in (*files, *tensors, *several):
        torch.testing.assert_close(vit.preprocess(same), expected)
    assert vit.preprocess(np.stack([NOISE] * 3)).shape == (3, 3, 32, 32)


def test_a_picture_that_unpacks_to_gigabytes_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.new("1", (11000, 11000)).save(tmp_path / "bomb.png")  # 17 kB
    Image.new("1", (30000, 7000)).save(tmp_path / "pillow-refuses.png")
    decoded = []
    load = Image.Image.load
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: decoded.append(self.size) or load(self))
    for name in ("bomb.png", "pillow-refuses.png"):
        with warnings.catch_warnings(), pytest.raises(ValueError, match=f"{name}.*million pixels.*MAX_IMAGE_PIXELS"):
            warnings.simplefilter("ignore")  # Pillow's own, about the first
            read_photo(tmp_path / name)
    assert not decoded


# --- geometry ---------------------------------------------------------------------------------------------------------


def known():
    side = {"height": 32, "width": 32}
    edge = {"shortest_edge": 40}
    yield "vit", hf.ViTImageProcessorPil(size={"height": 32, "width": 48})
    yield "bit", hf.BitImageProcessorPil(size=edge, crop_size=side)
    yield "clip", hf.CLIPImageProcessorPil(size=edge, crop_size=side)
    yield "siglip", hf.SiglipImageProcessorPil(size=side)
    yield "deit", hf.DeiTImageProcessorPil(size={"height": 40, "width": 40}, crop_size=side)
    yield "beit", hf.BeitImageProcessorPil(size=side, do_center_crop=False)
    yield "crop alone", hf.BitImageProcessorPil(do_resize=False, crop_size={"height": 30, "width": 20})
    yield "crop beyond the photo", hf.BitImageProcessorPil(size={"shortest_edge": 24}, crop_size=side)
    yield "blue first", hf.MobileViTImageProcessorPil(size=edge, crop_size=side)
    yield "no rescaling", hf.ViTImageProcessorPil(size=side, do_rescale=False, do_normalize=False)


@pytest.mark.parametrize("size", [(50, 90), (90, 50), (200, 200), (33, 64)])
@pytest.mark.parametrize("name, processor", list(known()), ids=lambda v: v if isinstance(v, str) else "")
def test_known_processors_look_where_they_are_said_to(name, processor, size):
    """A photo whose grey is its own coordinate comes back, through the processor and to_photo, as that coordinate."""
    for axis in (0, 1):
        ramp = np.moveaxis(np.broadcast_to(np.linspace(0, 255, size[axis]), (size[1 - axis], size[axis])), 1, axis)
        photo = np.repeat(ramp.round().astype(np.uint8)[..., None], 3, 2)
        prepared = processor([photo], return_tensors="pt")["pixel_values"][:, 0]
        back = to_photo(prepared, [size], processor)[0].numpy()
        inner = np.zeros(size, bool)  # at the photo's edge a crop beyond it mixes padding in
        inner[size[0] // 16 : -(size[0] // 16), size[1] // 16 : -(size[1] // 16)] = True
        seen = np.isfinite(back) & inner
        black, white = (
            processor([np.full((64, 64, 3), v, np.uint8)], return_tensors="pt")["pixel_values"][0, 0, 16, 16].item()
            for v in (0, 255)
        )
        error = np.abs((back - black) / (white - black) - ramp / 255)[seen]
        assert seen.sum() > 500 and error.max() < 0.03, (name, size, axis, error.max())


class Mirrored(hf.ViTImageProcessorPil):
    def __call__(self, images, *args, **kwargs):
        return super().__call__([np.asarray(i)[:, ::-1] for i in images], *args, **kwargs)


class Zoomed(hf.ViTImageProcessorPil):
    def __call__(self, images, *args, **kwargs):
        return super().__call__([i[: 9 * len(i) // 10, : 9 * i.shape[1] // 10] for i in images], *args, **kwargs)


class Turned(hf.ViTImageProcessorPil):
    def __call__(self, images, *args, **kwargs):
        return super().__call__([np.rot90(i) for i in images], *args, **kwargs)


class Padded(hf.ViTImageProcessorPil):
    def __call__(self, images, *args, **kwargs):
        side = max(images[0].shape[:2])
        padded = [np.pad(i, ((0, side - i.shape[0]), (0, side - i.shape[1]), (0, 0))) for i in images]
        return super().__call__(padded, *args, **kwargs)


@pytest.mark.parametrize(
    "processor",
    [
        hf.LevitImageProcessorPil(),
        hf.ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.8),
        hf.PerceiverImageProcessorPil(),
        hf.ImageGPTImageProcessorPil(),
        *(kind(size={"height": 32, "width": 32}) for kind in (Mirrored, Zoomed, Turned, Padded)),
    ],
    ids=lambda p: type(p).__name__,
)
def test_a_processor_that_looks_elsewhere_is_refused(processor):
    with pytest.raises(ValueError, match="is not known"):
        check_geometry((50, 90), processor)


def test_the_map_itself_needs_no_geometry():
    why = load_model(build("vit"), processor=Zoomed(size={"height": 32, "width": 32})).explain(NOISE)
    assert why.map.shape == (4, 4)
    with pytest.raises(ValueError, match="is not known"):
        why.save("nothing.png")


def test_a_processor_is_asked_once_for_each_size(monkeypatch):
    calls = []
    call = hf.ViTImageProcessorPil.__call__
    counted = lambda self, images, *a, **k: calls.append(len(images)) or call(self, images, *a, **k)  # noqa: E731
    monkeypatch.setattr(hf.ViTImageProcessorPil, "__call__", counted)
    processor = hf.ViTImageProcessorPil(size={"height": 31, "width": 37})
    for expected in (4, 4, 8):
        check_geometry((41, 43) if expected == 4 else (43, 41), processor)
        assert len(calls) == expected


def test_scales():
    maps = torch.tensor([[[-4.0, 2.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert minmax(maps)[0].tolist() == [[0, 1], [pytest.approx(2 / 3), pytest.approx(5 / 6)]]
    assert resize(maps, (3, 5)).shape == (2, 3, 5) and resize(maps.half(), (3, 5)).dtype == torch.float32
