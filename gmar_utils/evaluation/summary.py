"""From rows to tables: means, paired bootstrap intervals over images, differences from uniform head weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import torch
from scipy.stats import bootstrap

from .. import metrics
from ..capture.checks import choice
from .measures import BASELINE, COLUMNS, COUNTS, TABLES


@dataclass(frozen=True)
class Summary:
    """What `evaluate` found. A notebook shows it as its Markdown tables.

    Args:
        rows: (image, photo, method, metric, value), one line per record × method × metric; `photo` is what the
            bootstrap draws.
        table: one line per method and metric, as `summarize` makes it.
        protocol: {metric: how it was measured}.
    """

    rows: pd.DataFrame
    table: pd.DataFrame
    protocol: dict[str, str]

    def frame(self) -> pd.DataFrame:
        """One line per method and metric: mean, 95 % interval, images, difference from the twin at uniform weights."""
        return self.table

    def to_markdown(self) -> str:
        """The tables with their protocol, and what the intervals and the bold mean."""
        return to_markdown(self.table, self.protocol)

    def plot(self, metric: str | None = None, ax: "plt.Axes | None" = None) -> "plt.Axes":  # noqa: F821 (slow to import)
        """Means and intervals of one metric, a line per method.

        Args:
            metric: as the rows name it; None takes the first.
            ax: axes to draw in, which are returned; None makes a figure.
        """
        from ..viz import forest  # matplotlib and seaborn: only for who draws

        found = self.table[self.table["method"] != BASELINE]
        names = list(dict.fromkeys(found["metric"]))
        metric = metric or names[0]
        choice("metric", metric, names)
        return forest(found[found["metric"] == metric], ax, xlabel=f"{title(metric)}: mean, 95 % interval")

    _repr_markdown_ = to_markdown


def summarize(
    rows: pd.DataFrame, methods: list[str], options: dict, twins: dict | None = None, seed: int = 0
) -> pd.DataFrame:
    """One line per method and metric: mean, 95 % interval, and the difference from the method's uniform-weight twin.

    Intervals are percentiles of a bootstrap over photos, or over records where `rows` has no column `photo`. Every
    method sees the same resampled photos, so differences are paired. Photos for which a metric is not defined (no
    foreground) are left out, and counted.

    Args:
        rows: (image[, photo], method, metric, value).
        methods: labels, in the order of the lines.
        options: of the metrics, as `measures.checked_options`: `aggregate` and `iou` play a part here.
        twins: {label: label of its twin}, as `variants.twins`.
        seed: of the bootstrap.

    Returns:
        metric, method, mean, low, high, images, left_out, best (beats each other method with an interval that excludes
        0), twin, difference, difference_low, difference_high.
    """
    twins, lines = twins or {}, []
    unit = "photo" if "photo" in rows else "image"
    values = rows.groupby([unit, "metric", "method"])["value"].mean().unstack(["metric", "method"])
    for metric, names in product(COLUMNS, ([BASELINE], list(methods))):
        if (metric, names[0]) not in values:
            continue
        estimates, draws, images = _estimates(values, metric, names, options, seed)
        direction = COLUMNS[metric][1] if images > 1 and names != [BASELINE] else 0
        for i, label in enumerate(names):
            line = {"metric": metric, "method": label, "mean": estimates[i]}
            line["low"], line["high"] = interval_of(draws[i])
            line |= {"images": images, "left_out": len(values) - images}
            ahead = direction * (draws[i] - np.delete(draws, i, 0))  # of each other method
            line["best"] = direction != 0 and all(interval_of(a)[0] > 0 for a in ahead)
            line |= dict.fromkeys(("twin", "difference", "difference_low", "difference_high"), np.nan)
            if twins.get(label) in names:
                j = names.index(twins[label])
                line |= {"twin": names[j], "difference": estimates[i] - estimates[j]}
                line["difference_low"], line["difference_high"] = interval_of(draws[i] - draws[j])
            lines.append(line)
    return pd.DataFrame(lines)


def paired_bootstrap(
    *arrays: np.ndarray, statistic: Callable = np.mean, seed: int = 0, resamples: int = 5000
) -> np.ndarray:
    """Draws (…, resamples) of `statistic(*arrays, axis=-1)` of arrays (…, n): the same n resampled images for all.

    With one image there is nothing to draw: NaN.
    """
    if arrays[0].shape[-1] < 2:
        return np.full((*arrays[0].shape[:-1], 1), np.nan)
    options = {"paired": True, "axis": -1, "n_resamples": resamples, "batch": max(1, 4_000_000 // arrays[0].size)}
    found = bootstrap(arrays, statistic, **options, method="percentile", rng=np.random.default_rng(seed))
    return found.bootstrap_distribution


def interval_of(draws: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of bootstrap draws."""
    return tuple(np.percentile(draws, [2.5, 97.5]))


def interval(values: Sequence[float] | np.ndarray | pd.Series, seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval of (n,) values; those that are not defined (NaN) are left out.

    Equal values, or one alone, give their mean three times; none at all NaN.
    """
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    mean = float(values.mean()) if len(values) else np.nan
    if len(np.unique(values)) < 2:
        return mean, mean, mean
    return mean, *map(float, interval_of(paired_bootstrap(values, seed=seed)))


def _estimates(values, metric, labels, options, seed):
    """Estimates (M,), bootstrap draws (M, resamples) with the same photos for every method, and the photo count."""
    statistic, names = np.mean, (metric,)
    if options["aggregate"] == "dataset" and metric in ("iou", "pixel_accuracy"):
        names = COUNTS

        def statistic(*counts, axis):
            sums = torch.from_numpy(np.stack([c.sum(axis) for c in counts], -1))
            return (metrics.iou_of(sums, options["iou"]) if metric == "iou" else metrics.accuracy_of(sums)).numpy()

    defined = values[metric][labels].dropna().index
    arrays = [values.loc[defined, name][labels].to_numpy().T for name in names]
    estimates = statistic(*arrays, axis=-1) if len(defined) else np.full(len(labels), np.nan)
    return estimates, paired_bootstrap(*arrays, statistic=statistic, seed=seed), len(defined)


def title(metric: str) -> str:
    """A metric's title with an arrow in the direction that is better."""
    name, direction = COLUMNS.get(metric, (metric.replace("_", " "), 0))
    return f"{name} {'↓ ↑'[direction + 1]}".strip()


def footnote(summary: pd.DataFrame) -> str:
    """The sentences under all tables: images, intervals, what bold means."""
    return (
        f"Means over {summary['images'].max():.0f} images, with 95 % intervals of a paired bootstrap over images. Bold "
        "in the first kind of table: better than every other method, with each paired interval on one side of 0. Bold "
        "in a difference: its interval excludes 0. Intervals are not corrected for the number of comparisons."
    )


def to_markdown(summary: pd.DataFrame, protocol: dict | None = None) -> str:
    """A summary as Markdown: means, and paired differences from uniform head weights, for each group of metrics.

    A line per method, a column per metric, cells "mean [low, high]"; bold where the interval supports a winner. Under
    each table stand its protocol, what the baseline keeps and how many images are left out.

    Args:
        summary: as `summarize` makes it.
        protocol: {metric: how it was measured}, for the notes.
    """
    parts = []
    for group in TABLES:
        lines = summary[summary["metric"].isin(group)]
        if lines.empty:
            continue
        plain, base = lines[lines["method"] != BASELINE], lines[lines["method"] == BASELINE]
        shown = [m for m in group if (plain["metric"] == m).any()]
        parts.append(_table(plain, shown, "Method", plain["best"]))
        paired = plain[plain["twin"].notna()]
        if len(paired):
            low, high = paired["difference_low"], paired["difference_high"]
            names = paired["method"] + " − " + paired["twin"]
            paired = paired.assign(method=names, mean=paired["difference"], low=low, high=high)
            parts.append(_table(paired, shown, "Paired difference", (low > 0) | (high < 0), "+"))
        notes = list(dict.fromkeys((protocol or {}).get(m, "") for m in group if (lines["metric"] == m).any()))
        notes += [_baseline_note(r) for _, r in base.iterrows()]
        left_out = {int(n) for n in plain["left_out"]} - {0}
        notes += [f"{n} images without foreground are left out and not in the count." for n in left_out]
        parts += filter(None, ["\n".join(f"- {n}" for n in notes if n)])
    return "\n\n".join([*parts, footnote(summary)]) + "\n"


def _table(lines, shown, corner, bold, sign=""):
    cells = zip(lines["mean"], lines["low"], lines["high"], bold, strict=True)
    wide = lines.assign(text=[_cell(mean, low, high, sign, strong) for mean, low, high, strong in cells])
    wide = wide.pivot(index="method", columns="metric", values="text").reindex(lines["method"].unique(), columns=shown)
    return wide.fillna("–").rename(columns=title).rename_axis(corner).to_markdown(disable_numparse=True)


def _cell(mean, low, high, sign="", strong=False):
    if np.isnan(mean):
        return "–"
    text = f"**{mean:{sign}.2f}**" if strong else f"{mean:{sign}.2f}"
    return text if np.isnan(low) else f"{text} [{low:{sign}.2f}, {high:{sign}.2f}]"


def _baseline_note(line):
    kept = _cell(line["mean"], line["low"], line["high"])
    if line["metric"] == "top_1":
        return f"The model's first class is one of the two objects' on {kept} % of these photos."
    note = f"{COLUMNS[line['metric']][0]}: the baseline image keeps {kept} % of the full score."
    if line["mean"] > metrics.KEPT_LIMIT:
        note += f" ⚠ That is more than {metrics.KEPT_LIMIT:.0f} %: this baseline does not remove the object."
    return note
