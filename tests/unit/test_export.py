"""The exported graph against `trace` and `explain`, through onnxruntime."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import ViTImageProcessorPil

from gmar_utils import explain, load_model, trace
from gmar_utils.cli.main import main
from gmar_utils.methods.weighting import head_weights, weighted_rollout
from gmar_utils.photo import minmax
from tests.unit.families import build, grid, images

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from gmar_utils.export import export  # noqa: E402
from gmar_utils.export.graph import OUTPUTS, quantised  # noqa: E402

FAMILIES = ["vit", "vit-wide", "deit", "deit-distilled", "dinov2", "dinov2-registers"]


def vit_of(name, labels=5, **config):
    model = build(name, labels, **config)
    height, width = (32, 48) if name == "vit-wide" else (32, 32)
    size = {"height": height, "width": width}
    processor = ViTImageProcessorPil(size=size, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4])
    return load_model(model, processor=processor)


def write(name, tmp_path, bits=32, labels=5, image_size=None, **config):
    vit = vit_of(name, labels, **config)
    size = image_size or (None if name == "vit-wide" else 32)
    return vit, export(vit, tmp_path / "graph.onnx", size, bits)


def run(path, pixels, target=-1):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {"pixels": pixels.numpy(), "target": np.array([target])})
    assert [o.name for o in session.get_outputs()] == list(OUTPUTS)
    return {name: torch.from_numpy(value) for name, value in zip(OUTPUTS, found, strict=True)}


def metadata(path):
    return {p.key: p.value for p in onnx.load(path).metadata_props}


def correlation(a, b):
    return np.corrcoef(a.flatten(), b.flatten())[0, 1]


def maps(found, prefix, shape, readout):
    """Every method's map from what the graph returns."""
    attention, gradient = found["attention"].split(1), found["gradient"].split(1)

    def rolled(norm, variant):
        weights = head_weights(attention if norm is None else gradient, norm)
        return weighted_rollout(attention, weights, readout, 1.0, variant)[0, prefix:]

    weights = found["activation_gradient"][prefix:].mean(0)
    relevance = readout.reshape(1, -1).clone()
    for a, g in zip(reversed(attention), reversed(gradient), strict=True):
        relevance = relevance + relevance @ (a * g).relu().mean(1)[0]
    return {
        ("rollout", ()): rolled(None, "output-first"),
        ("gmar", (("norm", "l1"),)): rolled("l1", "paper"),
        ("gmar", (("norm", "l2"),)): rolled("l2", "paper"),
        ("grad-cam", ()): (found["activation"][prefix:] @ weights).relu(),
        ("legrad", ()): found["legrad"].mean(0)[prefix:],
        ("chefer", ()): relevance[0, prefix:],
        ("attention", ()): (readout @ attention[-1].mean(1)[0])[prefix:],
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_the_graph_returns_what_trace_sees(name, tmp_path):
    vit, path = write(name, tmp_path)
    pixels = images(name, batch=1)
    for target in (None, 0, 3):
        expected = trace(vit.model, pixels, target)
        found = run(path, pixels, -1 if target is None else target)
        torch.testing.assert_close(found["logits"], expected.logits, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(found["attention"], torch.cat(list(expected.attentions)), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(found["gradient"], torch.cat(list(expected.gradients)), atol=1e-4, rtol=1e-3)
        readout = expected.readout.reshape(-1, expected.readout.shape[-1])[0]
        for (method, options), ours in maps(found, expected.prefix_tokens, grid(name), readout).items():
            theirs = explain(vit.model, pixels, method, expected.target, upsample=False, **dict(options))
            torch.testing.assert_close(minmax(ours[None])[0], theirs.flatten(), atol=2e-3, rtol=0, msg=method)


def test_a_single_logit_stands_for_two_classes(tmp_path):
    vit, path = write("vit", tmp_path, labels=1)
    for seed in range(4):  # both signs of the logit
        pixels = images("vit", batch=1, seed=seed)
        for target in (None, 0, 1):
            expected = torch.cat(list(trace(vit.model, pixels, target).gradients))
            found = run(path, pixels, -1 if target is None else target)["gradient"]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["vit", "deit-distilled", "dinov2"])
@pytest.mark.parametrize("size", [48, (32, 64)])
def test_another_input_size(name, size, tmp_path):
    vit, path = write(name, tmp_path, image_size=size)
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.randn(1, 3, height, width)
    assert vit.processor.size["height"] == 32, "the caller's processor was changed"
    at_size = load_model(build(name), processor=vit_of(name).processor, image_size=size)
    expected, found = trace(at_size.model, pixels), run(path, pixels)
    torch.testing.assert_close(found["logits"], expected.logits, atol=1e-3, rtol=1e-3)
    assert json.loads(metadata(path)["grid"]) == [height // 8, width // 8]


def test_one_layer_and_no_bias(tmp_path):
    vit, path = write("vit", tmp_path, num_hidden_layers=1, qkv_bias=False)
    pixels = images("vit", batch=1)
    expected = trace(vit.model, pixels)
    torch.testing.assert_close(run(path, pixels)["gradient"], expected.gradients[0], atol=1e-4, rtol=1e-3)


def test_dinov2_is_written_for_eight_by_eight_patches(tmp_path):
    path = export(vit_of("dinov2"), tmp_path / "graph.onnx")
    assert json.loads(metadata(path)["image_size"]) == [64, 64]
    assert json.loads(metadata(path)["grid"]) == [8, 8]


@pytest.mark.parametrize("bits", [8, 16])
def test_rounded_weights(bits, tmp_path):
    vit, path = write("dinov2", tmp_path, bits=bits)
    exact = export(vit, tmp_path / "exact.onnx", 32, 32)
    values = []
    for seed in range(5):
        pixels = images("dinov2", batch=1, seed=seed)
        rounded, true = run(path, pixels, 1), run(exact, pixels, 1)
        values += [correlation(rounded[k], true[k]) for k in ("logits", "attention", "gradient")]
    assert np.mean(values) > 0.99
    assert metadata(path)["bits"] == str(bits)


def test_eight_bits_are_a_quarter_of_the_matrices_and_none_is_stored_twice(tmp_path):
    vit, path = write("vit", tmp_path, bits=8, hidden_size=96, intermediate_size=384)
    stored = onnx.load(path).graph.initializer
    sizes = {i.name: len(i.raw_data) for i in stored if i.data_type == onnx.TensorProto.INT8}
    matrices = [m.weight.numel() for m in vit.model.vit.layers.modules() if isinstance(m, torch.nn.Linear)]
    assert sum(sizes.values()) == sum(matrices)
    parameters = sum(p.numel() for p in vit.model.parameters())
    assert path.stat().st_size < 1.2 * parameters + 60_000


def test_rounding_is_to_the_nearest_step_of_the_channels_own_scale():
    weight = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32) * np.logspace(-6, 3, 6)[:, None]
    weight = np.concatenate([weight, np.zeros((1, 40))]).astype(np.float32)
    scale, whole = quantised(weight)
    assert whole.dtype == np.int8 and np.abs(whole).max() == 127
    assert (np.abs(scale[:, None] * whole - weight) <= 0.5001 * scale[:, None]).all()
    assert not whole[-1].any()


def test_the_file_says_how_to_read_it(tmp_path):
    vit, path = write("deit-distilled", tmp_path, bits=8)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    found = metadata(path)
    values = {k: json.loads(found[k]) for k in ("grid", "prefix_tokens", "readout", "mean", "std", "labels", "resize")}
    assert values == {
        "grid": [4, 4],
        "prefix_tokens": 2,
        "readout": [0.5, 0.5],
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        "labels": vit.labels,
        "resize": {"height": 32, "width": 32},
    }
    assert len(found["weights_sha256"]) == 64 and found["model_type"] == "deit"
    assert "/" not in found["model"]


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("beit", {}, "beit"),
        ("clip", {}, "clip"),
        ("vit", {"hidden_act": "relu"}, "hidden_act"),
        ("dinov2", {"use_swiglu_ffn": True}, "SwiGLU"),
        ("vit", {"problem_type": "regression"}, "regression"),
    ],
)
def test_other_models_are_refused_in_words(name, config, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        export(vit_of(name, **config), tmp_path / "graph.onnx")
    assert not list(tmp_path.iterdir())


def test_a_module_without_a_configuration_and_a_head_of_two_layers_are_refused(tmp_path):
    vit = vit_of("vit")
    vit.model.classifier = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 5))
    with pytest.raises(ValueError, match="linear classification head"):
        export(vit, tmp_path / "graph.onnx", 32)
    with pytest.raises(ValueError, match="transformers"):
        export(replace(vit_of("vit"), model=torch.nn.Linear(3, 3)), tmp_path / "graph.onnx")


def test_a_block_that_does_more_than_the_graph_is_found_out(tmp_path):
    vit = vit_of("vit")
    vit.model.vit.layers[1].mlp.fc1.register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(ValueError, match="differs from the model's"):
        export(vit, tmp_path / "graph.onnx", 32)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"image_size": 36}, "multiples"), ({"bits": 4}, "bits"), ({"out": "nowhere/graph.onnx"}, "nowhere")],
)
def test_bad_arguments(arguments, words, tmp_path):
    arguments = {"out": "graph.onnx", "image_size": 32} | arguments
    with pytest.raises(ValueError, match=words):
        export(vit_of("vit"), tmp_path / arguments.pop("out"), **arguments)


def test_command_line(tmp_path, capsys):
    vit = vit_of("vit")
    vit.model.save_pretrained(tmp_path / "model")
    vit.processor.save_pretrained(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "graph.onnx")]) == 0
    assert "MB" in capsys.readouterr().out
    assert metadata(tmp_path / "graph.onnx")["model"] == "model"
    build("beit").save_pretrained(tmp_path / "beit")
    vit.processor.save_pretrained(tmp_path / "beit")
    assert main(["export", str(tmp_path / "beit"), str(tmp_path / "no.onnx")]) == 2
    assert "beit" in capsys.readouterr().err
