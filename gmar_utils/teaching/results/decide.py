"""Which method answers which question: the rules of the page 'Which method for my ViT?', on the tables."""

from collections.abc import Callable
from typing import NamedTuple

import matplotlib.pyplot as plt
import pandas as pd

from gmar_utils import METHODS, viz
from gmar_utils.evaluation import DEFAULT_METHODS

from .show import read, title_of

BASELINES = ("random", "center")
YES, NO, UNKNOWN = "✓", "✗", "?"


class Question(NamedTuple):
    """A question, the rows of a table that answer it, and what a method must reach.

    text: the question. short: for a panel. rows: () → table with the columns method, mean, low, high.
    bar: table by method → what the interval must lie above (below, for sign −1).
    of_class: True for a question that a map without the class cannot answer.
    smaller: () → the same table at 112 px, for the methods that `rows` leaves out: they are held to its bar.
    """

    text: str
    short: str
    rows: Callable[[], pd.DataFrame]
    bar: Callable[[pd.DataFrame], float]
    sign: int = 1
    of_class: bool = False
    smaller: Callable[[], pd.DataFrame] | None = None


def rows(name, metric, stage=None):
    table = read(name)
    keep = table["metric"] == metric
    if "setting" in table:
        keep &= table["setting"] == "report"
    if stage:
        keep &= table["stage"] == stage
    return table[keep & (table["method"] != "(baseline)")]


def best_baseline(table):
    """The upper end of the better of the two maps that know nothing."""
    return table.loc[list(BASELINES), "high"].max()


QUESTIONS = {
    "faithful": Question(
        "Does hiding the patches in the map's order change the answer, and only then?",
        "SRG",
        lambda: rows("tiny-imagenet", "srg"),
        best_baseline,
    ),
    "object": Question(
        "Does the map lie on the object?",
        "AP on VOC",
        lambda: rows("voc2012", "average_precision"),
        best_baseline,
        smaller=lambda: rows("voc2012-112", "average_precision"),
    ),
    "which": Question(
        "Of two objects, does it lie on the one that was asked for?",
        "right one of two, %",
        lambda: rows("voc-pairs", "which"),
        lambda table: 50.0,
        of_class=True,
        smaller=lambda: rows("voc-pairs-112", "which"),
    ),
    "class": Question(
        "Does the order of the patches change when another class is asked for?",
        "1 − rank correlation,\nrunner-up",
        lambda: rows("classes", "changes_with_class"),
        lambda table: 0.1,
        of_class=True,
    ),
    "weights": Question(
        "Is the map lost when the trained weights are drawn anew?",
        "rank correlation,\nall blocks anew",
        lambda: rows("randomization", "rank_correlation", "block 1"),
        lambda table: 0.5,
        sign=-1,
    ),
}


def blind(label):
    """Whether a method's map is the same for every class."""
    name, options = DEFAULT_METHODS.get(label, (label, {}))
    return not METHODS[name].class_aware or options.get("norm", "l1") is None  # the class enters by the weights alone


def answer(question, label, low, high, bar):
    """YES where the whole interval lies beyond the bar, NO where it lies before it, else UNKNOWN. A baseline answers no
    question, and a map without the class none about classes."""
    if label in BASELINES or (question.of_class and blind(label)):
        return NO
    beyond, before = (low > bar, high < bar) if question.sign > 0 else (high < bar, low > bar)
    return YES if beyond else NO if before else UNKNOWN


def answers():
    """A row for each method, a column for each question."""
    found = {}
    for name, question in QUESTIONS.items():
        found[name] = {}
        for tables in filter(None, (question.smaller, question.rows)):  # the second has the last word
            table = tables().set_index("method")
            bar = question.bar(table)
            found[name] |= {k: answer(question, k, r["low"], r["high"], bar) for k, r in table.iterrows()}
    order = rows("tiny-imagenet", "srg").sort_values("mean", ascending=False)["method"]
    return pd.DataFrame(found).reindex(order).fillna(UNKNOWN).rename_axis(None)


def passing(table, *questions):
    """The methods with YES for each question, the most faithful first."""
    return table.index[(table[list(questions)] == YES).all(axis=1)].tolist()


def plot(found):
    """Method × question, with intervals, of `answers()`; dotted: the bar; grey: the two maps that know nothing."""
    figure, axes = plt.subplots(1, len(QUESTIONS), figsize=(12.5, 6.8), layout="constrained", sharey=True)
    count = len(passing(found, *QUESTIONS))
    figure.suptitle(f"{count} of {len(found) - len(BASELINES)} maps pass all five bars; none by GMAR or rollout does")
    for ax, question in zip(axes, QUESTIONS.values(), strict=True):
        table = question.rows()
        viz.forest(table.assign(method=table["method"].map(title_of)), ax, xlabel=question.short)
        ax.axvline(question.bar(table.set_index("method")), color="0.5", lw=1, ls=":")
        ax.tick_params(labelleft=ax is axes[0])
        ax.set_title("more is better →" if question.sign > 0 else "← less is better", fontsize=8)
    return axes


def advice(found):
    """What to show, in Markdown, and whether it may be GMAR; the cheapest by its time in forward passes."""
    every, cost = passing(found, *QUESTIONS), read("cost").groupby("method")["forwards"].mean()
    if not every:
        return "**No method passes all five questions below.** Show none alone."
    cheap = min((m for m in every if m in cost), key=cost.get)
    ticks, score = (found.loc["gmar-l1-paper"] == YES).sum(), rows("tiny-imagenet", "srg").set_index("method")["mean"]
    no = "**GMAR is not one of them.** " if not [m for m in every if m.startswith("gmar")] else ""
    return (
        f"**If you show one map, show {title_of(every[0])}.** {len(every)} maps pass all five questions below: "
        f"{', '.join(map(title_of, every))}. The cheapest of them is {title_of(cheap)}, at {cost[cheap]:.1f} forward "
        f"passes a map.\n\n{no}As in its paper it passes {ticks} of the five. Its SRG is {score['gmar-l1-paper']:.0f}; "
        f"the best is {score.max():.0f}, that of a random map {score['random']:.0f}."
    )


def sentence():
    """The answer in two sentences: how faithful a map is, and whether it knows which of two objects was asked for."""
    table, asked = (question.rows().set_index("method") for question in (QUESTIONS["faithful"], QUESTIONS["which"]))
    score, gmar = table["mean"], asked.loc["gmar-l1-paper"]
    coin = "no better than a coin" if gmar["low"] <= 50 <= gmar["high"] else "not a coin"
    first, second = score.idxmax(), asked["mean"].idxmax()
    return (
        f"**The answer, on {table['images'].max()} photographs:** {title_of(first)} separates best what the model used "
        f"from what it did not, with an SRG of {score[first]:.0f}; GMAR reaches {score['gmar-l1-paper']:.0f}, a random "
        f"map {score['random']:.0f}. Asked for one of two objects, GMAR's map lies on the right one in "
        f"{gmar['mean']:.0f} of 100 questions, {coin}; {title_of(second)}'s in {asked['mean'][second]:.0f}."
    )
