"""The model itself, checked before its maps: what ignores its photos, or was never trained, has nothing to explain."""

import copy
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import torch
from torch import nn

from ..capture.layout import blocks, logits_of, unwrap
from ..capture.target import problem_type
from ..metrics.forwards import evaluating
from ..model import Vit
from .lights import LEVEL, NEEDED, Light, correct_share, sign_flip
from .photos import Photo

SHUFFLES = 39  # a block at random is the best of 40 once in 40
SAME = 0.01  # answers that differ by less, in probability, are the same answer
PLACES = (
    (1, 0.5),
    (2, 0.85),
)  # side of a window in cells of a 4 × 4 grid, and the share of all effect that is too much
AT_MOST = 12  # photos in the checks that need many forwards


def model_lights(
    vit: Vit, photos: list[Photo], said: list[dict], batch_size: int = 64, step: Callable = lambda: None
) -> list[Light]:
    """The lights of the model: does it answer its photos, is it trained, does it look everywhere, is it right?

    Args:
        vit: the model.
        photos: as `read_photos` gives them.
        said: what the model says of each.
        batch_size: pictures in a forward pass.
        step: called after each check.
    """
    shapes = [tuple(p.pixel_values.shape) for p in photos]
    shape = max(shapes, key=shapes.count)
    x = torch.cat([p.pixel_values for p, s in zip(photos, shapes, strict=True) if s == shape])
    lights = [_answers(vit.model, x, batch_size)]
    step()
    if lights[0].colour != "red":  # the rest would only say so again
        lights.append(_trained(vit.model, x[:AT_MOST], batch_size))
        step()
        lights.append(_everywhere(vit.model, x[:AT_MOST], batch_size))
        step()
    right = [s["target"] == p.label for p, s in zip(photos, said, strict=True) if p.label is not None]
    if right and said[0]["kind"] == "classes":
        lights.append(correct_share(right, said[0]["classes"]))
    return lights


def _logits(model, x, batch_size, precision="float32"):
    with evaluating(model, x, precision):
        return torch.cat([logits_of(model(part)).float() for part in x.split(batch_size)]).cpu()


def _chances(model, logits):
    """(n, K, 2): of each label, yes and no; or (n, 1, K) over classes."""
    if logits.shape[1] == 1 or problem_type(model) == "multi_label_classification":
        yes = logits.sigmoid()
        return torch.stack([yes, 1 - yes], -1)
    return logits.softmax(1)[:, None]


def _noise(x):
    """As many pictures of noise as there are photos, with each one's mean and deviation."""
    mean, spread = x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True)
    return mean + spread * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)


def _answers(model, x, batch_size):
    """Red: the same answer to every photo, and to noise."""
    logits = _logits(model, torch.cat([x, _noise(x)]), batch_size)
    if problem_type(model) == "regression":
        spread = float((logits - logits.mean(0)).abs().max() / logits.abs().max().clamp_min(1e-12))
    else:
        chances = _chances(model, logits)
        spread = float((chances - chances.mean(0)).abs().sum(-1).max() / 2)
    texts = {
        "red": "The model answers every photo, and pictures of noise, alike: its head ignores the picture. No map of "
        "it can mean anything.",
        "green": "The model's answers differ between photos and noise.",
    }
    colour = "red" if spread < SAME else "green"
    return Light("answers", "", colour, spread, None, None, len(x), None, texts[colour])


def _trained(model, x, batch_size):
    """Red: shuffling all weights of the last block leaves the answers as informative as they are.

    An exact permutation test. Weights drawn independently of each other are as good in any other order, so that such
    a block ranks anywhere among its own shuffles; a trained one comes first."""
    if problem_type(model) == "regression":
        text = "Whether the last block is trained is not asked of a regression head: its answers have no probability."
        return Light("last-block", "", "none", None, None, None, len(x), None, text)
    if len(x) < NEEDED:
        text = f"No light: {NEEDED} photos are needed, there are {len(x)}."
        return Light("last-block", "", "none", None, None, None, len(x), None, text)
    both = torch.cat([x, _noise(x[: len(x) // 2])])
    own, *others = (_information(_chances(model, logits)) for logits in _shuffled(model, both, batch_size))
    better = sum(other >= own for other in others)
    p = (1 + better) / (1 + SHUFFLES)
    if p > LEVEL / 2:
        text = (
            "With the weights of its last block shuffled, the model's answers tell as much of a photo: "
            f"{better} of {SHUFFLES} shuffles do no worse. The block looks random, not trained."
        )
        return Light("last-block", "", "red", own, None, None, len(x), p, text)
    text = f"The last block is trained: each of {SHUFFLES} shuffles of its weights makes the answers tell less."
    return Light("last-block", "", "green", own, None, None, len(x), p, text)


def _information(chances):
    """What an answer tells of which picture it was given for, in nats: H(mean p) − mean H(p)."""
    chances = chances.double()

    def entropy(p):
        return -(p * p.clamp_min(1e-30).log()).sum(-1)

    return float((entropy(chances.mean(0)) - entropy(chances).mean(0)).mean())


def _shuffled(model: nn.Module, x: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
    """Logits of the model, and SHUFFLES times those with every tensor of its last block in a new order.

    The blocks before the last one run once for all of them."""
    model = copy.deepcopy(unwrap(model))
    *before, last = blocks(model)
    trained = [p.detach().clone() for p in last.parameters()]
    found = [[] for _ in range(1 + SHUFFLES)]
    for part in x.split(batch_size):
        generator = torch.Generator().manual_seed(0)
        with ExitStack() as stack:
            found[0].append(_kept_from(before, lambda p=part: _logits(model, p, batch_size, "auto"), stack))
            for logits in found[1:]:
                with torch.no_grad():
                    for p in last.parameters():
                        order = torch.randperm(p.numel(), generator=generator).to(p.device)
                        p.copy_(p.flatten()[order].view_as(p))
                logits.append(_logits(model, part, batch_size, "auto"))
        with torch.no_grad():
            for p, value in zip(last.parameters(), trained, strict=True):
                p.copy_(value)
    return [torch.cat(parts) for parts in found]


def _kept_from(modules, run, stack):
    """The result of `run`; for as long as the stack is open, each module then gives the output that it gave in it."""
    given = {}
    hooks = [m.register_forward_hook(lambda m, args, output: given.update({m: output})) for m in modules]
    result = run()
    for hook in hooks:
        hook.remove()
    for module, output in given.items():
        stack.callback(delattr, module, "forward")
        module.forward = lambda *args, _output=output, **kwargs: _output
    return result


def _everywhere(model, x, batch_size):
    """Red: on all photos the same small place carries most of what the answer depends on."""
    if len(x) < NEEDED:
        text = f"No light: {NEEDED} photos are needed, there are {len(x)}."
        return Light("place", "", "none", None, None, None, len(x), None, text)
    shares = _shares(model, x, batch_size)  # (n, 4, 4)
    worst = None
    for side, limit in PLACES:
        windows = shares.unfold(1, side, 1).unfold(2, side, 1).sum((-2, -1)).flatten(1)
        at = int(windows.mean(0).argmax())
        values = windows[:, at].numpy().astype(float)
        p = sign_flip(values - limit)
        if worst is None or values.mean() - limit > worst[0].mean() - worst[1]:
            worst = values, limit, p, divmod(at, 5 - side), side
    values, limit, p, (row, column), side = worst
    share = float(values.mean())
    if share > limit and p <= LEVEL:
        vertical = ("upper", "middle", "lower")[round(2 * row / (4 - side))]
        level = ("left", "centre", "right")[round(2 * column / (4 - side))]
        text = (
            f"On all photos the answer depends on one place: {100 * share:.0f} % of what covering a part of the photo "
            f"changes comes from its {vertical} {level}, {100 * side * side / 16:.0f} % of its area. A watermark, a "
            "border, or a broken model?"
        )
        return Light("place", "", "red", share, None, None, len(x), p, text)
    text = f"No single place carries the answers of all photos (at most {100 * share:.0f} % of the effect)."
    return Light("place", "", "green", share, None, None, len(x), p, text)


def _shares(model, x, batch_size):
    """(n, 4, 4): the share of each cell in what covering the cells, one at a time, with the mean colour changes."""
    height, width = x.shape[-2:]
    rows = torch.from_numpy(np.arange(height) * 4 // height)
    columns = torch.from_numpy(np.arange(width) * 4 // width)
    cell = (4 * rows[:, None] + columns).to(x.device)
    mean = x.mean((2, 3), keepdim=True)
    full = _logits(model, x, batch_size, "auto")
    changes = []
    for k in range(16):
        change = _logits(model, torch.where(cell == k, mean, x), batch_size, "auto") - full
        changes.append((change - change.mean(1, keepdim=True) if change.shape[1] > 1 else change).norm(dim=1))
    effect = torch.stack(changes, 1)
    return (effect / effect.sum(1, keepdim=True).clamp_min(1e-12)).view(-1, 4, 4)
