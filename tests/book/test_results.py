"""The tables in book/results: made with the bundled weights, with provenance, and verdicts that follow from them."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gmar_utils.evaluation import DEFAULT_METHODS
from gmar_utils.evaluation.summary import interval
from gmar_utils.teaching.results import claims, readings

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "book/results"

TABLES = sorted(p.stem for p in RESULTS.glob("*.json"))
CHAPTERS = [ROOT / f"notebooks/{n}.ipynb" for n in ("09_gmar_table", "10_report_table", "11_audit", "12_decide")]


def cells(notebook, kind):
    found = json.loads(notebook.read_text(encoding="utf8"))["cells"]
    return ["".join(c["source"]) for c in found if c["cell_type"] == kind]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_says_what_made_it(name):
    about = json.loads((RESULTS / f"{name}.json").read_text())
    assert {"command", "date", "commit", "packages", "seed", "wall_time_s"} <= set(about)
    if (RESULTS / f"{name}.csv").exists():
        assert len(pd.read_csv(RESULTS / f"{name}.csv"))


@pytest.mark.parametrize("name", TABLES)
def test_a_table_belongs_to_the_bundled_weights(name):
    """A new checkpoint and its results change together."""
    about = json.loads((RESULTS / f"{name}.json").read_text())
    if "weights_sha256" not in about:
        assert name == "claims" or "model" not in about
        return
    model = about.get("model", "vit-small-tiny-imagenet")
    weights = (ROOT / f"gmar_utils/checkpoints/{model}/model.safetensors").read_bytes()
    assert about["weights_sha256"] == hashlib.sha256(weights).hexdigest(), f"{name}: run make.py {name} again"


def test_every_table_of_the_chapters_is_there():
    read, optional = set(), set()  # the chapter says itself when an optional one was not run
    for chapter in CHAPTERS:
        for source in cells(chapter, "code"):
            optional |= set(re.findall(r'show\.exists\("([\w-]+)"', source))
            read |= set(re.findall(r'(?:show\.(?:read|origin|summary|about)|surviving|scenes)\("([\w-]+)"', source))
    assert {"tiny-imagenet", "voc2012", "audit-tiny-imagenet", "cost"} <= read
    for name in read - optional:
        assert (RESULTS / f"{name}.csv").exists(), name
        assert name == "published" or (RESULTS / f"{name}.json").exists(), name


def test_the_verdicts_follow_from_the_intervals():
    table = pd.read_csv(RESULTS / "claims.csv")
    assert set(table["claim"]) == set(claims.CLAIMS)
    for row in table.itertuples():
        assert row.verdict == claims.verdict(row.low, row.high, row.threshold, row.images, row.margin), row
        assert not row.images or row.low <= row.mean <= row.high
    for name, part in table.groupby("claim"):
        assert len(part) == len(claims.CLAIMS[name].parts)
        assert set(part["claim_verdict"]) == {claims.overall(list(part["verdict"]))}


def test_the_verdicts_were_read_from_these_tables():
    about = json.loads((RESULTS / "claims.json").read_text())
    for job in {part.job for claim in claims.CLAIMS.values() for part in claim.parts}:
        table = RESULTS / f"{job}.csv"
        assert about["tables"].get(job) == (hashlib.sha256(table.read_bytes()).hexdigest() if table.exists() else None)


def test_the_claims_agree_with_the_tables():
    """The difference of two means in a table is the mean of the paired differences behind a verdict."""
    verdicts = pd.read_csv(RESULTS / "claims.csv")
    means = pd.read_csv(RESULTS / "tiny-imagenet.csv").set_index(["metric", "method"])["mean"]
    checked = 0
    for name, claim in claims.CLAIMS.items():
        lines = verdicts[verdicts["claim"] == name].itertuples()
        for part, line in zip(claim.parts, lines, strict=True):
            if part.job == "tiny-imagenet" and part.b:
                sign = -1 if part.metric in ("average_drop", "deletion") else 1
                expected = sign * (means[part.metric, part.a] - means[part.metric, part.b])
                assert line.mean == pytest.approx(expected, abs=3e-4)
                checked += 1
    assert checked > 20


@pytest.mark.parametrize(
    ("low", "high", "threshold", "images", "margin", "expected"),
    [
        (0.1, 2, 0, 1000, 0, claims.HOLDS),
        (-2, -0.1, 0, 1000, 0, claims.NOT),
        (-1, 1, 0, 1000, 0, claims.OPEN),
        (0.1, 1, 1.8, 1000, 0, claims.NOT),
        (0.1, 2, 0, 99, 0, claims.OPEN),
        (np.nan, np.nan, 0, 0, 0, claims.OPEN),
        (0, 0, 0, 1000, 0, claims.OPEN),
        (0.1, 2, 0, 1000, 1, claims.HOLDS),
        (-2, -0.1, 0, 1000, 1, claims.NOT),
        (-0.9, 0.9, 0, 1000, 1, claims.SAME),
        (0.1, 0.9, 0, 1000, 1, claims.SAME),
        (-0.9, -0.1, 0, 1000, 1, claims.SAME),
        (-1.1, 0.9, 0, 1000, 1, claims.OPEN),
        (-0.9, 0.9, 0, 99, 1, claims.OPEN),
        (0, 0, 0, 1000, 1, claims.SAME),
    ],
)
def test_verdict(low, high, threshold, images, margin, expected):
    assert claims.verdict(low, high, threshold, images, margin) == expected


@pytest.mark.parametrize(
    ("mean", "low", "high", "images", "margin", "expected"),
    [
        (1.0, -1.0, 3.0, 100, 0, 400),  # half an interval is 2 and must be 1
        (0.2, -1.4, 1.8, 400, 1.0, 1600),  # 1.6 must become 0.8, so that it lies inside the margin
        (0.9, -0.3, 2.1, 400, 1.0, 712),  # 1.2 must become 0.9
        (1.0, -0.1, 2.1, 50, 0, 100),  # never fewer than a verdict needs
        (0.0, -1.0, 1.0, 100, 0, None),
        (np.nan, np.nan, np.nan, 0, 1.0, None),
    ],
)
def test_how_many_images_would_decide(mean, low, high, images, margin, expected):
    assert claims.needed(mean, low, high, 0.0, images, margin) == expected


def test_a_claim_holds_only_as_a_whole():
    assert claims.overall([claims.HOLDS, claims.HOLDS]) == claims.HOLDS
    assert claims.overall([claims.HOLDS, claims.OPEN]) == claims.OPEN
    assert claims.overall([claims.HOLDS, claims.OPEN, claims.NOT]) == claims.NOT
    assert claims.overall([claims.HOLDS, claims.SAME]) == claims.SAME
    assert claims.overall([claims.SAME, claims.OPEN]) == claims.OPEN
    assert claims.overall([]) == claims.OPEN


def test_a_part_is_positive_where_the_claim_is_right():
    rows = pd.DataFrame(
        {
            "image": [0, 0, 1, 1] * 2,
            "method": ["a", "b"] * 4,
            "metric": ["deletion"] * 4 + ["insertion"] * 4,
            "value": [1.0, 3.0, 2.0, 5.0, 4.0, 1.0, 6.0, 2.0],
        }
    )
    assert claims.Part("j", "deletion", "a", "b").values(rows).tolist() == [2, 3]  # lower is better
    assert claims.Part("j", "insertion", "a", "b").values(rows).tolist() == [3, 4]
    assert claims.Part("j", "insertion", "a", metric_b="deletion").values(rows).tolist() == [3, 4]


def test_an_interval_covers_the_mean():
    values = np.random.default_rng(1).normal(1, 2, 400)
    mean, low, high = interval(values)
    assert mean == pytest.approx(values.mean())
    assert (mean - low, high - mean) == pytest.approx((0.196, 0.196), abs=0.03)  # 1.96 · 2 / √400
    assert interval([1.0, np.nan, 3.0])[0] == 2


def test_the_claims_name_methods_that_exist():
    known = {*DEFAULT_METHODS, "gmar", "rollout", "twice rollout", "l1", "l2"}
    for claim in claims.CLAIMS.values():
        for part in claim.parts:
            assert part.a in known and part.b in {*known, None}


def test_the_released_weights_do_not_matter():
    """Experiment 2 of the audit, on all its images."""
    audit = pd.read_csv(RESULTS / "audit-tiny-imagenet.csv")
    assert set(readings.READINGS) <= set(audit["method"])
    found = audit[audit["metric"] == "rank_correlation_with_released"].set_index("method")["mean"]
    assert found["released, L2 weights"] > 0.99 and found["released, uniform weights"] > 0.99
    assert found["released, all heads"] < 0.9


@pytest.mark.parametrize("name", ["sensitivity-tiny-imagenet", "sensitivity-shapes"])
def test_what_the_chapters_say_about_the_head_weights(name):
    """Chapters 9 and 12: in most settings no effect can be told or none matters, and no list of stable sentences names
    the weights."""
    every = pd.read_csv(RESULTS / f"{name}.csv")
    for row in every.itertuples():
        assert row.verdict == claims.verdict(row.low, row.high, 0, row.images, claims.MARGIN.get(row.metric, 0)), row
    table, unclear = every.query("a == 'gmar' and b == 'uniform'"), {claims.OPEN, claims.SAME}
    assert len(table) > 50
    assert table["verdict"].isin(unclear).mean() > 0.85
    assert all(len(set(part)) > 1 or set(part) <= unclear for _, part in table.groupby("metric")["verdict"])


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda p: p.stem)
def test_no_number_is_typed_into_the_prose(chapter):
    """Measured numbers have decimals or a percent sign; thresholds and code are in backticks or formulae."""
    allowed = {"0.5", "95 %", "30 %"}
    for text in cells(chapter, "markdown"):
        prose = re.sub(r"```.*?```|`[^`]*`|\$[^$]*\$|\(https?:[^)]*\)|Exercise \d+\.\d+", "", text, flags=re.S)
        assert set(re.findall(r"\d+\.\d+|\d+ %", prose)) <= allowed, text
