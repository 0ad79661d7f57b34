"""Beyond both papers: do the head weights mean what they say? Heads are muted, one alone or one after the other."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from ..capture.checks import check_pixel_values, choice
from ..capture.layout import unwrap
from .faithfulness import Curve, Protocol
from .forwards import Target, evaluating, ranks, row_scores


def head_ablation(
    model: nn.Module,
    pixel_values: torch.Tensor,
    importance: torch.Tensor,
    target: Target = None,
    *,
    order: str = "most",
    seed: int = 0,
    **forward: object,
) -> Curve:
    """The target's score against the number of muted heads, (B, S+1): S heads in all, muted one after the other.

    Muting a head zeroes its A·V. A weight that means something makes the score fall faster than at random when the
    heaviest heads go first (`order="most"`), and slower when the lightest do ("least"). Blind to heads that stand in
    for one another: a head may matter and its loss not show.

    Args:
        model: classifier.
        pixel_values: (B, channels, height, width).
        importance: (B, L, H), such as gradient norms ‖G‖: heads are ordered over the whole network.
        target: None (the predicted class) | int | (B,).
        order: "most" | "least" | "random", drawn with `seed`.
        seed: of the random order.
        **forward: score, batch_size and precision, as `forwards.row_scores`.
    """
    choice("order", order, ("most", "least", "random"))
    pixel_values = check_pixel_values(pixel_values, model)
    importance = torch.as_tensor(importance).float()
    if importance.ndim != 3 or len(importance) != len(pixel_values) or not bool(importance.isfinite().all()):
        raise ValueError(
            f"importance must be finite numbers (B, L, H) with B = {len(pixel_values)}, got {tuple(importance.shape)}."
        )
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(importance.shape, generator=generator) if order == "random" else importance
    turn = ranks(values, descending=order != "least").to(pixel_values.device)
    module, steps = unwrap(model), importance[0].numel()

    def run(image, count):
        with MutedHeads(turn[image] >= count[:, None, None]):
            return module(pixel_values[image])

    scores, about = row_scores(module, pixel_values, target, steps + 1, run, **forward)
    fractions = torch.linspace(0, 1, steps + 1, device=scores.device, dtype=scores.dtype)
    seed = seed if order == "random" else None
    protocol = Protocol("head ablation", order=order, steps=steps, unit="head", seed=seed, **about)
    return Curve(fractions, scores, torch.trapezoid(scores, fractions), scores[:, 0], scores[:, -1], protocol)


def head_effects(
    model: nn.Module, pixel_values: torch.Tensor, target: Target = None, **forward: object
) -> torch.Tensor:
    """|Δy| (B, L, H): how far the target's score moves when each head alone is muted.

    Arguments as `head_ablation`; score="logit" is the default here."""
    pixel_values, module = check_pixel_values(pixel_values, model), unwrap(model)
    with evaluating(module, pixel_values), MutedHeads() as counted:
        module(pixel_values[:1])
    depth, heads = len(counted.heads), counted.heads[0]
    keep = ~torch.eye(depth * heads + 1, depth * heads, dtype=torch.bool, device=pixel_values.device)
    keep = keep.unflatten(1, (depth, heads))  # the last step mutes nothing

    def run(image, head):
        with MutedHeads(keep[head]):
            return module(pixel_values[image])

    scores, _ = row_scores(module, pixel_values, target, len(keep), run, **{"score": "logit"} | forward)
    return (scores[:, :-1] - scores[:, -1:]).abs().unflatten(1, (depth, heads))


class MutedHeads(TorchFunctionMode):
    """While active, the model's attention heads where `keep` is False give nothing: their A·V is multiplied by 0.

    keep  bool (L, H) or (B, L, H), layers in the order in which the model calls `F.scaled_dot_product_attention`; None
    only counts. For one forward pass: afterwards `heads` lists the heads of each call. ValueError when they do not fit.
    """

    def __init__(self, keep: torch.Tensor | None = None):
        super().__init__()
        self.keep, self.heads = keep, []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func is not F.scaled_dot_product_attention:
            return output
        layer, heads = len(self.heads), output.shape[-3]
        self.heads.append(heads)
        if self.keep is None:
            return output
        if layer >= self.keep.shape[-2] or heads != self.keep.shape[-1]:
            raise ValueError(
                f"The heads to mute are given for {self.keep.shape[-2]} layers of {self.keep.shape[-1]} heads, but "
                f"layer {layer + 1} of the model has {heads} heads."
            )
        return output * self.keep[..., layer, :, None, None]

    def __exit__(self, *exception):
        super().__exit__(*exception)
        if exception[0] is None and (not self.heads or self.keep is not None and len(self.heads) < self.keep.shape[-2]):
            raise ValueError(
                f"The model made {len(self.heads)} attention calls (F.scaled_dot_product_attention), but "
                f"{'some' if self.keep is None else self.keep.shape[-2]} were expected: its heads cannot be muted."
            )
