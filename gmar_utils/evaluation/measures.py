"""The metrics of `evaluate`: what each computes for a block of images, the columns it fills, and its options."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from .. import metrics
from ..capture.checks import choice
from ..capture.settling import once
from ..metrics.forwards import SCORES
from ..metrics.imputation import baseline_named
from ..metrics.localization import check_threshold
from ..model import Vit
from ..photo import minmax, resize

COUNTS = ("tp", "fp", "fn", "tn")
BASELINE = "(baseline)"  # the method name of rows that describe the images or a curve's baseline, not a method
# One Markdown table each: {column of the rows: (title, 1: higher is better, −1: lower is, 0: it only describes)}.
TABLES = (
    {"average_drop": ("Avg Drop", -1), "coverage": ("Coverage", 0), "average_increase": ("Avg Increase", 1)}
    | {"insertion": ("Insertion", 1), "deletion": ("Deletion", -1), "srg": ("SRG", 1), "saco": ("SaCo", 1)},
    {"average_drop_top": ("Avg Drop, top half", -1), "average_increase_top": ("Avg Increase, top half", 1)},
    {"road_morf": ("ROAD MoRF", -1), "road_lerf": ("ROAD LeRF", 1), "road": ("ROAD, LeRF − MoRF", 1)},
    {"pointing_game": ("Pointing game", 1), "energy_in_box": ("Energy in box", 1)},
    {"pixel_accuracy": ("Pixel accuracy", 1), "iou": ("IoU", 1), "average_precision": ("AP", 1)},
    {"which": ("Which of two", 1), "which_auroc": ("AUROC of the two", 1), "top_1": ("Top-1", 0)},
)
COLUMNS = {column: about for table in TABLES for column, about in table.items()}
# The options of the metrics and their defaults; target None: "label" for records with a mask, which is one object's.
OPTIONS = metrics.PRESETS["report"] | {"score": "probability", "target": None, "masking": "multiply"}
OPTIONS |= {"baseline": "zero", "steps": None, "unit": "patch"}
ALLOWED = {  # the values they may take, where that is a list
    "score": SCORES,
    "target": (None, "predicted", "label"),
    "masking": ("multiply", "raw", "top"),
    "unit": ("patch", "pixel"),
    "iou": ("foreground", "mean"),
    "ap": ("foreground", "two-class"),
    "aggregate": ("image", "dataset"),
}
REMOVAL = ("baseline", "steps", "unit", "seed")  # what `metrics.insertion` and `metrics.deletion` take


def checked_options(given: dict | None = None, fields: Collection[str] = ()) -> dict:
    """Every option of the metrics: those given, the defaults for the rest. ValueError for one that does not exist.

    fields: of a record; where one is "mask", the default target is the record's label.
    """
    options = OPTIONS | (given or {})
    for name in options:
        choice("a protocol option", name, OPTIONS)
    for name, allowed in ALLOWED.items():
        choice(name, options[name], allowed)
    baseline_named(options["baseline"])
    check_threshold(options["threshold"])
    options["target"] = options["target"] or ("label" if "mask" in fields else "predicted")
    return options


@dataclass(frozen=True)
class Case:
    """A block of images and one method's maps of it: what a metric is computed from."""

    vit: Vit
    options: dict  # `checked_options`, and seed, batch_size and precision of the forward passes
    pixel_values: torch.Tensor  # (B, channels, height, width)
    predicted: torch.Tensor  # (B,)
    target: torch.Tensor  # (B,)
    scores: torch.Tensor  # (B, R, C) as the method gives them, signed or not: what an order of patches is made from
    maps: torch.Tensor  # (B, R, C) in [0, 1], as they are shown
    records: list

    @once
    def on_photo(self) -> list[torch.Tensor]:
        """Maps at the model's input size, min–max, on each photo's own pixels; NaN outside the crop."""
        maps = minmax(resize(self.maps, self.pixel_values.shape[-2:]))
        return self.vit.to_photo(maps, [r["image"] for r in self.records])

    @once
    def insertion(self) -> metrics.Curve:
        """Its Insertion curve; of several metrics that read it, the first pays for it."""
        return self.run(metrics.insertion, **self.chosen(*REMOVAL))

    @once
    def deletion(self) -> metrics.Curve:
        """Its Deletion curve, shared like `insertion`."""
        return self.run(metrics.deletion, **self.chosen(*REMOVAL))

    def chosen(self, *names: str) -> dict:
        """These of its options."""
        return {k: self.options[k] for k in names}

    @property
    def scale(self) -> float:
        """Probabilities are printed ×100; logits as they are."""
        return 100 if self.options["score"] == "probability" else 1

    def run(self, function: Callable, maps: torch.Tensor | None = None, **options: object) -> object:
        """A metric of forward passes on this block's images and targets; maps: the scores, unless others are given."""
        options |= self.chosen("score", "batch_size", "precision")
        maps = self.scores if maps is None else maps
        return function(self.vit.model, self.pixel_values, maps, self.target, **options)

    def masks(self, field: str = "mask") -> list[torch.Tensor]:
        """The masks (height, width) in this field of the records, on each photo's own pixels."""
        return [torch.as_tensor(np.array(r[field])) for r in self.records]

    @once
    def seen(self) -> tuple[list, list]:
        """Maps and masks on the photos' pixels, void where the model did not look."""
        return metrics.outside_is_void(self.on_photo, self.masks())


class Found(NamedTuple):
    """A metric of one block: (B,) values of each column, those that no method changes, and how they were measured."""

    values: dict[str, torch.Tensor]
    protocol: metrics.Protocol
    shared: dict[str, torch.Tensor] = {}


class Measure(NamedTuple):
    """A metric as `evaluate` runs it.

    Args:
        run: Case → Found.
        needs: the fields a record must have besides the image.
    """

    run: Callable[[Case], Found]
    needs: tuple[str, ...] = ()


def _drop(case: Case, top: bool = False) -> Found:
    suffix, maps, masking = ("_top", case.scores, "top") if top else ("", case.maps, case.options["masking"])
    rgb = {k: getattr(case.vit.processor, f"image_{k}", None) for k in ("mean", "std")}
    result = case.run(metrics.masked_scores, maps, masking=masking, **rgb)
    values = {
        f"average_drop{suffix}": metrics.average_drop(result.full, result.masked, per_image=True),
        f"average_increase{suffix}": metrics.average_increase(result.full, result.masked, per_image=True),
    }
    return Found(values if top else values | {"coverage": result.coverage}, result.protocol)


def _curve(case: Case, name: str) -> Found:
    curve = getattr(case, name)
    return Found({name: case.scale * curve.auc}, curve.protocol, _kept(case, name, curve))


def _kept(case, column, curve):
    """What the baseline keeps; a share of a logit would mean nothing."""
    return {column: curve.baseline_kept} if case.options["score"] == "probability" else {}


def _srg(case: Case) -> Found:
    gain = case.insertion.auc - case.deletion.auc
    return Found({"srg": case.scale * gain}, replace(case.insertion.protocol, metric="SRG"))


def _saco(case: Case) -> Found:
    protocol = metrics.Protocol("SaCo", baseline="mean", unit="patch", groups=10, **case.chosen("score", "precision"))
    return Found({"saco": 100 * case.run(metrics.saco)}, protocol)


def _road(case: Case) -> Found:
    # a sparse solve for each image and step: ten steps unless the protocol says otherwise
    steps = case.options["steps"] or min(10, case.maps[0].numel())
    morf, lerf, gain = case.run(metrics.morf_lerf, **case.chosen(*REMOVAL) | {"baseline": "linear", "steps": steps})
    values = {"road_morf": morf.auc, "road_lerf": lerf.auc, "road": gain}
    protocol = replace(morf.protocol, metric="ROAD", order=None)
    return Found({k: case.scale * v for k, v in values.items()}, protocol, _kept(case, "road_morf", morf))


def _box(case: Case) -> Found:
    found = [m.nan_to_num(0) for m in case.on_photo], [r["box"] for r in case.records]
    values = {"pointing_game": metrics.pointing_game(*found), "energy_in_box": metrics.energy_in_box(*found)}
    return Found(values, metrics.Protocol("boxes", unit="photo pixel"))


def _counted(case: Case, name: str) -> Found:
    options = case.chosen("threshold", "aggregate", *(["iou"] if name == "iou" else []))
    found = metrics.counts(*case.seen, options["threshold"])
    value = metrics.iou_of(found, options["iou"]) if name == "iou" else metrics.accuracy_of(found)
    # The counts go into the rows too: dataset-level figures are made of their sums.
    return Found(dict(zip(COUNTS, found.T, strict=True)) | {name: value}, metrics.Protocol(COLUMNS[name][0], **options))


def _precision(case: Case) -> Found:
    ap = case.options["ap"]
    return Found({"average_precision": metrics.average_precision(*case.seen, ap)}, metrics.Protocol("AP", ap=ap))


def _which(case: Case) -> Found:
    pair = case.on_photo, case.masks(), case.masks("other")
    values = {"which": 100 * metrics.which(*pair), "which_auroc": 100 * metrics.auroc(*pair)}
    classes = [(*(r.get("targets") or [r["label"]]), *r.get("other_targets", ())) for r in case.records]
    right = [int(p) in some for p, some in zip(case.predicted, classes, strict=True)]
    return Found(values, metrics.Protocol("one of two", unit="photo pixel"), {"top_1": 100.0 * torch.tensor(right)})


METRICS = {
    "drop": Measure(_drop),
    "insertion": Measure(partial(_curve, name="insertion")),
    "deletion": Measure(partial(_curve, name="deletion")),
    "srg": Measure(_srg),
    "saco": Measure(_saco),
    "drop-top": Measure(partial(_drop, top=True)),
    "road": Measure(_road),
    "box": Measure(_box, ("box",)),
    "pixel-accuracy": Measure(partial(_counted, name="pixel_accuracy"), ("mask",)),
    "iou": Measure(partial(_counted, name="iou"), ("mask",)),
    "average-precision": Measure(_precision, ("mask",)),
    "which": Measure(_which, ("mask", "other")),
}
FAITHFULNESS = ("drop", "drop-top", "insertion", "deletion", "srg")
LOCALIZATION = ("pixel-accuracy", "iou", "average-precision")
TWO_OBJECTS = ("which",)


def checked_metrics(names: str | Iterable[str] | None, fields: set[str]) -> tuple[str, ...]:
    """Names of METRICS; ValueError for one that does not exist, or that these records lack a field for.

    Args:
        names: of METRICS; None: what the records allow.
        fields: of a record.
    """
    if names is None:
        names = TWO_OBJECTS if "other" in fields else LOCALIZATION if "mask" in fields else FAITHFULNESS
    names = dict.fromkeys([names] if isinstance(names, str) else names)
    for name in names:
        choice("a metric", name, METRICS)
        for needed in METRICS[name].needs:
            if needed not in fields:
                raise ValueError(f"The metric {name} needs records with a {needed}; these have {sorted(fields)}.")
    if not names:
        raise ValueError(f"There is no metric to compute; choose from {', '.join(METRICS)}.")
    return tuple(names)
