"""`gmar explain`: for each photo an overlay, the map, and a row of a table."""

import argparse
import os
from collections import Counter
from pathlib import Path
from tempfile import TemporaryFile

import pandas as pd

from ..files import atomic
from . import types
from .output import described, plain_cell, printable, say

PICTURES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gmar explain`."""
    from ..methods import METHODS
    from ..methods.weighting import VARIANTS

    parser.description = (
        "For each photo an overlay PNG at the photo's size and the map as .npy (float32, on the photo's pixels, NaN "
        "where the model did not look), and one explanations.csv for all. Photos that cannot be read are named, and "
        "the others done."
    )
    add = parser.add_argument
    add("photos", nargs="+", metavar="PHOTO|FOLDER", help="pictures, or folders of pictures")
    add("--model", default="vit-small-tiny-imagenet", help="bundled name, folder or hub id (default: %(default)s)")
    add("--method", default="gmar", choices=METHODS, metavar="METHOD", help=f"{', '.join(METHODS)} (default: gmar)")
    add("--alpha", type=types.alpha, help="strength of the residual, for rollout and gmar (default: 1)")
    add("--norm", choices=["l1", "l2", "none"], help="norm of the head weights, for gmar (default: l1)")
    add("--variant", choices=VARIANTS, help="recursion and order, for rollout and gmar")
    add("--target", help="class to explain, as a number or a label word (default: the predicted class)")
    add("--image-size", type=types.image_size, metavar="N|HxW", help="another resolution or shape: 112, or 64x96")
    add("--window", type=float, nargs=2, metavar=("LOW", "HIGH"), help="black and white of 16-bit pictures")
    add("--out", type=types.folder, default=Path("explanations"), help="output folder (default: %(default)s)")


def main(args: argparse.Namespace) -> int:
    """Explain every photo; 2 when one could not be."""
    photos, problems = _find(args.photos)
    try:  # before the work and not after it
        args.out.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=args.out).close()
    except OSError as error:
        raise ValueError(f"--out takes a folder to write to; {str(args.out)!r} is none: {error.strerror}.") from None
    rows = _explained(photos, args, problems) if photos else []
    if rows:
        with atomic(args.out / "explanations.csv") as temporary:
            pd.DataFrame(rows).map(plain_cell).to_csv(temporary, index=False, lineterminator="\r\n")
        say(f"{len(rows)} explained, in {args.out}")
    for problem in dict.fromkeys(map(printable, problems)):
        say(f"gmar explain: {problem}", error=True)
    return 2 if problems else 0


def _explained(photos, args, problems):
    """Rows of the table; what goes wrong with a photo is added to `problems`, and the others done."""
    import torch
    import transformers
    from tqdm import tqdm

    from .. import __version__, load_model

    options = {"alpha": args.alpha, "norm": args.norm, "variant": args.variant}
    options = {k: None if v == "none" else v for k, v in options.items() if v is not None}
    vit = load_model(args.model, image_size=args.image_size).prompted(args.target)
    target = None if args.target is None else vit.class_id(args.target)
    about = {"method": args.method, "options": " ".join(f"{k}={v}" for k, v in options.items()), "model": vit.name}
    versions = f"gmar_utils {__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    rows, names = [], Counter()
    for path in tqdm(photos, unit="photo", disable=None):
        try:
            why = vit.explain(path, args.method, target, window=args.window, **options)
            stem = f"{path.stem}.{args.method}"
            names[stem] += 1  # photos of the same name, from several folders
            stem += f"-{names[stem]}" if names[stem] > 1 else ""
            why.save(args.out / f"{stem}.png")
            why.save(args.out / f"{stem}.npy")
        except Exception as error:  # the net of `gmar` itself would stop here, and leave the other photos undone
            if os.environ.get("GMAR_DEBUG"):
                raise
            problems.append(described(error))
            continue
        found = {"file": path, "overlay": f"{stem}.png", "map": f"{stem}.npy", "target": why.target, "label": why.label}
        found["probability"] = "" if why.probability is None else f"{why.probability:.4f}"
        rows.append(found | about | {"versions": versions})
    return rows


def _find(arguments):
    photos, problems = [], []
    for text in arguments:
        path = Path(text)
        if not text.strip():
            problems.append("A photo's path is empty: an unset variable in the shell?")
        elif not path.is_dir():
            photos.append(path)
        elif inside := sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES):
            photos += inside
        else:
            problems.append(f"The folder {text!r} holds no picture ({', '.join(sorted(PICTURES))}).")
    return photos, problems
