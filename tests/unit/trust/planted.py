"""Small models and photos whose right card is known by construction.

A photo is grey with a coloured square somewhere; the class is its colour, red, green or blue, and a smaller square of
another colour makes a second class. The sound model has one head a colour in its last block: [CLS] attends to patches
of that colour and adds up how much of it they hold. All weights are then turned by a random rotation, so that none of
them is zero and none is special.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from gmar_utils import load_model

SIDE, PATCH, WIDTH, CLASSES = 32, 4, 16, 3
CLS, SAME, CORNER = 3, 4, 5  # dimensions: [CLS]'s own, every patch's, the corner patch's; 0 to 2 hold the colours


class NoNorm(nn.Module):
    """A norm that leaves everything as it is: Grad-CAM reads what comes out of it."""

    def forward(self, x):
        return x


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = NoNorm()
        self.q, self.k, self.v = (nn.Linear(WIDTH, 12, bias=False) for _ in range(3))
        self.o = nn.Linear(12, WIDTH, bias=False)

    def forward(self, x):
        q, k, v = (f(self.norm(x)).unflatten(-1, (CLASSES, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TinyVit(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.token = nn.Parameter(torch.zeros(WIDTH))
        self.places = nn.Parameter(torch.zeros((SIDE // PATCH) ** 2, WIDTH))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, pixel_values):
        x = self.embed(pixel_values).flatten(2).transpose(1, 2) + self.places
        x = torch.cat([self.token.expand(len(x), 1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


@torch.no_grad()
def sound(seed: int, corner: bool = False) -> TinyVit:
    """The model described above; corner: its heads attend to the upper left patch alone, whatever is there."""
    generator = torch.Generator().manual_seed(seed)
    model = TinyVit().eval()
    for p in model.parameters():
        p.zero_()
    colours = (torch.eye(3) - 1 / 3) / PATCH**2  # a channel's mean over the patch, less that of all channels
    model.embed.weight[:3] = colours[:, :, None, None].expand(-1, -1, PATCH, PATCH)
    model.embed.weight[8:] = torch.randn(8, 3, PATCH, PATCH, generator=generator) / 40
    model.embed.bias[SAME] = 2
    model.token[CLS] = 1
    model.places[0, CORNER] = 1.5
    first, last = model.blocks
    for layer in (first.q, first.k, first.v, first.o):
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / 16)
    for h in range(CLASSES):
        last.q.weight[4 * h, CLS] = 4
        last.k.weight[4 * h, CORNER if corner else h] = 8
        last.v.weight[4 * h, h] = 2
        last.o.weight[6 + h, 4 * h] = 1  # into dimensions of their own
        model.head.weight[h, 6 + h] = 60 if corner else 5
    turn(model, torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q)
    return model


@torch.no_grad()
def turn(model: TinyVit, rotation: torch.Tensor) -> None:
    """The same function with every token turned."""
    model.embed.weight.copy_(torch.einsum("ij,jabc->iabc", rotation, model.embed.weight))
    model.embed.bias.copy_(rotation @ model.embed.bias)
    model.token.copy_(rotation @ model.token)
    model.places.copy_(model.places @ rotation.T)
    for block in model.blocks:
        for layer in (block.q, block.k, block.v):
            layer.weight.copy_(layer.weight @ rotation.T)
        block.o.weight.copy_(rotation @ block.o.weight)
    model.head.weight.copy_(model.head.weight @ rotation.T)


@torch.no_grad()
def ignoring(seed: int) -> TinyVit:
    """A head that reads nothing: the same answer to all."""
    model = sound(seed)
    model.head.weight.zero_()
    model.head.bias.copy_(torch.randn(CLASSES, generator=torch.Generator().manual_seed(seed)))
    return model


def untrained(seed: int) -> TinyVit:
    """The sound model with a last block that was drawn at random."""
    model = sound(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in (model.blocks[-1].q, model.blocks[-1].k, model.blocks[-1].v, model.blocks[-1].o):
            layer.reset_parameters()
    return model


def cornered(seed: int) -> TinyVit:
    """A model that looks at one corner."""
    return sound(seed, corner=True)


def vit_of(model: nn.Module):
    vit = load_model(model, mean=[0.5] * 3, std=[0.25] * 3, size=SIDE, device="cpu")
    return vit


def photos(seed: int, n: int = 12):
    """n photos (32, 32, 3) uint8, their classes and masks of the object."""
    rng = np.random.default_rng(seed)
    pictures, labels, masks = [], [], []
    grid = SIDE // PATCH
    for _ in range(n):
        base = 0.5 + 0.04 * rng.standard_normal((grid, grid, 3)) + 0.1 * rng.standard_normal((grid, grid, 1))
        picture = np.kron(base, np.ones((PATCH, PATCH, 1))) + 0.02 * rng.standard_normal((SIDE, SIDE, 3))
        first, second = rng.permutation(CLASSES)[:2]
        mask = np.zeros((SIDE, SIDE), np.uint8)
        y, x = rng.integers(0, SIDE - 12 + 1, 2)
        while True:
            v, u = rng.integers(0, SIDE - 8 + 1, 2)
            if abs(v + 4 - y - 6) > 10 or abs(u + 4 - x - 6) > 10:
                break
        for k, top, left, side, strength in ((first, y, x, 12, 0.35), (second, v, u, 8, 0.3)):
            colour = np.full(3, -strength / 2)
            colour[k] = strength
            picture[top : top + side, left : left + side] += colour
        mask[y : y + 12, x : x + 12] = 1
        pictures.append((255 * picture.clip(0, 1)).round().astype(np.uint8))
        labels.append(int(first))
        masks.append(mask)
    return pictures, labels, masks


def noise_method(trace):
    """A map that is random, and another one at every call."""
    return torch.rand(len(trace.pixel_values), trace.prefix_tokens + trace.grid[0] * trace.grid[1])
