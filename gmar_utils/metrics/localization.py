"""Localisation: does the map lie on the object?

Maps and masks are (B, height, width) tensors, or lists of B (height, width) tensors of different sizes: photos keep
their own pixels. In a mask 0 is background, 255 is void and ignored everywhere, anything else is foreground. Results
are (B,) percentages; an image without foreground gives NaN, and `summarize` leaves it out and counts it.
"""

import math

import torch
from sklearn.metrics import average_precision_score

VOID = 255
PRESETS = {
    "report": {"threshold": 0.5, "iou": "foreground", "ap": "foreground", "aggregate": "image"},
    "chefer": {"threshold": "mean", "iou": "mean", "ap": "two-class", "aggregate": "dataset"},
}


def counts(maps, masks, threshold: float | str = 0.5) -> torch.Tensor:
    """Pixels (B, 4), float64: true positives, false positives, false negatives, true negatives; void left out.

    Foreground of a map = map > threshold; "mean" is the map's own mean over the pixels that are not void. Kept apart so
    that dataset-level figures, and their bootstrap, come from sums.
    """
    rows = []
    for values, truth in _pairs(maps, masks):
        limit = values.mean() if threshold == "mean" else threshold
        if isinstance(limit, str):
            raise ValueError(f"threshold must be a number or 'mean', got {threshold!r}.")
        found = values > limit
        rows.append([(found & truth).sum(), (found & ~truth).sum(), (~found & truth).sum(), (~found & ~truth).sum()])
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)


def pixel_accuracy(maps, masks, threshold: float | str = 0.5, aggregate: str = "image") -> torch.Tensor:
    """Share of pixels on the right side, percent, higher is better: (B,), or one figure with `aggregate="dataset"`."""
    return accuracy_of(counts(maps, masks, threshold), aggregate)


def iou(maps, masks, threshold: float | str = 0.5, iou: str = "foreground", aggregate: str = "image") -> torch.Tensor:
    """Intersection over union, percent, higher is better: (B,), or one number with `aggregate="dataset"`.

    iou        "foreground" | "mean" of background and foreground (a class that neither map nor mask has is left out)
    aggregate  "image" | "dataset": intersections and unions summed over images first
    """
    return iou_of(counts(maps, masks, threshold), iou, aggregate)


def average_precision(maps, masks, ap: str = "foreground") -> torch.Tensor:
    """Average precision of the continuous map, percent (B,), higher is better (scikit-learn's step-wise area).

    ap  "foreground" | "two-class": background scored by 1 − map and pooled with the foreground [chefer2021beyond]
    """
    _choice("ap", ap, ("foreground", "two-class"))
    results = []
    for values, truth in _pairs(maps, masks):
        if not truth.any():
            results.append(math.nan)
            continue
        if ap == "two-class":
            values, truth = torch.cat([1 - values, values]), torch.cat([~truth, truth])
        results.append(100 * average_precision_score(truth.numpy(), values.numpy()))
    return torch.tensor(results, dtype=torch.float64)


def pointing_game(maps, boxes) -> torch.Tensor:
    """100 where the map's maximum lies in the box, else 0 (B,), higher is better.

    boxes (B, 4): x0, y0, x1, y1 in pixels, x1 and y1 exclusive. Of several equal maxima each counts its share, so that
    a constant map scores the box's area and not the luck of the first pixel.
    """
    # Equal up to rounding: an upsampled map is flat beyond the centre of its border patches.
    return 100 * torch.stack(
        [inside[m.max() - m <= 1e-5 * (m.max() - m.min())].double().mean() for m, inside in _boxed(maps, boxes)]
    )


def energy_in_box(maps, boxes) -> torch.Tensor:
    """Share of the map's sum inside the box, percent (B,), higher is better; 0 for a map that is 0 everywhere."""
    return 100 * torch.stack([m[inside].sum() / m.sum() if m.any() else m.sum() for m, inside in _boxed(maps, boxes)])


def accuracy_of(counts: torch.Tensor, aggregate: str = "image") -> torch.Tensor:
    """`pixel_accuracy` from counts (B, 4)."""
    tp, fp, fn, tn = _aggregated(counts, aggregate)
    return 100 * (tp + tn) / (tp + fp + fn + tn)


def iou_of(counts: torch.Tensor, iou: str = "foreground", aggregate: str = "image") -> torch.Tensor:
    """`iou` from counts (B, 4)."""
    _choice("iou", iou, ("foreground", "mean"))
    tp, fp, fn, tn = _aggregated(counts, aggregate)
    foreground, background = 100 * tp / (tp + fp + fn), 100 * tn / (tn + fp + fn)
    if iou == "foreground":
        return foreground
    return torch.where(foreground.isnan(), foreground, torch.stack([foreground, background]).nanmean(0))


def summarize(values: torch.Tensor) -> tuple[float, int, int]:
    """Mean over the images that have a value, how many those are, and how many were left out (NaN)."""
    left_out = int(values.isnan().sum())
    return float(values.nanmean()), values.numel() - left_out, left_out


def outside_is_void(maps, masks) -> tuple[list, list]:
    """What `to_photo` marks NaN (outside the model's crop) becomes void in the masks and 0 in the maps.

    The model never saw those pixels, so a map can be neither right nor wrong there.
    """
    seen = [torch.as_tensor(m).isfinite() for m in maps]
    masks = [torch.as_tensor(m).clone().masked_fill_(~s.to(m.device), VOID) for m, s in zip(masks, seen, strict=True)]
    return [torch.as_tensor(m).nan_to_num(0) for m in maps], masks


def _aggregated(counts, aggregate):
    """tp, fp, fn, tn: (B,) each, NaN for images without foreground, or their sums over the images that have some."""
    _choice("aggregate", aggregate, ("image", "dataset"))
    empty = (counts[:, 0] + counts[:, 2] == 0)[:, None]
    if aggregate == "dataset":
        counts = counts.masked_fill(empty, 0).sum(0)
    else:
        counts = counts.masked_fill(empty, math.nan)
    return counts.unbind(-1)


def _pairs(maps, masks):
    """Each image's map values and foreground flags without the void, (pixels,) float64 and bool, on the CPU."""
    if len(maps) != len(masks):
        raise ValueError(f"{len(maps)} maps but {len(masks)} masks.")
    for number, (values, mask) in enumerate(zip(maps, masks, strict=True)):
        values, mask = torch.as_tensor(values).cpu(), torch.as_tensor(mask).cpu()
        if values.shape != mask.shape or values.ndim != 2:
            raise ValueError(
                f"map {number} is {tuple(values.shape)} and its mask {tuple(mask.shape)}: both must be (height, width) "
                "of the photo. Bring maps there with Vit.to_photo."
            )
        _no_nan(values, number)
        keep = mask != VOID
        yield values[keep].double(), mask[keep] != 0


def _boxed(maps, boxes):
    """Each image's map (height, width) float64, and which of its pixels lie in the box."""
    if len(maps) != len(boxes):
        raise ValueError(f"{len(maps)} maps but {len(boxes)} boxes.")
    for number, (values, box) in enumerate(zip(maps, boxes, strict=True)):
        values = torch.as_tensor(values).cpu().double()
        _no_nan(values, number)
        height, width = values.shape
        x0, y0, x1, y1 = (float(v) for v in box)
        y, x = torch.arange(height)[:, None], torch.arange(width)
        inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
        if not inside.any():
            raise ValueError(
                f"box {number} ({x0:g}, {y0:g}, {x1:g}, {y1:g}) holds no pixel of its {width}×{height} map; "
                "boxes are x0, y0, x1, y1 in the map's pixels, x1 and y1 exclusive."
            )
        yield values, inside


def _no_nan(values, number):
    if not bool(values.isfinite().all()):
        raise ValueError(
            f"map {number} holds NaN or infinity. Maps of to_photo are NaN outside the model's crop: pass maps and "
            "masks through metrics.outside_is_void first."
        )


def _choice(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
