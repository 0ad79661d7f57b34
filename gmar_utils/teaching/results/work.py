"""What every job of the tables shares: where rows and tables go, which images, means with intervals."""

import contextlib
import json
import time

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from gmar_utils import data
from gmar_utils.evaluation import run as engine

from . import RESULTS
from .claims import interval

WORK = RESULTS.parents[1] / "_build/results"
SEED = 0
ABOUT_TINY = "Tiny-ImageNet validation, odd rows"


class Run:
    """One call of this script: how many images, where to, in which precision."""

    def __init__(self, small, precision, most):
        self.small, self.precision, self.most = small, precision, 12 if small else most
        self.work = WORK / ("small" if small else "full")
        self.out = self.work if small else RESULTS

    def images(self, n):
        return min(n, self.most or n)

    def evaluate(self, folder, vit, records, **options):
        """Rows and summary of `gmar_utils.evaluate`; on a CPU the metric forwards may run in bfloat16."""
        half = self.precision == "bfloat16"
        with torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext():
            return engine.evaluate(vit, records, self.work / folder, seed=SEED, **options)

    def rows(self, job, rows):
        """Keep a job's rows of single images for the claims."""
        (self.work / job).mkdir(parents=True, exist_ok=True)
        rows.to_csv(self.work / job / "rows.csv", index=False)

    def save(self, name, frame, vit=None, started=None, **about):
        """A table and its provenance."""
        if vit is not None:
            about |= {"model": vit.name, "weights_sha256": engine.weights_sha256(vit)}
        about |= {"seed": SEED, "wall_time_s": round(time.perf_counter() - started)}
        self.out.mkdir(parents=True, exist_ok=True)
        frame.to_csv(self.out / f"{name}.csv", index=False, float_format="%.4f")
        (self.out / f"{name}.json").write_text(json.dumps(engine.provenance(**about), indent=1) + "\n")
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


def compared(rows, reference):
    """Mean and interval of every method and metric, and of its paired difference from the reference."""
    lines = []
    for metric, part in rows[rows["method"] != engine.BASELINE].groupby("metric", sort=False):
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
