"""Right answers and usual mistakes: chapters 8 to 11."""

import math

import torch


def rate(step, total, warmup):
    return (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def top_k(logits, labels, k):
    return 100 * (logits.topk(k).indices == labels[:, None]).any(1).float().mean()


def verdict(low, high, threshold):
    return "holds" if low > threshold else "does not" if high < threshold else "cannot be told"


def interval(a, b, draws):
    return torch.quantile((a - b)[draws].mean(1), torch.tensor([0.025, 0.975]))


def empty(mask):
    return 100 * (mask == 0).sum() / (mask != 255).sum()


def read_out(chains, prefix, grid):
    return chains[:, :, 0, prefix:].mean(1).unflatten(1, grid)


RIGHT = {
    "schedule": rate,
    "top_k": top_k,
    "verdict": verdict,
    "paired_interval": interval,
    "empty_accuracy": empty,
    "read_out": read_out,
}
WRONG = [
    ("schedule", lambda s, t, w: rate(s, t, w) if s >= w else 1.0, "warm-up is missing"),
    ("schedule", lambda s, t, w: s / w if s < w else rate(s, t, w), "rate 0"),
    ("schedule", lambda s, t, w: rate(s, t, w) if s < w else 0.5 * (1 + math.cos(math.pi * s / t)), "cosine starts"),
    ("top_k", lambda x, y, k: top_k(x, y, k) / 100, "percent"),
    ("top_k", lambda x, y, k: top_k(x, y, 1), "whatever k is"),
    ("top_k", lambda x, y, k: top_k(-x, y, k), "lowest"),
    ("top_k", lambda x, y, k: 100 * (x.topk(k).indices[:, -1] == y).float().mean(), "k-th place"),
    ("verdict", lambda low, high, t: "holds" if (low + high) / 2 > t else "does not", "lies inside"),
    ("verdict", lambda low, high, t: verdict(low, high, 0), "not with 0"),
    (
        "verdict",
        lambda low, high, t: {"holds": "does not", "does not": "holds"}.get(v := verdict(low, high, t), v),
        "swapped",
    ),
    ("paired_interval", lambda a, b, d: a.sort().values[[1, 58]] - b.sort().values[[1, 58]], "is off"),
    ("paired_interval", lambda a, b, d: interval(b, a, d), "turn it round"),
    ("paired_interval", lambda a, b, d: torch.quantile(a - b, torch.tensor([0.025, 0.975])), "single images"),
    ("paired_interval", lambda a, b, d: (a - b).mean(), "two ends"),
    ("paired_interval", lambda a, b, d: ((a - b)[d].mean(1).min(), (a - b)[d].mean(1).max()), "smallest"),
    ("paired_interval", lambda a, b, d: torch.quantile((a - b)[d].mean(1), torch.tensor([0.05, 0.95])), "90"),
    (
        "paired_interval",
        lambda a, b, d: torch.quantile(a[d].mean(1) - b[d.flip(0)].mean(1), torch.tensor([0.025, 0.975])),
        "pair them",
    ),
    ("empty_accuracy", lambda mask: (mask == 0).sum() / (mask != 255).sum(), "times 100"),
    ("empty_accuracy", lambda mask: 100 * (mask == 0).float().mean(), "void counts neither"),
    ("empty_accuracy", lambda mask: 100 * (mask != 1).float().mean(), "out of the total"),
    ("empty_accuracy", lambda mask: 100 * (mask == 1).sum() / (mask != 255).sum(), "object's share"),
    ("read_out", lambda c, p, g: c[:, 0, 0, p:].unflatten(1, g), "head 0 only"),
    ("read_out", lambda c, p, g: c[:, 0, 1:].reshape(len(c), -1, *g), "drops the"),
    ("read_out", lambda c, p, g: c[:, 0, 1:].reshape(len(c), -1, *g).mean(1), "hides that"),
    ("read_out", lambda c, p, g: c[:, :, 0, p:].sum(1).unflatten(1, g), "take the mean"),
    ("read_out", lambda c, p, g: c[:, :, p:, 0].mean(1).unflatten(1, g), "a column"),
    ("read_out", lambda c, p, g: c[..., p:].mean((1, 2)).unflatten(1, g), "row 0"),
    ("read_out", lambda c, p, g: c[:, :, 0, p:].mean(1), "reshape"),
]
