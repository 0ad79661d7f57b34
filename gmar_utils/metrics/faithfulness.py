"""Faithfulness: does the model's score follow the pixels that a map calls important?

Letters as in the book's notation: B images, an R × C patch grid, S steps, y the logit of the target class. Every result
carries a `Protocol`; a score without one cannot be reproduced.
"""

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

from ..capture import trace
from ..capture.checks import check_pixel_values
from ..capture.layout import logits_of, unwrap
from ..capture.settling import settled
from ..capture.target import class_score, probability, resolve_target
from .imputation import blur, linear

KEPT_LIMIT = 20.0  # percent of the full score: a baseline that keeps more than this is no "nothing"


@dataclass(frozen=True)
class Protocol:
    """What a number needs beside it to be measured again. Prints as a one-line card; None means 'plays no part'."""

    metric: str
    score: str | None = None
    target: str | None = None
    masking: str | None = None
    baseline: str | None = None
    order: str | None = None
    steps: int | None = None
    unit: str | None = None
    precision: str | None = None
    images: int | None = None
    seed: int | None = None

    def __str__(self):
        rest = [(f.name, getattr(self, f.name)) for f in fields(self)[1:]]
        return f"{self.metric}: " + " · ".join(f"{name} {value}" for name, value in rest if value is not None)


@dataclass(frozen=True)
class Curve:
    """Score against the fraction of the image inserted or removed.

    fractions (S+1,) in [0, 1]; scores (B, S+1); auc (B,), the trapezoid over the fraction: a constant curve s gives s;
    full (B,) score of the untouched image; baseline (B,) score of the image with everything replaced.
    """

    fractions: torch.Tensor
    scores: torch.Tensor
    auc: torch.Tensor
    full: torch.Tensor
    baseline: torch.Tensor
    protocol: Protocol

    @property
    def baseline_kept(self) -> torch.Tensor:
        """(B,) percent of the full score that the baseline image keeps. Above `KEPT_LIMIT` the curve says little."""
        return 100 * self.baseline / self.full


@dataclass(frozen=True)
class Masked:
    """Scores of the full and of the masked images, both (B,), and the share of the image let through, (B,) percent."""

    full: torch.Tensor
    masked: torch.Tensor
    coverage: torch.Tensor
    protocol: Protocol


def average_drop(full, masked, per_image: bool = False) -> torch.Tensor:
    """Average Drop, percent, lower is better: 100/N Σ max(0, Y − O)/Y of full scores Y and masked scores O, both (B,).

    Sensitive to coverage: a map that lets most of the image through drops little, a random one included. Read it beside
    `Masked.coverage`, or use `masking="top"`. `per_image=True` gives the (B,) terms. ValueError where Y ≤ 0.
    [jo2025gmar]
    """
    full, masked = _pair(full, masked)
    if not bool((full > 0).all()):
        raise ValueError(
            f"Average Drop divides by the full image's score, which must be > 0; the smallest is "
            f"{full.min():.4g}. Use score='probability', or leave out images whose logit is not positive."
        )
    drop = 100 * (full - masked).clamp(min=0) / full
    return drop if per_image else drop.mean()


def average_increase(full, masked, per_image: bool = False) -> torch.Tensor:
    """Average Increase, percent, higher is better: the share of images with O > Y [jo2025gmar]. As `average_drop`."""
    full, masked = _pair(full, masked)
    increase = 100 * (masked > full).to(full.dtype)
    return increase if per_image else increase.mean()


def masked_scores(
    model, pixel_values, maps, target=None, *, score="probability", masking="multiply", mean=None, std=None,
    batch_size=64,
) -> Masked:  # fmt: skip
    """Scores (B,) before and after masking the image by its map: what Average Drop and Increase are computed from.

    maps     (B, height, width) in [0, 1], or (B, R, C), brought to image size bilinearly and to [0, 1] by min–max
    target   None (the class predicted on the full image) | int | (B,)
    score    "probability" | "logit"
    masking  "multiply" in normalised space | "raw": towards black in RGB (needs the processor's mean and std)
             | "top": keep the top half of the patches, zero the rest: the same coverage for all [wang2020scorecam]
    """
    _choice("masking", masking, ("multiply", "raw", "top"))
    _choice("score", score, ("probability", "logit"))
    maps = _checked(maps, pixel_values)
    if masking == "top":
        ranks, units = _ranks(maps, pixel_values, unwrap(model), "patch", descending=True)
        keep = (ranks < units - units // 2).to(pixel_values.dtype)
    else:
        keep = _to_image(maps, pixel_values)
    if masking == "raw":
        if mean is None or std is None:
            raise ValueError(
                "masking='raw' works on RGB values: pass the processor's mean= and std= (image_mean, image_std)."
            )
        mean, std = (
            torch.as_tensor(v, dtype=pixel_values.dtype, device=pixel_values.device).reshape(-1, 1, 1)
            for v in (mean, std)
        )
        masked = ((pixel_values * std + mean) * keep[:, None] - mean) / std
    else:
        masked = pixel_values * keep[:, None]
    with evaluating(model, pixel_values) as precision:
        named, target = target, resolve(model, pixel_values, target, batch_size)
        full, masked = (
            torch.cat(
                [
                    score_of(model, x, t, score)
                    for x, t in zip(v.split(batch_size), target.split(batch_size), strict=True)
                ]
            )
            for v in (pixel_values, masked)
        )
    protocol = Protocol("drop and increase", score, _named(named), masking, precision=precision, images=len(full))
    return Masked(full, masked, 100 * keep.float().mean((1, 2)), protocol)


def insertion(
    model, pixel_values, maps, target=None, *, score="probability", baseline="zero", steps=None, unit="patch",
    grid=None, batch_size=64, seed=0,
) -> Curve:  # fmt: skip
    """Insertion, higher is better: the score while patches appear on the baseline, the map's highest first.

    RISE's metric [petsiuk2018rise], by patch.

    maps      (B, R, C), ordered as they are, or (B, height, width), averaged per patch; ties keep reading order
    target    None (the class predicted on the full image) | int | (B,)
    score     "probability" | "logit"
    baseline  "zero" in normalised space | "blur" (RISE's; at 64 px it keeps most of the score: `Curve.baseline_kept`)
              | "linear": ROAD's noisy imputation, drawn with `seed` (slow: one solve an image and step)
    steps     a number S (default min(R·C, 32)), equal numbers of patches each | "patch": one at a time
    unit      "patch" | "pixel", as RISE orders
    grid      (R, C); needed only for full-size maps of a model without a strided Conv2d
    """
    return _curve(
        "insertion", model, pixel_values, maps, target, score, baseline, "most", steps, unit, grid, batch_size, seed
    )


def deletion(
    model, pixel_values, maps, target=None, *, score="probability", baseline="zero", order="most", steps=None,
    unit="patch", grid=None, batch_size=64, seed=0,
) -> Curve:  # fmt: skip
    """Deletion, lower is better: the score while patches give way to the baseline, the map's highest first.

    RISE's metric [petsiuk2018rise], by patch. `order="most"` is MoRF; `order="least"` (LeRF) removes the lowest first,
    and then higher is better. Other arguments as in `insertion`. With a fixed baseline and no ties LeRF is Insertion
    read backwards; with `baseline="linear"` it is not.
    """
    return _curve(
        "deletion", model, pixel_values, maps, target, score, baseline, order, steps, unit, grid, batch_size, seed
    )


def morf_lerf(model, pixel_values, maps, target=None, **protocol) -> tuple[Curve, Curve, torch.Tensor]:
    """Deletion with the most and with the least relevant first, and LeRF − MoRF of the areas (B,): higher is better.

    With `baseline="linear"` this is ROAD, whose filled-in pixels give the shape of the mask away less [rong2022road].
    """
    morf = deletion(model, pixel_values, maps, target, order="most", **protocol)
    lerf = deletion(model, pixel_values, maps, target, order="least", **protocol)
    return morf, lerf, lerf.auc - morf.auc


@contextmanager
def evaluating(model, pixel_values):
    """Eval mode, inference mode, the fused attention path and, on a GPU, autocast. Yields the precision's name.

    bfloat16 only where the GPU has it (a T4 emulates it, slowly), float16 there; float32 on a CPU.
    """
    check_pixel_values(pixel_values)
    with settled(unwrap(model)), ExitStack() as stack:
        dtype, device = pixel_values.dtype, pixel_values.device.type
        if torch.is_autocast_enabled(device):  # the caller's own choice, such as bfloat16 on a CPU that has it
            dtype = torch.get_autocast_dtype(device)
        elif device == "cuda" and dtype == torch.float32:
            dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
            stack.enter_context(torch.autocast("cuda", dtype))
        stack.enter_context(torch.inference_mode())
        yield str(dtype).removeprefix("torch.")


def _curve(metric, model, pixel_values, maps, target, score, baseline, order, steps, unit, grid, batch_size, seed):
    _choice("score", score, ("probability", "logit"))
    _choice("baseline", baseline, ("zero", "blur", "linear"))
    _choice("order", order, ("most", "least"))
    maps = _checked(maps, pixel_values)
    ranks, units = _ranks(maps, pixel_values, unwrap(model), unit, descending=order == "most", grid=grid)
    steps = _steps(steps, unit, units, maps, pixel_values)
    counts = torch.linspace(0, units, steps + 1, dtype=torch.float64).round().long().to(pixel_values.device)
    base = blur(pixel_values) if baseline == "blur" else None
    inserting, scores = metric == "insertion", []
    with evaluating(model, pixel_values) as precision:
        named, target = target, resolve(model, pixel_values, target, batch_size)
        # One row for each image and step, in one long batch; inputs are built chunk by chunk on the device.
        rows = torch.arange(len(pixel_values) * (steps + 1), device=pixel_values.device)
        for row in rows.split(batch_size):
            image, step = row // (steps + 1), row % (steps + 1)
            shown = ((ranks[image] < counts[step, None, None]) == inserting)[:, None]
            x = pixel_values[image]
            if baseline == "linear":
                x = linear(x, shown[:, 0], seed)
            else:
                x = torch.where(shown, x, 0 if base is None else base[image])
            scores.append(score_of(model, x, target[image], score))
    scores = torch.cat(scores).unflatten(0, (-1, steps + 1))
    fractions = (counts / units).to(scores.dtype)
    full, empty = (scores[:, -1], scores[:, 0]) if inserting else (scores[:, 0], scores[:, -1])
    protocol = Protocol(
        metric,
        score,
        _named(named),
        baseline=baseline,
        order=None if inserting else order,
        steps=steps,
        unit=unit,
        precision=precision,
        images=len(scores),
        seed=seed if baseline == "linear" else None,
    )
    return Curve(fractions, scores, torch.trapezoid(scores, fractions), full, empty, protocol)


def score_of(model, pixel_values, target, score):
    """(B,) probability or logit of the target."""
    logits = logits_of(model(pixel_values))
    return probability(model, logits, target) if score == "probability" else class_score(logits.float(), target)


def resolve(model, pixel_values, target, batch_size):
    """Class ids (B,); None is the predicted class. A given one is checked against one image's logits, no full pass."""
    if target is None:
        return torch.cat([resolve_target(model, logits_of(model(x))) for x in pixel_values.split(batch_size)])
    logits = logits_of(model(pixel_values[:1]))
    return resolve_target(model, logits.expand(len(pixel_values), -1), target)


def _ranks(maps, pixel_values, model, unit, descending, grid=None):
    """For each pixel (B, height, width) the place of its unit in the order, and the number of units."""
    _choice("unit", unit, ("patch", "pixel"))
    height, width = pixel_values.shape[-2:]
    if unit == "pixel":
        maps = _to_image(maps, pixel_values, minmax=False)
    elif maps.shape[1:] == (height, width) and grid != (height, width):
        rows, columns = grid or trace(model, pixel_values[:1], gradients=False).grid
        patch = height // rows, width // columns
        maps = F.avg_pool2d(maps[:, None, : rows * patch[0], : columns * patch[1]], patch)[:, 0]
    rows, columns = maps.shape[1:]
    if rows > height or columns > width:
        raise ValueError(f"maps of {rows}×{columns} are larger than the image of {height}×{width} pixels.")
    order = maps.flatten(1).argsort(dim=1, descending=descending, stable=True)
    ranks = order.argsort(dim=1).view_as(maps)
    y = (torch.arange(height, device=maps.device) // (height // rows)).clamp(max=rows - 1)
    x = (torch.arange(width, device=maps.device) // (width // columns)).clamp(max=columns - 1)
    return ranks[:, y][:, :, x], rows * columns


def _steps(steps, unit, units, maps, pixel_values):
    if steps == "patch":
        if unit == "pixel":
            raise ValueError("steps='patch' needs unit='patch'; give a number of steps for unit='pixel'.")
        return units
    if steps is None:
        return min(units, 32)
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= units:
        raise ValueError(f"steps must be 'patch' or a whole number from 1 to {units} ({unit} units), got {steps!r}.")
    return steps


def _to_image(maps, pixel_values, minmax=True):
    """Maps at image size. Patch maps come up bilinearly, then min–max per image; full-size maps must be in [0, 1]."""
    size = pixel_values.shape[-2:]
    if maps.shape[1:] != size:
        flat = maps.amin((1, 2), keepdim=True) == maps.amax((1, 2), keepdim=True)
        maps = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        if minmax:
            low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
            # A constant map becomes 0, as everywhere in this package.
            maps = torch.where(flat, 0, (maps - low) / (high - low))
    elif minmax and not bool(((maps >= 0) & (maps <= 1)).all()):
        raise ValueError(
            f"Maps at image size must lie in [0, 1], got {maps.min():.4g} to {maps.max():.4g}. "
            "gmar_utils.explain gives such maps."
        )
    return maps


def _checked(maps, pixel_values):
    shape = tuple(getattr(maps, "shape", ()))
    if not isinstance(maps, torch.Tensor) or maps.ndim != 3 or len(maps) != len(pixel_values):
        raise ValueError(
            f"maps must be a tensor (B, R, C) or (B, height, width) with B = {len(pixel_values)}, got "
            f"{shape or type(maps).__name__}."
        )
    if not bool(maps.isfinite().all()):
        bad = (~maps.isfinite()).flatten(1).any(1).nonzero()[:, 0].tolist()
        raise ValueError(
            f"maps hold NaN or infinity (images {bad[:8]} of the batch): an order of patches is undefined. "
            "Faithfulness uses maps on the model's input, not those of to_photo."
        )
    return maps.to(pixel_values.device, torch.float32)


def _pair(full, masked):
    full, masked = torch.as_tensor(full), torch.as_tensor(masked)
    if full.shape != masked.shape or full.ndim != 1 or not len(full):
        raise ValueError(
            f"full and masked must be (B,) scores of the same images, got {tuple(full.shape)} and "
            f"{tuple(masked.shape)}."
        )
    if not bool((full.isfinite() & masked.isfinite()).all()):
        raise ValueError("full and masked scores must be finite; one of them is NaN or infinite.")
    return full, masked


def _choice(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")


def _named(target):
    return "predicted" if target is None else "label"
