"""Localisation: does the map lie on the object?

Maps and masks are (B, height, width) tensors, or lists of B (height, width) tensors of different sizes: photos keep
their own pixels. In a mask 0 is background, 255 is void and ignored everywhere, anything else is foreground; a mask of
0 and 255 alone is a binary mask saved as a picture, and 255 is its foreground. Results are (B,) percentages; an image
without foreground gives NaN.
"""

import math
import warnings

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from ..capture.checks import choice

VOID = 255
Batch = torch.Tensor | np.ndarray | list | tuple  # one map, mask or box for each image
PRESETS = {
    "report": {"threshold": 0.5, "iou": "foreground", "ap": "foreground", "aggregate": "image"},
    "chefer": {"threshold": "mean", "iou": "mean", "ap": "two-class", "aggregate": "dataset"},
}


def counts(maps: Batch, masks: Batch, threshold: float | str = 0.5) -> torch.Tensor:
    """Pixels (B, 4), float64: true positives, false positives, false negatives, true negatives; void left out.

    Foreground of a map = map > threshold; "mean" is the map's own mean over the pixels that are not void. Kept apart so
    that dataset-level figures, and their bootstrap, come from sums.
    """
    check_threshold(threshold)
    rows = []
    for values, truth in _pairs(maps, masks):
        found = values > (values.mean() if threshold == "mean" else threshold)
        rows.append([(found & truth).sum(), (found & ~truth).sum(), (~found & truth).sum(), (~found & ~truth).sum()])
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)


def check_threshold(threshold: object) -> None:
    """ValueError unless it is "mean" or a finite number."""
    if threshold != "mean" and not (isinstance(threshold, int | float) and math.isfinite(threshold)):
        raise ValueError(f"threshold must be a number or 'mean', got {threshold!r}.")


def pixel_accuracy(maps: Batch, masks: Batch, threshold: float | str = 0.5, aggregate: str = "image") -> torch.Tensor:
    """Share of pixels on the right side, percent, higher is better: (B,), or one figure with `aggregate="dataset"`."""
    return accuracy_of(counts(maps, masks, threshold), aggregate)


def iou(
    maps: Batch, masks: Batch, threshold: float | str = 0.5, iou: str = "foreground", aggregate: str = "image"
) -> torch.Tensor:
    """Intersection over union, percent, higher is better: (B,), or one number with `aggregate="dataset"`.

    iou        "foreground" | "mean" of background and foreground (a class that neither map nor mask has is left out)
    aggregate  "image" | "dataset": intersections and unions summed over images first
    """
    return iou_of(counts(maps, masks, threshold), iou, aggregate)


def average_precision(maps: Batch, masks: Batch, ap: str = "foreground") -> torch.Tensor:
    """Average precision of the continuous map, percent (B,), higher is better (scikit-learn's step-wise area).

    ap  "foreground" | "two-class": background scored by 1 − map and pooled with the foreground [chefer2021beyond]
    """
    choice("ap", ap, ("foreground", "two-class"))
    results = []
    for values, truth in _pairs(maps, masks):
        known = bool(truth.any())
        if known and ap == "two-class":
            if not 0 <= values.min() <= values.max() <= 1:
                raise ValueError(f"ap='two-class' needs maps in [0, 1], got {values.min():.4g} to {values.max():.4g}.")
            values, truth = torch.cat([1 - values, values]), torch.cat([~truth, truth])
        results.append(100 * average_precision_score(truth.numpy(), values.numpy()) if known else math.nan)
    return torch.tensor(results, dtype=torch.float64)


def pointing_game(maps: Batch, boxes: Batch) -> torch.Tensor:
    """100 where the map's maximum lies in the box, else 0 (B,), higher is better.

    boxes (B, 4): x0, y0, x1, y1 in pixels, x1 and y1 exclusive. Of several equal maxima each counts its share, so that
    a constant map scores the box's area and not the luck of the first pixel.
    """
    # Equal up to rounding: an upsampled map is flat beyond the centre of its border patches.
    pairs = _each(maps, _inside, boxes=boxes)
    hits = [inside[m.max() - m <= 1e-5 * (m.max() - m.min())].double().mean() for m, inside in pairs]
    return 100 * torch.stack(hits)


def energy_in_box(maps: Batch, boxes: Batch) -> torch.Tensor:
    """Share of the map's sum inside the box, percent (B,), higher is better; 0 for a map that is 0 everywhere."""
    pairs = _each(maps, _inside, boxes=boxes)
    return 100 * torch.stack([m[inside].sum() / m.sum() if m.any() else m.sum() for m, inside in pairs])


def accuracy_of(counts: torch.Tensor, aggregate: str = "image") -> torch.Tensor:
    """`pixel_accuracy` from counts (B, 4)."""
    tp, fp, fn, tn = _aggregated(counts, aggregate)
    return 100 * (tp + tn) / (tp + fp + fn + tn)


def iou_of(counts: torch.Tensor, iou: str = "foreground", aggregate: str = "image") -> torch.Tensor:
    """`iou` from counts (B, 4)."""
    choice("iou", iou, ("foreground", "mean"))
    tp, fp, fn, tn = _aggregated(counts, aggregate)
    foreground, background = 100 * tp / (tp + fp + fn), 100 * tn / (tn + fp + fn)
    if iou == "foreground":
        return foreground
    return torch.where(foreground.isnan(), foreground, torch.stack([foreground, background]).nanmean(0))


def which(maps: Batch, masks: Batch, others: Batch) -> torch.Tensor:
    """One of two objects (B,): 1 where the map's mean inside the target's mask is above that inside the other's.

    Ties give ½; NaN where one of the two has no pixel. A map that does not know which object was asked for gets 0.5 on
    average over both questions: no method wins by finding 'objects'. Blind to everything outside the two objects.

    Args:
        maps: (B, height, width), or a list of B maps.
        masks: the object that is explained.
        others: the other object.
    """
    return _of_two(maps, masks, others, lambda a, b: float(a.mean() > b.mean()) + 0.5 * float(a.mean() == b.mean()))


def auroc(maps: Batch, masks: Batch, others: Batch) -> torch.Tensor:
    """One of two objects (B,): how well the map's values tell the target's pixels from the other object's, 0 to 1.

    The area under the ROC curve; 0.5 is chance, and the two questions about a photo sum to 1 for a map that does not
    change with the question. Arguments, and what it is blind to, as `which`.
    """
    return _of_two(maps, masks, others, lambda a, b: roc_auc_score([1] * len(a) + [0] * len(b), torch.cat([a, b])))


def outside_is_void(maps: Batch, masks: Batch) -> tuple[list, list]:
    """What `to_photo` marks NaN (outside the model's crop) becomes void in the masks and 0 in the maps.

    The model never saw those pixels, so a map can be neither right nor wrong there. Maps come back in float64 and masks
    with foreground 1, both on the CPU.
    """
    found = []
    for values, (foreground, void) in _each(maps, _parts, cropped=True, masks=masks):
        seen = values.isfinite()
        mask = (foreground & seen).to(torch.uint8).masked_fill_(void | ~seen, VOID)
        # A mask of 0 and 255 alone would read as a picture of a binary mask: nothing to find here is void throughout.
        found.append((values.nan_to_num(0), mask if bool((mask == 1).any()) else torch.full_like(mask, VOID)))
    return [values for values, _ in found], [mask for _, mask in found]


def _aggregated(counts, aggregate):
    """tp, fp, fn, tn: (B,) each, NaN for images without foreground, or their sums over the images that have some."""
    choice("aggregate", aggregate, ("image", "dataset"))
    empty = (counts[..., 0] + counts[..., 2] == 0)[..., None]
    counts = counts.masked_fill(empty, 0).sum(0) if aggregate == "dataset" else counts.masked_fill(empty, math.nan)
    return counts.unbind(-1)


def _pairs(maps, masks):
    """Each image's map values and foreground flags without the void, (pixels,) float64 and bool, on the CPU."""
    for values, (foreground, void) in _each(maps, _parts, masks=masks):
        yield values[~void], foreground[~void]


def _of_two(maps, masks, others, judge):
    """judge(values on one object, values on the other) of each image, where the model looked; NaN without both."""
    results = []
    for values, (first, _), (second, _) in _each(maps, _parts, cropped=True, masks=masks, other_masks=others):
        if bool((first & second).any()):
            raise ValueError(f"the masks of image {len(results)} overlap; each pixel belongs to one object at most.")
        first, second = (values[part & ~values.isnan()] for part in (first, second))
        results.append(judge(first, second) if len(first) and len(second) else math.nan)
    return torch.tensor(results, dtype=torch.float64)


def _each(maps, read, cropped=False, **others):
    """Each image's map, float64 and on the CPU, and what `read(map, given, number)` makes of what is given with it.

    cropped: NaN may mark what the model did not see. ValueError for a map that is none, or without its own of `others`.
    """
    for name, given in {"maps": maps, **others}.items():
        if not isinstance(given, Batch) or not getattr(given, "ndim", 1):
            raise ValueError(f"{name} must be a tensor or a list, one for each image, got {type(given).__name__}.")
        if len(given) != len(maps):
            raise ValueError(f"{len(maps)} maps but {len(given)} {name.replace('_', ' ')}.")
    for number, (values, *rest) in enumerate(zip(maps, *others.values(), strict=True)):
        values = torch.as_tensor(values).cpu()
        if values.is_complex() or not values.numel():
            raise ValueError(f"map {number} must hold real numbers, got {tuple(values.shape)} of {values.dtype}.")
        finite = values.isfinite()
        if not bool(finite.any() if cropped else finite.all()):
            raise ValueError(
                f"map {number} holds {'nothing but ' * cropped}NaN or infinity. Maps of to_photo are NaN outside the "
                "model's crop: metrics.outside_is_void takes those pixels out of maps and masks."
            )
        yield values.double(), *(read(values, given, number) for given in rest)


def _parts(values, mask, number):
    """Foreground and void of a mask (height, width), bool; ValueError for a mask that is none."""
    mask = torch.as_tensor(mask).cpu()
    if values.shape != mask.shape or values.ndim != 2 or mask.is_complex():
        raise ValueError(
            f"map {number} is {tuple(values.shape)} and its mask {tuple(mask.shape)}, {mask.dtype}: both must be "
            "(height, width) of the photo. Bring maps there with Vit.to_photo, and give one channel of whole numbers "
            "as mask."
        )
    found = mask.unique().double()
    if not bool((found.isfinite() & (found == found.round()) & (found >= 0)).all()):
        raise ValueError(
            f"mask {number} holds {', '.join(f'{v:g}' for v in found[:5].tolist())}…: a mask is whole numbers from 0, "
            "0 the background, 255 void, anything else the object. Resize masks with nearest neighbours."
        )
    if found.tolist() == [0, VOID]:
        warnings.warn(
            "A mask holds only 0 and 255, as a binary mask saved as a picture does: 255 is taken for the object.",
            stacklevel=7,
        )
        return mask == VOID, torch.zeros_like(mask, dtype=torch.bool)
    return (mask != 0) & (mask != VOID), mask == VOID


def _inside(values, box, number):
    """Which pixels of a map (height, width) lie in its box, bool; ValueError for a box that is none."""
    if values.ndim != 2 or np.shape(box) != (4,):
        got = f"{tuple(values.shape)} and {tuple(np.shape(box))}"
        raise ValueError(f"map {number} must be (height, width) and its box four numbers, got {got}.")
    height, width = values.shape
    x0, y0, x1, y1 = (float(v) for v in box)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    if not inside.any():
        raise ValueError(
            f"box {number} ({x0:g}, {y0:g}, {x1:g}, {y1:g}) holds no pixel of its {width}×{height} map; "
            "boxes are x0, y0, x1, y1 in the map's pixels, x1 and y1 exclusive."
        )
    return inside
