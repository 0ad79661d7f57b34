"""Beyond both papers: does a map need the trained weights at all?"""

import copy
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import nn

from ..capture.layout import blocks, unwrap


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Spearman's ρ (B,) of two (B, …) tensors, image by image; NaN where one of them is constant."""
    pairs = zip(a.flatten(1).double().cpu(), b.flatten(1).double().cpu(), strict=True)
    found = [float(spearmanr(x, y).statistic) if x.std() > 0 and y.std() > 0 else math.nan for x, y in pairs]
    return torch.tensor(found, dtype=torch.float64)


class Randomization(NamedTuple):
    """How much of a map is left after each stage: its name, Spearman's ρ (S, B) and SSIM (S, B) with the first map."""

    stages: list[str]
    rank: torch.Tensor
    ssim: torch.Tensor


def parameter_randomization(
    model: nn.Module, pixel_values: torch.Tensor, explain: Callable, seed: int = 0
) -> Randomization:
    """Cascading model-parameter randomisation: weights drawn anew, from the head down to the embedding.

    [adebayo2018sanity]

    A map that stays as it was does not depend on what the model has learnt. The model itself is left as it is.

    Args:
        model: the trained model.
        pixel_values: (B, channels, height, width).
        explain: (model, pixel_values) → maps (B, height, width) in [0, 1]. Fix its target to the class that the trained
            model predicts, so that the same question is asked at every stage.
        seed: of the new weights.
    """
    before = explain(model, pixel_values)
    after = {name: explain(broken, pixel_values) for name, broken in randomized(model, seed)}
    ranks = [rank_correlation(before, maps) for maps in after.values()]
    similarities = [[_ssim(a, b) for a, b in zip(before, maps, strict=True)] for maps in after.values()]
    return Randomization(list(after), torch.stack(ranks), torch.tensor(similarities, dtype=torch.float64))


def randomized(model: nn.Module, seed: int = 0) -> Iterator[tuple[str, nn.Module]]:
    """Name of the stage and the model (one copy, changed in place): "head", then block L to 1, then "embeddings".

    Modules are drawn anew by their own `reset_parameters`; bare parameters (class token, position embeddings) from a
    normal distribution with the standard deviation they had.
    """
    model = copy.deepcopy(unwrap(model))
    with torch.random.fork_rng(devices=[]):
        state = torch.Generator().manual_seed(seed).get_state()
        for name, modules in reversed(_stages(model).items()):
            torch.set_rng_state(state)
            for module in modules:
                _draw_anew(module)
            state = torch.get_rng_state()
            yield name, model


def _stages(model):
    """{name: modules that own parameters} from the input to the output."""
    block_of = {id(m): f"block {i}" for i, block in enumerate(blocks(model), 1) for m in block.modules()}
    stages, outside = {name: [] for name in ("embeddings", *block_of.values(), "head")}, "embeddings"
    for module in model.modules():
        if id(module) in block_of:
            outside = "head"  # what is registered behind the blocks
        if next(module.parameters(recurse=False), None) is not None:
            stages[block_of.get(id(module), outside)].append(module)
    return stages


@torch.no_grad()
def _draw_anew(module):
    if hasattr(module, "reset_parameters"):
        return module.reset_parameters()
    for parameter in module.parameters(recurse=False):
        spread = parameter.float().std().item() if parameter.numel() > 1 else abs(parameter.item())
        parameter.normal_(0, spread)


def _ssim(a, b):
    window = (min(7, *a.shape) - 1) | 1  # odd
    return float(structural_similarity(a.cpu().numpy(), b.cpu().numpy(), win_size=window, data_range=1.0))
