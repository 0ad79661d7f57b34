"""`gmar finetune`: train, go on with a training, or measure a model."""

import argparse
import math
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState

from .. import data
from ..data import drawing
from ..model import load_model
from ..training import RECIPES, measure, pictures, save, starting_point, train
from . import types


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gmar finetune`."""
    parser.epilog = "Several GPUs: accelerate launch --multi_gpu --num_processes N -m gmar_utils finetune …"
    add = parser.add_argument
    add("--recipe", choices=RECIPES, default="shapes", help="what to train (default: %(default)s)")
    add("--init", help="start from this bundled model, folder or hub id, instead of the recipe's")
    add("--layers", type=types.positive, help="keep only so many of its first layers")
    add("--source", help="Tiny-ImageNet: folder or hub id (default: GMAR_TINY_IMAGENET, or hub)")
    out = (
        "folder of the checkpoint; its training/ holds the state, from which the same command goes on after a kill "
        "(default: the recipe's name)"
    )
    add("--out", type=types.folder, help=out)
    epochs = "instead of the recipe's; a training whose rate does not fall yet may be shortened or prolonged"
    add("--epochs", type=float, help=epochs)
    add("--batch-size", type=types.positive, help="of all processes together, instead of the recipe's")
    add("--learning-rate", type=float, help="instead of the recipe's")
    add("--scenes", type=types.positive, help="how many shapes to generate, instead of the recipe's")
    add("--seed", type=int, help="instead of the recipe's (0)")
    add("--accumulate", type=types.positive, default=1, help="parts a batch is computed in, to save memory")
    add("--minutes", type=number, default=math.inf, help="stop after so long; call again to go on")
    add("--save-every", type=number, default=180.0, metavar="SECONDS", help="between two states (default: 180)")
    model = "train nothing; print the accuracy of a bundled model, folder or hub id on pictures that no training saw"
    add("--measure", metavar="MODEL", help=model)
    add("--image-size", type=types.positive, nargs="+", metavar="N", help="measure at these sizes, in pixels")


def main(args: argparse.Namespace) -> int:
    """`gmar finetune`."""
    if args.measure is not None:
        _print(args.measure, measure(load_model(args.measure), args.source, args.image_size))
        return 0
    if args.image_size:
        raise ValueError("--image-size is for --measure; a recipe has its own sizes.")
    recipe, out = RECIPES[args.recipe], args.out or Path(args.recipe)
    if args.scenes and recipe.data != "shapes":
        raise ValueError(f"--scenes is for the recipe shapes; {args.recipe} trains on {recipe.data}.")
    given = {k: getattr(args, k) for k in ("init", "epochs", "batch_size", "learning_rate", "scenes", "seed")}
    recipe = replace(recipe, **{k: v for k, v in given.items() if v is not None})
    if args.init or args.layers:
        recipe = replace(recipe, layers=args.layers)
    if (out / "config.json").exists() and not (out / "training" / "state.pt").exists():
        raise ValueError(f"{out} holds a checkpoint, but no training/state.pt to go on from. Give another --out.")
    words = list(drawing.CLASSES) if recipe.data == "shapes" else data.words()
    model, processor = starting_point(recipe, words)
    images, labels = pictures(recipe.data, "train", args.source, recipe)
    watch = pictures(recipe.data, "watch", args.source)
    options = {k: getattr(args, k) for k in ("accumulate", "minutes", "save_every")}
    kept = train(model, processor, images, labels, recipe, out / "training", watch, **options)
    state = PartialState()
    if state.is_main_process and kept is None:
        print(f"Stopped after {args.minutes:g} minutes. The same command goes on from there.")
    elif state.is_main_process:
        _print(out, save(kept, processor, out, recipe, args.source))
    state.destroy_process_group()
    return 0


def _print(name, found):
    for what, numbers in found.items():
        print(f"{name}: {what}:", ", ".join(f"{k} {v}" for k, v in numbers.items()))


def number(text: str) -> float:
    """A number of at least 0, which inf is and nan is not."""
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text}")
    return value
