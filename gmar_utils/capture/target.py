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
    contrast = isinstance(target, tuple)
    try:
        ids = torch.as_tensor(list(target) if contrast else target)
    except (TypeError, ValueError, RuntimeError):
        ids = None
    if ids is None or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"target must be class ids (int), got {target!r}.")
    if contrast and ids.shape != (2,):
        raise ValueError(
            f"A tuple as target is a contrast (a, b) of two class ids, y = y_a − y_b; got {target!r}. Pass the ids of "
            "a batch as a list, array or tensor."
        )
    if contrast and ids[0] == ids[1]:
        raise ValueError(f"The contrast of class {ids[0]} with itself is 0 for every picture.")
    if not contrast and ids.shape not in ((), (batch,)):
        raise ValueError(f"target must be an int or ids of shape ({batch},), got shape {tuple(ids.shape)}.")
    return tuple(ids.tolist()) if contrast else ids.detach().clone().long()  # autograd refuses inference_mode's tensors


def resolve_target(model: nn.Module, logits: torch.Tensor, target: object = None) -> torch.Tensor:
    """Class ids (B,); of a contrast (a, b) the first. Arguments as `parse_target`; IndexError outside the classes."""
    batch, classes = logits.shape
    target = parse_target(target, batch)
    if target is None and classes > 1:
        return logits.argmax(1)
    if target is None:  # 1 explains y, 0 explains −y
        return ((logits[:, 0] > 0) | (problem_type(model) == "regression")).long()
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


def probability(model: nn.Module, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Probability (B,) of the target: softmax, or sigmoid for one logit and multi-label heads.

    Raises ValueError for a regression head, which has no probability."""
    kind = problem_type(model)
    if kind == "regression":
        raise ValueError("A regression head has no probability; use score='logit'.")
    if logits.shape[1] == 1 or kind == "multi_label_classification":
        return class_score(logits.float(), target).sigmoid()
    return logits.float().softmax(1).gather(1, target[:, None])[:, 0]
