"""Which class is explained, its score y and its probability."""

import torch
from torch import nn

from .layout import problem_type


def parse_target(target: object, batch: int) -> torch.Tensor | tuple[int, int] | None:
    """The target as `resolve_target` takes it, checked before anything runs.

    Args:
        target: None (the predicted class) | a class id | (B,) ids as list, array or tensor | a tuple (a, b), the
            contrast y = y_a − y_b for every image.
        batch: B.

    Returns:
        None, a tuple of two ints, or a tensor of int64 ids, (B,) or ().

    Raises:
        TypeError: not whole numbers. ValueError: another shape, or a tuple that is not two ids.
    """
    if target is None:
        return None
    if isinstance(target, tuple):
        if len(target) != 2 or not all(_is_id(t) for t in target):
            raise ValueError(
                f"A tuple as target is a contrast (a, b) of two class ids, y = y_a − y_b; got {target!r}. Pass the ids "
                "of a batch as a list, array or tensor."
            )
        a, b = int(target[0]), int(target[1])
        if a == b:
            raise ValueError(f"The contrast of class {a} with itself is 0 for every picture.")
        return a, b
    try:
        ids = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"target must be class ids (int), got {target!r}.") from None
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"target must be class ids (int), got {ids.dtype}.")
    if ids.ndim > 1 or ids.ndim == 1 and len(ids) != batch:
        raise ValueError(f"target must be an int or ids of shape ({batch},), got shape {tuple(ids.shape)}.")
    return ids.detach().clone().long()  # a clone: autograd refuses tensors of inference_mode


def resolve_target(model: nn.Module, logits: torch.Tensor, target: object = None) -> torch.Tensor:
    """Class ids (B,); of a contrast (a, b) the first. Arguments as `parse_target`; IndexError outside the classes."""
    batch, classes = logits.shape
    target = parse_target(target, batch)
    if target is None:
        if classes == 1:
            explains_minus_y = (logits[:, 0] <= 0) & (problem_type(model) != "regression")
            return (~explains_minus_y).long()
        return logits.argmax(1)
    top = max(classes, 2)  # one logit stands for two classes
    ids = torch.as_tensor(target)
    if bool(((ids < 0) | (ids >= top)).any()):
        raise IndexError(f"target {ids.tolist()} is outside the model's classes 0 to {top - 1}.")
    return (ids[0] if isinstance(target, tuple) else ids).to(logits.device).expand(batch)


def class_score(logits: torch.Tensor, target: torch.Tensor, against: torch.Tensor | None = None) -> torch.Tensor:
    """y (B,): the logit of the target class, minus that of `against`. With one logit, 1 gives y and 0 gives −y."""
    if against is not None:
        return class_score(logits, target) - class_score(logits, against)
    if logits.shape[1] == 1:
        return logits[:, 0] * (2 * target - 1)
    return logits.gather(1, target[:, None])[:, 0]


def _is_id(value):
    return not isinstance(value, bool) and hasattr(value, "__index__")


def probability(model: nn.Module, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Probability (B,) of the target: softmax, or sigmoid for one logit and multi-label heads.

    Raises ValueError for a regression head, which has no probability."""
    kind = problem_type(model)
    if kind == "regression":
        raise ValueError("A regression head has no probability; use score='logit'.")
    if logits.shape[1] == 1 or kind == "multi_label_classification":
        return class_score(logits.float(), target).sigmoid()
    return logits.float().softmax(1).gather(1, target[:, None])[:, 0]
