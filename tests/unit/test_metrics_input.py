"""What every metric does with input that is odd or wrong: geometry, masks, precision, types."""

import math

import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from gmar_utils import metrics
from gmar_utils.metrics.forwards import cheap_dtype, choice, evaluating, unit_values
from gmar_utils.metrics.imputation import linear

X = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
MAPS = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=32,
        image_size=24,
        patch_size=4,
        num_labels=5,
        initializer_range=0.5,
    )
    return ViTForImageClassification(config).eval()


class MeanPixel(nn.Module):
    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([mean, torch.zeros_like(mean)], 1)


class Patches(MeanPixel):
    """MeanPixel with a patch embedding of this size."""

    def __init__(self, size):
        super().__init__()
        self.embedding = nn.Conv2d(3, 4, size, size)


CALLS = {
    "insertion": lambda m, x, maps, **o: metrics.insertion(m, x, maps, **o).auc,
    "deletion": lambda m, x, maps, **o: metrics.deletion(m, x, maps, **o).auc,
    "srg": metrics.srg,
    "saco": metrics.saco,
    "masked_scores": lambda m, x, maps, **o: metrics.masked_scores(m, x, maps, **o).masked,
    "morf_lerf": lambda m, x, maps, **o: metrics.morf_lerf(m, x, maps, **o)[2],
    "head_ablation": lambda m, x, maps, **o: metrics.head_ablation(m, x, torch.rand(len(x), 2, 3), **o).auc,
    "head_effects": lambda m, x, maps, **o: metrics.head_effects(m, x, **o),
}


# Kind: validation before use -----------------------------------------------------------------------------------------

BAD = {
    "batch size 0": ({"batch_size": 0}, "batch_size"),
    "batch size -1": ({"batch_size": -1}, "batch_size"),
    "batch size 2.5": ({"batch_size": 2.5}, "batch_size"),
    "NaN": (torch.where(X > 1.5, math.nan, X), "NaN"),
    "infinity": (torch.where(X > 1.5, -math.inf, X), "infinity"),
    "no image": (X[:0], "no image"),
    "whole numbers": (X.long(), "floating"),
    "bytes": (X.to(torch.uint8), "floating"),
    "flags": (X > 0, "floating"),
    "three dimensions": (X[0], "pixel_values"),
    "score": ({"score": "loss"}, "'probability', 'logit'"),
    "a contrast": ({"target": (0, 1)}, "one class"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused_by_every_metric(vit, name, bad):
    what, message = BAD[bad]
    options = what if isinstance(what, dict) else {}
    pixels = X if options else what
    with pytest.raises((ValueError, TypeError), match=message):
        CALLS[name](vit, pixels, MAPS[: len(pixels)] if pixels.ndim == 4 else MAPS, **options)


def test_a_choice_is_of_one_type():
    choice("x", "a", ("a", None))
    choice("x", None, ("a", None))
    for value in ("b", ["a"], torch.ones(2), 0):
        with pytest.raises(ValueError, match="x must be one of 'a', None"):
            choice("x", value, ("a", None))
    with pytest.raises(ValueError, match="baseline function must return"):
        metrics.deletion(MeanPixel(), X, MAPS, baseline=lambda x, shown: x[:, :1])
    with pytest.raises(ValueError, match="finite"):
        metrics.deletion(MeanPixel(), X, MAPS, baseline=lambda x, shown: x / 0)


# Kind: geometry ------------------------------------------------------------------------------------------------------


def removed(model, rows, columns, height, width, hot, grid=None):
    """Which pixels of a height × width image go first, with a map that is hot in one unit."""
    seen, maps = [], torch.zeros(1, rows, columns)
    maps[0][hot] = 1

    class Watch(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            seen.append(x.clone())
            return self.inner(x)

    metrics.deletion(Watch(), torch.ones(1, 3, height, width), maps, 0, steps=rows * columns, grid=grid)
    first = torch.cat(seen)[2, 0]  # after the pass that resolves the target, and the whole image
    y, x = (first == 0).nonzero().T
    return (int(y.min()), int(y.max()), int(x.min()), int(x.max())), int((first == 0).sum())


@pytest.mark.parametrize(
    "size, rows, hot, expected",
    [
        ((64, 64), 48, (24, 24), (32, 33, 32, 33)),  # the centre of the map is the centre of the image
        ((64, 64), 48, (47, 47), (63, 63, 63, 63)),
        ((64, 64), 48, (0, 0), (0, 1, 0, 1)),
        ((10, 10), 3, (1, 1), (4, 6, 4, 6)),
        ((10, 20), 3, (2, 0), (7, 9, 0, 6)),
        ((9, 9), 3, (2, 1), (6, 8, 3, 5)),
    ],
)
def test_a_map_lies_over_the_whole_image_whatever_its_size(size, rows, hot, expected):
    box, count = removed(MeanPixel(), rows, rows, *size, hot)
    assert box == expected and count == (expected[1] - expected[0] + 1) * (expected[3] - expected[2] + 1)


def test_the_models_own_patches_stay_where_they_are():
    # 30 pixels of patches of 8: three patches and six pixels over, which belong to the last one
    assert removed(Patches(8), 3, 3, 30, 30, (1, 1))[0] == (8, 15, 8, 15)
    assert removed(Patches(8), 3, 3, 30, 30, (2, 0))[0] == (16, 29, 0, 7)
    # padded inside the model to four patches
    assert removed(Patches(8), 4, 4, 30, 30, (3, 0))[0] == (24, 29, 0, 7)
    # another grid than the model's: over the whole image
    assert removed(Patches(8), 2, 2, 30, 30, (1, 1))[0] == (15, 29, 15, 29)


def test_each_pixel_belongs_to_one_unit_and_each_unit_has_its_share():
    for pixels, units in ((64, 48), (17, 5), (224, 9), (7, 6), (5, 1)):
        image = torch.zeros(1, 3, pixels, pixels)
        _, y, _ = unit_values(torch.rand(1, units, units), image, MeanPixel())
        counts = y.bincount(minlength=units)
        assert len(counts) == units and counts.max() - counts.min() <= 1 and (y.diff() >= 0).all()


def test_full_maps_of_a_grid_that_does_not_divide_are_averaged_where_they_lie():
    maps = torch.rand(2, 30, 30)
    values, _, _ = unit_values(maps, torch.zeros(2, 3, 30, 30), Patches(8), grid=(3, 3))
    assert values.shape == (2, 3, 3)
    torch.testing.assert_close(values[:, 1, 2], maps[:, 8:16, 16:30].mean((1, 2)))
    constant, _, _ = unit_values(torch.full((1, 30, 30), 0.3), torch.zeros(1, 3, 30, 30), Patches(8), grid=(3, 3))
    assert constant.unique().numel() == 1  # ties stay ties


# Kind: masks ---------------------------------------------------------------------------------------------------------

MAP = torch.tensor([[0.9, 0.2], [0.8, 0.1]])
PICTURE = torch.tensor([[255, 0], [0, 0]], dtype=torch.uint8)
MASK = (PICTURE > 0).int()


@pytest.mark.parametrize("function", [metrics.iou, metrics.pixel_accuracy, metrics.average_precision])
def test_a_mask_of_0_and_255_is_a_picture_of_one(function):
    with pytest.warns(UserWarning, match="0 and 255"):
        found = function([MAP], [PICTURE])
    assert found.tolist() == function([MAP], [MASK]).tolist() and not found.isnan().any()
    with pytest.warns(UserWarning, match="0 and 255"):
        assert function([MAP], [PICTURE.float()]).tolist() == found.tolist()
    # with a class in it, 255 is void as ever; of void alone nothing is known
    void = torch.tensor([[1, 255], [255, 255]])
    assert function([MAP], [void]).tolist() == [100]
    assert function([MAP], [torch.full((2, 2), 255)]).isnan().all()


def test_cropping_does_not_make_a_picture_of_a_mask():
    seen = MAP.clone()
    seen[0, 0] = math.nan  # the only foreground pixel is outside the crop
    maps, masks = metrics.outside_is_void([seen], [MASK])
    assert metrics.iou(maps, masks).isnan().all()
    with pytest.warns(UserWarning, match="0 and 255"):
        maps, masks = metrics.outside_is_void([MAP], [PICTURE])
    assert masks[0].tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize(
    "mask",
    [
        torch.tensor([[math.nan, 0], [0, 1]]),
        torch.tensor([[math.inf, 0], [0, 1]]),
        torch.tensor([[0.3, 0], [0, 1]]),
        torch.tensor([[-1, 0], [0, 1]]),
        torch.tensor([[1.0, 0], [0.999, 1]]),
    ],
)
@pytest.mark.parametrize("function", [metrics.iou, metrics.average_precision, metrics.outside_is_void])
def test_a_mask_is_whole_numbers_from_0(mask, function):
    with pytest.raises(ValueError, match="whole numbers from 0"):
        function([MAP], [mask])


@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (2, 2, 3), (1, 2, 2), (4,)])
@pytest.mark.parametrize("function", [metrics.iou, metrics.average_precision, metrics.outside_is_void])
def test_a_mask_of_another_size_names_both(shape, function):
    with pytest.raises(ValueError, match=r"\(2, 2\) and its mask \("):
        function([MAP], [torch.ones(shape)])


def test_other_values_that_mean_nothing():
    for threshold in (math.nan, math.inf, "median", None):
        with pytest.raises(ValueError, match="number or 'mean'"):
            metrics.iou([MAP], [MASK], threshold=threshold)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        metrics.average_precision([MAP * 3], [MASK], ap="two-class")


# Kind: numeric environment -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
def test_float64_as_default_changes_nothing(vit, name):
    options = {"target": 1, "batch_size": 7}
    torch.manual_seed(3)
    expected = CALLS[name](vit, X, MAPS, **options)
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(3)
        found = CALLS[name](vit, X, MAPS, **options)
    finally:
        torch.set_default_dtype(torch.float32)
    if name != "head_ablation":  # its importance is drawn in another type
        torch.testing.assert_close(found, expected, check_dtype=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_of_other_types(vit, dtype):
    import copy

    model, pixels = copy.deepcopy(vit).to(dtype), X.to(dtype)
    for baseline in ("zero", "blur", "mean", "linear"):
        curve = metrics.deletion(model, pixels, MAPS, baseline=baseline, steps=3)
        assert curve.auc.isfinite().all() and curve.protocol.precision == str(dtype).removeprefix("torch.")
    filled = linear(pixels, torch.rand(2, 24, 24) > 0.5)
    assert filled.dtype == dtype and filled.isfinite().all()


needs_bfloat16 = pytest.mark.skipif(
    cheap_dtype("cpu") == torch.float32, reason="this processor computes in float32 alone"
)


@needs_bfloat16
def test_cheap_forwards_stay_close_and_say_so(vit):
    plain = metrics.insertion(vit, X, MAPS, target=1)
    cheap = metrics.insertion(vit, X, MAPS, target=1, precision="auto")
    assert plain.protocol.precision == "float32" and cheap.protocol.precision == "bfloat16"
    assert 0 < (plain.scores - cheap.scores).abs().max() < 0.05
    with pytest.raises(ValueError, match="'float32', 'auto'"):
        metrics.insertion(vit, X, MAPS, precision="half")
    assert not torch.is_autocast_enabled("cpu")
    assert not any("forward" in m.__dict__ for m in vit.modules())


@needs_bfloat16
def test_norms_and_the_head_stay_in_float32(vit):
    kinds, handles = {}, []
    for name, module in vit.named_modules():
        if isinstance(module, nn.LayerNorm | nn.Linear):
            keep = lambda m, i, o, name=name: kinds.__setitem__(name, o.dtype)  # noqa: E731
            handles.append(module.register_forward_hook(keep))
    with evaluating(vit, X, "auto") as precision:
        logits = vit(X).logits
    [h.remove() for h in handles]
    norms = {k: v for k, v in kinds.items() if "norm" in k}
    assert precision == "bfloat16" and len(norms) == 5 and set(norms.values()) == {torch.float32}
    assert logits.dtype == torch.float32 and (logits != logits.bfloat16()).any()
    inside = [v for k, v in kinds.items() if k not in norms and k != "classifier"]
    assert inside and set(inside) == {torch.bfloat16}


def test_cheap_forwards_leave_a_product_with_text_alone_and_need_blocks(vit):
    text = torch.randn(7, 5)

    class ByText(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = vit

        def forward(self, x):
            return self.inner(x).logits @ text.T

    with evaluating(ByText(), X, "auto"):
        logits = ByText()(X)
    assert logits.dtype == torch.float32 and (logits != logits.bfloat16()).any()
    assert metrics.insertion(MeanPixel(), X, MAPS, precision="auto").protocol.precision == "float32"


def test_a_callers_own_choice_is_kept(vit):
    with torch.autocast("cpu", torch.bfloat16):
        assert metrics.insertion(vit, X, MAPS, steps=2).protocol.precision == "bfloat16"


def test_where_the_processor_has_no_bfloat16_float32_stays(vit, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert metrics.insertion(vit, X, MAPS, steps=2, precision="auto").protocol.precision == "float32"
