"""One door to every map."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from ..capture import Trace
from ..capture.checks import check_pixel_values, check_whole, out_of_memory
from ..capture.target import parse_target
from ..photo import minmax, resize
from . import activation, baselines, layerwise, perturbation, propagation, weighting


@dataclass(frozen=True)
class Method:
    """A map's name in prose, code and tables, and all that is said of it there.

    Attributes:
        name: the key in METHODS.
        title: its name in prose.
        function: (trace, **options) → token scores (B, N).
        color: in every plot; colours are told apart with deuteranopia and protanopia too.
        citation: a key of the book's bibliography.
        signed: scores below 0 speak against the class; maps show the rest unless `explain(signed=True)` is asked for.
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
        Method("libra", "LibraGrad", propagation.libra, "#332288", "mehri2025libragrad", signed=True),
        Method("attnlrp", "AttnLRP", propagation.attnlrp, "#661100", "achtibat2024attnlrp", signed=True),
        Method("cdam", "CDAM", activation.cdam, "#AA4499", "brocki2023cdam", signed=True),
        Method("occlusion", "Occlusion", perturbation.occlusion, "#7A4A00", "zeiler2014visualizing", signed=True),
        Method("attention", "Last-layer attention", baselines.attention, "#E69F00", class_aware=False),
        Method("random", "Random", baselines.random, "#7F7F7F", class_aware=False),
        Method("center", "Centre", baselines.center, "#4D4D4D", class_aware=False),
    )
}


def bind(method: str | Callable, **options: object) -> Callable[[Trace], torch.Tensor]:
    """A method with its options, trace → token scores (B, N), checked before anything runs.

    Args:
        method: a key of METHODS, or a callable of a trace (the user's own, or a `functools.partial`).
        options: that method's own.

    Raises:
        ValueError: an unknown name. TypeError: an unknown option, naming those it takes.
    """
    if isinstance(method, str) and method in METHODS:
        method, name = METHODS[method].function, method
        takes = list(inspect.signature(method).parameters)[1:] if options else ()
        for option in options:
            if option not in takes:
                raise TypeError(f"{name} takes no option {option!r}; it takes {', '.join(takes) or 'none'}.")
    elif not callable(method):
        raise ValueError(f"Unknown method {method!r}; there are {', '.join(METHODS)}, or pass a function of a trace.")
    bound = partial(method, **options)
    with suppress(ValueError):  # a builtin without a signature
        inspect.signature(bound.func).bind(*bound.args, None, **bound.keywords)
    return bound


def explain(
    model: nn.Module,
    pixel_values: torch.Tensor,
    method: str | Callable = "gmar",
    target: int | Sequence[int] | np.ndarray | torch.Tensor | None = None,
    upsample: bool = True,
    *,
    signed: bool = False,
    prefix_tokens: int | None = None,
    grid: tuple[int, int] | None = None,
    batch_size: int = 32,
    **options: object,
) -> torch.Tensor:
    """A map for each image: float32 (B, height, width) in [0, 1], min–max per image; a constant map becomes 0.

    Methods whose scores have a sign (`Method.signed`) show what speaks for the class: ReLU, then min–max.

    Args:
        model: transformers or timm-style classifier.
        pixel_values: (B, channels, height, width).
        method: a key of METHODS, or a callable trace → (B, N); `options` are that method's own.
        target: None (the predicted class) | a class id | (B,) ids as list, array or tensor | a tuple (a, b), the
            contrast y = y_a − y_b.
        upsample: False gives the patch map (B, R, C), min–max too.
        signed: True keeps the sign, for a diverging palette: [−1, 1], divided by the image's largest absolute value.
        prefix_tokens: P, and
        grid: (R, C): as in `trace`.
        batch_size: images at a time, halved where memory runs out.

    Raises:
        ValueError: an unknown method.
        TypeError: an unknown option, naming those that the method takes; signed=True for a method without a sign.

    >>> maps = explain(vit.model, vit.preprocess(photos), "gmar", norm="l2")  # doctest: +SKIP
    """
    own = {"signed": signed, "prefix_tokens": prefix_tokens, "grid": grid, "batch_size": batch_size}
    return explain_many(model, pixel_values, {"map": bind(method, **options)}, target, upsample, **own)["map"]


def explain_many(
    model: nn.Module,
    pixel_values: torch.Tensor,
    methods: Mapping[str, str | Callable],
    target: int | Sequence[int] | np.ndarray | torch.Tensor | None = None,
    upsample: bool = True,
    *,
    signed: bool = False,
    prefix_tokens: int | None = None,
    grid: tuple[int, int] | None = None,
    batch_size: int = 32,
) -> dict[str, torch.Tensor]:
    """{label: name or callable} → {label: maps}, as `explain`; one trace serves every map."""
    methods = {label: bind(method) for label, method in methods.items()}
    pixel_values = check_pixel_values(pixel_values, model)
    unsigned = [m.name for m in map(registered, methods.values()) if m and not m.signed]
    if signed and unsigned:
        have = ", ".join(m.name for m in METHODS.values() if m.signed)
        raise TypeError(f"{', '.join(unsigned)} takes no option 'signed': its scores have no sign; {have} do.")
    scores = scores_of(model, pixel_values, methods, target, (prefix_tokens, grid), batch_size)
    maps = {label: scaled(found, registered(methods[label]), signed) for label, found in scores.items()}
    if upsample and pixel_values.ndim == 4:  # scaled before, too: rounding here would turn a constant map into noise
        maps = {label: scaled(resize(found, pixel_values.shape[-2:]), signed=signed) for label, found in maps.items()}
    return maps


def scores_of(
    model: nn.Module,
    pixel_values: torch.Tensor,
    methods: Mapping[str, Callable],
    target: object = None,
    layout: tuple = (None, None),
    batch_size: int = 32,
) -> dict[str, torch.Tensor]:
    """{label: patch scores (B, R, C)} of bound methods, signed where theirs are; one trace serves all of them.

    Arguments as `explain`; layout: P and (R, C), or None."""
    target = parse_target(target, len(pixel_values))
    gradients = any(m is None or m.class_aware for m in map(registered, methods.values()))  # unknown: have them at hand

    def found(part):
        chosen = target[part] if isinstance(target, torch.Tensor) and target.ndim else target
        seen = Trace(model, pixel_values[part], chosen, layout, gradients)
        return {label: patch_scores(label, f, seen) for label, f in methods.items()}

    parts = in_batches(found, len(pixel_values), batch_size)
    return {label: torch.cat([p[label] for p in parts]) for label in methods}


def registered(function: Callable) -> Method | None:
    """The entry of METHODS behind a function, also behind a `functools.partial` of it."""
    function = function.func if isinstance(function, partial) else function
    return next((m for m in METHODS.values() if m.function == function), None)


def scaled(maps: torch.Tensor, method: Method | None = None, signed: bool = False) -> torch.Tensor:
    """Patch scores (B, R, C) as they are shown; a constant map becomes 0.

    Args:
        maps: (B, R, C).
        method: what made them: the scores of a signed method pass a ReLU. None: as they are.
        signed: True gives [−1, 1], divided by each map's largest absolute value; False gives [0, 1], min–max.
    """
    if signed:
        maps = maps.float()
        return maps / maps.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    return minmax(maps.relu() if method and method.signed else maps)


def in_batches(function: Callable[[slice], object], total: int, size: int) -> list:
    """[function(slice)] over `total` images, `size` at a time; half as many whenever memory runs out, down to 1."""
    check_whole("batch_size", size)
    results, start = [], 0
    while start < total:
        step = min(size, total - start)
        try:
            results.append(function(slice(start, start + step)))
            start += step
        except (MemoryError, RuntimeError) as error:  # it holds the failed batch's tensors until here is left
            if step == 1 or not out_of_memory(error):
                raise
            size = step // 2
    return results


def patch_scores(label: str, method: Callable[[Trace], torch.Tensor], seen: Trace) -> torch.Tensor:
    """Patch scores (B, R, C) of a bound method; ValueError for scores of another shape, NaN or infinite."""
    scores = method(seen)
    batch, (rows, columns) = len(seen.pixel_values), seen.grid
    shape = (batch, seen.prefix_tokens + rows * columns)
    if not isinstance(scores, torch.Tensor) or tuple(scores.shape) != shape:
        got = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise ValueError(f"{label!r} must give token scores (B, N) = {shape}, a tensor; got {got}.")
    if not bool(scores.isfinite().all()):
        raise ValueError(f"{label!r} gives scores that are NaN or infinite for this model.")
    return seen.patches(scores.detach().float())
