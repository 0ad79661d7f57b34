"""Jobs that look at one question each: heads, forgotten weights, classes, cost, photos."""

import itertools
import time

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm
from transformers import ViTConfig, ViTForImageClassification

from gmar_utils import METHODS, explain, explain_many, metrics, trace
from gmar_utils.capture.layout import blocks
from gmar_utils.evaluation import DEFAULT_METHODS
from gmar_utils.evaluation.provenance import weights_sha256
from gmar_utils.evaluation.summary import interval
from gmar_utils.methods.weighting import head_weights
from gmar_utils.trustcard.measures import outliers

from .. import samples
from .work import (
    ABOUT_TINY,
    FIELD,
    MODEL,
    PIXELS,
    SEED,
    batches,
    bound,
    bundled,
    compared,
    rows_of,
    sample,
    tiny_imagenet,
)

GMAR = {k: m for k, m in DEFAULT_METHODS.items() if k.startswith("gmar")}


def heads(run):
    """Head ablation: do the weights differ, and does a weight tell what muting its head does?"""
    started, vit = time.perf_counter(), bundled()
    records, rows, curves = sample(tiny_imagenet(), run.images(100)), [], []
    for start, pixels in batches(vit, records):
        seen = trace(vit.model, pixels)
        effects = metrics.head_effects(vit.model, pixels, seen.target)
        norms = torch.stack([torch.linalg.vector_norm(g, ord=1, dim=(-2, -1)) for g in seen.gradients], 1)
        for norm in ("l1", "l2"):
            weights = torch.stack(head_weights(seen.gradients, norm), 1)
            rows.append(rows_of(start, norm, "largest_weight", (weights.amax(2) * weights.shape[2]).mean(1)))
            rho = [metrics.rank_correlation(weights[:, k], effects[:, k]) for k in range(weights.shape[1])]
            rows.append(rows_of(start, norm, "weight_predicts_muting", torch.stack(rho).nanmean(0)))
        rho = metrics.rank_correlation(norms, effects)
        rows.append(rows_of(start, "gradient norm, whole network", "weight_predicts_muting", rho))
        for order in ("most", "random", "least"):
            curve = metrics.head_ablation(vit.model, pixels, norms, seen.target, order=order)
            rows.append(rows_of(start, order, "muting_area", 100 * curve.auc / curve.full))
            curves.append(100 * (curve.scores / curve.full[:, None]).T)
    rows = pd.concat(rows)
    run.rows("heads", rows)
    about = {"data": ABOUT_TINY, "images": len(records)}
    run.save("heads", compared(rows, None), vit, started, **about)
    lines = []
    for i, order in enumerate(("most", "random", "least")):
        for muted, values in enumerate(torch.cat(curves[i::3], 1)):
            lines.append((order, muted, *interval(values)))
    columns = ["order", "muted", "mean", "low", "high"]
    run.save("heads-curves", pd.DataFrame(lines, columns=columns), vit, started, **about)


def randomization(run):
    """Parameter randomisation: how much of a map is left when the weights are drawn anew, from the head down?"""
    started, vit = time.perf_counter(), bundled()
    records, methods, lines = sample(tiny_imagenet(), run.images(100)), bound(FIELD), []
    pixels = vit.preprocess(list(records["image"]))
    with torch.no_grad():
        target = vit.model(pixels).logits.argmax(1)

    def explained(model, pixels):
        """The maps of all methods, one after the other, so that they share their passes."""
        return torch.cat(list(explain_many(model, pixels, methods, target).values()))

    found = metrics.parameter_randomization(vit.model, pixels, explained, SEED)
    for k, label in enumerate(methods):
        mine = slice(k * len(pixels), (k + 1) * len(pixels))
        for stage, rank, ssim in zip(found.stages, found.rank[:, mine], found.ssim[:, mine], strict=True):
            for metric, values in (("rank_correlation", rank.nan_to_num(0)), ("ssim", ssim)):
                lines.append((label, stage, metric, *interval(values)))
    columns = ["method", "stage", "metric", "mean", "low", "high"]
    run.save("randomization", pd.DataFrame(lines, columns=columns), vit, started, data=ABOUT_TINY, images=len(records))


def cost(run):
    """Processor time and memory of a map, next to a plain forward pass of the same model and batch."""
    started, rows, tables = time.perf_counter(), [], []
    torch.set_num_threads(1)
    config = ViTConfig(num_labels=1000)  # ViT-B/16 at 224 pixels: its cost does not depend on its weights
    small, base = bundled().model, ViTForImageClassification(config).eval()
    for name, model, shape, repeats in (
        (MODEL, small, (8, 3, PIXELS, PIXELS), 20),
        ("ViT-B/16", base, (1, 3, 224, 224), 10),
    ):
        pixels = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
        work = {"forward": lambda m=model, x=pixels: plain_forward(m, x)}
        for method in METHODS:
            work[method] = lambda m=model, x=pixels, k=method: explain(m, x, k, upsample=False)
        memory = {k: peak_memory(f) for k, f in work.items()}
        for repeat in tqdm(range(run.images(repeats)), disable=None):
            for label, function in work.items():
                before = time.process_time()
                function()
                rows.append((name, repeat, label, "time", 1000 * (time.process_time() - before) / len(pixels)))
            rows.append(
                (name, repeat, "twice rollout", "time", 2 * next(r[4] for r in rows[::-1] if r[2] == "rollout"))
            )
        found = pd.DataFrame([r[1:] for r in rows if r[0] == name], columns=["image", "method", "metric", "value"])
        wide = found.pivot(index="image", columns="method", values="value")
        for label in work:
            ratio = interval(wide[label] / wide["forward"])
            space = memory[label] / 2**20, memory[label] / memory["forward"]
            tables.append((name, label, wide[label].median(), *ratio, *space))
        if model is small:
            run.rows("cost", found)
    columns = ["model", "method", "ms_per_map", "forwards", "low", "high", "peak_mib", "memory_forwards"]
    run.save(
        "cost",
        pd.DataFrame(tables, columns=columns),
        started=started,
        data="random pixels",
        models=f"{MODEL}: 8 images of {PIXELS} × {PIXELS}; ViT-B/16, random weights: 1 image of 224 × 224",
        weights_sha256=weights_sha256(bundled()),
    )


def plain_forward(model, pixels):
    with torch.inference_mode():
        model(pixels)


def peak_memory(function):
    """Most bytes that PyTorch held at once during a call, beyond what it held before."""
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    sizes = [e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return int(np.maximum.accumulate(np.cumsum(sizes))[-1])


def confidence(run):
    """Figure 4: how much of its confidence the model keeps when it sees the image through a map, in percent."""
    started, vit = time.perf_counter(), bundled()
    records, methods, parts = sample(tiny_imagenet(), run.images(300)), GMAR | {"rollout": ("rollout", {})}, []
    for start, pixels in batches(vit, records):
        for label, maps in explain_many(vit.model, pixels, bound(methods), upsample=False).items():
            seen = metrics.masked_scores(vit.model, pixels, maps)
            parts.append(rows_of(start, label, "confidence_kept", 100 * seen.masked / seen.full))
    rows = pd.concat(parts)
    run.rows("confidence", rows)
    run.save("confidence", compared(rows, "gmar-none-paper"), vit, started, data=ABOUT_TINY, images=len(records))


def classes(run):
    """Does the map change with the class? Predicted class against the runner-up and the least probable class."""
    started, vit = time.perf_counter(), bundled()
    records, methods, parts = sample(tiny_imagenet(), run.images(100)), FIELD, []
    for start, pixels in batches(vit, records):
        with torch.no_grad():
            order = vit.model(pixels).logits.argsort(1, descending=True)
        first, second, last = (
            explain_many(vit.model, pixels, bound(methods), order[:, k], upsample=False) for k in (0, 1, -1)
        )
        for label in methods:
            for name, other in (("changes_with_class", second), ("changes_with_least_probable_class", last)):
                parts.append(rows_of(start, label, name, 1 - metrics.rank_correlation(first[label], other[label])))
    rows = pd.concat(parts)
    run.rows("classes", rows)
    run.save("classes", compared(rows, None), vit, started, data=ABOUT_TINY, images=len(records))


def artefacts(run):
    """Is a map's highest patch an artefact? Two kinds are known: a token that enters the last block with an outlying
    norm, and an attention sink, here the patch that the tokens of the first layer look at most."""
    started, vit = time.perf_counter(), bundled(224, 224)
    records, parts, caught = sample(tiny_imagenet(), run.images(100)), [], []
    hook = blocks(vit.model)[-1].register_forward_pre_hook(lambda module, args: caught.append(args[0].detach()))
    for start, pixels in batches(vit, records, 10):
        caught.clear()
        seen = trace(vit.model, pixels, gradients=False)
        outlying = torch.stack([outliers(n) for n in caught[0].norm(dim=-1)[:, seen.prefix_tokens :]])
        looked_at = seen.attentions[0].mean((1, 2))[:, seen.prefix_tokens :]
        most, sink = looked_at.amax(1) / looked_at.median(1).values, looked_at.argmax(1)
        parts.append(rows_of(start, "(model)", "outlying_norms", outlying.sum(1)))
        parts.append(rows_of(start, "(model)", "sink_over_median", most))
        for label, maps in explain_many(vit.model, pixels, bound(DEFAULT_METHODS), upsample=False).items():
            top = maps.flatten(1).argmax(1)
            on_outlier = 100.0 * outlying.gather(1, top[:, None])[:, 0]
            parts.append(rows_of(start, label, "top_has_outlying_norm", on_outlier))
            parts.append(rows_of(start, label, "top_is_first_sink", 100.0 * (top == sink)))
    hook.remove()
    run.save("artefacts", compared(pd.concat(parts), None), vit, started, data=ABOUT_TINY, images=len(records))


NAMES = {"cat": (30, 31, 32), "coffee": (193,), "rocket": (137,)}  # domestic cats; espresso; projectile
SIDES = (112, 168, 224)  # of a square, and of the shorter side of the photo's own shape


def photos(run):
    """Which of scikit-image's photos the model names right, and at which resolution."""
    started, lines = time.perf_counter(), []
    shown = {name: (samples.photo(name), NAMES.get(name, ())) for name in samples.PHOTOS}
    for name in ("cat", "coffee"):
        shown[f"cat and coffee: {name}"] = (samples.cat_and_coffee(), NAMES[name])
    for size, keep in itertools.product(SIDES, (False, True)):
        for name, (photo, ids) in shown.items():
            wide = 14 * round(size * photo.width / photo.height / 14) if keep else size
            if keep and wide == size:
                continue  # a square photo
            vit = bundled(size, wide)
            found = vit.predict(photo, top=len(vit.labels))
            order, p = found["class_id"].tolist(), found.set_index("class_id")["probability"]
            line = {
                "photo": name,
                "pixels": f"{size} × {wide}",
                "predicted": vit.label(order[0]),
                "probability": 100 * p.max(),
            }
            if ids:  # the others show nothing that the model has a class for
                rank = min(order.index(i) for i in ids)
                line |= {
                    "counts_as_right": ", ".join(map(vit.label, ids)),
                    "best_of_these": vit.label(order[rank]),
                    "its_probability": 100 * p[order[rank]],
                    "its_rank": rank + 1,
                }
            lines.append(line)
    table = pd.DataFrame(lines).astype({"its_rank": "Int64"}).sort_values("photo", kind="stable")
    about = "scikit-image's photos, whole: resized to a square (height × width), and in their own shape"
    run.save("photos", table, vit, started, data=about, images=len(shown))
