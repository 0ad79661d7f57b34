"""Random views of a batch of uint8 pictures, computed on the device that they live on."""

import math

import torch
import torch.nn.functional as F


def random_views(
    images: torch.Tensor, generator: torch.Generator, px: int, crop: float, turn: bool = False
) -> torch.Tensor:
    """A random crop, flip and turn of each picture.

    Args:
        images: uint8 (B, 3, H, W).
        generator: Every random choice comes from it.
        px: Side of the views.
        crop: Smallest share of the area; the place is free.
        turn: Also by a multiple of 90 degrees.

    Returns:
        float32 (B, 3, px, px), 0 to 255.
    """
    b = len(images)
    r = torch.rand(5, b, generator=generator)
    side = torch.sqrt(crop + (1 - crop) * r[0])
    x, y = (2 * r[1] - 1) * (1 - side), (2 * r[2] - 1) * (1 - side)
    mirror = torch.where(r[3] < 0.5, -side, side)
    angle = math.pi / 2 * torch.floor(4 * r[4]) * turn
    c, s = torch.cos(angle), torch.sin(angle)
    theta = torch.stack([torch.stack([c * mirror, -s * side, x], 1), torch.stack([s * mirror, c * side, y], 1)], 1)
    grid = F.affine_grid(theta.to(images.device), (b, 3, px, px), align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)


def resized(images: torch.Tensor, px: int) -> torch.Tensor:
    """Whole pictures, uint8 (B, 3, H, W), as float32 (B, 3, px, px)."""
    images = images.float()
    return images if images.shape[-1] == px else F.interpolate(images, size=(px, px), mode="bilinear", antialias=True)


def mixed(pixels: torch.Tensor, targets: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixup or cutmix, half of the times each, of a batch with itself reversed.

    Args:
        pixels: (B, 3, H, W).
        targets: Probabilities (B, K).
        generator: Every random choice comes from it.

    Returns:
        Pixels and targets, mixed in the same shares.
    """
    keep, which, top, left = torch.rand(4, generator=generator).tolist()
    other = pixels.flip(0)
    if which < 0.5:
        pixels = keep * pixels + (1 - keep) * other
    else:
        size = pixels.shape[-1]
        cut = round(size * math.sqrt(1 - keep))
        top, left = int(top * (size - cut + 1)), int(left * (size - cut + 1))
        pixels = pixels.clone()
        pixels[..., top : top + cut, left : left + cut] = other[..., top : top + cut, left : left + cut]
        keep = 1 - (cut / size) ** 2
    return pixels, keep * targets + (1 - keep) * targets.flip(0)
