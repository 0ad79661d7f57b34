"""What stands in for removed pixels: nothing, the image's mean, RISE's blur, or ROAD's noisy linear imputation."""

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from scipy.sparse import csr_matrix, identity, kron
from scipy.sparse.linalg import splu

from ..capture.checks import choice

Baseline = str | Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def baseline_named(baseline: Baseline, seed: int = 0) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The function (x (b, channels, height, width), shown (b, height, width) bool) → x with the rest replaced.

    Args:
        baseline: "zero" | "blur" | "mean" | "linear", or such a function itself.
        seed: of the noise of "linear".
    """
    if callable(baseline):
        return partial(_checked, baseline)
    choice("baseline, unless it is a function (x, shown) -> x,", baseline, (*_FILLS, "linear"))
    if baseline == "linear":
        return partial(linear, seed=seed)
    return lambda x, shown: torch.where(shown[:, None], x, _FILLS[baseline](x))


def blur(pixel_values: torch.Tensor) -> torch.Tensor:
    """RISE's start for Insertion (B, channels, height, width): a Gaussian over normalised pixels, zero padding.

    s = shorter side, k = max(3, round(11·s/224) made odd), σ = 5·s/224. The kernel is made as RISE makes it, by
    filtering a delta of width k with reflecting borders, so its tails fold back and it is flatter than a truncated
    Gaussian. An even k goes up to the next odd number. [petsiuk2018rise]
    """
    channels, *size = pixel_values.shape[1:]
    side = min(size)
    width = max(3, round(11 * side / 224) | 1)
    kernel = torch.as_tensor(gaussian_filter1d(np.eye(width)[width // 2], 5 * side / 224)).to(pixel_values)
    for shape, padding in (((1, 1, -1, 1), (width // 2, 0)), ((1, 1, 1, -1), (0, width // 2))):
        weight = kernel.reshape(shape).expand(channels, -1, -1, -1)
        pixel_values = F.conv2d(pixel_values, weight, padding=padding, groups=channels)
    return pixel_values


def linear(pixel_values: torch.Tensor, shown: torch.Tensor, seed: int = 0, noise: float = 0.01) -> torch.Tensor:
    """ROAD's imputation (B, channels, height, width): each hidden pixel is the weighted mean of its eight neighbours.

    shown (B, height, width) bool. The weights are 1/6 beside and 1/12 diagonally, made to sum to 1 at the border; one
    sparse solve an image. Gaussian noise of σ = `noise` (normalised units) is added to the hidden pixels; the noise
    field depends on `seed` alone, so results do not depend on the batch. With nothing shown the image is that noise
    around 0. [rong2022road]
    """
    channels, height, width = pixel_values.shape[1:]
    weights = _neighbours(height, width)
    field = np.random.default_rng(seed).normal(0, noise, (channels, height * width)).astype(np.float32)
    filled = pixel_values.flatten(2).double().cpu().numpy()  # NumPy has no bfloat16
    for image, keep in zip(filled, shown.flatten(1).cpu().numpy(), strict=True):
        hidden, known = np.flatnonzero(~keep), np.flatnonzero(keep)
        image[:, hidden] = field[:, hidden]
        if len(hidden) and len(known):
            rows = weights[hidden]
            system = (identity(len(hidden)) - rows[:, hidden]).tocsc()
            image[:, hidden] += splu(system).solve(rows[:, known] @ image[:, known].T).T
    return torch.as_tensor(filled).to(pixel_values).view_as(pixel_values)


_FILLS = {"zero": torch.zeros_like, "blur": blur, "mean": lambda x: x.mean((2, 3), keepdim=True).expand_as(x)}


def _checked(baseline, x, shown):
    filled = baseline(x, shown)
    if not isinstance(filled, torch.Tensor) or filled.shape != x.shape or not bool(filled.isfinite().all()):
        raise ValueError(
            f"The baseline function must return finite pixel values of shape {tuple(x.shape)}, got "
            f"{tuple(getattr(filled, 'shape', ())) or type(filled).__name__}."
        )
    return filled.to(x)


@lru_cache(maxsize=4)
def _neighbours(height, width):
    """Row-normalised weights of each pixel's neighbours, (height·width, height·width), sparse."""
    rows, columns = (np.eye(n, k=1) + np.eye(n, k=-1) for n in (height, width))  # who is beside whom, in one direction
    beside = kron(rows, np.eye(width)) + kron(np.eye(height), columns)
    matrix = csr_matrix(beside / 6 + kron(rows, columns) / 12)
    return matrix.multiply(1 / matrix.sum(1)).tocsr()
