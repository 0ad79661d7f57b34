"""Jobs that evaluate: both papers' tables, the audit's readings, one changed choice at a time."""

import time
from functools import partial

import pandas as pd

from gmar_utils import data, explain_many, load_model, metrics
from gmar_utils.evaluation.measures import BASELINE, COLUMNS, FAITHFULNESS
from gmar_utils.evaluation.run import known
from gmar_utils.evaluation.summary import interval

from .. import captions
from . import readings
from .claims import MARGIN, verdict
from .work import ABOUT_TINY, FIELD, SETS, batches, bound, bundled, compared, rows_of, sample, shapes, tiny_imagenet

LABEL = {"target": "label"}
STEPS = 8  # of the audit and of the changed choices, which need many passes
MEASURES = (*FAITHFULNESS, "box")


def table_faithfulness(run, name, pixels, most, methods):
    """The GMAR paper's Table 1 on Tiny-ImageNet, with 16 steps: of 50 images, 32 give the same order of methods."""
    started, vit = time.perf_counter(), bundled(pixels, pixels)
    records = sample(tiny_imagenet(), run.images(most))
    found = run.evaluate(name, vit, records, methods=methods, metrics=MEASURES, protocol={"steps": 16})
    about = {"data": ABOUT_TINY, "images": len(records), "protocol": found.protocol, "precision": run.precision}
    run.save(name, found.frame(), vit, started, **about)


def table_localization(run, name, vit, records, about, settings, methods=None):
    """The report's Table 1 on one data set: {setting: protocol}, the first one also for the claims."""
    parts, cards = [], {}
    started = time.perf_counter()
    for setting, protocol in settings.items():
        folder = name if not parts else f"{name}-{setting}"
        found = run.evaluate(folder, vit, records, methods=methods, protocol=protocol)
        parts.append(found.frame().assign(setting=setting))
        cards[setting] = found.protocol
    run.save(name, pd.concat(parts), vit, started, data=about, images=len(records), protocol=cards)


def table_voc(run, name="voc2012", preset="report", pixels=224, methods=None):
    records = data.voc2012()
    records = sample(records, run.images(len(records)))
    about, vit = "VOC 2012 val, a record for each image and class that the model has", bundled(pixels, pixels)
    table_localization(run, name, vit, records, about, {preset: metrics.PRESETS[preset] | LABEL}, methods)


def table_pairs(run, name, vit, pairs, about, methods=None, first=10, **more):
    """One of two objects: each photo asked about both; how often the map lies on the one that was asked for."""
    started, every = time.perf_counter(), len(pairs)
    pairs = known(vit, pairs, first)
    pairs = pairs.select(range(run.images(len(pairs))))
    found = run.evaluate(name, vit, pairs, methods=methods)
    about = {"data": about, "photos": every, "known": len(pairs), "protocol": found.protocol} | more
    run.save(name, found.frame(), vit, started, **about)


def table_voc_pairs(run, name="voc-pairs", pixels=224, methods=None):
    about = "VOC 2012 val, photos with two classes that are both among the model's first ten"
    table_pairs(run, name, bundled(pixels, pixels), data.voc_pairs(), about, methods)


def table_shape_pairs(run):
    vit, pairs = load_model("vit-shapes"), data.shape_pairs(run.images(300), seed=1000)
    about = "shapes, two objects, both classes among the model's first ten"
    table_pairs(run, "shape-pairs", vit, pairs, about, FIELD)


def table_prompt_pairs(run):
    clip, pairs = captions.load(), captions.pairs(run.images(200), seed=1000)
    about = "shapes, two objects, asked about by their names; both names are the model's first two of six"
    right = captions.measured(clip, run.images(500))
    table_pairs(run, "prompt-pairs", clip.asking(*captions.SINGLES), pairs, about, FIELD, first=2, right=right)


def table_shapes(run):
    presets, n = {"report": metrics.PRESETS["report"] | LABEL}, run.images(1000)
    vit, two = load_model("vit-shapes"), data.shapes(n // 2, seed=1000, objects=2)
    table_localization(run, "shapes", vit, shapes(n), "shapes, one object, up to 30 % hidden", presets, FIELD)
    about = "shapes, two objects, each explained and scored on its own mask"
    table_localization(run, "shapes-two", vit, two, about, presets, FIELD)


def audit(run, name):
    """Every reading of the paper: how far its map is from the library's default, and what the metrics say."""
    started, (vit, records) = time.perf_counter(), (make() for make in SETS[name])
    records, folder = sample(records, run.images(100)), f"audit-{name}"
    methods = readings.READINGS | {
        "released, L2 weights": partial(readings.released, norm="l2"),
        "released, uniform weights": partial(readings.released, norm=None),
        "random": "random",
    }
    measures = ("drop", "insertion", "deletion")
    found = run.evaluate(
        folder, vit, records, methods=methods, metrics=measures, protocol={"steps": STEPS, "target": "predicted"}
    )
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
        folder, table, vit, started, data=name, images=len(records), protocol=found.protocol, precision=run.precision
    )


CORE = {
    "grad-cam": ("grad-cam", {}),
    "rollout": ("rollout", {"variant": "report"}),
    "uniform": ("gmar", {"norm": None}),
    "gmar": ("gmar", {}),
    "legrad": ("legrad", {}),
    "random": ("random", {}),
}
CONCLUSIONS = (
    ("gmar", "rollout"),
    ("gmar", "uniform"),
    ("gmar", "random"),
    ("gmar", "grad-cam"),
    ("legrad", "gmar"),
    ("grad-cam", "random"),
    ("legrad", "random"),
)
CURVES = ("insertion", "deletion")
DROPS = ("drop",)


def settings():
    """(factor, value, methods that change, protocol, measures): one factor at a time from the default."""

    def rolled(**options):
        product = {"variant": "report"} | options
        return {
            "rollout": ("rollout", product),
            "uniform": ("gmar", {"norm": None} | options),
            "gmar": ("gmar", options),
        }

    reordered = partial(readings.reading, order="output-first")
    read = {"uniform": partial(reordered, norm=None), "gmar": reordered}
    every, both = {}, (*DROPS, *CURVES)
    yield "default", "", CORE, every, both
    yield "masking", "top half", CORE, every, ("drop-top",)
    yield "masking", "raw", CORE, {"masking": "raw"}, DROPS
    yield "steps", 4, CORE, {"steps": 4}, CURVES
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
    yield "target", "label", CORE, {"target": "label"}, both


def sensitivity(run, name):
    """One factor at a time, 100 images, 8 steps: which method is better under each choice?"""
    started, (vit, records) = time.perf_counter(), (make() for make in SETS[name])
    records = sample(records, run.images(100))
    lines, base = [], None
    for number, (factor, value, methods, protocol, measures) in enumerate(settings()):
        folder = f"sensitivity-{name}/{number:02d}"
        protocol = {"steps": STEPS, "target": "predicted"} | protocol
        rows = run.evaluate(folder, vit, records, methods=methods, metrics=measures, protocol=protocol).rows
        rows = rows[rows["method"] != BASELINE].assign(metric=rows["metric"].str.removesuffix("_top"))
        base = rows if base is None else base
        same = base[~base["method"].isin(methods) & base["metric"].isin(rows["metric"])]
        rows = pd.concat([rows, same])
        for metric, part in rows[rows["metric"] != "coverage"].groupby("metric", sort=False):
            wide, sign = part.pivot(index="image", columns="method", values="value"), COLUMNS[metric][1]
            for a, b in CONCLUSIONS:
                mean, low, high = interval(sign * (wide[a] - wide[b]))
                lines.append(
                    {
                        "factor": factor,
                        "value": value,
                        "metric": metric,
                        "a": a,
                        "b": b,
                        "difference": mean,
                        "low": low,
                        "high": high,
                        "images": len(wide),
                        "verdict": verdict(low, high, images=len(wide), margin=MARGIN.get(metric, 0.0)),
                    }
                )
        # after each setting, so that a run that is cut off leaves a table
        run.save(
            f"sensitivity-{name}",
            pd.DataFrame(lines),
            vit,
            started,
            data=name,
            images=len(records),
            steps=STEPS,
            precision=run.precision,
        )
