"""Bad inputs, drawn at random: what the command line and the functions are fed by `campaign.py bad-inputs`.

Attempt i is the same whenever it is made, in whichever process. An input has no meaning (it must be refused), or may
have one (refused, or answered with a sound result).
"""

import contextlib
import math
import random
import signal
import tempfile
import traceback
import warnings
from functools import cache
from pathlib import Path

import bad_commands
import numpy as np
import torch
import transformers
from bad_commands import MODEL, picture
from PIL import Image

import gmar_utils
from gmar_utils import METHODS, explain, load_model, metrics

SECONDS = 90  # for one attempt
CHECKING = Path(gmar_utils.__file__).parent, Path(transformers.__file__).parent
REFUSALS = (ValueError, TypeError, IndexError, FileNotFoundError, MemoryError)
REFUSED, ANSWERED = "refused", "answered"  # what a bad input may come to; anything else is a failure


class Hangs(BaseException):
    """Not an Exception: no net may catch it."""


def attempt(seed: int, number: int) -> dict:
    """One row: its kind, what was tried, what it came to and what was said."""
    torch.set_num_threads(1)
    generator, kind = random.Random(f"{seed} {number}"), list(KINDS)[number % len(KINDS)]
    signal.signal(signal.SIGALRM, _hangs)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tried, meaningless, call = KINDS[kind](generator, Path(folder))
        signal.alarm(SECONDS)
        try:
            outcome, said = call()
        except Hangs:
            outcome, said = "hangs", f"more than {SECONDS} s"
        finally:
            signal.alarm(0)
    if meaningless and outcome == ANSWERED:
        outcome = "answered without a word"
    return {"kind": kind, "tried": tried, "outcome": outcome, "said": said[-1500:]}


def _hangs(*_):
    raise Hangs


# Functions ------------------------------------------------------------------------------------------------------------


def function(call):
    """A call of a function: refused on purpose (a `raise` of this package or the model), or an answer without NaN."""

    def guarded():
        try:
            result = call()
        except REFUSALS as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            own = any(folder in Path(place.filename).parents for folder in CHECKING)
            said, worded = f"{type(error).__name__}: {error}", own and place.line.startswith("raise ")
            return (REFUSED, said) if worded else ("traceback", traceback.format_exc())
        except Exception:
            return "traceback", traceback.format_exc()
        result = getattr(result, "map", getattr(result, "auc", result))
        return (ANSWERED if bool(torch.as_tensor(result).isfinite().all()) else "NaN map"), ""

    return guarded


@cache
def vit():
    return load_model(MODEL, device="cpu")


@cache
def pixels():
    generator = random.Random(0)
    return vit().preprocess([picture(generator, (64, 64)) for _ in range(2)])


METHOD = [m for m in METHODS if m != "occlusion"]


def pixel_values(generator, folder):
    """explain(model, pixel_values): no pixel values."""
    x, at = pixels().clone(), generator.randrange(pixels().numel())
    planted = x.clone()
    planted.view(-1)[at] = generator.choice((math.nan, math.inf, -math.inf))
    bad = {
        "NaN or infinity": planted,
        "bytes": (x * 50).to(torch.uint8),
        "whole numbers": x.long(),
        "flags": x > 0,
        "complex": x.to(torch.complex64),
        "no batch": x[0],
        "no image": x[:0],
        "5 dimensions": x[None],
        "channels": torch.cat([x] * generator.randint(2, 4), 1)[:, : generator.choice((1, 2, 4, 6))],
        "too small": x[..., : generator.randint(1, 3), : generator.randint(1, 3)],
        "channels last": x.movedim(1, -1),
        "list": [[1.0, 2.0], [3.0]],
        "words": "photo.png",
        "nothing": None,
        "a number": generator.choice((3, 1.5, True)),
        "objects": np.array([object(), None]),
        "text array": np.array(["a", "b"]),
        "dict": {"pixels": x},
        "meta": x.to("meta"),
        "sparse": x.to_sparse(),
    }
    name = generator.choice(list(bad))
    method = generator.choice(METHOD)
    if name == "channels" and bad[name].shape[1] == 3:
        name = "no batch"
    return f"{name}, {method}", name not in ("sparse",), function(lambda: explain(vit().model, bad[name], method))


def targets_and_options(generator, folder):
    """explain(model, pixel_values, …): targets, batch sizes, layouts and options that cannot be."""
    far = generator.randint(20, 10**12)
    name, options = generator.choice(
        [
            ("target", {"target": far}),
            ("target", {"target": -far}),
            ("target", {"target": -1}),
            (
                "target",
                {"target": generator.choice((1.5, math.nan, "cat", "0", True, b"1", object(), {0, 1}, {}, [None, 1]))},
            ),
            ("target", {"target": [0] * generator.choice((0, 1, 3, 7))}),
            ("target", {"target": [0, far]}),
            ("target", {"target": [0.5, 1.0]}),
            ("target", {"target": torch.tensor([[0, 1]])}),
            ("target", {"target": torch.tensor([0.2, math.nan])}),
            ("contrast", {"target": generator.choice(((0,), (0, 1, 2), (), (0, far), (0, "cat"), (1, 1.5), (-1, 0)))}),
            ("batch_size", {"batch_size": generator.choice((0, -1, 2.5, True, "4", None, math.nan, -far))}),
            ("prefix_tokens", {"prefix_tokens": generator.choice((-1, 0, 2, 5, 1.5, "1", far, True))}),
            (
                "grid",
                {"grid": generator.choice(((1, 1), (0, 0), (-1, -64), (3, 5), (8,), (8, 8, 1), 8, "8x8", (far, 1)))},
            ),
            ("alpha", {"method": "gmar", "alpha": generator.choice((math.nan, math.inf, -1, "1", None, 1e308, [1]))}),
            ("norm", {"method": "gmar", "norm": generator.choice(("l3", 3, True, "", "none", math.nan))}),
            (
                "variant",
                {"method": generator.choice(("gmar", "rollout")), "variant": generator.choice(("x", 1, None, ""))},
            ),
            ("option", {"method": generator.choice(METHOD), "colour": 1}),
            ("method", {"method": generator.choice(("", "GMAR", "gmr", 1, None, [], object(), b"gmar"))}),
            (
                "callable",
                {
                    "method": lambda t: generator.choice(
                        (None, 1, torch.zeros(1), t.readout[:, :3], t.readout * math.nan)
                    )
                },
            ),
            ("signed", {"method": generator.choice(("gmar", "rollout", "legrad")), "signed": True}),
        ]
    )
    meaningless = not (name == "variant" and options["variant"] is None)
    return f"{name} {options}"[:80], meaningless, function(lambda: explain(vit().model, pixels(), **options))


def pictures(generator, folder):
    """Vit.explain(images): no pictures."""
    side, noise = generator.randint(2, 70), np.random.default_rng(generator.randrange(2**32))
    planted = noise.random((side, side, 3))
    planted.flat[generator.randrange(planted.size)] = generator.choice((math.nan, math.inf))
    image = generator.choice(
        [
            None,
            5,
            True,
            b"bytes",
            {},
            {"pixel_values": 1},
            [],
            (),
            [None],
            ["nowhere.png"],
            "nowhere.png",
            "",
            ".",
            object(),
            [[1, 2], [3, 4]],
            planted,
            [planted],
            noise.random((side, side, 7)),
            noise.random((2, 2, 2, 2, 2)),
            np.zeros((0, 4, 3), np.uint8),
            np.array("a"),
            np.array([["a", "b"]]),
            noise.random(side),
            torch.rand(5, side, side),
            torch.rand(3, side, side) * 9,
            torch.zeros(3, 0, 4),
            noise.random((side, side)) + 1j,
            Image.new("RGB", (0, 5)),
            np.full((side, side), None),
            pixels(),
            torch.full((3, side, side), math.nan),
            float("nan"),
            lambda: 1,
        ]
    )
    if generator.random() < 0.25 and not hasattr(image, "dtype"):
        image = [picture(generator), image]
    words = {"target": generator.choice(("nothing such", "", -3, 10**6, 1.5, [0, 0, 0], (0, 0, 0)))}
    options = words if generator.random() < 0.3 else {}
    tried = f"{type(image).__name__} {getattr(image, 'shape', '')} {options}"
    return tried, True, function(lambda: vit().explain(image, generator.choice(METHOD), **options))


def judged(generator, folder):
    """metrics: maps, masks, boxes and protocols that do not fit."""
    x, maps = pixels(), torch.rand(2, 64, 64, generator=torch.Generator().manual_seed(generator.randrange(2**32)))
    masks, boxes = maps > 0.7, torch.tensor([[4, 4, 30, 30], [10, 2, 50, 60]])
    planted = maps.clone()
    planted.view(-1)[generator.randrange(maps.numel())] = generator.choice((math.nan, math.inf))
    curve = generator.choice((metrics.insertion, metrics.deletion))
    overlap = generator.choice((metrics.iou, metrics.average_precision, metrics.pixel_accuracy))
    boxed = generator.choice((metrics.pointing_game, metrics.energy_in_box))
    low = generator.randint(-90, -1)
    bad_maps = {
        "NaN or infinity": planted,
        "too few": maps[:1],
        "no batch": maps[0],
        "no pixel": maps[:, :0],
        "nothing": None,
        "a word": "map",
        "complex": maps * 1j,
        "flags": maps > 0.5,
    }
    bad_masks = {
        "cut": masks[:, :9],
        "too few": masks[:1],
        "NaN or infinity": planted,
        "negative": masks.float() * -1,
        "fractions": masks.float() * 0.3,
        "nothing": None,
        "no batch": masks[0],
        "complex": masks * 1j,
    }
    bad_boxes = {
        "too few": boxes[:1],
        "three sides": boxes[:, :3],
        "outside": boxes + 500,
        "turned": boxes.flip(1),
        "NaN": boxes * math.nan,
        "nothing": None,
        "partly outside": torch.tensor([[low, 0, 3, 3]] * 2),
    }
    map_, mask, box = (generator.choice(list(names)) for names in (bad_maps, bad_masks, bad_boxes))
    wrong_maps, wrong_masks, wrong_boxes = bad_maps[map_], bad_masks[mask], bad_boxes[box]
    protocol = generator.choice(
        (
            {"steps": 0},
            {"steps": low},
            {"steps": 1.5},
            {"steps": "all"},
            {"baseline": "grey"},
            {"baseline": 0.5},
            {"unit": "mm"},
            {"score": "loss"},
            {"batch_size": 0},
            {"batch_size": low},
            {"target": 10**6},
            {"target": [0]},
            {"target": low},
            {"precision": "int8"},
            {"steps": True},
            {"target": "cat"},
            {"batch_size": math.nan},
            {"baseline": lambda x, shown: x[:, :1]},
            {"baseline": lambda x, shown: x * math.nan},
        )
    )
    threshold = generator.choice((math.nan, math.inf, "half", None, [0.5]))
    tried, call = generator.choice(
        [
            (f"maps of a curve: {map_}", lambda: curve(vit().model, x, wrong_maps, steps=4)),
            (f"protocol: {protocol}", lambda: curve(vit().model, x, maps, **{"steps": 4, **protocol})),
            (f"protocol: {protocol}", lambda: curve(vit().model, x, maps, **{"steps": 4, **protocol})),
            (f"maps: {map_}", lambda: overlap(wrong_maps, masks)),
            (f"masks: {mask}", lambda: overlap(maps, wrong_masks)),
            (f"threshold: {threshold}", lambda: metrics.iou(maps, masks, threshold)),
            (f"boxes: {box}", lambda: boxed(maps, wrong_boxes)),
            (f"maps in boxes: {map_}", lambda: boxed(wrong_maps, boxes)),
            ("pixel values: NaN", lambda: metrics.masked_scores(vit().model, x * math.nan, maps)),
            (f"masked maps: {map_}", lambda: metrics.masked_scores(vit().model, x, wrong_maps).masked),
        ]
    )
    return tried, "flags" not in tried and "partly" not in tried, function(call)


KINDS = {
    "broken photos": bad_commands.broken_photos,
    "unusual photos": bad_commands.odd_photos,
    "options of gmar explain": bad_commands.explain_options,
    "options of the other commands": bad_commands.other_commands,
    "damaged checkpoints": bad_commands.checkpoints,
    "pixel values": pixel_values,
    "targets and options": targets_and_options,
    "pictures for Vit.explain": pictures,
    "input of metrics": judged,
}
