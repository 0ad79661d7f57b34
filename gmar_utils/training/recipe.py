"""What a training does: recipes, their pictures, the size and the learning rate of every step."""

import math
import tomllib
from bisect import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import mode

import numpy as np
import torch
from transformers import get_scheduler

from .. import data
from ..data import drawing

OPTIMIZERS = ("adam", "adamw", "muon")
SCHEDULES = ("constant_with_warmup", "cosine", "warmup_stable_decay")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the data. It is written to the model card.

    Raises:
        ValueError: a value that no training can follow, named with what was expected.
    """

    data: str  # tiny-imagenet | shapes
    init: dict | str  # a bundled name, folder or hub id to start from, or the ViTConfig entries of a new model
    stages: tuple[tuple[float, int | tuple[int, ...]], ...]  # (share of the steps, pixels, or sizes that take turns)
    epochs: float
    batch_size: int = 128
    optimizer: str = "adamw"  # adam | adamw | muon (for the matrices inside the blocks; AdamW for the rest)
    learning_rate: float = 1e-3
    weight_decay: float = 0.05  # of matrices
    layer_decay: float = 1.0  # the learning rate falls by this factor from block to block, towards the input
    head_rate: float = 1.0  # the head's learning rate, as a multiple of the last block's
    warmup: float = 0.05  # share of the steps; 1 or more: so many steps
    schedule: str = "cosine"  # transformers' names: constant_with_warmup | cosine | warmup_stable_decay (linearly to 0)
    decay: float = 0.3  # the share of the steps, at the end, in which warmup_stable_decay falls to 0
    clip: float = 1.0  # largest norm of the gradient; inf: any
    crop: float = 0.35  # smallest area of a random crop
    turn: bool = False  # by a multiple of 90 degrees
    mix: float = 0.0  # share of the batches with mixup or cutmix, half of them each
    label_smoothing: float = 0.0
    ema: float | None = None  # decay of the average of the weights, which is what is kept
    layers: int | None = None  # how many of the first layers of `init` to keep
    scenes: int = 0  # generated shapes, one in five with up to 30 % of the object hidden
    seed: int = 0

    def __post_init__(self) -> None:
        def expect(what, fits, *names):
            for name in names:
                if not fits(getattr(self, name)):
                    raise ValueError(f"expected {name} to be {what}, got {getattr(self, name)!r}.")

        def whole(value):
            return isinstance(value, int) and 0 <= value < 2**32

        expect("tiny-imagenet or shapes", ("tiny-imagenet", "shapes").__contains__, "data")
        expect("a model's name, folder or hub id, or a configuration", bool, "init")
        expect("sizes of at least 1 pixel", lambda v: v and all(whole(s) and s for s in self.sizes()), "stages")
        expect("a number above 0, at most a million", lambda v: 0 < v <= 1e6, "epochs")
        expect("a whole number from 0 to 2**32 - 1", whole, "seed", "scenes")
        expect("a whole number of at least 1", lambda v: whole(v) and v, "batch_size")
        expect("a whole number of at least 1", lambda v: v is None or whole(v) and v, "layers")
        expect(" or ".join(OPTIMIZERS), OPTIMIZERS.__contains__, "optimizer")
        expect(" or ".join(SCHEDULES), SCHEDULES.__contains__, "schedule")
        expect("a finite number above 0", lambda v: 0 < v < math.inf, "learning_rate", "head_rate")
        expect("a number above 0, or inf", lambda v: v is not None and v > 0, "clip")
        expect("a share above 0, at most 1", lambda v: 0 < v <= 1, "layer_decay", "decay", "crop")
        expect("a share", lambda v: 0 <= v <= 1, "mix", "label_smoothing")
        expect("a share below 1, or None", lambda v: v is None or 0 <= v < 1, "ema")
        expect("a share or a number of steps", lambda v: 0 <= v < math.inf, "warmup")

    def sizes(self) -> Iterator[int]:
        """Every size of the pictures, in pixels, in the order of the stages."""
        for _, size in self.stages:
            yield from (size if isinstance(size, tuple) else (size,))

    def usual_size(self) -> int:
        """The size that most steps have: what is measured in one size is measured in this one."""
        return mode(pixels_at(self, step, 1000) for step in range(1000))


def _frozen(value):
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


with Path(__file__).with_name("recipes.toml").open("rb") as file:
    RECIPES = {
        name: Recipe(**{k: _frozen(v) for k, v in entries.items()}) for name, entries in tomllib.load(file).items()
    }


def pixels_at(recipe: Recipe, step: int, total: int) -> int:
    """The size of the pictures of a step: the stages follow each other by their shares, a stage's sizes take turns."""
    ends = list(accumulate(share for share, _ in recipe.stages))
    _, size = recipe.stages[min(bisect(ends, step / total), len(ends) - 1)]
    return size if isinstance(size, int) else size[step % len(size)]


def schedule(recipe: Recipe, total: int) -> Callable[[int], float]:
    """The learning rate of a step as a share of the recipe's: transformers' schedule of that name."""
    optimizer, decay = torch.optim.SGD([torch.zeros(1)], lr=1.0), round(recipe.decay * total)
    warmup = round(recipe.warmup if recipe.warmup >= 1 else recipe.warmup * total)
    options = {"num_decay_steps": decay, "decay_type": "linear"} if recipe.schedule == "warmup_stable_decay" else None
    return get_scheduler(recipe.schedule, optimizer, warmup, total, options).lr_lambdas[0]


def plan(recipe: Recipe, total: int, steps: int) -> list[tuple[int, float]]:
    """Size and share of the learning rate of the first ``steps`` of ``total`` steps."""
    rate = schedule(recipe, total)
    return [(pixels_at(recipe, step, total), rate(step)) for step in range(steps)]


def pictures(
    name: str, split: str, source: str | None = None, recipe: Recipe | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pictures of a recipe's data.

    Args:
        name: tiny-imagenet | shapes.
        split: train; watch (looked at in training), of tiny-imagenet up to 500 even rows of the validation file; test,
            its odd rows. Of shapes each has its own seed, and there is hidden: up to 30 % of the object.
        source: Where Tiny-ImageNet is, see `data.tiny_imagenet`.
        recipe: For the number of scenes and the seed of split train of shapes.

    Returns:
        uint8 images (N, 3, H, W) and labels (N,).

    Raises:
        ValueError: a recipe of no scenes.
    """
    if name == "shapes":
        splits = {"watch": [(1000, 99, 0.0)], "test": [(1000, 2000, 0.0)], "hidden": [(1000, 2001, 0.3)]}
        if split == "train":
            if recipe.scenes < 1:
                raise ValueError(f"expected scenes to be at least 1 to train on shapes, got {recipe.scenes}.")
            covered = recipe.scenes // 5
            splits["train"] = [(recipe.scenes - covered, recipe.seed, 0.0), (covered, recipe.seed + 1, 0.3)]
        made = [drawing.scenes(n, 64, seed, occlusion=hidden) for n, seed, hidden in splits[split] if n]
        images, labels = (np.concatenate([getattr(m, k) for m in made]) for k in ("images", "labels"))
        return torch.from_numpy(images).movedim(-1, 1).contiguous(), torch.from_numpy(labels[:, 0])
    images, labels = data.tiny_imagenet_arrays("train" if split == "train" else "valid", source)
    step = 2 * max(1, len(images) // 1000)
    part = {"train": slice(None), "watch": slice(0, 500 * step, step), "test": slice(1, None, 2)}[split]
    return images[part], labels[part]
