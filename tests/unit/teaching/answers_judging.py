"""Right answers and usual mistakes: the first page, chapters 5 to 7."""

import copy

import numpy as np
import torch

from gmar_utils.metrics import average_drop, average_precision


def window(pixels, low, high):
    return (255 * ((pixels.astype(float) - low) / (high - low)).clip(0, 1)).round().astype(np.uint8)


def delete(pixels, maps, count, keep=False, descending=True):
    rank = maps.flatten(1).argsort(1, descending=descending).argsort(1).view_as(maps)
    size = [a // b for a, b in zip(pixels.shape[-2:], maps.shape[1:], strict=True)]
    hidden = (rank < count).repeat_interleave(size[0], 1).repeat_interleave(size[1], 2)[:, None]
    return torch.where(hidden == keep, pixels, 0)


def slow_iou(values, mask, threshold):
    both = either = 0
    for v, m in zip(values.flatten().tolist(), mask.flatten().tolist(), strict=True):
        if m != 255:
            both += v > threshold and m == 1
            either += v > threshold or m == 1
    return 100 * both / either


def hit(values, box):
    row, column = divmod(int(values.argmax()), values.shape[1])
    return box[0] <= column < box[2] and box[1] <= row < box[3]


def spearman(a, b):
    a, b = (v.flatten(1).argsort(1).argsort(1).float() for v in (a, b))
    a, b = (v - v.mean(1, keepdim=True) for v in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def fresh(model):
    other = copy.deepcopy(model)
    for layer in other.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return other


def heads(weights, change):
    return spearman(weights, change.abs()).median()


def in_place(model):
    for layer in model.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return model


def head_only(model):
    other = copy.deepcopy(model)
    other[-1].reset_parameters()
    return other


def all_zero(model):
    other = copy.deepcopy(model)
    for p in other.parameters():
        p.data.zero_()
    return other


RIGHT = {
    "window": window,
    "average_drop": average_drop,
    "fool_drop": lambda x: torch.ones_like(x[:, 0]),
    "delete_patches": delete,
    "area": lambda f, s: torch.trapezoid(s, f),
    "iou": slow_iou,
    "pointing": hit,
    "precision_average": lambda s, t: average_precision(s[None, :, None], t[None, :, None])[0],
    "rank_correlation": spearman,
    "randomised": fresh,
    "faithful_heads": heads,
}
WRONG = [
    (
        "window",
        lambda p, low, high: (255 * (p - float(low)) / (high - low)).round().astype(np.int64).astype(np.uint8),
        "wrapped around",
    ),
    ("window", lambda p, low, high: p.clip(0, 255), "cuts at 255"),
    ("window", lambda p, low, high: 255 * ((p - float(low)) / (high - low)).clip(0, 1).round(2), "is off"),
    ("window", lambda p, low, high: window(p, low, high).astype(float), "np.uint8"),
    ("window", lambda p, low, high: (255 * ((p - float(low)) / (high - low)).clip(0, 1)).astype(np.uint8), "round to"),
    ("window", lambda p, low, high: window(p, p.min(), p.max()), "own range"),
    ("average_drop", lambda y, o: 100 * ((y - o) / y).mean(), "max(0, Y − O)"),
    ("average_drop", lambda y, o: 100 * (y - o).clamp(min=0).mean(), "divide by the full image's score"),
    ("average_drop", lambda y, o: ((y - o).clamp(min=0) / y).mean(), "percent"),
    ("average_drop", lambda y, o: 100 * (o > y).float().mean(), "Average Increase"),
    ("average_drop", lambda y, o: 100 * (y - o).clamp(min=0) / y, "take the mean"),
    ("average_drop", lambda y, o: 100 * ((y - o).clamp(min=0) / o).mean(), "not by the masked score"),
    ("fool_drop", lambda x: torch.zeros_like(x[:, 0]), "hides the whole picture"),
    ("fool_drop", torch.ones_like, "no channels"),
    ("fool_drop", lambda x: torch.rand_like(x[:, 0]), "is off"),
    ("delete_patches", lambda x, m, k: delete(x, m, k, descending=False), "lowest"),
    ("delete_patches", lambda x, m, k: delete(x, m, k, keep=True), "Insertion"),
    ("delete_patches", lambda x, m, k: delete(x, m, k + 1), "too many"),
    ("delete_patches", lambda x, m, k: delete(x, m[:1].expand_as(m), k), "own map"),
    ("area", lambda f, s: s.mean(1), "mean score"),
    ("area", lambda f, s: (s[:, :-1] * f.diff()).sum(1), "left end"),
    ("area", lambda f, s: (s[:, 1:] * f.diff()).sum(1), "right end"),
    ("area", lambda f, s: torch.trapezoid(s), "one unit wide"),
    ("area", lambda f, s: torch.trapezoid(s, f).mean(), "one area for each image"),
    ("iou", lambda v, m, t: slow_iou(v, m.where(m != 255, 0), t), "void pixels"),
    ("iou", lambda v, m, t: slow_iou(v, m.clamp(max=1), t), "counted them as object"),
    ("iou", lambda v, m, t: 100 * ((v > t) & (m == 1)).sum() / (m == 1).sum(), "recall"),
    ("iou", lambda v, m, t: slow_iou(v, m, t) / 100, "percent"),
    ("iou", lambda v, m, t: 2 * slow_iou(v, m, t) / (1 + slow_iou(v, m, t) / 100), "Dice"),
    ("pointing", lambda v, b: hit(v.T, b), "x counts columns"),
    ("pointing", lambda v, b: hit(v, (b[0], b[1], b[2] + 1, b[3] + 1)), "exclusive"),
    ("pointing", lambda v, b: hit(v, (b[0] + 1, b[1] + 1, b[2], b[3])), "<="),
    ("precision_average", lambda s, t: RIGHT["precision_average"](-s, t), "start at the highest"),
    ("precision_average", lambda s, t: RIGHT["precision_average"](s, t) / 100, "percent"),
    (
        "rank_correlation",
        lambda a, b: torch.stack(
            [torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1] for x, y in zip(a, b, strict=True)]
        ),
        "Pearson",
    ),
    ("rank_correlation", lambda a, b: spearman(a.flatten()[None], b.flatten()[None])[0], "each image on its own"),
    ("rank_correlation", lambda a, b: spearman(a, b).mean(), "not their mean"),
    ("randomised", in_place, "original model changed"),
    ("randomised", copy.deepcopy, "did not change"),
    ("randomised", head_only, "0.weight did not change"),
    ("randomised", all_zero, "all weights of a layer are equal"),
    ("faithful_heads", lambda w, c: spearman(w, c).median(), "|Δy|"),
    ("faithful_heads", lambda w, c: spearman(w, c.abs()).mean(), "not the mean"),
    ("faithful_heads", lambda w, c: spearman(w.flatten()[None], c.abs().flatten()[None])[0], "pooled"),
]
