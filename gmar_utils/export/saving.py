"""From a model to a file: its preprocessing beside the graph, checked against PyTorch before weights are rounded."""

import copy
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from .. import __version__
from ..capture import trace
from ..capture.layout import model_type, unwrap
from ..evaluation.provenance import weights_sha256
from ..files import atomic
from ..model import Vit, load_model
from .graph import OUTPUTS, build
from .weights import check_family, read_weights

BITS = (8, 16, 32)


def export(
    model: Vit | str | os.PathLike | nn.Module,
    out: str | Path,
    image_size: int | tuple[int, int] | None = None,
    bits: int = 8,
) -> Path:
    """Write one ONNX file: a forward pass, and the backward pass to every layer's attention written into the graph.

    Before the weights are rounded, the graph is compared with `trace` through onnxruntime.

    Args:
        model: a transformers ViT, DeiT or DINOv2 classifier: a `Vit`, a bundled name, a folder, a hub id or a module.
        out: the file to write; its folder must exist.
        image_size: pixels, int or (height, width), multiples of the patch size; default: 8 × 8 patches for DINOv2
            (112 for patches of 14), else the model's own size.
        bits: of the weight matrices: 8 (whole numbers, a scale for each output channel; the patch embedding and the
            classifier keep 16), 16 or 32.

    Returns:
        The path of the file. Inputs: `pixels` (1, channels, height, width) float32, as `Vit.preprocess` makes them, and
        `target` (1,) int64, a class id, or −1 for the predicted class. Outputs, float32:
        `logits` (1, K), `attention` (L, H, N, N), `gradient` (L, H, N, N) = ∂y/∂A, and for Grad-CAM the output of the
        last block's first LayerNorm, `activation` (N, D), with `activation_gradient` (N, D); `legrad` (L, N): each
        layer's LeGrad scores of the tokens, to be averaged over layers. The file's metadata holds what a reader needs:
        grid, prefix_tokens, readout, image_size, resize, mean, std, labels, and the SHA-256 of the weights.

    Raises:
        ValueError: the folder does not exist; the model, the size or `bits` is not one that the graph describes; or the
            graph does not give the model's own numbers.
    """
    if bits not in BITS:
        raise ValueError(f"bits must be one of {BITS}, got {bits!r}.")
    out = Path(out)
    if not out.parent.is_dir():
        raise ValueError(f"{str(out)!r}: the folder {str(out.parent)!r} does not exist.")
    vit = model if isinstance(model, Vit) else load_model(model)
    check_family(unwrap(vit.model))
    vit = _at_size(vit, image_size)
    shape = vit.preprocess(np.zeros((32, 32, vit.channels), np.uint8)).shape
    size = tuple(shape[-2:])
    seen = trace(vit.model, torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    weights = read_weights(vit.model, seen)
    if any(s % p for s, p in zip(size, weights.stride, strict=True)):
        raise ValueError(f"The picture's sides {size} must be multiples of the patch's {weights.stride}.")
    _compare(seen, build(weights, size, 32))
    graph = build(weights, size, bits)
    onnx.helper.set_model_props(graph, _metadata(vit, weights, size, bits))
    onnx.checker.check_model(graph)
    with atomic(out) as file:
        file.write_bytes(graph.SerializeToString())
    return out


def _at_size(vit, image_size):
    """A float32 copy that runs at the size: the caller's model and processor stay as they are."""
    config = unwrap(vit.model).config
    if image_size is None and config.model_type.startswith("dinov2"):
        image_size = 8 * config.patch_size
    model = copy.deepcopy(unwrap(vit.model)).float()
    at_size = load_model(model, processor=vit.processor, image_size=image_size, device="cpu")
    return replace(at_size, name=vit.name, labels=vit.labels)


def _compare(expected, graph):
    """ValueError unless the graph gives the logits, attention and gradients that were seen in the model."""
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    found = dict(
        zip(
            OUTPUTS, session.run(None, {"pixels": expected.pixel_values.numpy(), "target": np.array([-1])}), strict=True
        )
    )
    pairs = {
        "logits": (found["logits"], expected.logits.numpy()),
        "attention": (found["attention"], torch.cat(expected.attentions).numpy()),
        "gradient": (found["gradient"], torch.cat(expected.gradients).numpy()),
    }
    for name, (ours, theirs) in pairs.items():
        error, scale = np.abs(ours - theirs).max(), np.abs(theirs).max()
        if not error <= 1e-3 * max(scale, 1e-6):
            raise ValueError(
                f"The graph's {name} differs from the model's by {error:.2g} (largest {scale:.2g}), so it was not "
                "written: this model does something that export's graph does not."
            )


def _metadata(vit, weights, size, bits):
    """What a reader of the file needs to know, as strings (JSON but for plain words)."""
    processor = vit.processor
    resize = {k: v for k, v in dict(processor.size).items() if v} if processor.do_resize else None
    crop = [processor.crop_size["height"], processor.crop_size["width"]] if _crops(processor) else None
    values = {
        "image_size": size,
        "resize": resize,  # height and width, or the shortest edge
        "resample": int(processor.resample),  # of PIL: 2 bilinear, 3 bicubic
        "crop": crop,  # from the centre: height, width
        "grid": weights.grid,
        "prefix_tokens": weights.prefix_tokens,
        "readout": weights.readout[: weights.prefix_tokens].tolist(),  # of the prefix tokens; 0 for patches
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
        "labels": vit.labels,
        "bits": bits,
    }
    words = {
        "model": Path(vit.name).name,
        "model_type": model_type(vit.model),
        "weights_sha256": weights_sha256(vit),
        "written_by": f"gmar_utils {__version__}",
    }
    return words | {name: json.dumps(value) for name, value in values.items()}


def _crops(processor):
    return bool(getattr(processor, "do_center_crop", False))
