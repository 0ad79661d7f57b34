"""Faithfulness of a map's values, and not only of their order: Average Drop and Increase, and SaCo."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from ..capture.checks import check_pixel_values, choice
from ..photo import minmax, resize
from .faithfulness import Protocol
from .forwards import Grid, Target, checked_maps, on_pixels, ranks, row_scores, unit_values
from .imputation import baseline_named


class Masked(NamedTuple):
    """Scores of the full and of the masked images, both (B,), and the share of the image let through, (B,) percent."""

    full: torch.Tensor
    masked: torch.Tensor
    coverage: torch.Tensor
    protocol: Protocol


def average_drop(full: torch.Tensor, masked: torch.Tensor, per_image: bool = False) -> torch.Tensor:
    """Average Drop, percent, lower is better: 100/N Σ max(0, Y − O)/Y [jo2025gmar].

    Blind to coverage: a map that lets most of the image through drops little, a random one included. Read it beside
    `Masked.coverage`, or use `masking="top"`.

    Args:
        full: (B,) scores Y of the untouched images.
        masked: (B,) scores O of the masked ones.
        per_image: the (B,) terms in place of their mean.

    Raises:
        ValueError: for a score Y ≤ 0, or scores that are not finite.
    """
    full, masked = _pair(full, masked)
    if not bool((full > 0).all()):
        raise ValueError(
            f"Average Drop divides by the full image's score, which must be > 0; the smallest is "
            f"{full.min():.4g}. Use score='probability', or leave out images whose logit is not positive."
        )
    drop = 100 * (full - masked).clamp(min=0) / full
    return drop if per_image else drop.mean()


def average_increase(full: torch.Tensor, masked: torch.Tensor, per_image: bool = False) -> torch.Tensor:
    """Average Increase, percent, higher is better: the share of images with O > Y [jo2025gmar].

    Blind to the size of a change: a score that rises by 1e-6 counts as much as one that doubles. Arguments as
    `average_drop`.
    """
    full, masked = _pair(full, masked)
    increase = 100 * (masked > full).to(full.dtype)
    return increase if per_image else increase.mean()


def masked_scores(
    model: nn.Module,
    pixel_values: torch.Tensor,
    maps: torch.Tensor,
    target: Target = None,
    *,
    masking: str = "multiply",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **forward: object,
) -> Masked:
    """Scores before and after masking the image by its map: what Average Drop and Increase are computed from.

    Args:
        model: classifier.
        pixel_values: (B, channels, height, width).
        maps: (B, height, width) in [0, 1], or (B, R, C), brought to image size bilinearly and to [0, 1] by min–max.
        target: None (the class predicted on the full image) | int | (B,).
        masking: "multiply" in normalised space | "raw": towards black in RGB (needs the processor's mean and std)
            | "top": keep the top half of the patches, zero the rest: the same coverage for all [wang2020scorecam].
        mean: per channel, for "raw".
        std: per channel, for "raw".
        **forward: score, batch_size and precision, as `forwards.row_scores`.
    """
    choice("masking", masking, ("multiply", "raw", "top"))
    pixel_values = check_pixel_values(pixel_values, model)
    maps, size = checked_maps(maps, pixel_values), pixel_values.shape[-2:]
    if masking == "top":
        values, y, x = unit_values(maps, pixel_values, model)
        maps = on_pixels(ranks(values, descending=True) < (values[0].numel() + 1) // 2, y, x)
    elif maps.shape[1:] != size:
        maps = minmax(resize(minmax(maps), size))  # first, too: rounding would turn a constant map into noise
    elif not bool(((maps >= 0) & (maps <= 1)).all()):
        raise ValueError(
            f"Maps at image size must lie in [0, 1], got {maps.min():.4g} to {maps.max():.4g}. "
            "gmar_utils.explain gives such maps."
        )
    keep = maps.to(pixel_values.dtype)
    if masking == "raw":
        if mean is None or std is None:
            raise ValueError("masking='raw' works on RGB: pass mean= and std= (the processor's image_mean, image_std).")
        mean, std = (torch.as_tensor(v).to(pixel_values).reshape(-1, 1, 1) for v in (mean, std))
        masked = ((pixel_values * std + mean) * keep[:, None] - mean) / std
    else:
        masked = pixel_values * keep[:, None]
    versions = torch.stack([pixel_values, masked], 1)
    scores, about = row_scores(model, pixel_values, target, 2, lambda image, k: model(versions[image, k]), **forward)
    protocol = Protocol("drop and increase", masking=masking, **about)
    return Masked(*scores.unbind(1), 100 * keep.float().mean((1, 2)), protocol)


def saco(
    model: nn.Module,
    pixel_values: torch.Tensor,
    maps: torch.Tensor,
    target: Target = None,
    *,
    groups: int = 10,
    grid: Grid = None,
    **forward: object,
) -> torch.Tensor:
    """Salience-guided consistency (B,) in [−1, 1], higher is better [wu2024saco].

    Patches, highest first, fall into K groups of equal number; s_i is a group's mean value, d_i what the score loses
    when this group alone is replaced. Each pair i < j of groups adds s_i − s_j where d_i ≥ d_j and subtracts it where
    not; the sum is divided by Σ|s_i − s_j|. A random map gives about 0, a constant map 0. The replacement is ours, the
    image's mean colour: the authors' code leaves it blank. Blind to patches that matter only together (each group is
    removed alone), and to the order within a group.

    Args:
        model: classifier.
        pixel_values: (B, channels, height, width).
        maps: (B, R, C), or (B, height, width), averaged per patch.
        target: None (the class predicted on the full image) | int | (B,).
        groups: K; fewer where there are fewer patches.
        grid: as `deletion`.
        **forward: score, batch_size and precision, as `forwards.row_scores`.
    """
    pixel_values = check_pixel_values(pixel_values, model)
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 2:
        raise ValueError(f"groups must be a whole number of at least 2, got {groups!r}.")
    values, y, x = unit_values(checked_maps(maps, pixel_values), pixel_values, model, grid=grid)
    group, means = grouped(values, groups)
    fill = baseline_named("mean")

    def run(image, step):  # step 0: the whole image; step k: without group k − 1
        shown = group[image] != (step - 1)[:, None, None]
        return model(fill(pixel_values[image], on_pixels(shown, y, x)))

    scores, _ = row_scores(model, pixel_values, target, means.shape[1] + 1, run, **forward)
    return consistency(means, scores[:, :1] - scores[:, 1:])


def grouped(values: torch.Tensor, groups: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """The group (B, R, C) of each patch, 0 the highest, and each group's mean value (B, K), of maps (B, R, C)."""
    place, units = ranks(values, descending=True), values[0].numel()
    sizes = torch.tensor([len(part) for part in torch.arange(units).tensor_split(min(groups, units))])
    group = torch.repeat_interleave(sizes).to(values.device)[place]
    means = torch.zeros(len(values), len(sizes), dtype=torch.float64, device=values.device)
    means = means.scatter_add_(1, group.flatten(1), values.flatten(1).double()) / sizes.to(values.device)
    return group, means


def consistency(means: torch.Tensor, drops: torch.Tensor) -> torch.Tensor:
    """SaCo (B,) from the groups' mean values (B, K), highest first, and what the score loses without each (B, K)."""
    first, second = torch.triu_indices(means.shape[1], means.shape[1], offset=1, device=means.device)
    gap = means[:, first] - means[:, second]
    signed = torch.where(drops[:, first] >= drops[:, second], gap, -gap).sum(1)
    total = gap.abs().sum(1)
    return torch.where(total > 0, signed / total.clamp_min(torch.finfo(total.dtype).tiny), 0.0)


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
