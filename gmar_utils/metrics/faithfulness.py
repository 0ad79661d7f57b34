"""Faithfulness of an order: does the model's score follow the pixels that a map calls important?

Letters as in the book's notation: B images, an R × C patch grid, S steps, y the logit of the target class. Every result
carries a `Protocol`; a score without one cannot be reproduced.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import nn

from ..capture.checks import check_pixel_values, choice
from .forwards import Grid, Target, checked_maps, on_pixels, ranks, row_scores, unit_values
from .imputation import Baseline, baseline_named

KEPT_LIMIT = 20.0  # percent of the full score: a baseline that keeps more than this is no "nothing"


@dataclass(frozen=True)
class Protocol:
    """What a number needs beside it to be measured again. Prints as one line; None means 'plays no part'."""

    metric: str
    score: str | None = None
    target: str | None = None
    masking: str | None = None
    baseline: str | None = None
    order: str | None = None
    steps: int | None = None
    unit: str | None = None
    groups: int | None = None
    threshold: float | str | None = None
    iou: str | None = None
    ap: str | None = None
    aggregate: str | None = None
    precision: str | None = None
    images: int | None = None
    seed: int | None = None

    def __str__(self):
        rest = [(f.name, getattr(self, f.name)) for f in fields(self)[1:]]
        return f"{self.metric}: " + " · ".join(f"{name} {value}" for name, value in rest if value is not None)


class Curve(NamedTuple):
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


def insertion(
    model: nn.Module, pixel_values: torch.Tensor, maps: torch.Tensor, target: Target = None, **protocol: object
) -> Curve:
    """Insertion, higher is better: the score while patches appear on the baseline, the map's highest first.

    RISE's metric [petsiuk2018rise], by patch. Blind to what the baseline leaves standing: read `Curve.baseline_kept`.
    Arguments as `deletion`, without its `order`.
    """
    return deletion(model, pixel_values, maps, target, order="insert", **protocol)


def deletion(
    model: nn.Module,
    pixel_values: torch.Tensor,
    maps: torch.Tensor,
    target: Target = None,
    *,
    order: str = "most",
    baseline: Baseline = "zero",
    steps: int | str | None = None,
    unit: str = "patch",
    grid: Grid = None,
    seed: int = 0,
    **forward: object,
) -> Curve:
    """Deletion, lower is better: the score while patches give way to the baseline, the map's highest first.

    RISE's metric [petsiuk2018rise], by patch. Blind to the difference between a removed object and a picture that no
    longer looks like any the model has seen.

    Args:
        model: classifier.
        pixel_values: (B, channels, height, width).
        maps: (B, R, C), ordered as they are, or (B, height, width), averaged per patch; ties keep reading order.
        target: None (the class predicted on the full image) | int | (B,).
        order: "most" relevant first is MoRF; "least" is LeRF, and then higher is better | "insert": the most relevant
            appear on the baseline, which is `insertion`.
        baseline: "zero" in normalised space | "blur" (RISE's; at 64 px it keeps most of the score) | "mean" of each
            image | "linear": ROAD's noisy imputation, drawn with `seed` (slow: one solve an image and step)
            | a function (x (b, channels, height, width), shown (b, height, width) bool) → x with the rest replaced.
        steps: a number S (default min(R·C, 32)), equal numbers of patches each | "patch": one at a time.
        unit: "patch" | "pixel", as RISE orders.
        grid: (R, C); needed only for full-size maps of a model without a strided Conv2d.
        seed: of "linear".
        **forward: score, batch_size and precision, as `forwards.row_scores`.
    """
    choice("order", order, ("most", "least", "insert"))
    pixel_values, inserting = check_pixel_values(pixel_values, model), order == "insert"
    fill = baseline_named(baseline, seed)
    values, y, x = unit_values(checked_maps(maps, pixel_values), pixel_values, model, unit, grid)
    place, units = ranks(values, descending=order != "least"), values[0].numel()
    steps = step_count(steps, unit, units)
    counts = torch.linspace(0, units, steps + 1, dtype=torch.float64).round().long().to(pixel_values.device)

    def run(image, step):
        shown = (place[image] < counts[step, None, None]) == inserting
        return model(fill(pixel_values[image], on_pixels(shown, y, x)))

    scores, about = row_scores(model, pixel_values, target, steps + 1, run, **forward)
    fractions = (counts / units).to(scores.dtype)
    full, empty = (scores[:, -1], scores[:, 0]) if inserting else (scores[:, 0], scores[:, -1])
    metric, order = ("insertion", None) if inserting else ("deletion", order)
    seed = seed if baseline == "linear" else None
    baseline = baseline if isinstance(baseline, str) else getattr(baseline, "__name__", "own")
    protocol = Protocol(metric, baseline=baseline, order=order, steps=steps, unit=unit, seed=seed, **about)
    return Curve(fractions, scores, torch.trapezoid(scores, fractions), full, empty, protocol)


def morf_lerf(
    model: nn.Module, pixel_values: torch.Tensor, maps: torch.Tensor, target: Target = None, **protocol: object
) -> tuple[Curve, Curve, torch.Tensor]:
    """Deletion with the most and with the least relevant first, and LeRF − MoRF of the areas (B,): higher is better.

    At a fixed baseline, without ties, the difference is `srg`. With `baseline="linear"` this is ROAD, whose filled-in
    pixels give the shape of the mask away less [rong2022road].
    Arguments as `deletion`, without `order`.
    """
    morf = deletion(model, pixel_values, maps, target, order="most", **protocol)
    lerf = deletion(model, pixel_values, maps, target, order="least", **protocol)
    return morf, lerf, lerf.auc - morf.auc


def srg(
    model: nn.Module, pixel_values: torch.Tensor, maps: torch.Tensor, target: Target = None, **protocol: object
) -> torch.Tensor:
    """Symmetric relevance gain (B,), higher is better: AUC(least relevant removed first) − AUC(most relevant first).

    [bluecher2024srg] The first curve is Insertion read backwards, so this is Insertion − Deletion. A random order gives
    0 on average, whatever the baseline: what a baseline leaves standing cancels. Blind to the values of a map, of which
    only the order counts, and to which of its two ends is right: a map that knows the worst patches gains as much as
    one that knows the best.

    Args:
        model: classifier.
        pixel_values: (B, channels, height, width).
        maps: (B, R, C) or (B, height, width).
        target: None (the class predicted on the full image) | int | (B,).
        **protocol: as `insertion`.

    Returns:
        (B,) in units of the score: −1 to 1 for probabilities.
    """
    inserted = insertion(model, pixel_values, maps, target, **protocol)
    return inserted.auc - deletion(model, pixel_values, maps, target, **protocol).auc


def step_count(steps: int | str | None, unit: str, units: int) -> int:
    """The number of steps S that `steps` stands for with this many units; ValueError if it stands for none."""
    if steps == "patch" and unit == "pixel":
        raise ValueError("steps='patch' needs unit='patch'; give a number of steps for unit='pixel'.")
    if steps in (None, "patch"):
        return units if steps else min(units, 32)
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= units:
        raise ValueError(f"steps must be 'patch' or a whole number from 1 to {units} ({unit} units), got {steps!r}.")
    return steps
