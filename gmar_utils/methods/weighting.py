"""Attention rollout and GMAR: one function with different head weights."""

import numbers
import warnings
from collections.abc import Sequence
from functools import partial

import torch

from ..capture import Trace
from ..capture.checks import choice

VARIANTS = ("paper", "report", "output-first")
ALPHA_MAX = 1e6  # beyond it float32 has little room beside the residual
NORMS = ("l1", "l2", "bth", None)
Layers = Sequence[torch.Tensor]  # one tensor a layer


def head_weights(
    gradients: Layers, norm: str | None = "l1", attentions: Layers | None = None
) -> tuple[torch.Tensor, ...]:
    """Head weights w (B, H) of each layer: the norm of a head's gradient, divided by the sum over heads.

    Weights of a layer whose norms are all zero are 1/H, with a warning. Source: Eq. 2 of [jo2025gmar], per image
    and per layer as [joita2025comparative] writes it; the algorithm of the first computes one vector for all layers.

    Args:
        gradients: L tensors (B, H, N, N), ∂y/∂A.
        norm: "l1" (sum of absolute values) | "l2" (root of the sum of squares) | "bth", the mean of |AᵀG| as in Beyond
            Intuition's BT-H [chen2022beyond] | None: 1/H for every head.
        attentions: L tensors (B, H, N, N), A; only "bth" reads them.

    Raises:
        ValueError: For another `norm`, or "bth" without attentions.
    """
    choice("norm", norm, NORMS)
    if norm is None:
        return tuple(g.new_full(g.shape[:2], 1 / g.shape[1], dtype=torch.float32) for g in gradients)
    if norm == "bth":
        if attentions is None:
            raise ValueError("norm='bth' needs attentions=, the attention of every layer.")
        gradients = [a.float().transpose(-2, -1) @ g.float() for a, g in zip(attentions, gradients, strict=True)]
    by_l2 = partial(torch.linalg.vector_norm, dim=(-2, -1))
    # abs and sum: PyTorch's own L1 norm is several times slower on a CPU
    size = torch.stack([by_l2(g.float()) if norm == "l2" else g.float().abs().sum((-2, -1)) for g in gradients])
    nothing = ~size.any(-1, keepdim=True)
    if nothing.any():
        warnings.warn("The gradient of a layer is zero for every head; its heads get equal weights.", stacklevel=2)
        size = size.masked_fill(nothing, 1.0)
    return (size / size.sum(-1, keepdim=True)).unbind()


def fuse(attention: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Â = Σ_h w_h A_h (B, N, N) from a layer's attention (B, H, N, N) and weights (B, H); rows still sum to 1."""
    batch, heads, n, _ = attention.shape
    return torch.bmm(weights[:, None], attention.float().reshape(batch, heads, n * n)).view(batch, n, n)


def weighted_rollout(
    attentions: Layers, weights: Layers, readout: torch.Tensor, alpha: float = 1.0, variant: str = "paper"
) -> torch.Tensor:
    """Token scores v₀ᵀR (B, N), float32. The row is carried as a vector: O(LN²) in place of O(LN³).

    The unbounded product grows as (1 + α)^L; it is divided by 1 + α a layer, which only rescales the scores.

    Args:
        attentions: L tensors (B, H, N, N).
        weights: L tensors (B, H).
        readout: v₀, (N,) or (B, N).
        alpha: strength of the residual, ≥ 0.
        variant: "paper" is R ← R Â⁽ˡ⁾ + αI, first layer first: Eq. 3 and Algorithm 1 of [jo2025gmar]; "report" is
            Π (Â⁽ˡ⁾ + αI), first layer leftmost, as both texts print it [joita2025comparative]; "output-first" is
            Π (Â⁽ˡ⁾ + αI), last layer leftmost [abnar2020quantifying].
    """
    alpha = _check(attentions, weights, alpha, variant)
    start = v = _row(readout, attentions)
    for fused in _fused(attentions, weights, variant):
        if variant == "paper":
            v = torch.baddbmm(start, v, fused, beta=alpha)
        else:
            v = torch.baddbmm(v, v, fused, beta=alpha) / (1 + alpha)
    return v[:, 0]


def alpha_polynomial(
    attentions: Layers, weights: Layers, readout: torch.Tensor, variant: str = "paper"
) -> torch.Tensor:
    """Coefficients (B, D + 1, N), lowest power first, of v₀ᵀR as a polynomial in α: every α from one pass.

    D = 1 for "paper": Â⁽¹⁾…Â⁽ᴸ⁾ + α(Â⁽²⁾…Â⁽ᴸ⁾ + … + I). D = L for the products. For the products,
    `weighted_rollout` is this polynomial divided by (1 + α)^L. Arguments as there.
    """
    _check(attentions, weights, 0.0, variant)
    start = _row(readout, attentions)
    nothing = torch.zeros_like(start)
    powers = torch.cat([start, nothing], 1) if variant == "paper" else start
    for fused in _fused(attentions, weights, variant):
        steps = torch.bmm(powers, fused)
        if variant == "paper":
            powers = steps + torch.cat([nothing, start], 1)
        else:  # multiplied by (Â + αI): power k gets the stepped coefficient k and the unstepped coefficient k − 1
            powers = torch.cat([steps, nothing], 1) + torch.cat([nothing, powers], 1)
    return powers


def rollout(trace: Trace, alpha: float = 1.0, variant: str = "output-first") -> torch.Tensor:
    """Attention rollout (B, N) [abnar2020quantifying]: every head counts the same; no class, no gradient.

    variant="report" is the papers' input-first order. Arguments as `weighted_rollout`."""
    return gmar(trace, None, alpha, variant)


def gmar(trace: Trace, norm: str | None = "l1", alpha: float = 1.0, variant: str = "paper") -> torch.Tensor:
    """GMAR (B, N) [jo2025gmar]: rollout with the heads weighted by the norm of their gradient.

    norm as `head_weights`, alpha and variant as `weighted_rollout`. The paper leaves α open; 1 is the default here.
    Head weights are per layer, as in [joita2025comparative]. norm="bth" with variant="output-first" is rollout with the
    head weights of Beyond Intuition, not that whole method, which starts at layer 4 and gates its map."""
    weights = head_weights(trace.attentions if norm is None else trace.gradients, norm, trace.attentions)
    return weighted_rollout(trace.attentions, weights, trace.readout, alpha, variant)


def _row(readout, attentions):
    """v₀ of each image as a row (B, 1, N)."""
    return readout.float().expand(len(attentions[0]), -1)[:, None]


def _fused(attentions, weights, variant):
    """Â of each layer, in the order of the product."""
    layers = list(zip(attentions, weights, strict=True))
    return (fuse(a, w) for a, w in (reversed(layers) if variant == "output-first" else layers))


def _check(attentions, weights, alpha, variant):
    choice("variant", variant, VARIANTS)
    if not isinstance(alpha, numbers.Real | torch.Tensor) or not 0 <= alpha <= ALPHA_MAX:
        raise ValueError(f"alpha must be a finite number from 0 to {ALPHA_MAX:g}, got {alpha!r}.")
    if len(attentions) != len(weights):
        raise ValueError(f"{len(attentions)} layers of attention, but weights for {len(weights)}.")
    return float(alpha)
