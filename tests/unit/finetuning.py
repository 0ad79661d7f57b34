"""A small recipe and its pictures for the tests of the training."""

import json
from dataclasses import replace

import torch

from gmar_utils import training
from gmar_utils.training import Recipe, starting_point

TINY = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
RECIPE = Recipe(
    data="shapes",
    init=TINY,
    stages=((0.5, 8), (0.5, 16)),
    epochs=2,
    batch_size=16,
    optimizer="muon",
    schedule="warmup_stable_decay",
    mix=0.5,
    turn=True,
    label_smoothing=0.1,
    ema=0.9,
)
STEADY = replace(RECIPE, stages=((1.0, (8, 16)),), optimizer="adamw", warmup=1, decay=0.25, epochs=4)  # 16 steps
WORDS = ["red", "green", "blue"]


def coloured_pictures():
    """64 noisy pictures of three colours."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 3
    images = torch.randint(0, 160, (64, 3, 16, 16), generator=generator)
    images[torch.arange(64), labels] += 90
    return images.to(torch.uint8), labels


def run(out, coloured, recipe=RECIPE, **options):
    model, processor = starting_point(recipe, WORDS)
    return training.train(model, processor, *coloured, recipe, out, **options)


def assert_same_weights(one, other):
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def rows_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def saved_at(folder, coloured, steps, recipe=STEADY):
    """A training of ``recipe`` that stopped after so many steps."""
    for _ in range(steps):
        run(folder, coloured, recipe, minutes=0)
    return folder
