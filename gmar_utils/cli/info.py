"""`gmar info`: versions, bundled models, or what is known of one model."""

import argparse

from .output import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gmar info`."""
    parser.add_argument("model", nargs="?", help="bundled name, folder or hub id")


def main(args: argparse.Namespace) -> int:
    """Print it."""
    import numpy as np
    import torch
    import transformers

    from .. import METHODS, __version__, load_model, trace
    from ..capture.layout import model_type
    from ..model import bundled

    say(f"gmar_utils {__version__}, torch {torch.__version__}, transformers {transformers.__version__}")
    say(f"device: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'}")
    if args.model is None:
        say(f"bundled models: {', '.join(bundled())}")
        say(f"methods: {', '.join(METHODS)}")
        return 0
    vit = load_model(args.model)
    pixels = vit.preprocess(np.zeros((224, 224, vit.channels), dtype=np.uint8))
    seen = trace(vit.model, pixels, gradients=False)
    layers, heads = len(seen.attentions), seen.attentions[0].shape[1]
    parameters = sum(p.numel() for p in vit.model.parameters())
    say(f"{vit.name}: {model_type(vit.model)}, {parameters / 1e6:.1f} M parameters")
    say(f"input: {' × '.join(map(str, pixels.shape[1:]))} (channels × height × width)")
    rows, columns = seen.grid
    say(f"{layers} layers × {heads} heads; {rows} × {columns} patches after {seen.prefix_tokens} prefix tokens")
    say(f"{seen.logits.shape[1]} classes: {'; '.join(vit.labels)}")
    return 0
