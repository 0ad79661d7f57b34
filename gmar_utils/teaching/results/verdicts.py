"""The papers' claims as cards, and as one figure: what was said, where, and what came out here."""

import html
from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML, Markdown

from .claims import HOLDS, NOT, OPEN, SAME
from .show import named, read, unbroken

COLOURS = {HOLDS: "#0072B2", NOT: "#D55E00", SAME: "#7F7F7F", OPEN: "#B8B8B8"}
PAPERS = {"jo2025gmar": "the GMAR paper", "joita2025comparative": "the comparative report"}


def claims(source):
    """{claim: its parts} of a paper, in the order of the text."""
    table = read("claims").convert_dtypes()
    return dict(list(table[table["source"] == source].groupby("claim", sort=False)))


def decisive(claim):
    """The part that a claim stands or falls with: of those with the claim's verdict, the one furthest against it."""
    verdict = claim["claim_verdict"].iloc[0]
    same = claim[claim["verdict"] == verdict]
    distance = same["mean"] - same["threshold"]
    return same.loc[(distance.abs() if verdict == SAME else distance if verdict == HOLDS else -distance.abs()).idxmin()]


def why(claim):
    """One sentence: why the verdict is what it is."""
    verdict, n = claim["claim_verdict"].iloc[0], len(claim)
    k = int((claim["verdict"] == verdict).sum())
    some = "The one difference" if n == 1 else "Both differences" if n == k == 2 else f"{k} of {n} differences"
    verb = "lies" if k == 1 else "lie"
    if verdict == HOLDS:
        return f"{some} {verb} on the claim's side with the whole interval."
    if verdict == NOT:
        return f"{some} {verb} on the other side with the whole interval."
    if verdict == SAME:
        return f"{some} {verb} inside the margin that was fixed beforehand."
    most = claim.loc[claim["verdict"] == OPEN, "needed"]
    if claim["images"].max() == 0:
        return "It was not run."
    if most.isna().any():
        return f"{some} cannot be told, and more pictures would hardly change it."
    return f"{some} cannot be told. About {int(most.max()):,} pictures would decide.".replace(",", "\u202f")


def number(part):
    """A difference with its interval."""
    if not part["images"]:
        return "not run"
    return unbroken(f"{part['mean']:+.2f} [{part['low']:+.2f}, {part['high']:+.2f}]")


def tally(source):
    """A sentence: how many claims hold, how many do not, how many cannot be told."""
    n, (hold, fail, same, unknown) = counts(source)
    return Markdown(
        f"**Of {n} claims, {hold} hold here and {fail} do not.** {same} compare methods with no difference that "
        f"matters; {unknown} cannot be told."
    )


def counts(source):
    """The number of a paper's claims, and how many of them have each verdict."""
    verdicts = [claim["claim_verdict"].iloc[0] for claim in claims(source).values()]
    return len(verdicts), [verdicts.count(verdict) for verdict in (HOLDS, NOT, SAME, OPEN)]


def parts(source):
    """Every measured difference behind the verdicts, with its interval."""
    table = pd.concat(claims(source).values())
    table["difference"] = [number(part) for _, part in table.iterrows()]
    table["part"] = table["part"].map(named)
    return table[["claim", "part", "difference", "images", "verdict"]].reset_index(drop=True)


def cards(source):
    """A card for each claim of a paper."""
    made = []
    for claim in claims(source).values():
        first, part = claim.iloc[0], decisive(claim)
        verdict = first["claim_verdict"]
        made.append(
            f"<div class='claim' style='--verdict: {COLOURS[verdict]}'>"
            f"<p class='said'>{html.escape(first['statement'])}</p>"
            f"<p class='place'>{html.escape(PAPERS[source])}, {html.escape(first['place'])}</p>"
            f"<p class='verdict'>{verdict}</p>"
            f"<p>{html.escape(named(part['part']))}: <b>{number(part)}</b>, {part['images']} images. "
            f"{why(claim)}</p></div>"
        )
    return HTML(f"<div class='claims'>{''.join(made)}</div>")


def forest(source):
    """Each claim's decisive difference with its interval; right of the line speaks for the claim. Returns the axes."""
    found = [decisive(claim) for claim in claims(source).values()]
    table = pd.DataFrame([part for part in found if part["images"] and part["job"] != "cost"])
    # A share or a ratio and a percentage have no common scale: each interval in units of half its own length.
    half = (table["high"] - table["low"]) / 2
    center = ((table["mean"] - table["threshold"]) / half).astype(float).clip(-12, 12)
    figure, ax = plt.subplots(figsize=(8, 0.46 * len(table) + 1), layout="constrained")
    colour = table["claim_verdict"].map(COLOURS)
    named = [fill(statement, 46) for statement in table["statement"]]
    ax.hlines(named, center - 1, center + 1, color=colour, lw=3)
    ax.scatter(center, named, color=colour, zorder=3)
    ax.axvline(0, color="0.5", lw=1)
    ax.invert_yaxis()
    ax.set(xlabel="against the claim  ←  half intervals  →  for it", ylabel="")
    for verdict, c in COLOURS.items():
        ax.plot([], [], "o-", color=c, label=verdict)
    figure.legend(loc="outside lower center", ncols=4)
    n, (hold, fail, *_) = counts(source)
    figure.suptitle(f"Of {n} claims of {PAPERS[source]}, {hold} hold here and {fail} do not")
    return ax
