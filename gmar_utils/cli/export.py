"""gmar export: a model and its gradients as one ONNX graph."""

import argparse
from pathlib import Path

from . import types
from .output import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gmar export`."""
    parser.description = (
        "One ONNX file of a ViT, DeiT or DINOv2 classifier of transformers that returns, for a picture and a class, "
        "the logits, every layer's attention and the class's gradient with respect to it: for browsers, phones, C++. "
        "The graph is compared with PyTorch before its weights are rounded."
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="bundled name, folder or hub id")
    add("out", metavar="OUT", type=Path, help="the .onnx file to write")
    size = "pixels: 224, or 112x168 (default: 8 x 8 patches for DINOv2, else the model's own)"
    add("--image-size", type=types.image_size, metavar="N|HxW", help=size)
    bits = "of the weight matrices (default: %(default)s, with a scale for each output channel)"
    add("--bits", type=int, choices=(8, 16, 32), default=8, help=bits)


def main(args: argparse.Namespace) -> int:
    """Write the file and say how large it is."""
    try:
        from ..export import export
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed: pip install 'gmar-utils[export]'") from None
    out = export(args.model, args.out, args.image_size, args.bits)
    say(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    return 0
