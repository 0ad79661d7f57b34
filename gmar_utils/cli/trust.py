"""`gmar trust`: which explanation of a model may be shown, judged on the reader's own photos."""

import argparse
from pathlib import Path

from . import types
from .output import printable, say

SETS = ("tiny-imagenet", "voc2012", "shapes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gmar trust`."""
    parser.description = (
        "One page that says which explanation of a model can be trusted on these photos: what the model says, all "
        "maps side by side, a light for each map and check, and one recommendation. Give six photos at least, a dozen "
        "or more to tell methods apart. The page needs no network. The same command goes on where it was stopped."
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="bundled name, folder or hub id")
    add("photos", nargs="*", metavar="PHOTO|FOLDER", help="pictures, or folders of pictures")
    add("--data", metavar="FOLDER|SET", help=f"a folder, or a data set with its labels and masks: {', '.join(SETS)}")
    add("--source", help="where the data set is (default: its environment variable)")
    add("--limit", type=types.positive, default=24, help="photos of --data, drawn at random (default: %(default)s)")
    add("--labels", type=Path, metavar="CSV", help="table with the columns file, label[, x0, y0, x1, y1]")
    add("--masks", type=Path, metavar="FOLDER", help="a mask of the same name for each photo: 0 background, 255 void")
    add("--quick", action="store_true", help="six methods, 8 steps")
    add("--methods", nargs="+", metavar="METHOD", help="methods to judge (default: all, or six with --quick)")
    add("--image-size", type=types.image_size, metavar="N|HxW", help="another resolution or shape: 112, or 64x96")
    add("--batch-size", type=types.positive, default=64, help="pictures in a forward pass (default: %(default)s)")
    add("--book", default="", help="address of the book, for the links to its chapters (default: relative links)")
    add("--out", type=Path, default=Path("trust.html"), help="the page (default: %(default)s); work is kept beside it")
    parser.set_defaults(seed=0)


def main(args: argparse.Namespace) -> int:
    """Make the page; 2 when something had to be left out."""
    if args.out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out takes a page such as trust.html, got {str(args.out)!r}.")
    if args.out.is_dir() or not args.out.parent.is_dir():
        raise ValueError(f"--out {str(args.out)!r} cannot be written: it is a folder, or lies in none that exists.")
    if bool(args.photos) == bool(args.data):
        raise ValueError("Give photos (files or folders), or a data set with --data.")
    if args.masks and not args.masks.is_dir():
        raise ValueError(f"--masks takes a folder, and {str(args.masks)!r} is none.")
    from .. import load_model
    from ..trustcard import trust

    vit = load_model(args.model, image_size=args.image_size)
    options = {k: getattr(args, k) for k in ("methods", "quick", "book", "batch_size")}
    options["work"] = args.out.with_name(f"{args.out.stem}.work")
    card = trust(vit, args.photos or _records(args, vit), args.labels, args.masks, **options)
    card.save(args.out)
    for problem in dict.fromkeys(map(printable, card.problems)):
        say(f"gmar trust: {problem}", error=True)
    say(card.recommendation.sentence)
    say(f"The page is {args.out}")
    return 2 if card.problems else 0


def _records(args, vit):
    """Photos of a data set, drawn at random but the same at every call; or a folder."""
    if args.data not in SETS:
        if Path(args.data).is_dir():
            return [args.data]
        raise ValueError(f"--data takes {', '.join(SETS)} or a folder, got {args.data!r}.")
    import numpy as np

    from .evaluate import DATA

    found = DATA[args.data](args, vit)
    return [found[int(i)] for i in np.sort(np.random.default_rng(0).permutation(len(found))[: args.limit])]
