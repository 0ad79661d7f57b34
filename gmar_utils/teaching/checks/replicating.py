"""The exercises of chapters 8 to 11: fine-tuning, and the papers' claims."""

import math

import torch

from .engine import Hint, ask, case, exercise, expect

# chapter 8: fine-tuning ----------------------------------------------------------------------------------------


@exercise(8, "medium", 8)
def check_schedule(answer):
    """Learning rate factor, linear warm-up, then half a cosine to 0: my_rate(step, total, warmup), steps from 0"""

    def right(step, total, warmup):
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    points = [(s, 100, 10) for s in (0, 5, 9, 10, 55, 99)]
    late = [(right(s, t, w), 0.5 * (1 + math.cos(math.pi * s / t))) for s, t, w in points]
    got = [ask(answer, *p) for p in points]
    expect(
        torch.tensor([float(v) for v in got]),
        [r for r, _ in late],
        {
            "the warm-up is missing: the first steps rise from 1/warmup to 1.": [
                right(*p) if p[0] >= 10 else 1.0 for p in points
            ],
            "the first step would have rate 0 and be wasted: (step + 1) / warmup.": [
                s / w if s < w else right(s, t, w) for s, t, w in points
            ],
            "the cosine starts where the warm-up ends: subtract warmup from step and from total.": [
                right(*p) if p[0] < 10 else c for p, (_, c) in zip(points, late, strict=True)
            ],
            "half a cosine, from 1 down to 0: π, not 2π.": [
                right(s, t, w) if s < w else 0.5 * (1 + math.cos(2 * math.pi * (s - w) / (t - w))) for s, t, w in points
            ],
            "a cosine runs from 1 to −1; shift and halve it: (1 + cos)/2.": [
                right(s, t, w) if s < w else math.cos(math.pi * (s - w) / (t - w)) for s, t, w in points
            ],
        },
        "the factor",
    )


@exercise(8, "warm-up", 5)
def check_top_k(answer):
    """Percent of images whose label is among the k highest of logits (B, K): my_top_k(logits, labels, k)"""
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(50) % 6
    for k in (1, 3):
        share = (logits.topk(k).indices == labels[:, None]).any(1).float().mean()
        low = (logits.topk(k, largest=False).indices == labels[:, None]).any(1).float().mean()
        last = (logits.topk(k).indices[:, -1] == labels).float().mean()
        expect(
            ask(answer, logits, labels, k),
            100 * share,
            {
                "percent: times 100.": share,
                "that is top-1 whatever k is: the label may be any of the k highest.": 100
                * (logits.argmax(1) == labels).float().mean(),
                "those are the k lowest logits.": 100 * low,
                "that compares with the k-th place only; any of the first k places counts.": 100 * last,
                "divide by the number of images, not by images times k.": 100 * share / k,
            },
            f"top-{k}",
        )


# chapters 9 to 11: the papers' claims --------------------------------------------------------------------------


@exercise(9, "warm-up", 5)
def check_verdict(answer):
    """From an interval to a verdict: my_verdict(low, high, threshold) → "holds", "does not" or "cannot be told\""""
    for low, high, threshold, right in (
        (0.2, 1.0, 0.0, "holds"),
        (-2.0, -0.5, 0.0, "does not"),
        (-0.5, 1.5, 0.0, "cannot be told"),
        (0.2, 1.0, 1.8, "does not"),
        (2.0, 3.0, 1.8, "holds"),
        (0.5, 2.5, 1.8, "cannot be told"),
    ):
        got = ask(answer, low, high, threshold)
        if got == right:
            continue
        if right == "cannot be told":
            raise Hint(f"{threshold:g} lies inside [{low:g}, {high:g}]: the data allow both, so it cannot be told.")
        if threshold and got == ("holds" if low > 0 else "cannot be told"):
            raise Hint("compare with the threshold, not with 0: a claim of 1.8 points asks for more than that.")
        if got in ("holds", "does not"):
            raise Hint("the two are swapped: an interval above the threshold supports the claim.")
        raise Hint(f"[{low:g}, {high:g}] against {threshold:g} should give {right!r}, yours is {got!r}.")


@exercise(9, "medium", 12)
def check_paired_interval(answer):
    """95 % interval of the mean of a − b, both (N,): my_interval(a, b, draws), draws (T, N) of image numbers"""
    g = torch.Generator().manual_seed(2)
    image = 10 * torch.rand(60, generator=g)
    a, b = image + torch.rand(60, generator=g) + 0.5, image + torch.rand(60, generator=g)
    draws = torch.randint(60, (400, 60), generator=g)

    def ends(values):
        return torch.quantile(values, torch.tensor([0.025, 0.975]))

    right = ends((a - b)[draws].mean(1))
    got = ask(answer, a, b, draws)
    got = torch.stack([torch.as_tensor(v) for v in got]) if isinstance(got, tuple | list) else got
    expect(
        got,
        right,
        {
            "that draws the images of a and of b apart: pair them, so that a hard image is hard for both.": ends(
                a[draws].mean(1) - b[draws.flip(0)].mean(1)
            ),
            "that is the spread of single images; take the mean of each draw first.": ends(a - b),
            "that is b − a: turn it round.": ends((b - a)[draws].mean(1)),
            "that is the mean only; an interval has two ends.": (a - b).mean(),
            "those are the smallest and the largest of all draws; cut 2.5 % off each end.": torch.stack(
                [(a - b)[draws].mean(1).min(), (a - b)[draws].mean(1).max()]
            ),
            "that cuts 5 % off each end, which leaves 90 %.": torch.quantile(
                (a - b)[draws].mean(1), torch.tensor([0.05, 0.95])
            ),
        },
        "the interval",
    )


@exercise(10, "warm-up", 5)
def check_empty_accuracy(answer):
    """Pixel accuracy, in percent, of a map that marks nothing: my_accuracy(mask), 0 ground, 1 object, 255 void"""
    mask = torch.zeros(10, 10)
    mask[2:5, 2:6], mask[8:] = 1, 255
    expect(
        ask(answer, mask),
        85.0,
        {
            "percent: times 100.": 0.85,
            "void counts neither as right nor as wrong: leave it out of both counts.": 68.0,
            "void is no part of the picture for a metric: leave it out of the total too.": 88.0,
            "that is the object's share; the empty map is right on the ground.": 15.0,
        },
        "the accuracy",
    )


@exercise(11, "medium", 10)
def check_read_out(answer):
    """A rollout for each head (B, H, N, N) → map (B, R, C), [CLS] row, mean of heads: my_map(chains, prefix, grid)"""
    c = case(seed=11)
    chains, (rows, columns) = c.attentions[0], c.grid
    right = chains[:, :, 0, c.prefix :].mean(1).unflatten(1, c.grid)
    shipped = chains[:, 0, 1:].reshape(len(chains), -1, rows, columns)
    expect(
        ask(answer, chains, c.prefix, c.grid),
        right,
        {
            "that is head 0 only: the second index is the head.": chains[:, 0, 0, c.prefix :].unflatten(1, c.grid),
            "`[:, 0, 1:]` takes head 0 and drops the [CLS] row: the axes are image, head, query, key.": shipped,
            "the mean over the pieces hides that `[:, 0, 1:]` takes head 0 and drops the [CLS] row.": shipped.mean(1),
            "that is the sum over heads; take the mean.": chains.shape[1] * right,
            "that is a column: row 0 says where [CLS] looks.": chains[:, :, c.prefix :, 0].mean(1).unflatten(1, c.grid),
            "that is the mean over all queries; take row 0.": chains[..., c.prefix :].mean((1, 2)).unflatten(1, c.grid),
            "reshape to (rows, columns): a map is a picture.": chains[:, :, 0, c.prefix :].mean(1),
        },
        "the map",
    )
