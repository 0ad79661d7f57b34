"""What GMAR must be compared with: gradient attention, raw attention, chance and a fixed centre."""

import zlib

import torch


def chefer(trace) -> torch.Tensor:
    """Gradient attention rollout (B, R, C) [chefer2021generic]: R ← R + mean_h(ReLU(G ⊙ A)) R, R₀ = I."""
    v = trace.readout.expand(len(trace.logits), -1)
    for a, g in zip(reversed(trace.attentions), reversed(trace.gradients), strict=True):
        v = v + torch.einsum("bn,bnm->bm", v, (g * a.float()).relu_().mean(1))
    return trace.patches(v)


def attention(trace) -> torch.Tensor:
    """The last layer's attention (B, R, C) from the tokens that the classifier reads, mean over heads."""
    return trace.patches(torch.einsum("n,bhnm->bhm", trace.readout, trace.attentions[-1].float()).mean(1))


def random(pixel_values: torch.Tensor, grid: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Uniform noise (B, R, C): what any method must beat. An image keeps its map whatever batch it is in."""
    maps = []
    for image in pixel_values:
        content = zlib.crc32(image.detach().float().cpu().numpy().tobytes())
        maps.append(torch.rand(grid, generator=torch.Generator().manual_seed(content + seed)))
    return torch.stack(maps).to(pixel_values.device)


def center(pixel_values: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """A fixed Gaussian (B, R, C) in the middle, σ = a quarter of each side: photographers centre their subject."""
    rows, columns = (torch.linspace(-2 + 2 / n, 2 - 2 / n, n, device=pixel_values.device) for n in grid)
    gaussian = torch.exp(-(rows[:, None] ** 2 + columns[None] ** 2) / 2)
    return gaussian.expand(len(pixel_values), -1, -1)
