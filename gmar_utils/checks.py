"""Exercises that answer: each check takes your function (or value), tries it, and says what is wrong if it is.

    checks.rollout(my_rollout)      # try it; the result counts in checks.report()
    checks.report("Ada")            # one line to hand in
    checks.contents()               # all exercises with chapter, difficulty and minutes

To add a check, write a function under `@exercise(chapter, level, minutes)`. It gets the learner's answer, calls it
through `ask`, and compares with `expect`, which knows the usual wrong results and the hint that belongs to each.
Add those wrong answers to tests/unit/test_checks.py.
"""

import functools
import hashlib
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from . import three_tokens
from .capture import Trace, trace
from .rollout import alpha_polynomial, head_weights, weighted_rollout

LEVELS = ("warm-up", "medium", "hard", "project")


class Hint(Exception):
    """What is wrong with an answer, in words for the learner."""


class Exercise(NamedTuple):
    """One line of `contents()`; `check` is the function that a notebook calls."""

    chapter: int
    level: str
    minutes: int
    check: Callable


EXERCISES: dict[str, Exercise] = {}
_results: dict[str, bool] = {}


def exercise(chapter: int, level: str, minutes: int):
    """Register a check. The check prints one line, never raises on a learner's answer, and notes the result."""
    assert level in LEVELS

    def register(test):
        name = test.__name__

        @functools.wraps(test)
        def check(answer=None, *, solution: bool = False) -> None:
            """solution=True, for the book's own answers: not counted, and an error if wrong: a build proves them."""
            try:
                test(answer)
                passed, text = True, f"✓ {name}: right." if solution else f"✓ {name}: right. Well done."
            except _Unfilled:
                passed, text = None, f"… {name}: not filled in yet. Replace the ... and run the cell again."
            except Hint as hint:
                passed, text = False, f"✗ {name}: {hint}"
            if solution:
                assert passed, text
            elif passed is not None:
                _results[name] = passed
            print(text)

        EXERCISES[name] = Exercise(chapter, level, minutes, check)
        return check

    return register


def contents() -> None:
    """Print all exercises: chapter, name, difficulty and minutes."""
    for name, e in sorted(EXERCISES.items(), key=lambda item: item[1].chapter):
        print(f"chapter {e.chapter}  {name:18} {e.level:8} {e.minutes:3} min  {e.check.__doc__.splitlines()[0]}")


def report(name: str = "anonymous") -> str:
    """Print and return one line to hand in: name, score, each exercise tried (1 right, 0 not yet), and a short hash.

    The hash finds slips of copying, not cheats: whoever reads this file can compute it."""
    tried = " ".join(f"{k}={int(v)}" for k, v in sorted(_results.items())) or "none"
    line = f"{name.replace('|', '/').strip() or 'anonymous'} | {sum(_results.values())} of {len(EXERCISES)} | {tried}"
    line = f"{line} | {_hash(line)}"
    print(line)
    return line


def verify(line: str) -> bool:
    """For teachers: whether a line of `report` came through unchanged."""
    text, _, given = line.strip().rpartition(" | ")
    return bool(text) and _hash(text) == given


def _hash(text):
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# --- what a check is written with -------------------------------------------------------------------------------------


class _Unfilled(Exception):
    pass


def ask(function, *inputs):
    """The learner's result for `inputs`, detached. An unfilled stub, an error and None become one clear line."""
    if function is None or function is ...:
        raise _Unfilled
    if not callable(function):
        raise Hint(f"pass the function itself, checks.name(my_function), not its {type(function).__name__} result.")
    try:
        result = function(*inputs)
    except Exception as error:  # a learner's code may raise anything
        if "ellipsis" in str(error):
            raise _Unfilled from None
        size = "must match the size" in str(error)
        advice = " Did a sum lose an axis that you divide by? keepdim=True keeps it." if size else ""
        raise Hint(f"your function stopped with {type(error).__name__}: {error}.{advice}") from None
    if result is None or result is ... or isinstance(result, tuple) and any(r is ... for r in result):
        raise _Unfilled
    return result


def expect(got, right, wrong: dict | None = None, what: str = "the result") -> None:
    """Nothing if `got` equals `right`; otherwise a Hint: that of the wrong result it equals, or its shape, or numbers.

    wrong  {hint: wrong result}, the usual mistakes, most likely first
    """
    right = torch.as_tensor(right, dtype=torch.float32)
    try:
        got = torch.as_tensor(got).detach().float().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise Hint(f"{what} must be a tensor or number, got {type(got).__name__}.") from None
    if _same(got, right):
        return
    for hint, value in (wrong or {}).items():
        if _same(got, torch.as_tensor(value, dtype=torch.float32)):
            raise Hint(hint)
    if got.shape != right.shape:
        raise Hint(f"{what} must have shape {tuple(right.shape)}, got {tuple(got.shape)}.")
    if not got.isfinite().all():
        raise Hint(f"{what} holds NaN or infinity: look for a division by zero or a logarithm of zero.")
    place = (got - right).abs().argmax()
    raise Hint(f"{what} is off: one entry should be {right.flatten()[place]:.4g}, yours is {got.flatten()[place]:.4g}.")


def _same(a, b):
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-5)


class Case(NamedTuple):
    """Random attention and gradients: shapes as `trace` returns them, all sizes different, so that a mix-up shows."""

    attentions: tuple
    gradients: tuple
    prefix: int = 1
    grid: tuple = (2, 3)


def case(layers: int = 3, heads: int = 4, seed: int = 0) -> Case:
    g = torch.Generator().manual_seed(seed)
    shape = (layers, 2, heads, 7, 7)
    scores, gradients = 2 * torch.randn(shape, generator=g), torch.randn(shape, generator=g)
    scale = 1 + 3 * torch.rand((layers, 1, heads, 1, 1), generator=g)
    return Case(tuple(scores.softmax(-1)), tuple(gradients * scale))


def chain(matrices, vector=None):
    """vᵀM₁M₂… as rows (B, N); v is [CLS] unless given. The slow, obvious way, to compare with."""
    product = matrices[0]
    for m in matrices[1:]:
        product = product @ m
    return product[:, 0] if vector is None else vector @ product


# --- chapter 1: attention ---------------------------------------------------------------------------------------------


@exercise(1, "warm-up", 3)
def token_count(answer):
    """How many tokens a ViT makes: my_count(height, width, patch, prefix) → int"""
    for h, w, p, prefix in ((224, 224, 16, 1), (64, 128, 8, 2)):
        n = (h // p) * (w // p)
        expect(ask(answer, h, w, p, prefix), n + prefix, {
            "do not forget the prefix tokens, such as [CLS], in front of the patches.": n,
            "that is one side only: patches fill rows and columns.": h // p + prefix,
            "a picture need not be square: rows come from the height, columns from the width.": (h // p) ** 2 + prefix,
            "count patches, not pixels: divide both sides by the patch size.": h * w + prefix,
        }, f"the count for {h} × {w} pixels, patch {p}, {prefix} prefix")  # fmt: skip


@exercise(1, "warm-up", 5)
def softmax(answer):
    """Scores (..., N, N) → attention: my_softmax(scores); each row sums to 1, without torch.softmax if you can"""
    g = torch.Generator().manual_seed(1)
    for scores in (2 * torch.randn(4, 4, generator=g), 2 * torch.randn(2, 3, 4, 4, generator=g)):
        e = scores.exp()
        expect(ask(answer, scores), e / e.sum(-1, keepdim=True), {
            "your columns sum to 1. Each query (row) shares out its attention: sum over the last axis, dim=-1.":
                e / e.sum(-2, keepdim=True),
            "the sum lost an axis, so that the division paired row sums with columns. Use keepdim=True.":
                e / e.sum(-1)[..., None, :],
            "you divided by the sum of the whole matrix; every row needs its own sum.":
                e / e.sum((-2, -1), keepdim=True),
            "the exponential is missing: scores can be negative, attention cannot.":
                scores / scores.sum(-1, keepdim=True),
            "that is the exponential only; divide each row by its sum.": e,
        }, "the attention")  # fmt: skip
    if not ask(answer, scores + 200).isfinite().all():
        raise Hint("right for small scores, but exp(200) overflows. Subtract each row's maximum first.")


@exercise(1, "medium", 8)
def attention(answer):
    """Queries and keys (B, H, N, d) → attention (B, H, N, N): my_attention(q, k)"""
    g = torch.Generator().manual_seed(2)
    q, k = torch.randn(2, 2, 3, 5, 4, generator=g).unbind(0)
    s, root = q @ k.mT, 4**0.5
    expect(ask(answer, q, k), (s / root).softmax(-1), {
        "the scale is missing: divide the scores by √d, d the length of a key.": s.softmax(-1),
        "divide by √d, not by d.": (s / 4).softmax(-1),
        "queries and keys are swapped: row i belongs to query i, so the scores are q kᵀ.": (s.mT / root).softmax(-1),
        "softmax runs over the keys, the last axis; yours runs over the queries.": (s / root).softmax(-2),
        "softmax runs over the keys, the last axis; yours runs over the heads.": (s / root).softmax(1),
        "those are the scaled scores; softmax is still missing.": s / root,
    }, "the attention")  # fmt: skip


@exercise(1, "medium", 8)
def cls_map(answer):
    """Attention of one layer (B, H, N, N) → what [CLS] looks at (B, R, C), mean over heads: my_map(a, prefix, grid)"""
    c = case(seed=3)
    a, p, (rows, columns) = c.attentions[-1], c.prefix, c.grid
    row = a.mean(1)[:, 0]
    expect(ask(answer, a, p, c.grid), row[:, p:].unflatten(1, c.grid), {
        "prefix tokens are not patches: drop the first `prefix` columns before you reshape.": row,
        "prefix tokens are not patches: drop the first `prefix` columns, not the last.":
            row[:, :-p].unflatten(1, c.grid),
        "that is head 0 only; take the mean over all heads.": a[:, 0, 0, p:].unflatten(1, c.grid),
        "that is the sum over heads; take the mean.": len(a[0]) * row[:, p:].unflatten(1, c.grid),
        "that is a column: what looks at [CLS]. What [CLS] looks at is its row.":
            a.mean(1)[:, p:, 0].unflatten(1, c.grid),
        "that is the mean over all queries; take the row of [CLS], row 0.": a.mean((1, 2))[:, p:].unflatten(1, c.grid),
        "patches are numbered row by row: reshape to (rows, columns), in this order.":
            row[:, p:].unflatten(1, (columns, rows)),
        "drop the prefix and reshape to (rows, columns): a map is a picture.": row[:, p:],
    }, "the map")  # fmt: skip


# --- chapter 2: rollout -----------------------------------------------------------------------------------------------


@exercise(2, "warm-up", 3)
def laziness(answer):
    """The share of a lazy walker that stays in place, for residual strength α: my_laziness(alpha)"""
    for alpha in (1.0, 3.0, 0.25):
        expect(ask(answer, alpha), alpha / (1 + alpha), {
            "that is the share that moves; the rest stays.": 1 / (1 + alpha),
            "a share is at most 1: divide by the whole row, which sums to 1 + α.": alpha,
            "at α = 0 nobody stays, and the share must never leave [0, 1].": 1 - alpha,
        }, f"the share for α = {alpha:g}")  # fmt: skip


@exercise(2, "warm-up", 5)
def unused_rows(answer):
    """Rows (0, 1, 2) of the last layer's attention that the three-token ViT never reads: pass a set"""
    if answer is None or answer is ...:
        raise _Unfilled
    rows = set(answer) if isinstance(answer, set | list | tuple) else {answer}
    if 0 in rows:
        raise Hint("row 0 is [CLS] reading the patches: change it and the logits change.")
    if rows != {1, 2}:
        raise Hint("change one row of the last layer and look at the logits: more rows than you name can change.")


@exercise(2, "medium", 6)
def residual(answer):
    """Attention (B, H, N, N) → (mean over heads + I), rows summing to 1, (B, N, N): my_residual(a)"""
    a = case(seed=4).attentions[0]
    mean, eye = a.mean(1), torch.eye(a.shape[-1])
    expect(ask(answer, a), (mean + eye) / 2, {
        "the rows sum to 2: divide by 2.": mean + eye,
        "adding 1 adds to every entry; the residual is the identity, torch.eye(N).": (mean + 1) / 2,
        "adding 1 adds to every entry, also after you divided; the residual is the identity matrix.":
            (mean + 1) / (mean + 1).sum(-1, keepdim=True),
        "the residual is missing: add the identity matrix.": mean,
        "head 0 only; take the mean over all heads.": (a[:, 0] + eye) / 2,
        "that sums the heads; take their mean, then add I.": (a.sum(1) + eye) / (len(a[0]) + 1),
        "your columns sum to 1; divide each row by the row's sum.": (mean + eye) / (mean + eye).sum(-2, keepdim=True),
    }, "the matrix")  # fmt: skip


@exercise(2, "medium", 15)
def rollout(answer):
    """L attentions (B, H, N, N) → the [CLS] row of attention rollout, output first, (B, N): my_rollout(attentions)"""
    attentions = case(seed=5).attentions
    eye = torch.eye(7)
    m = [(a.mean(1) + eye) / 2 for a in attentions]
    back = m[::-1]
    product = back[0] @ back[1] @ back[2]
    expect(ask(answer, attentions), chain(back), {
        "the product is reversed: you start with the first layer. [CLS] is read after the last layer, "
        "so the last layer stands leftmost.": chain(m),
        "right up to a factor: divide each (A + I) by 2, so that a row keeps its sum.": 8 * chain(back),
        "the residual is missing: add I to each layer's mean attention.": chain([a.mean(1) for a in attentions][::-1]),
        "head 0 only; take the mean over all heads.": chain([(a[:, 0] + eye) / 2 for a in attentions][::-1]),
        "that is the last layer only; multiply all layers.": m[-1][:, 0],
        "that is the first layer only; multiply all layers.": m[0][:, 0],
        "that is a column of the product: where [CLS] goes, not where it comes from. Take row 0.": product[:, :, 0],
        "`*` multiplies entry by entry; a product of matrices is `@`.": (m[0] * m[1] * m[2])[:, 0],
        "that is the average of the layers; rollout multiplies them.": torch.stack(m).mean(0)[:, 0],
        "that is the whole matrix; return the row of [CLS], row 0.": product,
    }, "the [CLS] row")  # fmt: skip


# --- chapter 3: GMAR --------------------------------------------------------------------------------------------------


@exercise(3, "medium", 10)
def gmar_weights(answer):
    """Gradient of one layer (B, H, N, N) → head weights (B, H): my_weights(g, norm), norm "l1" or "l2\""""
    g = case(seed=6).gradients[0]
    l1, squares = g.abs().sum((2, 3)), g.square().sum((2, 3))
    signed = g.sum((2, 3))
    share = lambda s: s / s.sum(1, keepdim=True)  # noqa: E731
    wrong = {
        "those are the norms; divide by their sum over heads.": l1,
        "divide by the sum over the heads of one image (dim=1), not over the batch.": l1 / l1.sum(0, keepdim=True),
        "divide by the sum over the heads of each image; yours is over the whole batch.": l1 / l1.sum(),
        "softmax is another way to make a sum of 1; the paper divides by the sum.": l1.softmax(1),
        "plus and minus cancel: take absolute values before you sum.": share(signed),
        "plus and minus cancel: the absolute value belongs inside the sum.": share(signed.abs()),
        "one weight a head: sum over both token axes.": g.abs().sum(-1) / g.abs().sum(-1).sum(1, keepdim=True),
        "every head gets the same weight: use the gradient.": torch.full_like(l1, 1 / l1.shape[1]),
    }  # fmt: skip
    wrong["that is L2; for norm='l1' sum the absolute values."] = share(squares.sqrt())
    expect(ask(answer, g, "l1"), share(l1), wrong, "the L1 weights")
    expect(ask(answer, g, "l2"), share(squares.sqrt()), {
        "the root is missing: L2 is the square root of the sum of squares.": share(squares),
        "for norm='l2' you returned the L1 weights.": share(l1),
        "those are the norms; divide by their sum over heads.": squares.sqrt(),
        "take the root of the sum, not the sum of the roots.": share(g.square().sqrt().sum((2, 3))),
    }, "the L2 weights")  # fmt: skip


@exercise(3, "warm-up", 5)
def fuse(answer):
    """Attention (B, H, N, N), weights (B, H) → weighted sum over heads (B, N, N): my_fuse(a, w)"""
    c = case(seed=7)
    a, w = c.attentions[0], head_weights(c.gradients, "l1")[0]
    right = torch.einsum("bh,bhij->bij", w, a)
    expect(ask(answer, a, w), right, {
        "that is the plain mean; use the weights.": a.mean(1),
        "sum over heads; the mean divides by H once more, and the weights already sum to 1.": right / a.shape[1],
        "the heads are weighted but not yet summed.": a * w[:, :, None, None],
        "that is head 0 only; sum over all heads.": w[:, :1, None] * a[:, 0],
        "that is the plain sum; use the weights.": a.sum(1),
    }, "the fused attention")  # fmt: skip


@exercise(3, "medium", 15)
def gmar(answer):
    """The [CLS] row (B, N) of R ← R Â + αI: my_gmar(attentions, weights, alpha)"""
    c = case(seed=8)
    weights, start = head_weights(c.gradients, "l1"), torch.eye(7)[0]
    for alpha in (0.5, 2.0):
        args = (c.attentions, weights, start)
        reverse = (c.attentions[::-1], weights[::-1], start)
        uniform = (c.attentions, head_weights(c.gradients, None), start)
        product = weighted_rollout(*args, alpha, "report")
        expect(ask(answer, c.attentions, weights, alpha), weighted_rollout(*args, alpha), {
            "α is forgotten: that is the result for α = 1.": weighted_rollout(*args, 1.0),
            "α is forgotten: nothing is added after each layer.": weighted_rollout(*args, 0.0),
            "that is the product of (Â + αI), the other reading. Eq. 3 adds αI after the multiplication.":
                product * (1 + alpha) ** 3,
            "that is the product of (Â + αI), scaled. Eq. 3 adds αI after the multiplication.": product,
            "the layers run from the last to the first; Eq. 3 as printed starts with the first.":
                weighted_rollout(*reverse, alpha),
            "the head weights are not used: that is the plain mean over heads.": weighted_rollout(*uniform, alpha),
            "αI is added to every entry; I is the identity matrix.": _eq3_ones(*args, alpha),
        }, f"the [CLS] row at α = {alpha:g}")  # fmt: skip


def _eq3_ones(attentions, weights, start, alpha):
    r = torch.eye(7).expand(2, -1, -1)
    for a, w in zip(attentions, weights, strict=True):
        r = r @ torch.einsum("bh,bhij->bij", w, a) + alpha
    return r[:, 0]


@exercise(3, "hard", 20)
def alpha_line(answer):
    """GMAR's [CLS] row is constant + α·slope; return both, each (B, N): my_line(attentions, weights)"""
    c = case(seed=9)
    weights, start = head_weights(c.gradients, "l1"), torch.eye(7)[0]
    constant, slope = alpha_polynomial(c.attentions, weights, start).unbind(1)
    result = ask(answer, c.attentions, weights)
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise Hint("return two tensors: constant, slope.")
    if _same(torch.as_tensor(result[0]).float(), slope) and _same(torch.as_tensor(result[1]).float(), constant):
        raise Hint("constant and slope are swapped.")
    expect(result[0], constant, {
        "that is the result at α = 1; the constant is the result at α = 0.": constant + slope,
        "the constant starts with the [CLS] row of I, not with zero.": torch.zeros_like(constant),
    }, "the constant")  # fmt: skip
    expect(result[1], slope, {
        "that is the result at α = 1; subtract the constant.": constant + slope,
        "the I of the last layer is missing in the slope.": slope - start,
        "every layer adds one I to the slope, also the first; yours lacks the longest product.":
            alpha_polynomial(c.attentions[1:], weights[1:], start)[:, 1],
    }, "the slope")  # fmt: skip


@exercise(3, "medium", 10)
def tie(answer):
    """The α at which two patches of GMAR's map are equally bright: my_tie(constant, slope, i, j), both (N,)"""
    constant, slope = torch.tensor([0.35, 0.28, 0.37]), torch.tensor([1.2, 0.52, 0.28])
    expect(ask(answer, constant, slope, 1, 2), 0.375, {
        "the sign is turned: at the tie the differences cancel, c₁ − c₂ + α (s₁ − s₂) = 0.": -0.375,
        "turned upside down: α is a difference of constants divided by a difference of slopes.": 1 / 0.375,
    }, "α for the three-token ViT")  # fmt: skip
    constant, slope = torch.tensor([0.1, 0.5, 0.2]), torch.tensor([0.3, 0.1, 0.2])
    expect(ask(answer, constant, slope, 0, 1), 2.0, what="α for other numbers")


# --- chapter 4: gradients ---------------------------------------------------------------------------------------------


@exercise(4, "medium", 10)
def legrad_layer(answer):
    """Gradient of one layer (B, H, N, N) → LeGrad's map of that layer (B, R, C): my_legrad(g, prefix, grid)"""
    c = case(seed=10)
    g, p = c.gradients[0], c.prefix
    picture = lambda t: t[:, p:].unflatten(1, c.grid)  # noqa: E731
    relu = g.clamp_min(0)
    expect(ask(answer, g, p, c.grid), picture(relu.mean((1, 2))), {
        "ReLU is missing: negative gradients count as 0.": picture(g.mean((1, 2))),
        "ReLU comes first, then the mean; after the mean, plus and minus have cancelled.":
            picture(g.mean((1, 2)).relu()),
        "ReLU comes before the mean over heads, too.": picture(g.mean(1).relu().mean(1)),
        "abs keeps the negative gradients; ReLU makes them 0.": picture(g.abs().mean((1, 2))),
        "that is the row of [CLS]; LeGrad takes the mean over all queries.": picture(relu.mean(1)[:, 0]),
        "that is the mean over keys; average over queries (dim 2), so that keys remain.": picture(relu.mean((1, 3))),
        "prefix tokens are not patches: drop the first `prefix` keys, then reshape.": relu.mean((1, 2)),
        "head 0 only; take the mean over all heads.": picture(relu[:, 0].mean(1)),
        "that is the sum over heads and queries; take the mean.": picture(relu.sum((1, 2))),
    }, "the map")  # fmt: skip


@exercise(4, "medium", 12)
def gradcam(answer):
    """Activation and gradient (B, N, D) → Grad-CAM (B, R, C): my_gradcam(activation, gradient, prefix, grid)"""
    g = torch.Generator().manual_seed(11)
    x, d = torch.randn(2, 2, 7, 5, generator=g).unbind(0)
    picture = lambda t: t[:, 1:].unflatten(1, (2, 3))  # noqa: E731
    weights = d[:, 1:].mean(1, keepdim=True)
    expect(ask(answer, x, d, 1, (2, 3)), picture((x * weights).sum(-1).relu()), {
        "ReLU is missing at the end.": picture((x * weights).sum(-1)),
        "ReLU comes after the sum over channels, not before.": picture((x * weights).relu().sum(-1)),
        "[CLS] is in your channel weights: average the gradient over the patches only.":
            picture((x * d.mean(1, keepdim=True)).sum(-1).relu()),
        "that is gradient times activation, patch by patch; Grad-CAM first averages the gradient over the patches.":
            picture((x * d).sum(-1).relu()),
        "channel weights are a mean over patches, one for each channel; yours is a mean over channels.":
            picture((x * d.mean(-1, keepdim=True)).sum(-1).relu()),
        "the activation is not weighted; multiply it by the channel weights.": picture(x.sum(-1).relu()),
        "prefix tokens are not patches: drop them and reshape.": (x * weights).sum(-1).relu(),
    }, "the map")  # fmt: skip


@exercise(4, "hard", 20)
def gradient_rollout(answer):
    """The [CLS] row (B, N) of R ← R + mean_h(ReLU(G ⊙ A)) R: my_chefer(attentions, gradients)"""
    c = case(seed=12)
    eye = torch.eye(7)
    products = [g * a for a, g in zip(c.attentions, c.gradients, strict=True)]
    step = [p.relu().mean(1) for p in products]
    expect(ask(answer, c.attentions, c.gradients), chain([s + eye for s in step][::-1]), {
        "the order is reversed: the new layer multiplies from the left, mean(...) @ R.": chain([s + eye for s in step]),
        "ReLU comes before the mean over heads.": chain([p.mean(1).relu() + eye for p in products][::-1]),
        "ReLU is missing.": chain([p.mean(1) + eye for p in products][::-1]),
        "the old R is lost: add it, R + mean(...) @ R.": chain(step[::-1]),
        "the gradient is not used: multiply it with the attention, entry by entry.":
            chain([a.mean(1) + eye for a in c.attentions][::-1]),
        "the attention is not used: multiply it with the gradient, entry by entry.":
            chain([g.relu().mean(1) + eye for g in c.gradients][::-1]),
        "head 0 only; take the mean over all heads.":
            chain([p.relu()[:, 0] + eye for p in products][::-1]),
        "that is the whole matrix; return the row of [CLS], row 0.":
            (step[2] + eye) @ (step[1] + eye) @ (step[0] + eye),
    }, "the [CLS] row")  # fmt: skip


@exercise(4, "project", 45)
def my_method(answer):
    """Your own map from a trace: my_map(trace) → (B, R, C). It must find a planted truth and depend on the class"""
    model = three_tokens.ThreeTokenViT()
    values = {}
    for target, name in enumerate(three_tokens.CLASSES):
        seen = trace(model, three_tokens.PICTURE, target=target)
        got = ask(answer, seen)
        shape = tuple(getattr(got, "shape", ()))
        if shape != (1, 1, 2):
            raise Hint(f"return a map (B, R, C): (1, 1, 2) for the three-token ViT, got {shape}. "
                       "trace.patches(scores) turns token scores (B, N) into one.")  # fmt: skip
        values[name] = got.detach().flatten().tolist()
    if values["cat"] == values["cup"]:
        raise Hint("the map is the same for both classes, so it cannot say why it is a cat: use trace.gradients.")
    if not (values["cat"][0] > values["cat"][1] and values["cup"][1] > values["cup"][0]):
        raise Hint("the logit of 'cat' comes mostly from the cat patch, that of 'cup' from the cup patch; "
                   f"your map says {values} (cat patch, cup patch).")  # fmt: skip
    planted = _planted()
    got = ask(answer, planted)
    if tuple(got.shape) != (2, 2, 3):
        raise Hint(f"a batch of 2 with a 2 × 3 grid must give (2, 2, 3), got {tuple(got.shape)}.")
    if got.flatten(1).argmax(1).tolist() != [4, 1]:
        raise Hint("a planted patch is missed: a single patch gets all attention and all gradient, and your map is "
                   "brightest elsewhere. In a batch each image must be treated on its own.")  # fmt: skip


def _planted():
    """A trace whose attention and gradient all point at patch 4 (first image) and at patch 1 (second image)."""
    attention = torch.full((2, 4, 7, 7), 0.02)
    gradient = torch.zeros(2, 4, 7, 7)
    for image, patch in enumerate((4, 1)):
        attention[image, :, :, 1 + patch] = 0.88
        gradient[image, :, :, 1 + patch] = 1.0
    none = torch.zeros(2, 2)
    return Trace((attention,) * 3, (gradient,) * 3, none, none[0].long(), 1, (2, 3), torch.eye(7)[0])


# --- Start: your own model --------------------------------------------------------------------------------------------


@exercise(0, "warm-up", 5)
def window(answer):
    """A 16-bit picture → 8 bits through a fixed window: my_window(pixels, low, high) → np.uint8, rounded"""
    pixels = np.array([[100, 600, 1400], [2600, 3100, 9000]], dtype=np.uint16)
    for low, high in ((600, 3100), (0, 4080)):
        share = (pixels.astype(float) - low) / (high - low)
        right = (255 * share.clip(0, 1)).round()
        got = np.asarray(ask(answer, pixels, low, high))
        own = 255.0 * (pixels - pixels.min()) / np.ptp(pixels)
        expect(got, right, {
            "values outside the window wrapped around: clip to [0, 1] before you turn them into np.uint8.":
                (255 * share).round().astype(np.int64) % 256,
            "that cuts at 255 and ignores the window: subtract low and divide by (high − low).": pixels.clip(0, 255),
            "divide by (high − low), not by high.": (255 * ((pixels - float(low)) / high).clip(0, 1)).round(),
            "subtract low first, also from what you divide.": (255 * (pixels / (high - low)).clip(0, 1)).round(),
            "that is the picture's own range; the window is the same for every picture.": own.round(),
            "that is the share, from 0 to 1; 8 bits go from 0 to 255.": share.clip(0, 1),
            "round to the nearest whole number; turning into np.uint8 alone cuts off the decimals.":
                np.floor(255 * share.clip(0, 1)),
        }, "the picture")  # fmt: skip
        if got.dtype != np.uint8:
            raise Hint(f"the numbers are right; now return them as np.uint8, not {got.dtype}.")


# --- chapter 5: faithfulness ------------------------------------------------------------------------------------------


@exercise(5, "warm-up", 5)
def average_drop(answer):
    """Scores (B,) of the full and of the masked images → Average Drop in percent: my_drop(full, masked)"""
    full, masked = torch.tensor([0.8, 0.5, 0.2, 0.9]), torch.tensor([0.2, 0.6, 0.1, 0.9])
    lost = (full - masked).clamp(min=0)
    expect(ask(answer, full, masked), 100 * (lost / full).mean(), {
        "a gain is no negative drop: max(0, Y − O) per image, before the mean.": 100 * ((full - masked) / full).mean(),
        "divide by the full image's score Y: a loss of 0.1 weighs more if there was only 0.2.": 100 * lost.mean(),
        "divide by the full score Y, not by the masked score O.": 100 * (lost / masked).mean(),
        "percent: times 100.": (lost / full).mean(),
        "first the ratio of each image, then the mean; you divided the means.": 100 * lost.mean() / full.mean(),
        "that is Average Increase, the share of images whose score rose.": 100 * (masked > full).float().mean(),
        "take the mean over the images: one number.": 100 * lost / full,
    }, "the drop")  # fmt: skip


@exercise(5, "warm-up", 3)
def fool_drop(answer):
    """A map in [0, 1] that gets Average Drop 0 from every model: my_map(pixel_values) → (B, height, width)"""
    pixels = torch.rand(2, 3, 8, 16, generator=torch.Generator().manual_seed(0))
    got = ask(answer, pixels)
    expect(got, torch.ones(2, 8, 16), {
        "zero everywhere hides the whole picture: that is the largest drop one can get.": torch.zeros(2, 8, 16),
        "one map for each image of the batch: (B, height, width).": torch.ones(8, 16),
        "a map has no channels: (B, height, width).": torch.ones(2, 3, 8, 16),
        "half the brightness everywhere still changes the picture, so a score may fall.": torch.full((2, 8, 16), 0.5),
    }, "the map")  # fmt: skip


@exercise(5, "medium", 10)
def delete_patches(answer):
    """Images (B, C, h, w) whose `count` highest patches are 0: my_delete(pixels, maps (B, R, C), count)"""
    g = torch.Generator().manual_seed(0)
    pixels, maps = 1 + torch.rand(2, 3, 8, 12, generator=g), torch.rand(2, 2, 3, generator=g)

    def cut(count, descending=True, keep=False, grid=maps):
        rank = grid.flatten(1).argsort(1, descending=descending).argsort(1).view_as(grid)
        hidden = (rank < count).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
        return pixels * (hidden if keep else ~hidden)

    first = maps[:1].expand_as(maps)
    for count in (2, 0, 6):
        expect(ask(answer, pixels.clone(), maps, count), cut(count), {
            "you removed the lowest patches; Deletion removes the highest first.": cut(count, descending=False),
            "that keeps the highest patches and removes the others: the start of Insertion.": cut(count, keep=True),
            "one patch too many is gone: exactly `count` patches.": cut(count + 1),
            "every image has its own map; you used the first map for all.": cut(count, grid=first),
            "argsort gives the places in order, not the rank of each place: take argsort of the argsort.":
                pixels * ~(maps.flatten(1).argsort(1, descending=True).view_as(maps) < count)
                .repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None],
        }, f"the images without {count} patches")  # fmt: skip


@exercise(5, "medium", 8)
def area(answer):
    """Fractions (S + 1,) and scores (B, S + 1) → area (B,) by trapezoids: my_area(fractions, scores)"""
    fractions = torch.tensor([0.0, 0.1, 0.4, 1.0])
    scores = torch.tensor([[0.9, 0.5, 0.3, 0.1], [0.2, 0.8, 0.4, 0.0]])
    width, right = fractions.diff(), torch.trapezoid(scores, fractions)
    expect(ask(answer, fractions, scores), right, {
        "that is the mean score. The steps need not be equally wide: weigh each by its width.": scores.mean(1),
        "the left end of each step only; a trapezoid takes the mean of both ends.": (scores[:, :-1] * width).sum(1),
        "the right end of each step only; a trapezoid takes the mean of both ends.": (scores[:, 1:] * width).sum(1),
        "that treats all steps as equally wide: multiply each by its width, fractions.diff().":
            torch.trapezoid(scores, dx=1 / 3),
        "the steps are taken as one unit wide: the fractions run from 0 to 1.": torch.trapezoid(scores),
        "one area for each image: do not mix the images.": right.mean(),
        "a trapezoid is the mean of both ends, not their sum: divide by 2.": 2 * right,
    }, "the area")  # fmt: skip


# --- chapter 6: localisation ------------------------------------------------------------------------------------------


@exercise(6, "medium", 10)
def iou(answer):
    """Map and mask (h, w), 1 object, 0 ground, 255 void → the object's IoU in percent: my_iou(map, mask, threshold)"""
    g = torch.Generator().manual_seed(0)
    values, mask = torch.rand(6, 8, generator=g), torch.zeros(6, 8, dtype=torch.long)
    mask[1:4, 2:6], mask[1:4, 6], values[1:3, 6] = 1, 255, 0.9
    found, known = values > 0.4, mask != 255
    truth = mask == 1
    both, either = (found & truth).sum(), ((found | truth) & known).sum()
    ground = (~found & ~truth & known).sum() / ((~found | ~truth) & known).sum()
    expect(ask(answer, values, mask, 0.4), 100 * both / either, {
        "void pixels (255) count nowhere: leave them out of both the intersection and the union.":
            100 * both / (found | truth).sum(),
        "void pixels (255) are neither object nor ground; you counted them as object.":
            100 * (found & (mask > 0)).sum() / (found | (mask > 0)).sum(),
        "that is precision: you divided by what the map found; divide by the union.":
            100 * both / (found & known).sum(),
        "that is recall: you divided by the object; divide by the union.": 100 * both / truth.sum(),
        "that is the Dice score: twice the intersection over the sum. IoU divides by the union.":
            200 * both / (truth.sum() + (found & known).sum()),
        "that is pixel accuracy: it also counts ground that was left alone.":
            100 * ((found == truth) & known).sum() / known.sum(),
        "that is the mean of object and ground; asked for is the object alone.": 50 * (both / either + ground),
        "percent: times 100.": both / either,
    }, "the IoU")  # fmt: skip


@exercise(6, "warm-up", 5)
def pointing(answer):
    """Is the highest pixel of a map (h, w) in a box (x0, y0, x1, y1), the last two exclusive: my_hit(map, box)"""
    for (row, column), hints in {
        (5, 2): "x counts columns and y counts rows: map[row, column] is map[y, x].",
        (3, 6): "x1 and y1 are exclusive: a box from x0 = 4 to x1 = 6 holds columns 4 and 5.",
        (2, 5): "the highest pixel is inside the box here, at row 2 and column 5.",
        (1, 4): "x0 and y0 belong to the box: compare with <=.",
        (0, 0): "the highest pixel is at row 0, column 0 here, far outside.",
    }.items():
        values = torch.rand(8, 7, generator=torch.Generator().manual_seed(1))
        values[row, column] = 2
        box = (4, 1, 6, 4)
        right = box[0] <= column < box[2] and box[1] <= row < box[3]
        if bool(ask(answer, values, box)) != right:
            raise Hint(hints)


@exercise(6, "hard", 20)
def precision_average(answer):
    """Scores (n,), no ties, and truth (n,) of 0 and 1 → average precision in percent: my_ap(scores, truth)"""
    g = torch.Generator().manual_seed(3)
    scores, truth = torch.rand(12, generator=g), (torch.rand(12, generator=g) < 0.4).long()
    hits = truth[scores.argsort(descending=True)].float()
    rank = torch.arange(1, 13)
    precision = hits.cumsum(0) / rank
    rising = truth[scores.argsort()].float()
    expect(ask(answer, scores, truth), 100 * (precision * hits).sum() / hits.sum(), {
        "you went up from the lowest score; start at the highest.":
            100 * (rising.cumsum(0) / rank * rising).sum() / rising.sum(),
        "average the precision at the true pixels only, not at every pixel.": 100 * precision.mean(),
        "divide by the number of true pixels, not by that of all pixels.": 100 * (precision * hits).mean(),
        "percent: times 100.": (precision * hits).sum() / hits.sum(),
    }, "the average precision")  # fmt: skip


# --- chapter 7: sanity ------------------------------------------------------------------------------------------------


@exercise(7, "medium", 10)
def rank_correlation(answer):
    """Spearman's correlation of two sets of maps (B, R, C), no ties → (B,): my_correlation(a, b)"""
    g = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 4, generator=g)
    b = a + 0.5 * torch.rand(2, 3, 4, generator=g)
    a, b = a**6, b  # far from a straight line, so that Pearson on the values differs

    def rank(x):
        return x.argsort(-1).argsort(-1).float()

    def pearson(x, y):
        x, y = (v - v.mean(-1, keepdim=True) for v in (x, y))
        return (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))

    x, y = a.flatten(1), b.flatten(1)
    right = pearson(rank(x), rank(y))
    expect(ask(answer, a, b), right, {
        "that is Pearson's correlation of the values; replace each value by its rank first.": pearson(x, y),
        "argsort gives the places in order, not the rank of each place: take argsort of the argsort.":
            pearson(x.argsort(-1).float(), y.argsort(-1).float()),
        "one number for each image: rank and correlate each image on its own.":
            pearson(rank(a.flatten()), rank(b.flatten())),
        "one number for each image, not their mean.": right.mean(),
        "one number for each image: flatten the map first, or each row is ranked on its own.":
            pearson(rank(a), rank(b)),
    }, "the correlation")  # fmt: skip


@exercise(7, "medium", 8)
def randomised(answer):
    """A copy of a model with fresh weights; the model itself stays as it is: my_random_copy(model) → model"""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 3))
    before = [p.clone() for p in model.parameters()]
    got = ask(answer, model)
    if not isinstance(got, torch.nn.Module):
        raise Hint(f"return the new model, got {type(got).__name__}.")
    if any((p != q).any() for p, q in zip(model.parameters(), before, strict=True)):
        raise Hint("the original model changed: work on copy.deepcopy(model), or you lose what it learned.")
    if [p.shape for p in got.parameters()] != [q.shape for q in before]:
        raise Hint("the copy must have the same layers and sizes as the model.")
    same = [n for (n, p), q in zip(got.named_parameters(), before, strict=True) if p.ndim > 1 and torch.equal(p, q)]
    if same:
        raise Hint(f"{', '.join(same)} did not change: give every layer that has them new weights "
                   "(layer.reset_parameters() where a layer has it).")  # fmt: skip
    if any(p.ndim > 1 and p.detach().std() == 0 for p in got.parameters()):
        raise Hint("all weights of a layer are equal; draw them at random, or the model cannot tell patches apart.")


@exercise(7, "project", 45)
def faithful_heads(answer):
    """Head weights (B, H) and effects of muting each head (B, H) → the median over images of Spearman's correlation"""
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.1, 0.2, 0.3], [0.25, 0.15, 0.5, 0.1]])
    change = torch.tensor([[0.1, -0.2, 0.6, -0.9], [-0.8, 0.3, 0.1, -0.2], [0.3, -0.1, 0.2, 0.05]])

    def spearman(x, y):
        x, y = x.argsort(-1).argsort(-1).float(), y.argsort(-1).argsort(-1).float()
        return torch.corrcoef(torch.stack([x, y]))[0, 1]

    each = torch.stack([spearman(w, c.abs()) for w, c in zip(weights, change, strict=True)])
    signed = torch.stack([spearman(w, c) for w, c in zip(weights, change, strict=True)])
    expect(ask(answer, weights, change), each.median(), {
        "a head may also push the score down: take the size of the change, |Δy|.": signed.median(),
        "asked for is the median over the images, not the mean.": each.mean(),
        "one number: the median over the images.": each,
        "correlate within each image; pooled, the images mix.": spearman(weights.flatten(), change.abs().flatten()),
    }, "the median")  # fmt: skip


# --- chapter 8: fine-tuning -------------------------------------------------------------------------------------------


@exercise(8, "medium", 8)
def schedule(answer):
    """Learning rate factor, linear warm-up, then half a cosine to 0: my_rate(step, total, warmup), steps from 0"""

    def right(step, total, warmup):
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    points = [(s, 100, 10) for s in (0, 5, 9, 10, 55, 99)]
    late = [(right(s, t, w), 0.5 * (1 + math.cos(math.pi * s / t))) for s, t, w in points]
    got = [ask(answer, *p) for p in points]
    expect(torch.tensor([float(v) for v in got]), [r for r, _ in late], {
        "the warm-up is missing: the first steps rise from 1/warmup to 1.":
            [right(*p) if p[0] >= 10 else 1.0 for p in points],
        "the first step would have rate 0 and be wasted: (step + 1) / warmup.":
            [s / w if s < w else right(s, t, w) for s, t, w in points],
        "the cosine starts where the warm-up ends: subtract warmup from step and from total.":
            [right(*p) if p[0] < 10 else c for p, (_, c) in zip(points, late, strict=True)],
        "half a cosine, from 1 down to 0: π, not 2π.":
            [right(s, t, w) if s < w else 0.5 * (1 + math.cos(2 * math.pi * (s - w) / (t - w))) for s, t, w in points],
        "a cosine runs from 1 to −1; shift and halve it: (1 + cos)/2.":
            [right(s, t, w) if s < w else math.cos(math.pi * (s - w) / (t - w)) for s, t, w in points],
    }, "the factor")  # fmt: skip


@exercise(8, "warm-up", 5)
def top_k(answer):
    """Percent of images whose label is among the k highest of logits (B, K): my_top_k(logits, labels, k)"""
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(50) % 6
    for k in (1, 3):
        share = (logits.topk(k).indices == labels[:, None]).any(1).float().mean()
        low = (logits.topk(k, largest=False).indices == labels[:, None]).any(1).float().mean()
        last = (logits.topk(k).indices[:, -1] == labels).float().mean()
        expect(ask(answer, logits, labels, k), 100 * share, {
            "percent: times 100.": share,
            "that is top-1 whatever k is: the label may be any of the k highest.":
                100 * (logits.argmax(1) == labels).float().mean(),
            "those are the k lowest logits.": 100 * low,
            "that compares with the k-th place only; any of the first k places counts.": 100 * last,
            "divide by the number of images, not by images times k.": 100 * share / k,
        }, f"top-{k}")  # fmt: skip


# --- chapters 9 to 11: the papers' claims -----------------------------------------------------------------------------


@exercise(9, "warm-up", 5)
def verdict(answer):
    """From an interval to a verdict: my_verdict(low, high, threshold) → "holds", "does not" or "cannot be told\""""
    for low, high, threshold, right in (
        (0.2, 1.0, 0.0, "holds"), (-2.0, -0.5, 0.0, "does not"), (-0.5, 1.5, 0.0, "cannot be told"),
        (0.2, 1.0, 1.8, "does not"), (2.0, 3.0, 1.8, "holds"), (0.5, 2.5, 1.8, "cannot be told"),
    ):  # fmt: skip
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
def paired_interval(answer):
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
    expect(got, right, {
        "that draws the images of a and of b apart: pair them, so that a hard image is hard for both.":
            ends(a[draws].mean(1) - b[draws.flip(0)].mean(1)),
        "that is the spread of single images; take the mean of each draw first.": ends(a - b),
        "that is b − a: turn it round.": ends((b - a)[draws].mean(1)),
        "that is the mean only; an interval has two ends.": (a - b).mean(),
        "those are the smallest and the largest of all draws; cut 2.5 % off each end.":
            torch.stack([(a - b)[draws].mean(1).min(), (a - b)[draws].mean(1).max()]),
        "that cuts 5 % off each end, which leaves 90 %.":
            torch.quantile((a - b)[draws].mean(1), torch.tensor([0.05, 0.95])),
    }, "the interval")  # fmt: skip


@exercise(10, "warm-up", 5)
def empty_accuracy(answer):
    """Pixel accuracy, in percent, of a map that marks nothing: my_accuracy(mask), 0 ground, 1 object, 255 void"""
    mask = torch.zeros(10, 10)
    mask[2:5, 2:6], mask[8:] = 1, 255
    expect(ask(answer, mask), 85.0, {
        "percent: times 100.": 0.85,
        "void counts neither as right nor as wrong: leave it out of both counts.": 68.0,
        "void is no part of the picture for a metric: leave it out of the total too.": 88.0,
        "that is the object's share; the empty map is right on the ground.": 15.0,
    }, "the accuracy")  # fmt: skip


@exercise(11, "medium", 10)
def read_out(answer):
    """A rollout for each head (B, H, N, N) → map (B, R, C), [CLS] row, mean of heads: my_map(chains, prefix, grid)"""
    c = case(seed=11)
    chains, (rows, columns) = c.attentions[0], c.grid
    right = chains[:, :, 0, c.prefix :].mean(1).unflatten(1, c.grid)
    shipped = chains[:, 0, 1:].reshape(len(chains), -1, rows, columns)
    expect(ask(answer, chains, c.prefix, c.grid), right, {
        "that is head 0 only: the second index is the head.": chains[:, 0, 0, c.prefix :].unflatten(1, c.grid),
        "`[:, 0, 1:]` takes head 0 and drops the [CLS] row: the axes are image, head, query, key.": shipped,
        "the mean over the pieces hides that `[:, 0, 1:]` takes head 0 and drops the [CLS] row.": shipped.mean(1),
        "that is the sum over heads; take the mean.": chains.shape[1] * right,
        "that is a column: row 0 says where [CLS] looks.": chains[:, :, c.prefix :, 0].mean(1).unflatten(1, c.grid),
        "that is the mean over all queries; take row 0.": chains[..., c.prefix :].mean((1, 2)).unflatten(1, c.grid),
        "reshape to (rows, columns): a map is a picture.": chains[:, :, 0, c.prefix :].mean(1),
    }, "the map")  # fmt: skip
