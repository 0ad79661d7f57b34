"""`gmar evaluate`: its options, and the data sets it knows."""

import argparse
import re
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import PartialState

from .. import data, metrics
from ..evaluation import DEFAULT_METHODS, METRICS, evaluate
from ..evaluation.measures import FAITHFULNESS, LOCALIZATION, OPTIONS, TWO_OBJECTS, checked_options
from ..evaluation.run import known
from ..evaluation.variants import bound_methods
from ..model import load_model
from . import types


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gmar evaluate`."""
    parser.epilog = (
        "Several processes, on GPUs or CPUs: accelerate launch --multi_gpu --num_processes N -m gmar_utils evaluate …"
    )
    add = parser.add_argument
    add("--data", default="tiny-imagenet", choices=DATA, help="data set (default: %(default)s)")
    add("--source", help="where the data set is: folder, file or hub id (default: its environment variable)")
    add("--model", default="vit-small-tiny-imagenet", help="bundled name, folder or hub id (default: %(default)s)")
    add("--image-size", type=types.image_size, metavar="N|HxW", help="another resolution or shape: 112, or 64x96")
    add("--limit", type=types.positive, help="so many images, drawn with --seed (default: all)")
    add("--seed", type=int, default=0, help="draws images, random maps and bootstrap (default: 0)")
    add("--batch-size", type=types.positive, default=64, help="images in a forward (default: 64)")
    add("--block", type=types.positive, default=16, help="images in a file; a kill loses at most one (default: 16)")
    dtype = "of the metrics' forward passes: the cheapest that the processor computes in, or float32 (default: auto)"
    add("--precision", choices=("auto", "float32"), default="auto", help=dtype)
    methods = (
        f"labels ({', '.join(DEFAULT_METHODS)}), methods, or METHOD:option=value,… such as gmar:norm=l2,alpha=2; "
        "default: all labels"
    )
    add("--methods", nargs="+", metavar="METHOD", help=methods)
    measures = (
        f"{', '.join(METRICS)} (default: {' '.join(LOCALIZATION)} for data with masks, {' '.join(TWO_OBJECTS)} "
        f"for pairs, else {' '.join(FAITHFULNESS)})"
    )
    add("--metrics", nargs="+", metavar="METRIC", choices=METRICS, help=measures)
    protocol = f"options of the metrics: {', '.join(OPTIONS)}; or a preset: {', '.join(metrics.PRESETS)}"
    add("--protocol", nargs="+", metavar="KEY=VALUE", default=[], help=protocol)
    out = "output folder; the same command continues a run that was cut off (default: %(default)s)"
    add("--out", type=Path, default=Path("evaluation"), help=out)


def main(args: argparse.Namespace) -> int:
    """`gmar evaluate`."""
    state = PartialState(cpu=not torch.cuda.is_available())
    methods, protocol = parse_methods(args.methods), parse_protocol(args.protocol)
    bound_methods(methods), checked_options(protocol)  # what is wrong is said before the model loads
    device = str(state.device) if state.num_processes > 1 else "auto"
    vit = load_model(args.model, image_size=args.image_size, device=device)
    options = {k: getattr(args, k) for k in ("limit", "seed", "batch_size", "block", "precision")}
    options |= {"protocol": protocol, "data_name": args.data}
    summary = evaluate(vit, DATA[args.data](args, vit), methods, args.metrics, args.out, **options)
    if state.is_main_process:
        print(summary.to_markdown())
        print(f"Rows, summary and provenance are in {args.out}")
    state.destroy_process_group()
    return 0


DATA = {
    "tiny-imagenet": lambda args, vit: data.tiny_imagenet("valid", args.source),
    "voc2012": lambda args, vit: data.voc2012(args.source, classes=len(vit.labels)),
    "voc-pairs": lambda args, vit: known(vit, data.voc_pairs(args.source, classes=len(vit.labels))),
    "shapes": lambda args, vit: data.shapes(args.limit or 200, seed=args.seed),
    "shape-pairs": lambda args, vit: data.shape_pairs(args.limit or 200, seed=args.seed),
}


def parse_methods(words: list[str] | None) -> dict:
    """{label: (method, options)} from labels, method names and METHOD:option=value,…"""
    methods = {}
    for word in words or DEFAULT_METHODS:
        name, colon, options = word.partition(":")
        methods[word] = DEFAULT_METHODS.get(word) or (name, _options(options) if colon else {})
    return methods


def parse_protocol(words: list[str]) -> dict:
    """Options of the metrics from KEY=VALUE words and presets, later ones winning."""
    found = [metrics.PRESETS.get(word) or _options(word) for word in words]
    return {key: value for options in found for key, value in options.items()}


def _options(text):
    """KEY=VALUE,… as a dictionary."""
    pairs = [word.partition("=") for word in re.split(r",(?=\w+=)", text)]
    for key, equals, _ in pairs:
        if not equals:
            raise ValueError(f"An option is written KEY=VALUE, got {key!r}.")
    return {key: _value(value) for key, _, value in pairs}


def _value(text):
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    return None if text.lower() == "none" else text
