"""What exercises are made of: the registry, its report, and the tools that a check is written with."""

import functools
import hashlib
from collections.abc import Callable
from typing import NamedTuple

import torch

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
    """Register `check_NAME` as the exercise NAME. It prints one line, never raises on an answer, notes the result."""
    assert level in LEVELS

    def register(test):
        name = test.__name__.removeprefix("check_")

        @functools.wraps(test)
        def check(answer=None, *, solution: bool = False) -> None:
            """solution=True, for the book's own answers: not counted, and an error if wrong: a build proves them."""
            try:
                test(answer)
                passed, text = True, f"✓ {name}: right." if solution else f"✓ {name}: right. Well done."
            except Unfilled:
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


def report(name: str = "anonymous", of: int | None = None) -> str:
    """Print and return one line to hand in: name, score, each exercise tried (1 right, 0 not yet), and a short hash.

    The score is out of the `of` exercises of a notebook; None: out of all exercises of the book.

    The hash finds slips of copying, not cheats: whoever reads this file can compute it."""
    tried = " ".join(f"{k}={int(v)}" for k, v in sorted(_results.items())) or "none"
    solved = f"{sum(_results.values())} of {of or len(EXERCISES)}"
    line = f"{name.replace('|', '/').strip() or 'anonymous'} | {solved} | {tried}"
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


class Unfilled(Exception):
    """The learner has not answered yet."""


def ask(function, *inputs):
    """The learner's result for `inputs`, detached. An unfilled stub, an error and None become one clear line."""
    if function is None or function is ...:
        raise Unfilled
    if not callable(function):
        raise Hint(f"pass the function itself, check_name(my_function), not its {type(function).__name__} result.")
    try:
        result = function(*inputs)
    except Exception as error:  # a learner's code may raise anything
        if "ellipsis" in str(error):
            raise Unfilled from None
        size = "must match the size" in str(error)
        advice = " Did a sum lose an axis that you divide by? keepdim=True keeps it." if size else ""
        raise Hint(f"your function stopped with {type(error).__name__}: {error}.{advice}") from None
    if result is None or result is ... or isinstance(result, tuple) and any(r is ... for r in result):
        raise Unfilled
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
    if same(got, right):
        return
    for hint, value in (wrong or {}).items():
        if same(got, torch.as_tensor(value, dtype=torch.float32)):
            raise Hint(hint)
    if got.shape != right.shape:
        raise Hint(f"{what} must have shape {tuple(right.shape)}, got {tuple(got.shape)}.")
    if not got.isfinite().all():
        raise Hint(f"{what} holds NaN or infinity: look for a division by zero or a logarithm of zero.")
    place = (got - right).abs().argmax()
    raise Hint(f"{what} is off: one entry should be {right.flatten()[place]:.4g}, yours is {got.flatten()[place]:.4g}.")


def same(a, b):
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
