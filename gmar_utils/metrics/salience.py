"""SaCo: do the sizes of a map's values, and not only their order, match what the patches do to the score?"""

import torch
from torch import nn

from .forwards import Target, check_input, row_scores
from .imputation import baseline_named
from .units import checked_maps, on_pixels, ranks, unit_values


def saco(
    model: nn.Module,
    pixel_values: torch.Tensor,
    maps: torch.Tensor,
    target: Target = None,
    *,
    groups: int = 10,
    grid: tuple[int, int] | None = None,
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
        grid: as `removal`.
        **forward: score, batch_size and precision, as `forwards.row_scores`.
    """
    pixel_values = check_input(model, pixel_values)
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 2:
        raise ValueError(f"groups must be a whole number of at least 2, got {groups!r}.")
    fill = baseline_named("mean")
    values, y, x = unit_values(checked_maps(maps, pixel_values), pixel_values, model, grid=grid)
    group, means = grouped(values, groups)

    def run(image, step):  # step 0: the whole image; step k: without group k − 1
        shown = group[image] != (step - 1)[:, None, None]
        return model(fill(pixel_values[image], on_pixels(shown, y, x)))

    steps = means.shape[1] + 1
    scores, _ = row_scores(model, pixel_values, target, steps, run, **forward)
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
