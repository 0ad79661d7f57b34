"""Reads the tables in this folder for the chapters; nothing is computed here that the tables do not hold."""

import json
from pathlib import Path

import pandas as pd
from claims import HOLDS, NOT, OPEN
from IPython.display import Markdown

from gmar_utils.evaluate import COLUMNS, to_markdown

HERE = Path(__file__).parent
pd.set_option("display.max_colwidth", None, "display.max_rows", 200)


def read(name):
    """One table, as it lies in the folder."""
    return pd.read_csv(HERE / f"{name}.csv", keep_default_na=True)


def exists(name):
    """Whether a table was made; says how to make it where not."""
    made = (HERE / f"{name}.csv").exists()
    if not made:
        print(f"{name}.csv was not run yet. Make it with: python book/results/make.py {name}")
    return made


def about(name):
    """Its provenance."""
    return json.loads((HERE / f"{name}.json").read_text())


def origin(name):
    """Its provenance in one line, to print under a table."""
    p = about(name)
    shown = [f"{name}.csv", p.get("model"), p.get("weights_sha256", "")[:12], p.get("data"),
             f"{p['images']} images" if "images" in p else None, p.get("precision"), p["device"], p["date"][:10],
             f"commit {p['commit'][:10]}" if p.get("commit") else None, f"{p['wall_time_s']} s"]  # fmt: skip
    print(" · ".join(str(s) for s in shown if s))


def summary(name, setting=None, methods=None):
    """A summary of `gmar evaluate` as its Markdown tables, with the protocol under them."""
    table, cards = read(name), about(name).get("protocol", {})
    if setting:
        table, cards = table[table["setting"] == setting].drop(columns="setting"), cards[setting]
    if methods:
        table = table[table["method"].isin([*methods, "(baseline)"])]
    return Markdown(to_markdown(table, cards))


def means(table, rows="method", columns="metric", digits=2, value="mean", low="low", high="high"):
    """Mean [95 % interval] as text, in the order of the table."""
    text = [
        f"{m:.{digits}f} [{a:.{digits}f}, {b:.{digits}f}]"
        for m, a, b in zip(table[value], table[low], table[high], strict=True)
    ]
    wide = table.assign(text=text).pivot(index=rows, columns=columns, values="text")
    wide = wide.loc[table[rows].unique(), table[columns].unique()].fillna("")
    return wide.rename(columns=arrow).rename_axis(index=None, columns=None)


def arrow(metric):
    """A metric's title with the direction that is better."""
    title, sign = COLUMNS.get(metric, (str(metric).replace("_", " "), 0))
    return f"{title} {'↓ ↑'[sign + 1]}".strip()


def claims(source):
    """One line for each claim of a paper: what it says, where, and the verdict."""
    table = read("claims")
    table = table[table["source"] == source]
    grouped = table.groupby("claim", sort=False)
    lines = grouped.agg(claim_text=("statement", "first"), where=("place", "first"), verdict=("claim_verdict", "first"))
    lines["images"] = grouped["images"].max()
    count = grouped["verdict"].agg(lambda v: " / ".join(str((v == k).sum()) for k in (HOLDS, NOT, OPEN)))
    lines["parts: hold / do not / open"] = count
    return lines.rename(columns={"claim_text": "claim"}).rename_axis(None).reset_index(drop=True)


def parts(source, claim=None):
    """Every measured difference behind the verdicts, with its interval."""
    table = read("claims")
    table = table[(table["source"] == source) & (table["claim"].eq(claim) if claim else True)]
    shown = table.assign(difference=[f"{r.mean:+.2f} [{r.low:+.2f}, {r.high:+.2f}]" if r.images else "not run"
                                     for r in table[["mean", "low", "high", "images"]].itertuples()])  # fmt: skip
    return shown[["claim", "part", "difference", "images", "verdict"]].reset_index(drop=True)


def tally(source):
    """A sentence: how many claims hold, how many do not, how many cannot be told."""
    verdicts = claims(source)["verdict"]
    count = {k: int((verdicts == k).sum()) for k in (HOLDS, NOT, OPEN)}
    print(f"{len(verdicts)} claims: {count[HOLDS]} hold here, {count[NOT]} do not, {count[OPEN]} cannot be told.")
