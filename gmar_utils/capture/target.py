"""Which class is explained, its score y and its probability."""

import torch
from torch import nn

from .layout import uncompiled


def resolve_target(model: nn.Module, logits: torch.Tensor, target=None) -> torch.Tensor:
    """Class ids (B,) from None (the predicted class), an int, or a (B,) tensor. Checks the range."""
    batch, classes = logits.shape
    if target is None:
        if classes == 1:
            explains_minus_y = (logits[:, 0] <= 0) & (_problem(model) != "regression")
            return (~explains_minus_y).long()
        return logits.argmax(1)
    target = torch.as_tensor(target, device=logits.device)
    target = target.clone() if target.is_inference() else target  # autograd refuses tensors of inference_mode
    if target.is_floating_point() or target.dtype == torch.bool:
        raise TypeError(f"target must be class ids (int), got {target.dtype}.")
    if target.ndim > 1 or target.ndim == 1 and len(target) != batch:
        raise ValueError(f"target must be an int or a tensor of shape ({batch},), got shape {tuple(target.shape)}.")
    target = target.long().expand(batch)
    top = max(classes, 2)  # one logit stands for two classes
    if bool(((target < 0) | (target >= top)).any()):
        raise IndexError(f"target {target.tolist()} is outside the model's classes 0 to {top - 1}.")
    return target


def class_score(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """y (B,): the logit of the target class. With one logit, target 1 gives y and target 0 gives −y."""
    if logits.shape[1] == 1:
        return logits[:, 0] * (2 * target - 1)
    return logits.gather(1, target[:, None])[:, 0]


def probability(model: nn.Module, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Probability (B,) of the target: softmax, or sigmoid for one logit and multi-label heads.

    Raises ValueError for a regression head, which has no probability."""
    if _problem(model) == "regression":
        raise ValueError("A regression head has no probability; use score='logit'.")
    if logits.shape[1] == 1 or _problem(model) == "multi_label_classification":
        return class_score(logits.float(), target).sigmoid()
    return logits.float().softmax(1).gather(1, target[:, None])[:, 0]


def _problem(model):
    return getattr(getattr(uncompiled(model), "config", None), "problem_type", None)
