"""Right answers and usual mistakes: chapters 1 and 2."""

import torch


def roll(attentions, step, reverse=True):
    order = attentions[::-1] if reverse else attentions
    r = step(order[0])
    for a in order[1:]:
        r = r @ step(a)
    return r[:, 0]


def lazy(a):
    return (a.mean(1) + torch.eye(a.shape[-1])) / 2


def picture(scores, prefix, grid):
    return scores[:, prefix:].unflatten(1, grid)


RIGHT = {
    "token_count": lambda h, w, p, prefix: (h // p) * (w // p) + prefix,
    "softmax": lambda s: s.softmax(-1),
    "attention": lambda q, k: (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1),
    "cls_map": lambda a, p, grid: picture(a.mean(1)[:, 0], p, grid),
    "laziness": lambda alpha: alpha / (1 + alpha),
    "unused_rows": [1, 2],
    "residual": lazy,
    "rollout": lambda attentions: roll(attentions, lazy),
}

# (exercise, a plausible mistake, words that only the hint for this mistake holds)
WRONG = [
    ("token_count", lambda h, w, p, prefix: (h // p) * (w // p), "prefix tokens"),
    ("token_count", lambda h, w, p, prefix: h // p + prefix, "one side only"),
    ("token_count", lambda h, w, p, prefix: (h // p) ** 2 + prefix, "need not be square"),
    ("token_count", lambda h, w, p, prefix: h * w + prefix, "not pixels"),
    ("softmax", lambda s: s.softmax(-2), "columns sum to 1"),
    ("softmax", lambda s: s.exp() / s.exp().sum(-1), "keepdim=True"),
    ("softmax", lambda s: s.exp() / s.exp().sum(), "whole matrix"),
    ("softmax", lambda s: s / s.sum(-1, keepdim=True), "exponential is missing"),
    ("softmax", lambda s: s.exp(), "divide each row"),
    ("softmax", lambda s: s.exp() / s.exp().sum(-1, keepdim=True), "overflows"),
    ("attention", lambda q, k: (q @ k.mT).softmax(-1), "scale is missing"),
    ("attention", lambda q, k: (q @ k.mT / q.shape[-1]).softmax(-1), "not by d"),
    ("attention", lambda q, k: (k @ q.mT / q.shape[-1] ** 0.5).softmax(-1), "swapped"),
    ("attention", lambda q, k: (q @ k.mT / q.shape[-1] ** 0.5).softmax(-2), "over the queries"),
    ("attention", lambda q, k: (q @ k.mT / q.shape[-1] ** 0.5).softmax(1), "over the heads"),
    ("attention", lambda q, k: q @ k.mT / q.shape[-1] ** 0.5, "softmax is still missing"),
    ("cls_map", lambda a, p, grid: a.mean(1)[:, 0], "drop the first `prefix` columns before"),
    ("cls_map", lambda a, p, grid: a.mean(1)[:, 0, :-p].unflatten(1, grid), "not the last"),
    ("cls_map", lambda a, p, grid: picture(a[:, 0, 0], p, grid), "head 0 only"),
    ("cls_map", lambda a, p, grid: picture(a.sum(1)[:, 0], p, grid), "that is the sum over heads"),
    ("cls_map", lambda a, p, grid: a.mean(1)[:, p:, 0].unflatten(1, grid), "that is a column"),
    ("cls_map", lambda a, p, grid: picture(a.mean((1, 2)), p, grid), "mean over all queries"),
    ("cls_map", lambda a, p, grid: picture(a.mean(1)[:, 0], p, grid[::-1]), "row by row"),
    ("cls_map", lambda a, p, grid: a.mean(1)[:, 0, p:], "a map is a picture"),
    ("laziness", lambda alpha: 1 / (1 + alpha), "the rest stays"),
    ("laziness", lambda alpha: alpha, "at most 1"),
    ("laziness", lambda alpha: 1 - alpha, "never leave"),
    ("unused_rows", {0}, "row 0 is [CLS]"),
    ("unused_rows", {0, 1, 2}, "row 0 is [CLS]"),
    ("unused_rows", {1}, "more rows than you name"),
    ("residual", lambda a: a.mean(1) + torch.eye(7), "rows sum to 2"),
    ("residual", lambda a: (a.mean(1) + 1) / 2, "adding 1 adds to every entry"),
    ("residual", lambda a: (a.mean(1) + 1) / (a.mean(1) + 1).sum(-1, keepdim=True), "after you divided"),
    ("residual", lambda a: a.mean(1), "residual is missing"),
    ("residual", lambda a: (a[:, 0] + torch.eye(7)) / 2, "head 0 only"),
    ("residual", lambda a: (a.sum(1) + torch.eye(7)) / 5, "sums the heads"),
    ("residual", lambda a: 2 * lazy(a) / (2 * lazy(a)).sum(-2, keepdim=True), "columns sum to 1"),
    ("rollout", lambda t: roll(t, lazy, reverse=False), "product is reversed"),
    ("rollout", lambda t: roll(t, lambda a: 2 * lazy(a)), "up to a factor"),
    ("rollout", lambda t: roll(t, lambda a: a.mean(1)), "residual is missing"),
    ("rollout", lambda t: roll(t, lambda a: (a[:, 0] + torch.eye(7)) / 2), "head 0 only"),
    ("rollout", lambda t: lazy(t[-1])[:, 0], "last layer only"),
    ("rollout", lambda t: lazy(t[0])[:, 0], "first layer only"),
    ("rollout", lambda t: (lazy(t[2]) @ lazy(t[1]) @ lazy(t[0]))[:, :, 0], "column of the product"),
    ("rollout", lambda t: (lazy(t[2]) * lazy(t[1]) * lazy(t[0]))[:, 0], "entry by entry"),
    ("rollout", lambda t: sum(lazy(a) for a in t)[:, 0] / 3, "average of the layers"),
    ("rollout", lambda t: lazy(t[2]) @ lazy(t[1]) @ lazy(t[0]), "whole matrix"),
]
