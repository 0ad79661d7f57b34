"""The entries of --metrics: what each computes for a block of images, as rows name it."""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from .. import metrics
from ..model import Vit
from ..photo import minmax
from .summary import COLUMNS, COUNTS


@dataclass(frozen=True)
class Job:
    """What a block needs: the model, how it is called for metric forwards, and the options."""

    vit: Vit
    forward: torch.nn.Module
    methods: dict
    measures: tuple
    protocol: dict
    seed: int
    batch_size: int


def _on_photo(job, pixel_values, maps, records):
    """Maps at the model's input size, min–max, then on each photo's own pixels (a list; NaN outside the crop)."""
    maps = F.interpolate(maps[:, None], pixel_values.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return job.vit.to_photo(minmax(maps), [r["image"] for r in records])


def _card(job, protocol):
    return str(replace(protocol, target=job.protocol["target"], images=None))


def _drop(job, pixel_values, target, maps, records, masking=None):
    suffix = "" if masking is None else "_top"
    result = metrics.masked_scores(
        job.forward, pixel_values, maps, target, score=job.protocol["score"],
        masking=masking or job.protocol["masking"], batch_size=job.batch_size,
        mean=getattr(job.vit.processor, "image_mean", None), std=getattr(job.vit.processor, "image_std", None),
    )  # fmt: skip
    values = {
        f"average_drop{suffix}": metrics.average_drop(result.full, result.masked, per_image=True),
        f"average_increase{suffix}": metrics.average_increase(result.full, result.masked, per_image=True),
    }
    if masking is None:
        values["coverage"] = result.coverage
    return values, {}, _card(job, result.protocol)


def _drop_top(*block):
    return _drop(*block, masking="top")


def _curve(function):
    def measure(job, pixel_values, target, maps, records):
        options = {k: job.protocol[k] for k in ("score", "baseline", "steps", "unit")}
        curve = function(job.forward, pixel_values, maps, target, batch_size=job.batch_size, seed=job.seed, **options)
        name = curve.protocol.metric
        return {name: _scale(job) * curve.auc}, _kept(job, name, curve), _card(job, curve.protocol)

    return measure


def _morf_lerf(job, pixel_values, target, maps, records, road=False):
    options = {k: job.protocol[k] for k in ("score", "baseline", "steps", "unit")}
    names = ("morf", "lerf", "lerf_minus_morf")
    if road:  # a sparse solve for each image and step: ten steps unless the protocol says otherwise
        options |= {"baseline": "linear", "steps": job.protocol["steps"] or min(10, maps[0].numel())}
        names = ("road_morf", "road_lerf", "road")
    morf, lerf, difference = metrics.morf_lerf(
        job.forward, pixel_values, maps, target, batch_size=job.batch_size, seed=job.seed, **options
    )
    values = {name: _scale(job) * v for name, v in zip(names, (morf.auc, lerf.auc, difference), strict=True)}
    card = _card(job, replace(morf.protocol, metric="ROAD" if road else "MoRF and LeRF", order=None))
    return values, _kept(job, names[0], morf), card


def _scale(job):
    """Probabilities are printed ×100; logits as they are."""
    return 100 if job.protocol["score"] == "probability" else 1


def _kept(job, name, curve):
    """What the baseline keeps; a share of a logit would mean nothing."""
    return {name: curve.baseline_kept} if job.protocol["score"] == "probability" else {}


def _road(*block):
    return _morf_lerf(*block, road=True)


def _box(job, pixel_values, target, maps, records):
    on_photo = [m.nan_to_num(0) for m in _on_photo(job, pixel_values, maps, records)]
    boxes = [r["box"] for r in records]
    values = {
        "pointing_game": metrics.pointing_game(on_photo, boxes),
        "energy_in_box": metrics.energy_in_box(on_photo, boxes),
    }
    return values, {}, _card(job, metrics.Protocol("boxes", unit="photo pixel"))


def _masks(name):
    def measure(job, pixel_values, target, maps, records):
        masks = [torch.as_tensor(np.array(r["mask"])) for r in records]
        on_photo, masks = metrics.outside_is_void(_on_photo(job, pixel_values, maps, records), masks)
        options = job.protocol
        if name == "average_precision":
            values = {name: metrics.average_precision(on_photo, masks, options["ap"])}
            return values, {}, f"AP: target {options['target']} · ap {options['ap']}"
        found = metrics.counts(on_photo, masks, options["threshold"])
        value = metrics.accuracy_of(found) if name == "pixel_accuracy" else metrics.iou_of(found, options["iou"])
        # The counts go into the rows too: dataset-level figures are made of their sums.
        kind = "" if name == "pixel_accuracy" else f" · iou {options['iou']}"
        card = (
            f"{COLUMNS[name][0]}: target {options['target']} · threshold {options['threshold']}{kind} · "
            f"aggregate {options['aggregate']}"
        )
        return dict(zip(COUNTS, found.T, strict=True)) | {name: value}, {}, card

    return measure


# Each gives ({metric: (B,) values}, {metric: percent the baseline keeps}, the protocol as a line of text).
MEASURES = {
    "drop": _drop,
    "drop-top": _drop_top,
    "insertion": _curve(metrics.insertion),
    "deletion": _curve(metrics.deletion),
    "morf-lerf": _morf_lerf,
    "road": _road,
    "box": _box,
    "pixel-accuracy": _masks("pixel_accuracy"),
    "iou": _masks("iou"),
    "average-precision": _masks("average_precision"),
}
