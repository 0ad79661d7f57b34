"""The rules of 'Which method for my ViT?', against the tables that they read."""

import pandas as pd
import pytest

from gmar_utils.teaching.results import decide, show

ASKED = decide.QUESTIONS


@pytest.mark.parametrize(
    ("low", "high", "sign", "expected"),
    [(1.1, 2, 1, "✓"), (0, 0.9, 1, "✗"), (0.9, 1.1, 1, "?"), (0, 0.9, -1, "✓"), (1.1, 2, -1, "✗"), (0.9, 1.1, -1, "?")],
)
def test_an_interval_answers(low, high, sign, expected):
    question = ASKED["faithful"]._replace(sign=sign)
    assert decide.answer(question, "gmar", low, high, 1.0) == expected


def test_some_get_no_tick_whatever_their_numbers():
    for label in ("random", "center", "rollout", "rollout-report", "attention", "gmar-none-paper"):
        assert decide.answer(ASKED["which"], label, 90, 99, 50) == "✗"
    assert decide.answer(ASKED["faithful"], "random", 90, 99, 50) == "✗"
    assert decide.answer(ASKED["faithful"], "rollout", 90, 99, 50) == "✓"


def test_the_page_says_what_the_tables_say():
    found = decide.answers()
    assert set(found.loc["random"]) == {"✗"} and set(found.loc["center"]) == {"✗"}
    for name, question in ASKED.items():
        whole, ticked = question.rows().set_index("method"), found.index[found[name] == "✓"]
        for label in ticked:
            table = whole if label in whole.index else question.smaller().set_index("method")
            bar = question.bar(table)
            assert (table.loc[label, "low"] > bar) if question.sign > 0 else (table.loc[label, "high"] < bar)
            assert not (question.of_class and decide.blind(label))
        assert len(ticked), f"no method passes {name}: does the page still say something?"
    order = decide.rows("tiny-imagenet", "srg").set_index("method")["mean"].reindex(found.index)
    assert order.is_monotonic_decreasing
    assert decide.passing(pd.DataFrame({"a": ["✓", "✗"], "b": ["✓", "✓"]}, index=["x", "y"]), "a", "b") == ["x"]


def test_the_advice_is_what_the_table_says():
    found = decide.answers()
    every = decide.passing(found, *ASKED)
    said = decide.advice(found)
    assert said.startswith(f"**If you show one map, show {show.title_of(every[0])}.** {len(every)} maps")
    assert all(show.title_of(m) in said for m in every)
    assert not [m for m in every if m.startswith(("gmar", "rollout"))], "the title of the figure says so"
    assert "**GMAR is not one of them.**" in said
    nothing = decide.advice(found.replace("✓", "?"))
    assert "No method" in nothing


def test_methods_have_one_name():
    """Labels of tables become the names of the registry, also inside a text; other words stay."""
    assert show.title_of("chefer") == "Gradient attention rollout"
    assert show.named("Avg Drop: gmar-l1-paper below rollout-report") == (
        "Avg Drop: GMAR (L1, paper) below Attention rollout (report)"
    )
    assert show.named("twice rollout above gmar") == "twice Attention rollout above GMAR"
    assert (
        show.named("l1: largest weight > 1.1") == "l1: largest weight > 1.1" and show.title_of("forward") == "forward"
    )
