"""What every metric's forward passes share: precision, targets, scores, and the loop over (image, step) rows."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import nn

from ..capture.checks import check_model, check_pixel_values, check_whole, choice
from ..capture.layout import logits_of, unwrap
from ..capture.settling import settled
from ..capture.target import class_score, probability, resolve_target

SCORES = ("probability", "logit")
Target = int | list[int] | torch.Tensor | None  # None: the class predicted on the full image; else one, or (B,)


def check_input(model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """The pixel values as `check_pixel_values` gives them; ValueError for those, or a model, that is none."""
    check_model(model)
    return check_pixel_values(pixel_values, model)


def cheap_dtype(device: torch.device | str) -> torch.dtype:
    """The cheapest type for forward passes that keeps their results: what `precision="auto"` takes on this device.

    bfloat16 where the processor computes in it (a T4 only emulates it, slowly), float16 on other GPUs, else float32.
    """
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    has_it = torch.device(device).type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.bfloat16 if has_it else torch.float32


@contextmanager
def evaluating(model: nn.Module, pixel_values: torch.Tensor, precision: str = "float32") -> Iterator[str]:
    """Eval mode, inference mode and the fused attention path. Yields the name of the precision.

    Args:
        model: any classifier.
        pixel_values: (B, channels, height, width).
        precision: "float32" | "auto": the blocks in `cheap_dtype`, with norms, softmax and head in float32 (on a GPU
            the head is cheap too). A model in half precision stays in it, and a caller's own autocast is kept.
    """
    choice("precision", precision, ("float32", "auto"))
    device, dtype, module = pixel_values.device.type, pixel_values.dtype, unwrap(model)
    with settled(module) as blocks, ExitStack() as stack:
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        elif precision == "auto" and dtype == torch.float32:
            dtype = _made_cheap(blocks, pixel_values.device, stack)
        stack.enter_context(torch.inference_mode())
        yield str(dtype).removeprefix("torch.")


def _made_cheap(blocks, device, stack):
    """Autocast to `cheap_dtype` for as long as the stack is open; the type that the blocks then compute in."""
    dtype = cheap_dtype(device)
    if dtype == torch.float32 or not blocks:
        return torch.float32
    if device.type == "cuda":  # around all of the model: compiled, it is one graph
        stack.enter_context(torch.autocast(device.type, dtype))
        return dtype
    # Inside the blocks alone: what reads their output (norm, head, a product with text) stays in float32. Logits that
    # differ by less than a half-precision step must not become equal. Norms inside follow the float32 they are given.
    for block in blocks:
        own = block.__dict__.get("forward")
        stack.callback(partial(setattr, block, "forward", own) if own else partial(delattr, block, "forward"))
        block.forward = torch.autocast(device.type, dtype)(block.forward)
    return dtype


def score_of(model: nn.Module, output: object, target: torch.Tensor, score: str) -> torch.Tensor:
    """(B,) probability or logit of the target in the model's output, float32 or wider."""
    logits = logits_of(output)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return probability(model, logits, target) if score == "probability" else class_score(logits, target)


def row_scores(
    model: nn.Module,
    pixel_values: torch.Tensor,
    target: Target,
    steps: int,
    run: Callable[[torch.Tensor, torch.Tensor], object],
    *,
    score: str = "probability",
    batch_size: int = 64,
    precision: str = "float32",
) -> tuple[torch.Tensor, dict]:
    """The target's score of every image at every step: one long batch of rows, made part by part.

    Args:
        model: classifier.
        pixel_values: (B, channels, height, width).
        target: None (the class predicted on the full image) | int | (B,).
        steps: S.
        run: (image, step), numbers (b,) of such rows → what the model gives for them.
        score: "probability" | "logit".
        batch_size: rows in a forward pass.
        precision: as `evaluating`.

    Returns:
        Scores (B, S), and what a protocol says of them: score, target, precision, images.
    """
    choice("score", score, SCORES)
    check_whole("batch_size", batch_size)
    if isinstance(target, tuple):  # elsewhere a contrast of two classes: never to be read as one of them
        raise ValueError(f"A metric follows one class: target is an id, or ids in a list or tensor; got {target!r}.")
    rows = torch.arange(len(pixel_values) * steps, device=pixel_values.device)
    with evaluating(model, pixel_values, precision) as found:
        ids = _resolved(model, pixel_values, target, batch_size)
        parts = ((row // steps, row % steps) for row in rows.split(batch_size))
        scores = [score_of(model, run(image, step), ids[image], score) for image, step in parts]
    about = {"score": score, "target": "predicted" if target is None else "label", "precision": found}
    return torch.cat(scores).unflatten(0, (-1, steps)), about | {"images": len(pixel_values)}


def _resolved(model, pixel_values, target, batch_size):
    """Class ids (B,); None is the predicted class. A given one is checked against one image's logits, no full pass."""
    if target is None:
        return torch.cat([resolve_target(model, logits_of(model(x))) for x in pixel_values.split(batch_size)])
    logits = logits_of(model(pixel_values[:1]))
    return resolve_target(model, logits.expand(len(pixel_values), -1), target)
