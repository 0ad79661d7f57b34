"""What GMAR must be compared with: gradient attention, raw attention, chance and a fixed centre."""

import zlib

import torch
import torch.nn.functional as F

from ..capture import Trace


def chefer(trace: Trace) -> torch.Tensor:
    """Gradient attention rollout (B, N) [chefer2021generic]: R ← R + mean_h(ReLU(G ⊙ A)) R, R₀ = I."""
    v = trace.readout
    for a, g in zip(reversed(trace.attentions), reversed(trace.gradients), strict=True):
        v = v + torch.einsum("bn,bnm->bm", v, (g * a.float()).relu_().mean(1))
    return v


def attention(trace: Trace) -> torch.Tensor:
    """The last layer's attention (B, N) from the tokens that the classifier reads, mean over heads."""
    return torch.einsum("bn,bhnm->bhm", trace.readout, trace.attentions[-1].float()).mean(1)


def random(trace: Trace, seed: int = 0) -> torch.Tensor:
    """Uniform noise (B, N): what any method must beat. An image keeps its map whatever batch it is in."""
    rows, columns = trace.grid
    maps = []
    for image in trace.pixel_values:
        content = zlib.crc32(image.detach().float().cpu().numpy().tobytes())
        generator = torch.Generator().manual_seed(content + seed)
        maps.append(torch.rand(rows * columns, dtype=torch.float32, generator=generator))
    return F.pad(torch.stack(maps).to(trace.pixel_values.device), (trace.prefix_tokens, 0))


def center(trace: Trace) -> torch.Tensor:
    """A fixed Gaussian (B, N) in the middle, σ = a quarter of each side: photographers centre their subject."""
    device = trace.pixel_values.device
    rows, columns = (torch.linspace(-2 + 2 / n, 2 - 2 / n, n, device=device) for n in trace.grid)
    gaussian = torch.exp(-(rows[:, None] ** 2 + columns[None] ** 2) / 2)
    return F.pad(gaussian.flatten().expand(len(trace.pixel_values), -1), (trace.prefix_tokens, 0))
