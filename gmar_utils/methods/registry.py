"""One door to every map."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from ..capture import Trace
from ..capture.checks import check_model, check_pixel_values, out_of_memory
from ..capture.target import parse_target
from ..photo import minmax
from . import activation, baselines, layerwise, weighting


@dataclass(frozen=True)
class Method:
    """A map's name in prose, code and tables, and all that is said of it there.

    Attributes:
        name: the key in METHODS.
        title: its name in prose.
        function: (trace, **options) → token scores (B, N).
        color: in every plot.
        citation: a key of the book's bibliography.
        signed: scores below 0 speak against the class.
        class_aware: False for a map that is the same for every class and needs no gradient.
    """

    name: str
    title: str
    function: Callable[..., torch.Tensor]
    color: str
    citation: str | None = None
    signed: bool = False
    class_aware: bool = True


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("grad-cam", "Grad-CAM", activation.gradcam, "#CC79A7", "selvaraju2017gradcam"),
        Method("rollout", "Attention rollout", weighting.rollout, "#0072B2", "abnar2020quantifying", class_aware=False),
        Method("gmar", "GMAR", weighting.gmar, "#D55E00", "jo2025gmar"),
        Method("legrad", "LeGrad", layerwise.legrad, "#009E73", "bousselham2024legrad"),
        Method("chefer", "Gradient attention rollout", baselines.chefer, "#56B4E9", "chefer2021generic"),
        Method("attention", "Last-layer attention", baselines.attention, "#E69F00", class_aware=False),
        Method("random", "Random", baselines.random, "#7F7F7F", class_aware=False),
        Method("center", "Centre", baselines.center, "#4D4D4D", class_aware=False),
    )
}


def bind(method: str | Callable, **options) -> Callable[[Trace], torch.Tensor]:
    """A method with its options, trace → token scores (B, N), checked before anything runs.

    Args:
        method: a key of METHODS, or a callable of a trace (the user's own, or a `functools.partial`).
        options: that method's own.

    Raises:
        ValueError: an unknown name. TypeError: an unknown option, naming those it takes.
    """
    if isinstance(method, str) and method in METHODS:
        function = METHODS[method].function
        takes = list(inspect.signature(function).parameters)[1:] if options else ()
        for option in options:
            if option not in takes:
                raise TypeError(f"{method} takes no option {option!r}; it takes {', '.join(takes) or 'none'}.")
    elif callable(method):
        function = method
        _check_call(function, options)
    else:
        raise ValueError(f"Unknown method {method!r}; there are {', '.join(METHODS)}, or pass a function of a trace.")
    return partial(function, **options)


def _check_call(function, options):
    """TypeError, Python's own, for options that a function of a trace does not take."""
    arguments = (None,)
    while isinstance(function, partial):
        arguments, options, function = (*function.args, *arguments), function.keywords | options, function.func
    with suppress(ValueError):  # a builtin without a signature
        inspect.signature(function).bind(*arguments, **options)


def explain(
    model: nn.Module,
    pixel_values: torch.Tensor,
    method: str | Callable = "gmar",
    target=None,
    upsample: bool = True,
    *,
    prefix_tokens: int | None = None,
    grid: tuple[int, int] | None = None,
    batch_size: int = 32,
    **options,
) -> torch.Tensor:
    """A map for each image: float32 (B, height, width) in [0, 1], min–max per image; a constant map becomes 0.

    Args:
        model: transformers or timm-style classifier.
        pixel_values: (B, channels, height, width).
        method: a key of METHODS, or a callable trace → (B, N); `options` are that method's own.
        target: None (the predicted class) | a class id | (B,) ids as list, array or tensor | a tuple (a, b), the
            contrast y = y_a − y_b.
        upsample: False gives the patch map (B, R, C), min–max too.
        prefix_tokens: P, and
        grid: (R, C): as in `trace`.
        batch_size: images at a time, halved where memory runs out.

    Raises:
        ValueError: an unknown method. TypeError: an unknown option, naming those that the method takes.

    >>> maps = explain(vit.model, vit.preprocess(photos), "gmar", norm="l2")  # doctest: +SKIP
    """
    arguments = model, pixel_values, target, upsample, (prefix_tokens, grid), batch_size
    return _maps({"map": bind(method, **options)}, *arguments)["map"]


def explain_many(
    model: nn.Module,
    pixel_values: torch.Tensor,
    methods: Mapping[str, str | Callable],
    target=None,
    upsample: bool = True,
    *,
    prefix_tokens: int | None = None,
    grid: tuple[int, int] | None = None,
    batch_size: int = 32,
) -> dict[str, torch.Tensor]:
    """{label: name or callable} → {label: maps}, as `explain`; one trace serves every map."""
    arguments = model, pixel_values, target, upsample, (prefix_tokens, grid), batch_size
    return _maps({label: bind(method) for label, method in methods.items()}, *arguments)


def _maps(methods, model, pixel_values, target, upsample, layout, batch_size):
    check_model(model)
    pixel_values = check_pixel_values(pixel_values, model)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.")
    target = parse_target(target, len(pixel_values))
    gradients = any(_class_aware(f) for f in methods.values())

    def maps_of(part):
        wanted = target[part] if isinstance(target, torch.Tensor) and target.ndim else target
        seen = Trace(model, pixel_values[part], wanted, layout, gradients)
        size = pixel_values.shape[-2:] if upsample else None
        return {label: _finish(_scores(label, method, seen), size) for label, method in methods.items()}

    parts = _in_batches(maps_of, len(pixel_values), batch_size)
    return {label: torch.cat([p[label] for p in parts]) for label in methods}


def _class_aware(function):
    """Whether the map needs gradients; of a function that is not in METHODS nobody knows, so they are at hand."""
    while isinstance(function, partial):
        function = function.func
    return {m.function: m.class_aware for m in METHODS.values()}.get(function, True)


def _in_batches(function, total, size):
    """[function(slice)] over `total` images, `size` at a time; half as many whenever memory runs out, down to 1."""
    results, start = [], 0
    while start < total:
        step = min(size, total - start)
        try:
            results.append(function(slice(start, start + step)))
            start += step
            continue
        except (MemoryError, RuntimeError) as error:
            if step == 1 or not out_of_memory(error):
                raise
        size = step // 2  # outside `except`: the error holds the tensors of the failed batch
    return results


def _scores(label, method, seen):
    """A method's patch scores (B, R, C)."""
    scores = method(seen)
    batch, (rows, columns) = len(seen.pixel_values), seen.grid
    shape = (batch, seen.prefix_tokens + rows * columns)
    if not isinstance(scores, torch.Tensor) or tuple(scores.shape) != shape:
        got = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise ValueError(f"{label!r} must give token scores (B, N) = {shape}, a tensor; got {got}.")
    if not bool(scores.isfinite().all()):
        raise ValueError(f"{label!r} gives scores that are NaN or infinite for this model.")
    return seen.patches(scores.detach().float())


def _finish(maps, size):
    maps = minmax(maps)  # first, because interpolation's rounding would turn a constant map into noise
    if size is None:
        return maps
    return minmax(F.interpolate(maps[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0])
