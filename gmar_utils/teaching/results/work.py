"""What every job of the tables shares: where rows and tables go, which images, means with intervals."""

import json
import time

import numpy as np
import pandas as pd
from tqdm import tqdm

from gmar_utils import data, load_model
from gmar_utils.evaluation import DEFAULT_METHODS, evaluate
from gmar_utils.evaluation.measures import BASELINE
from gmar_utils.evaluation.provenance import made_by, weights_sha256
from gmar_utils.evaluation.summary import interval
from gmar_utils.evaluation.variants import bound_methods

from . import RESULTS

WORK = RESULTS.parents[1] / "_build/results"
SEED = 0
ABOUT_TINY = "Tiny-ImageNet validation, odd rows"
MODEL, PIXELS = "vit-small-tiny-imagenet", 112  # where a table needs many forward passes
# Occlusion asks for a forward pass for each square of 2 × 2 patches: 16 at 112 pixels, 64 at 224.
FIELD = DEFAULT_METHODS | {"occlusion": ("occlusion", {})}
# The methods of the two papers' tables, with the rollouts and baselines that they are judged against, for second runs.
BOTH = ["grad-cam", "rollout", "rollout-report", "legrad", "random", "center"]
GMARS = {paper: [f"gmar-{norm}-{paper}" for norm in ("l1", "l2")] for paper in ("paper", "report")}
GMAR_TABLE = [*BOTH, "gmar-none-paper", *GMARS["paper"]]
REPORT_TABLE = [*BOTH, *GMARS["report"]]


class Run:
    """One call of this script: how many images, where to, in which precision."""

    def __init__(self, small, precision, most):
        self.small, self.precision, self.most = small, precision, 12 if small else most
        self.work = WORK / ("small" if small else "full")
        self.out = self.work if small else RESULTS

    def images(self, n):
        return min(n, self.most or n)

    def evaluate(self, folder, vit, records, **options):
        """The summary of `gmar_utils.evaluate`; its rows stay in the folder, and a run that was cut off goes on."""
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
        (self.out / f"{name}.json").write_text(json.dumps(made_by(**about), indent=1) + "\n")
        print(f"{self.out.name}/{name}.csv: {len(frame)} lines, {about['wall_time_s']} s", flush=True)


def bound(methods):
    """{label: method as `evaluate` takes it} → {label: function of a trace}, for `explain_many`."""
    return bound_methods(methods, SEED)


def sample(records, n):
    """n records, drawn with the seed; fewer are the first of more."""
    return records.select(np.random.default_rng(SEED).permutation(len(records))[:n])


def tiny_imagenet():
    """The odd rows of the validation file: nothing was trained or chosen on them."""
    records = data.tiny_imagenet("valid")
    return records.select(range(1, len(records), 2))


def shapes(n):
    return data.shapes(n, seed=1000, occlusion=0.3)


def bundled(*size):
    """The bundled model of Tiny-ImageNet, for pictures of this (height, width)."""
    return load_model(MODEL, image_size=size or PIXELS)


SETS = {"tiny-imagenet": (bundled, tiny_imagenet), "shapes": (lambda: load_model("vit-shapes"), lambda: shapes(1000))}


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
