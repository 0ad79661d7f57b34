"""What goes in, checked before anything runs."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import nn

HINT = "Use load_model(...).preprocess(images), or load_model(...).explain(image), which reads pictures itself."


def _check_model(model: object) -> None:
    """ValueError unless it is a module whose weights a gradient can pass."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model must be a torch.nn.Module, got {type(model).__name__}. "
            "A Vit of load_model has its module in .model, and explains pictures itself: vit.explain(image)."
        )
    weight = _weight(model)
    if weight is not None and weight.is_inference():
        raise ValueError(
            f"{type(model).__name__} was made under torch.inference_mode(), so that no gradient can pass through its "
            "weights. Make it outside of that context."
        )


def choice(name: str, value: object, allowed: Iterable) -> None:
    """ValueError, naming what there is, unless `value` is one of `allowed`."""
    if not any(value is a or type(value) is type(a) and value == a for a in allowed):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")


def check_whole(name: str, value: object) -> None:
    """ValueError unless `value` is a whole number of at least 1; 2.0 and True are none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")


def check_pixel_values(pixel_values: object, model: nn.Module) -> torch.Tensor:
    """The pixel values as a tensor (B, channels, height, width); or the token ids of a model of words (B, N).

    Args:
        pixel_values: a floating-point tensor or NumPy array of that shape, or what a processor or a tokenizer returns;
            sentences of one length, for padding would be a word to the map.
        model: its floating-point type and, for an array, its device are taken over.

    Raises:
        ValueError: anything else, no image, NaN or infinity; or a model that no gradient can pass.
    """
    _check_model(model)
    weight, given = _weight(model), pixel_values
    if isinstance(given, Mapping):
        pixel_values = given.get("pixel_values", given.get("input_ids", given))
    if _are_ids(pixel_values, model):
        if isinstance(given, Mapping) and not torch.as_tensor(given.get("attention_mask", 1)).all():
            raise ValueError("The sentences are padded; a map has no place for padding. Pass those of one length.")
        return pixel_values.detach()
    if isinstance(pixel_values, np.ndarray) and pixel_values.dtype.kind == "f":
        pixel_values = torch.from_numpy(np.ascontiguousarray(pixel_values)).to(getattr(weight, "device", "cpu"))
    x, got = pixel_values, type(pixel_values).__name__
    dense = isinstance(x, torch.Tensor) and x.layout == torch.strided and not x.is_meta
    if not (dense and x.ndim == 4 and x.is_floating_point()):
        if isinstance(x, torch.Tensor | np.ndarray):
            got += f" {tuple(x.shape)} of {x.dtype} on {getattr(x, 'device', 'cpu')}"
        raise ValueError(
            f"pixel_values must be a floating-point tensor (B, channels, height, width), got {got}. {HINT}"
        )
    if not x.numel() or not bool(x.isfinite().all()):
        held = "NaN or infinity" if x.numel() else "no image"
        raise ValueError(f"pixel_values of shape {tuple(x.shape)} hold {held}. {HINT}")
    return x.detach() if weight is None else x.detach().to(weight.dtype)


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _are_ids(values, model):
    """Whether these are the token ids (B, N) of a model without a convolution: of words."""
    ids = isinstance(values, torch.Tensor) and values.dtype in (torch.int32, torch.int64) and values.ndim == 2
    return ids and values.numel() and not any(isinstance(m, nn.Conv2d) for m in model.modules())


def _weight(model):
    """A floating-point weight: what the model computes with."""
    return next((w for w in model.parameters() if w.is_floating_point()), None)
