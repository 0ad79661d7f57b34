"""Reads the tables in this folder for the chapters; nothing is computed here that the tables do not hold."""

import html
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn
from IPython.display import HTML, Markdown, display
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from gmar_utils import METHODS
from gmar_utils.evaluation import DEFAULT_METHODS
from gmar_utils.evaluation.measures import COLUMNS
from gmar_utils.evaluation.summary import title, to_markdown

from . import RESULTS
from .claims import HOLDS, MARGIN, NOT, OPEN, SAME, verdict

pd.set_option("display.max_colwidth", None, "display.max_rows", 200)


def read(name):
    """One table, as it lies in the folder."""
    return pd.read_csv(RESULTS / f"{name}.csv", keep_default_na=True)


SAID = {"l1": "L1", "l2": "L2", "bth": "BT-H", None: "equal weights"}


def title_of(label):
    """A method's name in prose, with its options where a table has variants of it; another label stays as it is."""
    name, options = DEFAULT_METHODS.get(label, (label, {}))
    if name not in METHODS:
        return label
    return METHODS[name].title + (f" ({', '.join(SAID.get(o, o) for o in options.values())})" if options else "")


LABELS = re.compile(rf"(?<![\w-])({'|'.join(sorted({*DEFAULT_METHODS, *METHODS}, key=len, reverse=True))})(?![\w-])")


def named(text):
    """A text of a table with the methods' names in prose in the place of their labels."""
    return LABELS.sub(lambda label: title_of(label[1]), text)


def exists(name):
    """Whether a table was made; says how to make it where not."""
    made = (RESULTS / f"{name}.csv").exists()
    if not made:
        print(f"{name}.csv was not run yet. Make it with: python -m gmar_utils.teaching.results.make {name}")
    return made


def about(name):
    """Its provenance."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def origin(*names):
    """The provenance of tables, a line each, to show with them."""
    for name in names:
        p = about(name)
        shown = [
            f"{name}.csv",
            p.get("model"),
            p.get("weights_sha256", "")[:12],
            p.get("data"),
            f"{p['images']} images" if "images" in p else None,
            p.get("precision"),
            p["device"],
            p["date"][:10],
            f"commit {p['commit'][:10]}" if p.get("commit") else None,
            f"{p['wall_time_s']} s",
        ]
        _small(" · ".join(str(part) for part in shown if part))


def protocol(name):
    """The protocol of each metric in a table, one line for those that share it."""
    for card in dict.fromkeys(about(name)["protocol"].values()):
        _small(card)


def _small(line):
    display(HTML(f"<p style='font-size: 0.85em; margin: 0.2em 0'>{html.escape(line)}</p>"))


def summary(name, setting=None, metrics=None):
    """A summary of `gmar evaluate` as its Markdown tables, with the protocol under them."""
    table, cards = read(name), about(name).get("protocol", {})
    if setting:
        table, cards = table[table["setting"] == setting].drop(columns="setting"), cards[setting]
    if metrics:
        table = table[table["metric"].isin(metrics)]
    table = table.assign(**{k: table[k].map(title_of, na_action="ignore") for k in ("method", "twin") if k in table})
    return Markdown(unbroken(to_markdown(table, cards)))


def unbroken(text):
    """Intervals that no line break cuts."""
    return re.sub(r"(\[\S+,) (\S+\])", "\\1\u00a0\\2", text)


def means(table, rows="method", columns="metric", digits=2, value="mean", low="low", high="high"):
    """Mean [95 % interval] as text, in the order of the table."""
    text = [
        unbroken(f"{m:.{digits}f} [{a:.{digits}f}, {b:.{digits}f}]")
        for m, a, b in zip(table[value], table[low], table[high], strict=True)
    ]
    wide = table.assign(text=text).pivot(index=rows, columns=columns, values="text")
    wide = wide.loc[table[rows].unique(), table[columns].unique()].fillna("")
    return wide.rename(columns=title).rename_axis(index=None, columns=None)


def beside(tables, metrics):
    """The methods that several tables {name: table} share: means and intervals side by side, a panel for each metric.
    Returns the figure."""
    methods = [m for m in DEFAULT_METHODS if all((table["method"] == m).any() for table in tables.values())]
    figure, axes = plt.subplots(1, len(metrics), figsize=(11, 0.42 * len(methods) + 1.3), sharey=True)
    for ax, metric in zip(axes, metrics, strict=True):
        for k, (name, table) in enumerate(tables.items()):
            part = table[table["metric"] == metric].set_index("method").loc[methods]
            place = np.arange(len(methods)) + 0.26 * (k - (len(tables) - 1) / 2)
            colour = ("#0072B2", "#D55E00")[k]
            ax.hlines(place, part["low"], part["high"], color=colour, lw=2)
            ax.scatter(part["mean"], place, color=colour, s=28, zorder=3, label=name)
        ax.set_title(title(metric))
        ax.grid(axis="x", color="0.9")
    axes[0].set_yticks(range(len(methods)), map(title_of, methods))
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(tables))
    return figure


def same_order(tables, metrics):
    """Spearman's rank correlation of the methods' means in two tables {name: table}, for each metric, as a sentence."""
    first, second = (table.pivot(index="method", columns="metric", values="mean") for table in tables.values())
    shared = first.index.intersection(second.index)
    found = {m: first.loc[shared, m].corr(second.loc[shared, m], method="spearman") for m in metrics}
    shown = ", ".join(f"{COLUMNS[m][0]} {rho:.2f}" for m, rho in found.items())
    return f"Rank correlation of the {len(shared)} methods' order between {' and '.join(tables)}: {shown}."


# The promises, attacked at random -------------------------------------------------------------------------------------

TRIED = {"attempts": "tries", "in_use": "half-way", "lost": "lost", "different": "different", "refused": "refused"}


def campaign():
    """What was tried against the promises, and what came of it; one line for each kind, then each part's provenance."""
    table, origins = read("campaign"), about("campaign")["parts"]
    table = table.reindex(columns=["part", "kind", *TRIED, "passed"]).convert_dtypes().rename(columns=TRIED)
    display(Markdown(table.astype(object).fillna("–").to_markdown(index=False, disable_numparse=True)))
    for part, p in origins.items():
        shown = (part, f"seed {p['seed']}", p["device"], p["date"][:10], f"commit {p['commit'][:10]}")
        _small(" · ".join((*shown, f"{p['wall_time_s']} s")))


# Sensitivity: one choice changed at a time ----------------------------------------------------------------------------

COLOURS = {HOLDS: "#0072B2", SAME: "#A9A9A9", OPEN: "#E8E8E8", NOT: "#D55E00"}


def choices(name):
    """A sensitivity table with a readable setting ("alpha 4") and pair ("gmar > rollout") in each line."""
    table = read(name)
    setting = table["factor"] + table["value"].map(lambda v: "" if pd.isna(v) else f" {v}")
    return table.assign(setting=setting, pair=table["a"] + " > " + table["b"])


def survey(name, metrics=("average_drop", "average_increase", "insertion", "deletion")):
    """One cell for each setting (rows), metric (panels) and pair of methods (columns): who is better there? Returns the
    figure. An empty cell: the setting does not touch that metric."""
    table, code = choices(name), {verdict: k for k, verdict in enumerate(COLOURS)}
    settings, pairs = table["setting"].unique(), table["pair"].unique()
    figure, axes = plt.subplots(1, len(metrics), figsize=(11, 0.28 * len(settings) + 2.2), sharey=True)
    for ax, metric in zip(axes, metrics, strict=True):
        part = table[table["metric"] == metric].assign(code=lambda t: t["verdict"].map(code))
        wide = part.pivot(index="setting", columns="pair", values="code").reindex(index=settings, columns=pairs)
        seaborn.heatmap(
            wide,
            vmin=0,
            vmax=len(COLOURS) - 1,
            cmap=ListedColormap([*COLOURS.values()]),
            cbar=False,
            linewidths=1.5,
            ax=ax,
        )
        ax.set(title=title(metric), xlabel="", ylabel="")
        ax.tick_params(length=0)
    labels = ("first is better", "no difference that matters", "cannot be told", "second is better")
    patches = [Patch(color=c, label=x) for c, x in zip(COLOURS.values(), labels, strict=True)]
    figure.legend(handles=patches, loc="outside upper right", ncols=4)
    return figure


def survivors(name):
    """The pairs and metrics with one and the same clear verdict in every setting of a table."""
    found = (
        choices(name)
        .groupby(["metric", "pair"], sort=False)
        .agg(verdict=("verdict", lambda v: v.iloc[0] if v.nunique() == 1 else OPEN), settings=("verdict", "size"))
    )
    better = found["verdict"].map({HOLDS: "the first", NOT: "the second"})
    same = found.assign(better=better).dropna(subset="better").drop(columns="verdict").reset_index()
    return same.assign(metric=same["metric"].map(title))


def weights_help(*names):
    """In how many settings GMAR is better than itself at equal head weights, or worse: a row for each table."""
    rows = {}
    for name in names:
        part = choices(name).query("pair == 'gmar > uniform'")
        rows[name.removeprefix("sensitivity-")] = {
            words: (part["verdict"] == found).sum() for found, words in OUTCOMES.items()
        }
    return pd.DataFrame(rows).T


OUTCOMES = {HOLDS: "better", SAME: "no difference that matters", OPEN: "cannot be told", NOT: "worse"}


# The verdict on the head weights: its words stand on several pages, and a test compares them with this table ----------

ASKED = {  # question: (tables, metrics); GMAR minus itself at equal weights, paired over pictures
    "faithful, on photos": (("tiny-imagenet",), ("average_drop", "average_drop_top", "insertion", "deletion", "srg")),
    "in the object's box, on photos": (("tiny-imagenet",), ("pointing_game", "energy_in_box")),
    "on the object, on photos": (("voc2012",), ("average_precision",)),
    "on the object, on drawn shapes": (("shapes", "shapes-two"), ("average_precision",)),
}


def balance(norms=("l1", "l2")):
    """What head weights buy: for each question, the verdicts of the GMAR variants with these norms on their paired
    intervals, and the largest difference."""
    lines = []
    for question, (names, metrics) in ASKED.items():
        table = pd.concat([read(name) for name in names])
        asked = table["method"].str.split("-").str[1].isin(norms) & table["metric"].isin(metrics)
        table = table[asked & table["twin"].notna()]
        sign = table["metric"].map(lambda m: COLUMNS[m][1])
        ends = pd.concat([table["difference_low"] * sign, table["difference_high"] * sign], axis=1)
        said = [
            verdict(min(two), max(two), 0, n, MARGIN.get(metric, 0))
            for two, n, metric in zip(ends.to_numpy(), table["images"], table["metric"], strict=True)
        ]
        far = table.iloc[table["difference"].abs().argmax()]
        size, low, high = far[["difference", "difference_low", "difference_high"]]
        shown = f"{title(far['metric'])}: {size:+.1f} [{low:+.1f}, {high:+.1f}]"
        counts = {words: said.count(found) for found, words in OUTCOMES.items()}
        lines.append({"question": question} | counts | {"largest difference": unbroken(shown)})
    return pd.DataFrame(lines).set_index("question").rename_axis(None)
