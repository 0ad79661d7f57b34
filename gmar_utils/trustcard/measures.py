"""What is measured on one photo: answers, maps, and a number for each check and method."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from .. import metrics
from ..capture import probability, trace
from ..capture.layout import blocks, logits_of, unwrap
from ..capture.target import problem_type, resolve_target
from ..methods import METHODS, bind
from ..methods.registry import patch_scores
from ..metrics.faithfulness import step_count
from ..metrics.forwards import evaluating, on_pixels, ranks, score_of, unit_values
from ..metrics.imputation import baseline_named
from ..metrics.salience import consistency, grouped
from ..model import Vit
from ..photo import minmax, resize
from .photos import Photo

REFERENCES = ("random", "center")  # what a map is compared with, and what nobody is told to show
STRONG = (0.1, 1 / 3)  # a second class is strong from this probability, or this share of the first's
REDRAWS = 3  # models with weights drawn anew
NOISE = 0.1  # of the photo's own standard deviation
OUTLIER = (2.0, 6.0)  # a token's norm: above so many medians, and so many robust deviations above the median


@dataclass(frozen=True)
class Method:
    """A map that is judged.

    Attributes:
        title: its name in prose; function: trace → token scores (B, N); blind: the same for every class by
            construction; signed: values below 0 speak against the class; reference: only to compare with.
    """

    title: str
    function: Callable
    blind: bool = False
    signed: bool = False
    reference: bool = False


def judged(methods: str | Iterable[str] | Mapping[str, str | Callable] | None, quick: bool) -> dict[str, Method]:
    """{label: Method}, the references last.

    Args:
        methods: None (METHODS; with `quick` six of them) | names of METHODS | {label: name or function of a trace}.
        quick: see methods.
    """
    if methods is None:
        methods = [m for m in METHODS if not quick or m in QUICK]
    if isinstance(methods, str):
        methods = [methods]
    named = methods.items() if isinstance(methods, Mapping) else ((m, m) for m in methods)
    found = {str(label): _method(str(label), m) for label, m in named if m not in REFERENCES}
    if not found:
        raise ValueError(
            f"There is no method to judge; choose from {', '.join(m for m in METHODS if m not in REFERENCES)}."
        )
    return found | {name: _method(name, name) for name in REFERENCES}


QUICK = ("rollout", "gmar", "legrad", "grad-cam", "libra", "attention")


def _method(label, method):
    bound = bind(method)
    known = next((m for m in METHODS.values() if m.function is bound.func), None)
    if known is None:
        return Method(label, bound)
    title = known.title if label == known.name else label
    return Method(title, bound, not known.class_aware, known.signed, known.name in REFERENCES)


def answers(vit: Vit, pixel_values: torch.Tensor) -> dict:
    """What the model says: the likeliest classes, the class explained, and a second one.

    Returns:
        top: up to five {label, class_id, probability (None for regression), logit}; target, second (None where there
        is no other class), strong: whether the second deserves a map of its own; kind: "regression", "labels" or
        "classes"; classes: K.
    """
    with evaluating(vit.model, pixel_values):
        logits = logits_of(vit.model(pixel_values)).float()
    regression = problem_type(vit.model) == "regression"
    scores = torch.cat([-logits, logits], 1) if logits.shape[1] == 1 and not regression else logits
    order = scores[0].argsort(descending=True, stable=True)[:5].tolist()
    target = int(resolve_target(vit.model, logits)[0])
    top = []
    for k in order:
        chance = None if regression else float(probability(vit.model, logits, torch.tensor([k], device=logits.device)))
        top.append({"label": vit.label(k), "class_id": k, "probability": chance, "logit": float(scores[0, k])})
    if regression and len(order) == 1:  # its one output is asked for as class 1, y itself
        top[0]["class_id"] = target
    second = next((t["class_id"] for t in top if t["class_id"] != target), None)
    strong = False
    if second is not None and not regression:
        first, other = (next(t["probability"] for t in top if t["class_id"] == k) for k in (target, second))
        strong = other >= STRONG[0] or other >= STRONG[1] * first
    kind = "regression" if regression else "classes"
    if problem_type(vit.model) == "multi_label_classification" or logits.shape[1] == 1 and not regression:
        kind = "labels"
    classes = max(logits.shape[1], 2)  # one logit stands for two
    return {"top": top, "target": target, "second": second, "strong": strong, "kind": kind, "classes": classes}


def maps_of(
    model: nn.Module, pixel_values: torch.Tensor, methods: Mapping[str, Method], target: list[int]
) -> tuple[dict, dict]:
    """({label: maps (B, R, C) in [0, 1]}, {label: why there is none}); one trace serves all of them."""
    aware = any(not m.blind for m in methods.values())
    seen = trace(model, pixel_values, target, gradients=aware, lazy=True)
    found, failed = {}, {}
    for label, method in methods.items():
        try:
            found[label] = minmax(patch_scores(label, method.function, seen)).cpu()
        except (ValueError, TypeError, RuntimeError, IndexError, AttributeError) as error:
            failed[label] = " ".join(str(error).split()) or type(error).__name__
    return found, failed


def photo_maps(vit: Vit, photo: Photo, said: dict, methods: Mapping[str, Method]) -> dict:
    """Maps of both classes, of the photo with noise and of its mirror image, all of one trace.

    Returns:
        maps {label: (R, C) lists}, second {…} (empty without a second class), failed {label: why}; and per label the
        values of "class" (ρ between the two classes' maps) and "stable" (the lower of ρ with noise and ρ mirrored).
    """
    x = photo.pixel_values
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(int(photo.key[:8], 16))).to(x)
    first, second = said["target"], said["second"]
    rows = [x, x + NOISE * x.std() * noise, x.flip(-1), *([x] if second is not None else [])]
    target = [first] * 3 + [second] * (second is not None)
    found, failed = maps_of(vit.model, torch.cat(rows), methods, target)
    values: dict = {"class": {}, "stable": {}}
    for label, maps in found.items():
        both = metrics.rank_correlation(maps[[0, 0]], torch.stack([maps[1], maps[2].flip(-1)]))
        values["stable"][label] = _number(both.min())
        if second is not None:
            values["class"][label] = _number(metrics.rank_correlation(maps[:1], maps[3:])[0])
    return {
        "maps": {k: m[0].tolist() for k, m in found.items()},
        "second": {} if second is None else {k: m[3].tolist() for k, m in found.items()},
        "failed": failed,
        "values": values,
    }


def weights_values(
    broken: list[nn.Module], photo: Photo, said: dict, methods: Mapping[str, Method], maps: dict
) -> dict:
    """{label: ρ of the map with what models with new weights give for the same question, the mean over them}."""
    found: dict[str, list[float]] = {k: [] for k in maps}
    for model in broken:
        after, _ = maps_of(model, photo.pixel_values, {k: methods[k] for k in maps}, [said["target"]])
        for label, drawn in after.items():
            found[label].append(float(metrics.rank_correlation(torch.tensor([maps[label]]), drawn)[0]))
    known = {k: [v for v in values if math.isfinite(v)] for k, values in found.items()}
    return {k: sum(values) / len(values) if values else None for k, values in known.items()}


def broken_copies(model: nn.Module) -> list[nn.Module]:
    """REDRAWS copies whose head and last half of the blocks have weights drawn anew."""
    last, copies = math.ceil(len(blocks(unwrap(model))) / 2), []
    for seed in range(REDRAWS):
        for stage, (_, broken) in enumerate(metrics.randomized(model, seed)):
            if stage == last:
                copies.append(broken.eval())
                break
    return copies


def faithful_values(vit: Vit, photo: Photo, said: dict, maps: dict, protocol: dict) -> dict:
    """{"srg": {label: value}, "saco": …}, of the references too: `metrics.srg` and `metrics.saco`, in fewer passes.

    The SRG of random maps is 0, their mean; their SaCo is measured, for several maps the mean.

    Args:
        vit, photo, said: as `answers` gives it.
        maps: {label: (R, C) lists}, the references among them.
        protocol: steps, draws (of random maps), batch_size and precision.
    """
    labels = [k for k in maps if k != "random"]
    values = torch.tensor([maps[k] for k in labels])
    generator = torch.Generator().manual_seed(int(photo.key[:8], 16) + 1)
    drawn = torch.rand(protocol["draws"], *values.shape[1:], generator=generator)
    units = values[0].numel()
    steps = step_count(None if protocol["steps"] is None else min(protocol["steps"], units), "patch", units)
    counts = torch.linspace(0, units, steps + 1, dtype=torch.float64).round().long()
    place = ranks(values, descending=True)[:, None]
    inserted, left = (compare(place, counts[:, None, None]) for compare in (torch.lt, torch.ge))
    group, means = grouped(torch.cat([values, drawn]))
    without = torch.cat([group[:, None] > -1, group[:, None] != torch.arange(means.shape[1])[:, None, None]], 1)
    with evaluating(vit.model, photo.pixel_values, protocol["precision"]):
        curves = _scores(vit.model, photo, said, torch.stack([inserted, left]), "zero", protocol["batch_size"])
        scores = _scores(vit.model, photo, said, without, "mean", protocol["batch_size"])
    srg = torch.trapezoid(curves[0] - curves[1], (counts / units).to(curves.dtype))
    saco = consistency(means, scores[:, :1] - scores[:, 1:])
    return {
        "srg": dict(zip(labels, srg.tolist(), strict=True)) | {"random": 0.0},
        "saco": dict(zip(labels, saco.tolist(), strict=False)) | {"random": float(saco[len(labels) :].mean())},
    }


def _scores(model, photo, said, shown, baseline, batch_size):
    """The target's score with only some patches shown, (…, R, C) bool → (…); what comes twice is run once."""
    x = photo.pixel_values
    _, rows, columns = unit_values(torch.zeros(1, *shown.shape[-2:], device=x.device), x, model)
    target = torch.tensor([said["target"]], device=x.device)
    score = "logit" if said["kind"] == "regression" else "probability"
    fill = baseline_named(baseline)
    different, back = shown.flatten(-2).flatten(0, -2).unique(dim=0, return_inverse=True)
    found = []
    for part in different.unflatten(1, shown.shape[-2:]).to(x.device).split(batch_size):
        pictures = fill(x.expand(len(part), *x.shape[1:]), on_pixels(part, rows, columns))
        found.append(score_of(model, model(pictures), target.expand(len(part)), score).cpu())
    return torch.cat(found)[back].view(shown.shape[:-2])


def object_values(vit: Vit, photo: Photo, maps: dict) -> dict:
    """{label: average precision of the map on the mask, percent}; {} without a mask, or where the crop leaves none."""
    if photo.mask is None:
        return {}
    at_input = minmax(resize(torch.tensor(list(maps.values())), photo.pixel_values.shape[-2:]))
    on_photo = vit.to_photo(at_input, [photo.image] * len(maps))
    seen, masks = metrics.outside_is_void(on_photo, [photo.mask] * len(maps))
    return {k: _number(v) for k, v in zip(maps, metrics.average_precision(seen, masks), strict=True)}


def token_values(vit: Vit, photo: Photo, maps: dict) -> dict:
    """outliers: how many patches enter the last block with an outlying norm; lit: {label: is the top one such?}."""
    caught = []

    def catch(module, args, kwargs):
        caught.append(next(t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)).detach().float())

    hook = blocks(unwrap(vit.model))[-1].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with evaluating(vit.model, photo.pixel_values):
            vit.model(photo.pixel_values)
    finally:
        hook.remove()
    patches = len(next(iter(maps.values()))) * len(next(iter(maps.values()))[0])
    outlying = outliers(caught[0].norm(dim=-1).reshape(-1)[-patches:])
    lit = {k: int(outlying[torch.tensor(m).flatten().argmax()]) for k, m in maps.items()}
    return {"outliers": int(outlying.sum()), "lit": lit}


def outliers(norms: torch.Tensor) -> torch.Tensor:
    """Which of the norms (n,) lie above `OUTLIER`: twice the median, and six robust standard deviations above it."""
    middle = norms.median()
    spread = 1.4826 * (norms - middle).abs().median()
    return (norms > OUTLIER[0] * middle) & (norms > middle + OUTLIER[1] * spread)


def _number(x):
    x = float(x)
    return x if math.isfinite(x) else None
