"""What goes in is checked before anything runs: a table of bad inputs, and of those with one meaning."""

import functools
import pathlib
import weakref

import numpy as np
import pytest
import torch
import transformers as hf
from families import build, images
from PIL import Image
from torch import nn

from gmar_utils import explain, explain_many, load_model, trace
from gmar_utils.methods.baselines import attention
from gmar_utils.methods.weighting import gmar

X = images("vit")


class Counting(nn.Module):
    """A model that knows how often it ran."""

    def __init__(self, most=99, error=None):
        super().__init__()
        self.vit, self.most, self.error, self.batches = build("vit"), most, error, []

    def forward(self, x):
        self.batches.append(len(x))
        if len(x) > self.most:
            raise self.error
        return self.vit(x).logits


PIXELS = {
    "uint8": X.byte(),
    "int64": X.long(),
    "bool": X > 0,
    "complex": X + 0j,
    "NaN": torch.full_like(X, torch.nan),
    "one NaN": torch.where(torch.arange(X.numel()).view_as(X) == 7, torch.nan, X),
    "infinity": X / 0,
    "no image": X[:0],
    "no pixel": X[..., :0],
    "one image": X[0],
    "video": X[None],
    "flat": X.flatten(1),
    "sparse": X.to_sparse(),
    "meta": X.to("meta"),
    "list of tensors": list(X),
    "list of lists": [[0.0]],
    "PIL": Image.new("RGB", (32, 32)),
    "a path": pathlib.Path("cat.png"),
    "a word": "cat.png",
    "None": None,
    "a number": 3.0,
    "int array": (9 * X.numpy()).astype("uint8"),
    "object array": np.array([None]),
    "array of one image": X[0].numpy(),
    "array with NaN": np.full((1, 3, 32, 32), np.nan, np.float32),
    "dict without pixels": {"images": X},
    "BatchFeature of lists": hf.BatchFeature({"pixel_values": [X[0]]}),
}


@pytest.mark.parametrize("name", PIXELS)
@pytest.mark.parametrize("call", [trace, explain, functools.partial(explain, method="legrad")])
def test_bad_pixel_values_are_refused_in_one_line_before_anything_runs(name, call):
    model = Counting()
    with pytest.raises(ValueError, match=r"pixel_values.*preprocess") as caught:
        call(model, PIXELS[name])
    assert not model.batches and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "pixels",
    [
        X.numpy(),
        X.double().numpy(),
        X.double(),
        hf.BatchFeature({"pixel_values": X}),
        hf.BatchFeature({"pixel_values": X.numpy()}),
        {"pixel_values": X},
        X.clone().requires_grad_(),
        X.mT.contiguous().mT,
    ],
)
@pytest.mark.parametrize("method", ["gmar", "grad-cam"])
def test_what_has_one_meaning_is_accepted(pixels, method):
    model = build("vit")
    torch.testing.assert_close(explain(model, pixels, method, 1), explain(model, X, method, 1), atol=1e-5, rtol=0)
    assert trace(model, pixels).pixel_values.dtype == torch.float32


@pytest.mark.parametrize("size, words", [((7, 32), "embed"), ((1, 1), "embed"), ((32, 7), "embed")])
@pytest.mark.parametrize("method", ["gmar", "rollout", "legrad"])
def test_a_picture_smaller_than_a_patch_is_refused(size, words, method):
    with pytest.raises(ValueError, match=words):
        explain(build("vit"), torch.randn(1, 3, *size), method)


def test_other_channels_and_sizes_are_refused():
    patch = nn.Conv2d(3, 8, 8, 8)
    for pixels in (torch.randn(1, 4, 32, 32), torch.randn(1, 3, 40, 40)):
        with pytest.raises(ValueError, match="32|channel"):
            explain(build("vit"), pixels)
    with pytest.raises(ValueError, match="4 channels"):  # a plain module, which says nothing itself
        explain(nn.Sequential(patch), torch.randn(1, 4, 32, 32))


TARGETS = {
    "short list": [1],
    "long list": [1, 2, 3],
    "long tensor": torch.arange(4),
    "tuple of one": (1,),
    "tuple of three": (1, 2, 3),
    "tuple with a word": (1, "cat"),
    "a class against itself": (1, 1),
    "float": 1.0,
    "float array": np.array([1.0, 2.0]),
    "bool": True,
    "word": "cat",
    "words": ["cat", "cup"],
    "column": torch.tensor([[1], [2]]),
    "set": {1, 2},
    "outside": 5,
    "below": -1,
    "outside in a list": [0, 9],
    "outside in a contrast": (0, 9),
    "too large for an integer": 10**30,
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("batch_size", [1, 32])
def test_bad_targets_are_refused_whether_the_batch_is_split_or_not(name, batch_size):
    model = Counting()
    with pytest.raises((ValueError, TypeError, IndexError), match="target|contrast"):
        explain(model, X, "gmar", TARGETS[name], batch_size=batch_size)
    if "outside" not in name and name != "below":  # these need the number of classes
        assert not model.batches


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda ids: torch.tensor(ids).int()])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_targets_follow_their_images_when_the_batch_is_split(kind, batch_size):
    model, x = build("vit"), images("vit", 3)
    ids = [3, 0, 2]
    expected = torch.cat([explain(model, x[i : i + 1], "gmar", ids[i]) for i in range(3)])
    torch.testing.assert_close(explain(model, x, "gmar", kind(ids), batch_size=batch_size), expected, atol=1e-5, rtol=0)


def test_a_contrast_is_the_difference_of_two_logits():
    model, x = build("vit"), images("vit", 3)
    seen, a, b = trace(model, x, (3, 1)), trace(model, x, 3), trace(model, x, 1)
    for g, ga, gb in zip(seen.gradients, a.gradients, b.gradients, strict=True):
        torch.testing.assert_close(g, ga - gb, atol=1e-6, rtol=1e-4)
    assert seen.target.tolist() == [3, 3, 3] and seen.against.tolist() == [1, 1, 1] and a.against is None
    split = explain(model, x, "gmar", (3, 1), batch_size=1)
    torch.testing.assert_close(split, explain(model, x, "gmar", (3, 1)), atol=1e-5, rtol=0)
    assert not torch.allclose(split, explain(model, x, "gmar", 3), atol=1e-2)
    for method in ("legrad", "grad-cam", "chefer"):
        there, back = (explain(model, x, method, t, upsample=False) for t in ((3, 1), (1, 3)))
        assert not torch.allclose(there, back, atol=1e-3)
    one = build("vit", labels=1)
    torch.testing.assert_close(trace(one, x, (1, 0)).gradients[0], 2 * trace(one, x, 1).gradients[0])


@pytest.mark.parametrize("batch_size", [0, -1, True, 1.5, "8", None])
def test_bad_batch_sizes_are_refused(batch_size):
    model = Counting()
    with pytest.raises(ValueError, match="batch_size"):
        explain(model, X, batch_size=batch_size)
    assert not model.batches


@pytest.mark.parametrize("model", ["vit-shapes", None, object(), nn.Linear, 3])
def test_what_is_no_model_is_refused(model):
    for call in (trace, explain):
        with pytest.raises(ValueError, match=r"torch.nn.Module.*load_model"):
            call(model, X)


def test_a_vit_in_place_of_its_module_is_told_so():
    with pytest.raises(ValueError, match=r"vit.explain"):
        explain(load_model("vit-shapes"), X)


# --- methods ----------------------------------------------------------------------------------------------------------


def test_functions_and_partials_are_methods():
    model = build("vit")
    maps = explain_many(
        model, X, {"a": "gmar", "b": gmar, "c": functools.partial(gmar, norm="l2"), "d": lambda t: attention(t)}, 1
    )
    torch.testing.assert_close(maps["a"], maps["b"])
    torch.testing.assert_close(maps["c"], explain(model, X, "gmar", 1, norm="l2"))
    torch.testing.assert_close(maps["d"], explain(model, X, "attention", 1))
    torch.testing.assert_close(explain(model, X, gmar, 1, norm="l2"), maps["c"])


@pytest.mark.parametrize(
    "method, options, error",
    [
        (3, {}, ValueError),
        ("", {}, ValueError),
        (None, {}, ValueError),
        (lambda: 0, {}, TypeError),
        (lambda t: t.readout, {"alpha": 1}, TypeError),
        (lambda t, a: t.readout, {}, TypeError),
        (functools.partial(gmar, layers=2), {}, TypeError),
    ],
)
def test_what_is_no_method_is_refused_before_anything_runs(method, options, error):
    model = Counting()
    with pytest.raises(error):
        explain(model, X, method, **options)
    assert not model.batches


@pytest.mark.parametrize(
    "method",
    [
        lambda t: t.patches(t.readout),
        lambda t: t.readout[:, 1:],
        lambda t: t.readout.numpy(),
        lambda t: t.readout[0],
        lambda t: None,
        lambda t: t.readout / 0,
    ],
)
def test_scores_of_another_shape_or_NaN_are_refused(method):
    with pytest.raises(ValueError, match="scores"):
        explain(build("vit"), X, method)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gmar", "rollout", "legrad", "grad-cam", "center"])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, "float16"])
def test_logits_that_are_no_numbers_are_refused(method, broken):
    model, x = build("vit"), X
    with torch.no_grad():
        if broken == "float16":
            model, x = model.half(), x.half()
            model.classifier.weight.fill_(6e4)
        else:
            model.classifier.bias[0] = broken
    with pytest.raises(ValueError, match="bfloat16 or float32"):
        explain(model, x, method)


@pytest.mark.parametrize("method", ["gmar", "rollout", "legrad", "grad-cam", "chefer", "attention", "random", "center"])
def test_double_precision_as_the_default_changes_nothing(method):
    model = build("vit")
    expected = explain(model, X, method, 1)
    torch.set_default_dtype(torch.float64)
    try:
        got = explain(model, X, method, 1)
    finally:
        torch.set_default_dtype(torch.float32)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


# --- models that pass no gradient, or show nothing --------------------------------------------------------------------


@pytest.fixture(scope="module")
def quantised():
    return torch.ao.quantization.quantize_dynamic(build("vit"), {nn.Linear}, dtype=torch.qint8)


@pytest.mark.parametrize("method", ["gmar", "legrad", "grad-cam", "chefer"])
def test_a_quantised_model_says_what_it_can_do(quantised, method):
    with pytest.raises(ValueError, match="Use rollout or attention"):
        explain(quantised, X, method)


@pytest.mark.parametrize("method", ["rollout", "attention"])
def test_a_quantised_model_is_rolled_out(quantised, method):
    got, expected = explain(quantised, X, method), explain(build("vit"), X, method)
    assert torch.corrcoef(torch.stack([got.flatten(), expected.flatten()]))[0, 1] > 0.9


def test_a_quantised_mean_of_patches_is_refused():
    model = torch.ao.quantization.quantize_dynamic(build("beit"), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ValueError, match="passes no gradient"):
        explain(model, X, "rollout")


class Logits(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).logits


def test_traced_and_inference_models_are_refused_in_words():
    traced = torch.jit.trace(Logits(build("vit")), X)
    with torch.inference_mode():
        frozen = build("vit")
    inference = Logits(build("vit"))
    inference.forward = torch.inference_mode()(inference.forward)
    for model, words in (
        (traced, "traced"),
        (nn.Sequential(traced), "traced"),
        (frozen, "made under"),
        (inference, "runs under"),
    ):
        for method in ("gmar", "rollout"):
            with pytest.raises(ValueError, match=words):
                explain(model, X, method)


# --- memory -----------------------------------------------------------------------------------------------------------

OUT_OF_MEMORY = {
    "CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: can't allocate memory"),
    "Python": MemoryError(),
    "GPU": torch.OutOfMemoryError("CUDA out of memory"),
}


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_batch_that_does_not_fit_is_halved(kind, most):
    x, target = images("vit", 7), [0, 1, 2, 3, 4, 0, 1]
    model = Counting(most, OUT_OF_MEMORY[kind])
    got = explain(model, x, "gmar", target)
    torch.testing.assert_close(got, explain(model.vit, x, "gmar", target), atol=1e-5, rtol=0)
    done = [b for b in model.batches if b <= most]
    assert sum(done) == 7 and len(model.batches) <= len(done) + 3


def test_one_image_that_does_not_fit_and_other_errors_are_raised():
    with pytest.raises(MemoryError):
        explain(Counting(0, MemoryError()), X)
    model = Counting(1, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        explain(model, X)
    assert model.batches == [2]


def test_a_pass_costs_what_it_says():
    model = Counting()
    for method, passes in (("rollout", 1), ("gmar", 1), ("chefer", 1), ("grad-cam", 1), ("legrad", 1), ("center", 1)):
        model.batches.clear()
        explain(model, X, method)
        assert len(model.batches) == passes, method
    model.batches.clear()
    seen = trace(model, X)
    assert len(seen.gradients) == 3 and seen.activation[1].shape == (2, 17, 32) and seen.gradients is seen.gradients
    assert len(model.batches) == 1
    explain_many(model, X, {m: m for m in ("rollout", "gmar", "chefer", "grad-cam", "attention", "random")})
    assert len(model.batches) == 2
    light = trace(model, X, gradients=False)
    assert len(light.gradients) == 3 and len(model.batches) == 4


def test_nothing_of_a_pass_is_kept_alive():
    import gc

    model = build("vit")
    gc.collect()
    gc.disable()
    try:
        kept = []
        for method in ("gmar", "legrad", "grad-cam"):
            explain(model, X, lambda t, m=method: kept.append(weakref.ref(t)) or attention(t))
        assert [k() for k in kept] == [None] * 3
    finally:
        gc.enable()
