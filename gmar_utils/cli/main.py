"""The command line: gmar explain | evaluate | finetune | info."""

import argparse
import csv
import importlib
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from tqdm import tqdm

from .. import METHODS, __version__, explain, load_model, probability, trace
from ..capture.layout import model_type
from ..methods.weighting import VARIANTS
from ..model import bundled
from ..photo import read_photo
from . import types

PICTURES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif"}
OTHERS = {
    "evaluate": "judge methods on a data set, with error bars",
    "finetune": "train a classifier to explain",
    "export": "write a model and its gradients as one ONNX graph",
}
MODULES = {"evaluate": ".evaluation.run", "finetune": ".training.loop", "export": ".cli.export"}
COLUMNS = ["file", "overlay", "map", "target", "label", "probability", "method", "options", "model", "versions"]


class UsageError(Exception):
    """Bad input: one clear line, exit code 2."""


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: list[str] | None = None) -> int:
    parser = _Parser(prog="gmar", description="Explain Vision Transformers from their attention.")
    parser.add_argument("--version", action="version", version=f"gmar_utils {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    p = commands.add_parser(
        "explain",
        help="explain photos: an overlay, the map and a table",
        description="For each photo an overlay PNG at the photo's size and the map as .npy (float32, on the photo's "
        "pixels, NaN where the model did not look), and one explanations.csv for all.",
    )
    p.add_argument("photos", nargs="+", metavar="PHOTO|FOLDER", help="pictures, or folders of pictures")
    p.add_argument("--model", default="vit-tiny-imagenet", help="bundled name, folder or hub id (default: %(default)s)")
    p.add_argument("--method", default="gmar", choices=METHODS, metavar="METHOD",
                   help=f"one of {', '.join(METHODS)} (default: %(default)s)")  # fmt: skip
    p.add_argument("--alpha", type=types.alpha, help="strength of the residual, for rollout and gmar (default: 1)")
    p.add_argument("--norm", choices=["l1", "l2", "none"], help="norm of the head weights, for gmar (default: l1)")
    p.add_argument("--variant", choices=VARIANTS, help="recursion and order, for rollout and gmar")
    p.add_argument("--target", help="class to explain, as a number or a label word (default: the predicted class)")
    p.add_argument("--image-size", type=types.image_size, metavar="N|HxW",
                   help="run the model at another resolution or shape, in pixels: 112, or 64x96")  # fmt: skip
    p.add_argument("--window", type=float, nargs=2, metavar=("LOW", "HIGH"), help="black and white of 16-bit pictures")
    p.add_argument("--out", type=Path, default=Path("explanations"), help="output folder (default: %(default)s)")
    p.set_defaults(run=_explain)

    argv = sys.argv[1:] if argv is None else argv
    for name, text in OTHERS.items():
        p = commands.add_parser(name, help=text, description=text)
        if name in argv[:1]:  # imported only when asked for: they bring scipy, pandas and datasets
            module = importlib.import_module(MODULES[name], "gmar_utils")
            module.add_arguments(p)
            p.set_defaults(run=module.main)

    p = commands.add_parser("info", help="versions, bundled models, or what is known of one model")
    p.add_argument("model", nargs="?", help="bundled name, folder or hub id")
    p.set_defaults(run=_info)

    args = parser.parse_args(argv)
    warnings.showwarning = lambda message, *_, **__: print(f"gmar: warning: {message}", file=sys.stderr)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        return args.run(args) or 0
    except (UsageError, OSError, ValueError, TypeError, IndexError) as error:
        print(f"gmar {args.command}: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _explain(args) -> int:
    from .. import viz  # matplotlib and seaborn: not for `gmar info`

    options = {"alpha": args.alpha, "norm": args.norm, "variant": args.variant}
    options = {k: None if v == "none" else v for k, v in options.items() if v is not None}
    vit = load_model(args.model, image_size=args.image_size)
    target = None if args.target is None else _class_id(vit, args.target)
    photos, problems = _find(args.photos)
    args.out.mkdir(parents=True, exist_ok=True)
    versions = f"gmar_utils {__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    rows, names = [], set()
    for path in tqdm(photos, unit="photo", disable=None):
        try:
            photo = read_photo(path, window=args.window)
            pixels = vit.preprocess(path, args.window)
        except (OSError, ValueError) as error:
            problems.append(error)
            continue
        seen = trace(vit.model, pixels, target, gradients=False)
        heatmap = vit.to_photo(explain(vit.model, pixels, args.method, seen.target, **options), [photo])[0].numpy()
        stem = _unused(f"{path.stem}.{args.method}", names)
        viz.blend(photo, heatmap).save(args.out / f"{stem}.png")
        np.save(args.out / f"{stem}.npy", heatmap)
        chosen = int(seen.target[0])
        regression = getattr(getattr(vit.model, "config", None), "problem_type", None) == "regression"
        score = "" if regression else f"{probability(vit.model, seen.logits, seen.target).item():.4f}"
        rows.append(
            [path, f"{stem}.png", f"{stem}.npy", chosen, vit.label(chosen), score, args.method,
             " ".join(f"{k}={v}" for k, v in options.items()), vit.name, versions]
        )  # fmt: skip
    if rows:
        with open(args.out / "explanations.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
        print(f"{len(rows)} explained, in {args.out}")
    for problem in problems:
        print(f"gmar explain: {_one_line(problem)}", file=sys.stderr)
    return 2 if problems else 0


def _find(arguments):
    photos, problems = [], []
    for path in map(Path, arguments):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES)
            photos += inside
            if not inside:
                problems.append(f"The folder {str(path)!r} holds no picture ({', '.join(sorted(PICTURES))}).")
        else:
            photos.append(path)
    return photos, problems


def _unused(stem, names):
    """`stem`, numbered where a photo of that name from another folder was written before."""
    name = next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, len(names) + 3))) if n not in names)
    names.add(name)
    return name


def _class_id(vit, text):
    if text.lstrip("-").isdigit():
        return int(text)
    words = [[w.strip().lower() for w in label.split(",")] for label in vit.labels]
    found = [i for i, w in enumerate(words) if text.lower() in (*w, vit.labels[i].lower())]
    if len(found) != 1:
        near = [vit.label(i) for i, label in enumerate(vit.labels) if text.lower() in label.lower()][:5]
        raise UsageError(
            f"The model has {len(found) or 'no'} label{'s' if found else ''} {text!r}"
            + (f"; near it: {', '.join(near)}." if near else "; see them all with gmar info MODEL.")
        )
    return found[0]


def _info(args) -> int:
    print(f"gmar_utils {__version__}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"device: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'}")
    if args.model is None:
        print(f"bundled models: {', '.join(bundled())}")
        print(f"methods: {', '.join(METHODS)}")
        return 0
    vit = load_model(args.model)
    blank = np.zeros((224, 224, 3), dtype=np.uint8)
    pixels = vit.preprocess(blank)
    seen = trace(vit.model, pixels, gradients=False)
    layers, heads = len(seen.attentions), seen.attentions[0].shape[1]
    parameters = sum(p.numel() for p in vit.model.parameters())
    print(f"{vit.name}: {model_type(vit.model)}, {parameters / 1e6:.1f} M parameters")
    print(f"input: {' × '.join(map(str, pixels.shape[1:]))} (channels × height × width)")
    rows, columns = seen.grid
    print(f"{layers} layers × {heads} heads; {rows} × {columns} patches after {seen.prefix_tokens} prefix tokens")
    print(f"{seen.logits.shape[1]} classes: {'; '.join(vit.labels)}")
    return 0


def _one_line(error):
    return " ".join(str(error).split())

