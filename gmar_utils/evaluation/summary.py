"""From rows to tables: means, paired bootstrap intervals over images, differences from uniform head weights."""

import inspect
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import bootstrap

from .. import metrics
from ..methods import METHODS

# metric: (title, direction). Direction +1 means higher is better, 0 that the column only describes.
COLUMNS = {
    "average_drop": ("Avg Drop", -1),
    "coverage": ("Coverage", 0),
    "average_increase": ("Avg Increase", 1),
    "insertion": ("Insertion", 1),
    "deletion": ("Deletion", -1),
    "average_drop_top": ("Avg Drop, top half", -1),
    "average_increase_top": ("Avg Increase, top half", 1),
    "morf": ("MoRF", -1),
    "lerf": ("LeRF", 1),
    "lerf_minus_morf": ("LeRF − MoRF", 1),
    "road_morf": ("ROAD MoRF", -1),
    "road_lerf": ("ROAD LeRF", 1),
    "road": ("ROAD, LeRF − MoRF", 1),
    "pointing_game": ("Pointing game", 1),
    "energy_in_box": ("Energy in box", 1),
    "pixel_accuracy": ("Pixel accuracy", 1),
    "iou": ("IoU", 1),
    "average_precision": ("AP", 1),
}
COUNTS = ("tp", "fp", "fn", "tn")
BASELINE = "(baseline)"  # the method name of rows that describe a curve's baseline, not a method
TABLES = (  # one Markdown table each
    ("average_drop", "coverage", "average_increase", "insertion", "deletion"),
    ("average_drop_top", "average_increase_top"),
    ("morf", "lerf", "lerf_minus_morf", "road_morf", "road_lerf", "road"),
    ("pointing_game", "energy_in_box"),
    ("pixel_accuracy", "iou", "average_precision"),
)


def summarize(rows: pd.DataFrame, methods: dict, protocol: dict, seed: int = 0, resamples: int = 5000) -> pd.DataFrame:
    """One line per method and metric: mean, 95 % interval, and the difference from the method's uniform-weight twin.

    Intervals are percentiles of a bootstrap over images (scipy). Every method sees the same resampled images, so
    differences are paired. `best` is True where a method beats each other one with an interval that excludes 0.
    Images for which a metric is not defined (no foreground) are left out, and counted.
    """
    lines = []
    values = rows.pivot(index="image", columns=["metric", "method"], values="value")
    twins = uniform_twins(methods)
    for metric, (_, direction) in COLUMNS.items():
        if metric not in values.columns.get_level_values(0):
            continue
        estimates, draws, images = _bootstrap(values, metric, list(methods), protocol, seed, resamples)
        leader = int(np.argmax(direction * estimates)) if direction and images else None
        for i, label in enumerate(methods):
            line = {"metric": metric, "method": label, "mean": estimates[i]}
            line["low"], line["high"] = _interval(draws[i])
            line |= {"images": images, "left_out": len(values) - images}
            line["best"] = (
                i == leader
                and images > 1
                and all(_excludes_zero(direction * (draws[i] - draws[j]), 1) for j in range(len(methods)) if j != i)
            )
            if label in twins:
                j = list(methods).index(twins[label])
                line |= {"twin": twins[label], "difference": estimates[i] - estimates[j]}
                line["difference_low"], line["difference_high"] = _interval(draws[i] - draws[j])
            lines.append(line)
        if (metric, BASELINE) in values.columns:
            estimate, draw, count = _bootstrap(values, metric, [BASELINE], {"aggregate": "image"}, seed, resamples)
            low, high = _interval(draw[0])
            lines.append({"metric": metric, "method": BASELINE, "mean": estimate[0], "low": low, "high": high,
                          "images": count, "left_out": len(values) - count, "best": False})  # fmt: skip
    columns = ["twin", "difference", "difference_low", "difference_high"]
    return pd.DataFrame(lines).reindex(columns=[*lines[0], *(c for c in columns if c not in lines[0])])


def uniform_twins(methods: dict) -> dict[str, str]:
    """{label of a GMAR variant: label of the same variant at norm=None}; plain rollout is such a twin too."""

    def settings(name, options):
        defaults = {
            k: p.default for k, p in inspect.signature(METHODS[name].function).parameters.items() if k != "trace"
        }
        full = defaults | options
        return full["alpha"], full["variant"], full.get("norm")

    rollouts = {k: settings(*m) for k, m in methods.items() if m[0] in ("gmar", "rollout")}
    uniform = {s[:2]: k for k, s in reversed(rollouts.items()) if s[2] is None}
    return {k: uniform[s[:2]] for k, s in rollouts.items() if s[2] is not None and s[:2] in uniform}


def _bootstrap(values, metric, labels, protocol, seed, resamples):
    """Estimates (M,), bootstrap draws (M, resamples) with the same images for every method, and the image count."""
    if protocol["aggregate"] == "dataset" and metric in ("iou", "pixel_accuracy"):
        kind = protocol.get("iou", "foreground")

        def statistic(*counts, axis):
            sums = torch.from_numpy(np.stack([c.sum(axis) for c in counts], -1))
            flat = sums.reshape(-1, 4)
            found = metrics.iou_of(flat, kind) if metric == "iou" else metrics.accuracy_of(flat)
            return found.reshape(sums.shape[:-1]).numpy()

        names = COUNTS
    else:
        statistic, names = np.mean, (metric,)
    defined = values[metric][labels].notna().all(axis=1)
    arrays = tuple(values.loc[defined, name][labels].to_numpy().T for name in names)
    images = arrays[0].shape[-1]
    if images < 2:
        estimates = statistic(*arrays, axis=-1) if images else np.full(len(labels), np.nan)
        return estimates, np.full((len(labels), 1), np.nan), images
    batch = max(1, 4_000_000 // arrays[0].size)
    result = bootstrap(
        arrays, statistic, paired=len(arrays) > 1, vectorized=True, axis=-1, n_resamples=resamples, batch=batch,
        method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    return statistic(*arrays, axis=-1), result.bootstrap_distribution, images


def _interval(draws):
    return tuple(np.percentile(draws, [2.5, 97.5]))


def _excludes_zero(draws, sign=0):
    low, high = _interval(draws)
    return bool(low > 0 or (high < 0 and sign == 0))


class Table(NamedTuple):
    """One table of a summary, as text: `frame` has a line per method, a column per metric (title and direction arrow)
    and cells "mean [low, high]"; `bold` (same shape, bool) says where the interval supports a winner; `notes` stand
    under it (protocol, what the baseline keeps, images left out)."""

    frame: pd.DataFrame
    bold: pd.DataFrame
    notes: list[str]


def title(metric: str) -> str:
    """A metric's title with an arrow in the direction that is better."""
    name, direction = COLUMNS.get(metric, (metric.replace("_", " "), 0))
    return f"{name} {'↓ ↑'[direction + 1]}".strip()


def tables(summary: pd.DataFrame, cards: dict | None = None) -> list[Table]:
    """The tables of a summary: means, and paired differences from uniform head weights, for each group of metrics."""
    found = []
    for group in TABLES:
        shown = [m for m in group if (summary["metric"] == m).any()]
        if not shown:
            continue
        lines = summary[summary["metric"].isin(shown)]
        plain, base = lines[lines["method"] != BASELINE], lines[lines["method"] == BASELINE]
        notes = list(dict.fromkeys((cards or {}).get(m, "") for m in shown))
        notes += [_baseline_note(r) for _, r in base.iterrows()]
        left_out = {int(n) for n in plain["left_out"]} - {0}
        notes += [f"{n} images without foreground are left out and not in the count." for n in left_out]
        found.append(_table(plain.assign(bold=plain["best"]), shown, "Method"))
        paired = plain[plain["twin"].notna()]
        if len(paired):
            low, high = paired["difference_low"], paired["difference_high"]
            paired = paired.assign(
                method=paired["method"] + " − " + paired["twin"], mean=paired["difference"], low=low, high=high,
                bold=(low > 0) | (high < 0),
            )  # fmt: skip
            found.append(_table(paired, shown, "Paired difference", sign="+"))
        found[-1].notes.extend(n for n in notes if n)
    return found


def footnote(summary: pd.DataFrame) -> str:
    """The sentences under all tables: images, intervals, what bold means."""
    images = int(summary["images"].max())
    return (
        f"Means over {images} images, with 95 % intervals of a paired bootstrap over images. Bold in the first kind of "
        "table: better than every other method, with each paired interval on one side of 0. Bold in a difference: its "
        "interval excludes 0. Intervals are not corrected for the number of comparisons."
    )


def to_markdown(summary: pd.DataFrame, cards: dict | None = None) -> str:
    """`tables` as Markdown, with their notes and the footnote."""
    parts = []
    for frame, bold, notes in tables(summary, cards):
        marked = frame.where(~bold, frame.replace(r"^(\S+)", r"**\1**", regex=True))
        parts += [marked.to_markdown(disable_numparse=True)] + (["\n".join(f"- {n}" for n in notes)] if notes else [])
    return "\n\n".join([*parts, footnote(summary)]) + "\n"


def _table(lines, shown, corner, sign=""):
    texts = [_cell(m, low, high, sign) for m, low, high in zip(lines["mean"], lines["low"], lines["high"], strict=True)]
    wide = lines.assign(text=texts).pivot(index="method", columns="metric", values=["text", "bold"])
    wide = wide.reindex(index=lines["method"].unique()).rename_axis(corner)
    frame, bold = (wide[part].reindex(columns=shown).rename_axis(columns=None) for part in ("text", "bold"))
    return Table(frame.fillna("–").rename(columns=title), bold.eq(True).rename(columns=title), [])


def _cell(mean, low, high, sign=""):
    if np.isnan(mean):
        return "–"
    return f"{mean:{sign}.2f}" + ("" if np.isnan(low) else f" [{low:{sign}.2f}, {high:{sign}.2f}]")


def _baseline_note(line):
    kept = _cell(line["mean"], line["low"], line["high"])
    note = f"{COLUMNS[line['metric']][0]}: the baseline image keeps {kept} % of the full score."
    if line["mean"] > metrics.KEPT_LIMIT:
        note += f" ⚠ That is more than {metrics.KEPT_LIMIT:.0f} %: this baseline does not remove the object."
    return note
