"""Makes the tables of book/results, each with its provenance: `python -m gmar_utils.teaching.results.make [JOB …]`

Rows of single images stay in _build/results, so that a run that was cut off goes on where it stopped; what lands here
are means, 95 % intervals and verdicts. `--small` takes few images and writes beside the rows, not here.
"""

import argparse
import functools
import itertools
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm
from transformers import ViTConfig, ViTForImageClassification

from gmar_utils import METHODS, data, explain, explain_many, load_model, metrics, trace
from gmar_utils.evaluation import DEFAULT_METHODS
from gmar_utils.evaluation.measures import BASELINE, COLUMNS, FAITHFULNESS, checked_options
from gmar_utils.evaluation.provenance import provenance, weights_sha256
from gmar_utils.evaluation.run import evaluate
from gmar_utils.evaluation.summary import interval, summarize
from gmar_utils.evaluation.variants import twins
from gmar_utils.methods import bind
from gmar_utils.methods.weighting import head_weights

from . import readings
from .claims import CLAIMS, ENOUGH, OPEN, overall, verdict

RESULTS = Path(__file__).parents[3] / "book/results"  # of a copy of the project; the installed package holds no tables
WORK = RESULTS.parents[1] / "_build/results"
SEED = 0
LABEL = {"target": "label"}
GMAR = {k: m for k, m in DEFAULT_METHODS.items() if k.startswith("gmar")}


class Run:
    """One call of this script: how many images, where to, in which precision."""

    def __init__(self, small, precision, most):
        self.small, self.precision, self.most = small, precision, 12 if small else most
        self.work = WORK / ("small" if small else "full")
        self.out = self.work if small else RESULTS

    def images(self, n):
        return min(n, self.most or n)

    def evaluate(self, folder, vit, records, **options):
        """`gmar_utils.evaluate` in a folder of this job."""
        return evaluate(vit, records, out=self.work / folder, seed=SEED, precision=self.precision, **options)

    def rows(self, job, rows):
        """Keep a job's rows of single images for the claims."""
        (self.work / job).mkdir(parents=True, exist_ok=True)
        rows.to_csv(self.work / job / "rows.csv", index=False)

    def save(self, name, frame, vit=None, started=None, **about):
        """A table and its provenance."""
        if vit is not None:
            about |= {"model": vit.name, "weights_sha256": weights_sha256(vit)}
        about |= {"seed": SEED, "wall_time_s": round(time.perf_counter() - started)}
        self.out.mkdir(parents=True, exist_ok=True)
        frame.to_csv(self.out / f"{name}.csv", index=False, float_format="%.4f")
        (self.out / f"{name}.json").write_text(json.dumps(provenance(**about), indent=1) + "\n")
        print(f"{self.out.name}/{name}.csv: {len(frame)} lines, {about['wall_time_s']} s", flush=True)

    def cards(self, folder):
        return json.loads((self.work / folder / "protocol.json").read_text())


def sample(records, n):
    """n records, drawn with the seed; fewer are the first of more."""
    return records.select(np.random.default_rng(SEED).permutation(len(records))[:n])


def tiny_imagenet():
    """The odd rows of the validation file: nothing was trained or chosen on them."""
    records = data.tiny_imagenet("valid")
    return records.select(range(1, len(records), 2))


def shapes(n):
    return data.shapes(n, seed=1000, occlusion=0.3)


MODELS = {"tiny-imagenet": ("vit-tiny-imagenet", tiny_imagenet), "shapes": ("vit-shapes", lambda: shapes(1000))}


# Both papers' tables --------------------------------------------------------------------------------------------------

METRICS = (*FAITHFULNESS, "box")
ABOUT_TINY = "Tiny-ImageNet validation, odd rows"


def table_faithfulness(run):
    """The GMAR paper's Table 1 on Tiny-ImageNet, every method and variant."""
    started, vit = time.perf_counter(), load_model("vit-tiny-imagenet")
    records, rows = sample(tiny_imagenet(), run.images(1000)), []
    methods = DEFAULT_METHODS
    for first in range(0, len(records), 96):  # a table after each piece, so that a run that is cut off leaves one
        piece = records.select(range(first, min(first + 96, len(records))))
        folder = f"tiny-imagenet/{first:04d}"
        found = run.evaluate(folder, vit, piece, methods=methods, metrics=METRICS).rows
        rows.append(found.assign(image=found["image"] + first, photo=found["photo"] + first))
        run.rows("tiny-imagenet", pd.concat(rows))
        summary = summarize(pd.concat(rows), list(methods), checked_options(), twins(methods), SEED)
        run.save("tiny-imagenet", summary, vit, started, data=ABOUT_TINY, images=first + len(piece),
                 protocol=run.cards(folder), precision=run.precision)  # fmt: skip


def table_localization(run, name, model, records, about, settings):
    """The report's Table 1 on one data set: {setting: protocol}, the first one also for the claims."""
    vit, parts, cards = load_model(model), [], {}
    started = time.perf_counter()
    for setting, protocol in settings.items():
        folder = name if not parts else f"{name}-{setting}"
        found = run.evaluate(folder, vit, records, protocol=protocol)
        parts.append(found.frame().assign(setting=setting))
        cards[setting] = run.cards(folder)
    run.save(name, pd.concat(parts), vit, started, data=about, images=len(records), protocol=cards)


def table_voc(run, preset="report", name="voc2012"):
    records = data.voc2012()
    records = records.select(range(run.images(len(records))))
    table_localization(run, name, "vit-tiny-imagenet", records,
                       "VOC 2012 val, a record for each image and class that the model has",
                       {preset: metrics.PRESETS[preset] | LABEL})  # fmt: skip


def table_shapes(run):
    presets, n = {"report": metrics.PRESETS["report"] | LABEL}, run.images(1000)
    table_localization(run, "shapes", "vit-shapes", shapes(n), "shapes, one object, up to 30 % hidden", presets)
    two = data.shapes(n // 2, seed=1000, objects=2)
    table_localization(run, "shapes-two", "vit-shapes", two,
                       "shapes, two objects, each explained and scored on its own mask", presets)  # fmt: skip


# The audit ------------------------------------------------------------------------------------------------------------


def audit(run, name):
    """Every reading of the paper: how far its map is from the library's default, and what the metrics say."""
    started, (model, records) = time.perf_counter(), MODELS[name]
    vit, records = load_model(model), records()
    records, folder = sample(records, run.images(200)), f"audit-{name}"
    readings.register()
    methods = readings.READINGS | {
        "released, L2 weights": ("released", {"norm": "l2"}),
        "released, uniform weights": ("released", {"norm": None}),
        "random": ("random", {}),
    }
    names = ("drop", "insertion", "deletion")
    found = run.evaluate(folder, vit, records, methods=methods, metrics=names,
                         protocol={"steps": 16, "target": "predicted"})  # fmt: skip
    correlations = [found.rows[["image", "method", "metric", "value"]]]
    for start, pixels in batches(vit, records):
        maps = explain_many(vit.model, pixels, bound(methods), upsample=False)
        for label, values in maps.items():
            for reference in ("paper", "released"):
                rho = metrics.rank_correlation(values, maps[reference]).nan_to_num(0)  # a flat map agrees with none
                correlations.append(rows_of(start, label, f"rank_correlation_with_{reference}", rho))
    table = compared(pd.concat(correlations), "paper")
    table["source"] = table["method"].map(readings.SOURCES)
    run.save(
        folder, table, vit, started, data=name, images=len(records), protocol=run.cards(folder), precision=run.precision
    )


def compared(rows, reference):
    """Mean and interval of every method and metric, and of its paired difference from the reference."""
    lines = []
    for metric, part in rows[rows["method"] != BASELINE].groupby("metric", sort=False):
        wide = part.pivot(index="image", columns="method", values="value")
        for method in part["method"].unique():
            line = dict(zip(("mean", "low", "high"), interval(wide[method]), strict=True))
            if reference in wide:
                difference = interval(wide[method] - wide[reference])
                line |= dict(zip(("difference", "difference_low", "difference_high"), difference, strict=True))
            lines.append({"metric": metric, "method": method, "images": len(wide), **line})
    return pd.DataFrame(lines)


def rows_of(start, method, metric, values):
    values = np.asarray(values, dtype=float)
    return pd.DataFrame({"image": start + np.arange(len(values)), "method": method, "metric": metric, "value": values})


def batches(vit, records, size=50):
    """(number of the first image, pixel values) for the records, `size` at a time."""
    for start in tqdm(range(0, len(records), size), disable=None):
        yield start, vit.preprocess([records[i]["image"] for i in range(start, min(start + size, len(records)))])


# Sensitivity ----------------------------------------------------------------------------------------------------------

CORE = {
    "grad-cam": ("grad-cam", {}),
    "rollout": ("rollout", {"variant": "report"}),
    "uniform": ("gmar", {"norm": None}),
    "gmar": ("gmar", {}),
    "legrad": ("legrad", {}),
    "random": ("random", {}),
}
CONCLUSIONS = (("gmar", "rollout"), ("gmar", "uniform"), ("gmar", "random"), ("gmar", "grad-cam"), ("legrad", "gmar"),
               ("grad-cam", "random"), ("legrad", "random"))  # fmt: skip
CURVES = ("insertion", "deletion")
DROPS = ("drop",)


def settings():
    """(factor, value, methods that change, protocol, names): one factor at a time from METHODS.md's defaults."""

    def rolled(**options):
        product = {"variant": "report"} | options
        return {
            "rollout": ("rollout", product),
            "uniform": ("gmar", {"norm": None} | options),
            "gmar": ("gmar", options),
        }

    reordered = {"order": "output-first"}
    read = {"uniform": ("reading", {"norm": None} | reordered), "gmar": ("reading", reordered)}
    every, both = {}, (*DROPS, *CURVES)
    yield "default", "", CORE, every, both
    yield "masking", "top half", CORE, every, ("drop-top",)
    yield "masking", "raw", CORE, {"masking": "raw"}, DROPS
    yield "steps", 8, CORE, {"steps": 8}, CURVES
    yield "baseline", "blur", CORE, {"baseline": "blur"}, CURVES
    yield "score", "logit", CORE, {"score": "logit"}, CURVES
    yield "norm", "L2", {"gmar": ("gmar", {"norm": "l2"})}, every, both
    for alpha in (0, 4, 1000):
        yield "alpha", alpha, rolled(alpha=float(alpha)), every, both
    yield "recursion", "product", {k: m for k, m in rolled(variant="report").items() if k != "rollout"}, every, both
    yield "order", "output-first", read | {"rollout": ("rollout", {})}, every, both
    yield "order and recursion", "output-first product", rolled(variant="output-first"), every, both
    for layers in (1, 2):
        yield "LeGrad layers", f"last {layers}", {"legrad": ("legrad", {"layers": layers})}, every, both
    yield "LeGrad pooling", "mean", {"legrad": ("legrad", {"pool": "mean"})}, every, both
    yield "steps", 32, CORE, {"steps": 32}, CURVES
    yield "target", "label", CORE, {"target": "label"}, both


def sensitivity(run, name):
    """One factor at a time, 200 images, 16 steps: which method is better under each choice?"""
    started, (model, records) = time.perf_counter(), MODELS[name]
    vit, records = load_model(model), records()
    records = sample(records, run.images(200))
    readings.register()
    lines, base = [], None
    for number, (factor, value, methods, protocol, names) in enumerate(settings()):
        folder = f"sensitivity-{name}/{number:02d}"
        protocol = {"steps": 16, "target": "predicted"} | protocol
        rows = run.evaluate(folder, vit, records, methods=methods, metrics=names, protocol=protocol).rows
        rows = rows[rows["method"] != BASELINE].assign(metric=rows["metric"].str.removesuffix("_top"))
        base = rows if base is None else base
        same = base[~base["method"].isin(methods) & base["metric"].isin(rows["metric"])]
        rows = pd.concat([rows, same])
        for metric, part in rows[rows["metric"] != "coverage"].groupby("metric", sort=False):
            wide, sign = part.pivot(index="image", columns="method", values="value"), COLUMNS[metric][1]
            for a, b in CONCLUSIONS:
                mean, low, high = interval(sign * (wide[a] - wide[b]))
                lines.append({"factor": factor, "value": value, "metric": metric, "a": a, "b": b, "difference": mean,
                              "low": low, "high": high, "images": len(wide),
                              "verdict": verdict(low, high, images=len(wide))})  # fmt: skip
        # after each setting, so that a run that is cut off leaves a table
        run.save(f"sensitivity-{name}", pd.DataFrame(lines), vit, started, data=name, images=len(records), steps=16,
                 precision=run.precision)  # fmt: skip


# Sanity and cost ------------------------------------------------------------------------------------------------------


def heads(run):
    """Head ablation: do the weights differ, and does a weight tell what muting its head does?"""
    started, vit = time.perf_counter(), load_model("vit-tiny-imagenet")
    records, rows, curves = sample(tiny_imagenet(), run.images(200)), [], []
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
    started, vit = time.perf_counter(), load_model("vit-tiny-imagenet")
    records, lines = sample(tiny_imagenet(), run.images(50)), []
    pixels = vit.preprocess(list(records["image"]))
    with torch.no_grad():
        target = vit.model(pixels).logits.argmax(1)
    for label, (method, options) in tqdm(DEFAULT_METHODS.items(), disable=None):

        def explained(model, pixels, method=method, options=options):
            return explain(model, pixels, method, target, **options)

        found = metrics.parameter_randomization(vit.model, pixels, explained, SEED)
        for stage, rank, ssim in zip(found.stages, found.rank, found.ssim, strict=True):
            for metric, values in (("rank_correlation", rank.nan_to_num(0)), ("ssim", ssim)):
                lines.append((label, stage, metric, *interval(values)))
    columns = ["method", "stage", "metric", "mean", "low", "high"]
    run.save("randomization", pd.DataFrame(lines, columns=columns), vit, started,
             data=ABOUT_TINY, images=len(records))  # fmt: skip


def cost(run):
    """Processor time and memory of a map, next to a plain forward pass of the same model and batch."""
    started, rows, tables = time.perf_counter(), [], []
    torch.set_num_threads(1)
    config = ViTConfig(num_labels=1000)  # ViT-B/16 at 224 pixels: its cost does not depend on its weights
    tiny, base = load_model("vit-tiny-imagenet").model, ViTForImageClassification(config).eval()
    for name, model, shape, repeats in (("vit-tiny-imagenet", tiny, (8, 3, 64, 64), 100),
                                        ("ViT-B/16", base, (1, 3, 224, 224), 10)):  # fmt: skip
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
        if model is tiny:
            run.rows("cost", found)
    columns = ["model", "method", "ms_per_map", "forwards", "low", "high", "peak_mib", "memory_forwards"]
    run.save("cost", pd.DataFrame(tables, columns=columns), started=started, data="random pixels",
             models="vit-tiny-imagenet: 8 images of 64 × 64; ViT-B/16, random weights: 1 image of 224 × 224",
             weights_sha256=weights_sha256(load_model("vit-tiny-imagenet")))  # fmt: skip


def plain_forward(model, pixels):
    with torch.inference_mode():
        model(pixels)


def bound(methods):
    """{label: (method, options)} → {label: function of a trace}."""
    return {label: bind(name, **options) for label, (name, options) in methods.items()}


def peak_memory(function):
    """Most bytes that PyTorch held at once during a call, beyond what it held before."""
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    sizes = [e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return int(np.maximum.accumulate(np.cumsum(sizes))[-1])


# Claims ---------------------------------------------------------------------------------------------------------------


def confidence(run):
    """Figure 4: how much of its confidence the model keeps when it sees the image through a map, in percent."""
    started, vit = time.perf_counter(), load_model("vit-tiny-imagenet")
    records, methods, parts = sample(tiny_imagenet(), run.images(500)), GMAR | {"rollout": ("rollout", {})}, []
    for start, pixels in batches(vit, records):
        for label, maps in explain_many(vit.model, pixels, bound(methods), upsample=False).items():
            seen = metrics.masked_scores(vit.model, pixels, maps)
            parts.append(rows_of(start, label, "confidence_kept", 100 * seen.masked / seen.full))
    rows = pd.concat(parts)
    run.rows("confidence", rows)
    run.save("confidence", compared(rows, "gmar-none-paper"), vit, started, data=ABOUT_TINY,
             images=len(records))  # fmt: skip


def classes(run):
    """Does the map change with the class? Predicted class against the runner-up and the least probable class."""
    started, vit = time.perf_counter(), load_model("vit-tiny-imagenet")
    records, methods, parts = sample(tiny_imagenet(), run.images(200)), DEFAULT_METHODS, []
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


def claims(run):
    """The verdict for each claim, from the rows of the jobs."""
    started, lines, cache = time.perf_counter(), [], {}
    for name, claim in CLAIMS.items():
        for part in claim.parts:
            file = run.work / part.job / "rows.csv"
            if file.exists() and part.job not in cache:
                cache[part.job] = pd.read_csv(file)
            values = part.values(cache[part.job]) if file.exists() else np.array([])
            mean, low, high = interval(values)
            lines.append({"claim": name, "source": claim.source, "place": claim.place, "statement": claim.statement,
                          "part": part.text, "job": part.job, "mean": mean, "low": low, "high": high,
                          "threshold": part.threshold, "images": len(values),
                          "verdict": verdict(low, high, part.threshold, len(values))})  # fmt: skip
    table = pd.DataFrame(lines)
    table["claim_verdict"] = table.groupby("claim")["verdict"].transform(overall)
    run.save("claims", table, started=started, smallest_sample=ENOUGH, not_run=sorted(
        {c.job for c in table.itertuples() if c.images == 0 and c.verdict == OPEN}))  # fmt: skip


# Photos ---------------------------------------------------------------------------------------------------------------

NAMES = {"cat": (30, 31, 32), "coffee": (193,), "rocket": (137,)}  # domestic cats; espresso; projectile
PIXELS = (64, 112, 128)  # of a square, and of the shorter side of the photo's own shape


def photos(run):
    """Which of scikit-image's photos the model names right, and at which resolution."""
    started, lines = time.perf_counter(), []
    shown = {name: (data.photo(name), NAMES.get(name, ())) for name in data.PHOTOS}
    for name in ("cat", "coffee"):
        shown[f"cat and coffee: {name}"] = (data.cat_and_coffee(), NAMES[name])
    model = functools.cache(lambda *shape: load_model("vit-tiny-imagenet", image_size=shape))
    for size, keep in itertools.product(PIXELS, (False, True)):
        for name, (photo, ids) in shown.items():
            wide = 8 * round(size * photo.width / photo.height / 8) if keep else size
            if keep and wide == size:
                continue  # a square photo
            vit = model(size, wide)
            with torch.inference_mode():
                p = vit.model(vit.preprocess(photo)).logits[0].softmax(-1)
            order = p.argsort(descending=True).tolist()
            line = {"photo": name, "pixels": f"{size} × {wide}", "predicted": vit.label(order[0]),
                    "probability": 100 * p.max().item()}  # fmt: skip
            if ids:  # the others show nothing that the model has a class for
                rank = min(order.index(i) for i in ids)
                line |= {"counts_as_right": ", ".join(map(vit.label, ids)), "best_of_these": vit.label(order[rank]),
                         "its_probability": 100 * p[order[rank]].item(), "its_rank": rank + 1}  # fmt: skip
            lines.append(line)
    table = pd.DataFrame(lines).astype({"its_rank": "Int64"}).sort_values("photo", kind="stable")
    about = "scikit-image's photos, whole: resized to a square (height × width), and in their own shape"
    run.save("photos", table, vit, started, data=about, images=len(shown))


JOBS = {
    "photos": photos,
    "shapes": table_shapes,
    "tiny-imagenet": table_faithfulness,
    "voc2012": table_voc,
    "voc2012-chefer": lambda run: table_voc(run, "chefer", "voc2012-chefer"),
    "confidence": confidence,
    "classes": classes,
    "heads": heads,
    "randomization": randomization,
    "cost": cost,
    "audit-tiny-imagenet": lambda run: audit(run, "tiny-imagenet"),
    "sensitivity-tiny-imagenet": lambda run: sensitivity(run, "tiny-imagenet"),
    "audit-shapes": lambda run: audit(run, "shapes"),
    "sensitivity-shapes": lambda run: sensitivity(run, "shapes"),
    "claims": claims,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"{', '.join(JOBS)} (default: all)")
    parser.add_argument("--small", action="store_true", help="12 images, into _build/results/small")
    parser.add_argument("--images", type=int, help="at most so many images, pairs or repeats for each job")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32"],
                        help="of the metrics' forward passes (default: %(default)s)")  # fmt: skip
    arguments = parser.parse_args()
    if unknown := set(arguments.jobs) - set(JOBS):
        parser.error(f"unknown job {', '.join(sorted(unknown))}; there are {', '.join(JOBS)}")
    run = Run(arguments.small, arguments.precision, arguments.images)
    for name in arguments.jobs or JOBS:
        JOBS[name](run)


if __name__ == "__main__":
    main()
