"""One door to every map."""

import inspect
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import nn

from ..capture import trace
from ..capture.layout import vision_config
from ..photo import minmax
from . import activation, baselines, layerwise, weighting


@dataclass(frozen=True)
class Method:
    """A map's name in prose, code and tables; the function behind it; and what that function reads."""

    name: str
    title: str
    function: Callable
    reads: str  # "attention" | "gradients" (both from one shared trace) | "model" | "grid"
    citation: str | None = None

    @cached_property
    def options(self) -> tuple[str, ...]:
        skip = {"trace", "model", "pixel_values", "target", "prefix_tokens", "grid"}
        return tuple(p for p in inspect.signature(self.function).parameters if p not in skip)


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("grad-cam", "Grad-CAM", activation.gradcam, "model", "selvaraju2017gradcam"),
        Method("rollout", "Attention rollout", weighting.rollout, "attention", "abnar2020quantifying"),
        Method("gmar", "GMAR", weighting.gmar, "gradients", "jo2025gmar"),
        Method("legrad", "LeGrad", layerwise.legrad, "model", "bousselham2024legrad"),
        Method("chefer", "Gradient attention rollout", baselines.chefer, "gradients", "chefer2021generic"),
        Method("attention", "Last-layer attention", baselines.attention, "attention"),
        Method("random", "Random", baselines.random, "grid"),
        Method("center", "Centre", baselines.center, "grid"),
    )
}


def explain(
    model: nn.Module, pixel_values: torch.Tensor, method: str = "gmar", target=None, upsample: bool = True, *,
    prefix_tokens: int | None = None, grid: tuple[int, int] | None = None, batch_size: int | None = None, **options,
) -> torch.Tensor:  # fmt: skip
    """A map for each image: float32 (B, height, width) in [0, 1], min–max per image; a constant map becomes 0.

    model         transformers or timm-style classifier      pixel_values  (B, channels, height, width)
    method        a key of METHODS; `options` are that method's own: METHODS[method].options
    target        None (the predicted class) | int | (B,) class ids
    upsample      False gives the patch map (B, R, C), min–max too
    batch_size    images at a time; None splits the batch by itself when it would not fit in memory

    Raises ValueError for an unknown method and TypeError, naming those it takes, for an unknown option.

    >>> maps = explain(vit.model, vit.preprocess(photos), "gmar", norm="l2")  # doctest: +SKIP
    """
    maps = explain_many(
        model, pixel_values, {method: (method, options)}, target, upsample,
        prefix_tokens=prefix_tokens, grid=grid, batch_size=batch_size,
    )  # fmt: skip
    return maps[method]


def explain_many(
    model: nn.Module, pixel_values: torch.Tensor, methods: Mapping[str, tuple[str, dict]], target=None,
    upsample: bool = True, *, prefix_tokens: int | None = None, grid: tuple[int, int] | None = None,
    batch_size: int | None = None,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """{label: (method, options)} → {label: maps}, as `explain`; one trace serves every map that reads attention."""
    for method, options in methods.values():
        _check(method, options)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    chunk = batch_size or (_fitting_batch(model, pixel_values) if len(pixel_values) > 1 else 1)
    parts = []
    for start in range(0, len(pixel_values), chunk):
        part = slice(start, start + chunk)
        chosen = target[part] if isinstance(target, torch.Tensor) and target.ndim else target
        scores = _scores(model, pixel_values[part], methods, chosen, prefix_tokens, grid)
        parts.append({k: _finish(v, pixel_values.shape[-2:] if upsample else None) for k, v in scores.items()})
    if not parts:
        raise ValueError("pixel_values holds no image.")
    return {label: torch.cat([p[label] for p in parts]) for label in methods}


def _scores(model, pixel_values, methods, target, prefix_tokens, grid):
    reads = {METHODS[m].reads for m, _ in methods.values()}
    layout = {"prefix_tokens": prefix_tokens, "grid": grid}
    seen = None
    if reads - {"model"}:
        backward = any(METHODS[m].reads == "gradients" and o.get("norm", "") is not None for m, o in methods.values())
        seen = trace(model, pixel_values, target, **layout, gradients=backward)
        target = seen.target

    def score(name, options):
        method = METHODS[name]
        if method.reads == "model":
            return method.function(model, pixel_values, target, **layout, **options)
        return method.function(*((pixel_values, seen.grid) if method.reads == "grid" else (seen,)), **options)

    return {label: score(*method) for label, method in methods.items()}


def _finish(maps, size):
    maps = minmax(maps)  # first, because interpolation's rounding would turn a constant map into noise
    if size is None:
        return maps
    return minmax(F.interpolate(maps[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0])


def _check(method, options):
    if method not in METHODS:
        raise ValueError(f"Unknown method {method!r}; there are {', '.join(METHODS)}.")
    takes = METHODS[method].options
    for option in options:
        if option not in takes:
            raise TypeError(f"{method} takes no option {option!r}; it takes {', '.join(takes) or 'none'}.")


def _fitting_batch(model, pixel_values):
    """Images whose traced activations fit in half of the free memory, from the model's own configuration."""
    config = vision_config(model)
    names = ("patch_size", "num_hidden_layers", "num_attention_heads", "hidden_size")
    patch, layers, heads, width = (getattr(config, name, None) for name in names)
    if not all(isinstance(value, int) for value in (patch, layers, heads, width)):
        return 8
    tokens = math.prod(side // patch for side in pixel_values.shape[-2:]) + 8
    floats = layers * (4 * heads * tokens**2 + 24 * tokens * width)
    if pixel_values.is_cuda:
        free = torch.cuda.mem_get_info(pixel_values.device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**32
    return max(1, int(free / 2 / (4 * floats)))
