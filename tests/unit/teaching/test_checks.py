"""Every exercise: right answers pass, each usual mistake gets its own hint, an unfilled stub a friendly line."""

import ast
from pathlib import Path

import answers_attention
import answers_gradients
import answers_judging
import answers_replicating
import pytest
import torch

from gmar_utils.metrics import iou
from gmar_utils.teaching import checks
from gmar_utils.teaching.checks import engine

PARTS = (answers_attention, answers_gradients, answers_judging, answers_replicating)
RIGHT = {name: answer for part in PARTS for name, answer in part.RIGHT.items()}
WRONG = [entry for part in PARTS for entry in part.WRONG]
roll, lazy = answers_attention.roll, answers_attention.lazy


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass(said, name):
    assert said(name, RIGHT[name]).startswith(f"✓ {name}: right.")
    assert engine._results == {name: True}


@pytest.mark.parametrize(("name", "answer", "words"), WRONG, ids=[f"{n}-{w}" for n, _, w in WRONG])
def test_a_usual_mistake_gets_its_hint(said, name, answer, words):
    text = said(name, answer)
    assert text.startswith(f"✗ {name}: ") and words in text, text
    assert engine._results == {name: False}


def test_every_exercise_is_tested():
    assert set(RIGHT) == set(checks.EXERCISES) and len(RIGHT) == sum(len(part.RIGHT) for part in PARTS)
    assert {name for name, _, _ in WRONG} == set(RIGHT)
    assert {e.level for e in checks.EXERCISES.values()} == set(checks.LEVELS)


def test_an_editor_sees_every_check():
    """Each is an import that stands in the package's own source, under a name that no library function has."""
    tree = ast.parse(Path(checks.__file__).read_text(encoding="utf8"))
    seen = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    for name, exercise in checks.EXERCISES.items():
        assert f"check_{name}" in seen and getattr(checks, f"check_{name}") is exercise.check
    assert seen == set(checks.__all__)


def half_filled(*_):
    r = ...
    return r[:, 0]


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("stub", [None, ..., lambda *a: ..., lambda *a: None, lambda *a: (..., ...), half_filled])
def test_an_unfilled_stub_is_met_with_a_friendly_line(said, name, stub):
    if name == "unused_rows" and callable(stub):
        pytest.skip("this exercise takes a set, not a function")
    assert "not filled in yet" in said(name, stub)
    assert engine._results == {}


def test_library_iou_is_what_the_exercise_asks_for(said):
    assert said("iou", lambda v, m, t: iou(v[None], m[None], threshold=t)[0]).startswith("✓")


def test_other_mistakes_get_the_error_the_shape_or_a_number(said):
    def broken(attentions):
        raise KeyError("layer 7")

    assert "stopped with KeyError: 'layer 7'" in said("rollout", broken)
    assert "must have shape (2, 7), got (3,)" in said("rollout", lambda t: torch.zeros(3))
    assert "one entry should be" in said("rollout", lambda t: torch.full((2, 7), 0.123))
    assert "NaN or infinity" in said("rollout", lambda t: torch.full((2, 7), torch.nan))
    assert "must be a tensor or number, got str" in said("rollout", lambda t: "cat")
    assert "pass the function itself" in said("rollout", torch.zeros(2, 7))


def test_lists_and_arrays_are_answers_too(said):
    assert "✓" in said("rollout", lambda t: roll(t, lazy).tolist())
    assert "✓" in said("rollout", lambda t: roll(t, lazy).numpy())


def test_a_solution_counts_for_nothing_and_must_be_right(capsys):
    checks.check_rollout(RIGHT["rollout"], solution=True)
    assert engine._results == {} and "✓" in capsys.readouterr().out
    for wrong in (lambda t: roll(t, lazy, reverse=False), ...):
        with pytest.raises(AssertionError, match="rollout"):
            checks.check_rollout(wrong, solution=True)


def test_report_is_one_line_that_verifies(capsys):
    checks.check_rollout(RIGHT["rollout"])
    checks.check_softmax(lambda s: s.softmax(-2))
    line = checks.report("Ada | Lovelace")
    assert capsys.readouterr().out.endswith(line + "\n") and "\n" not in line
    assert line.startswith(f"Ada / Lovelace | 1 of {len(checks.EXERCISES)} | rollout=1 softmax=0 | ")
    assert checks.verify(line) and checks.verify(f"  {line}\n")
    assert not checks.verify(line.replace("softmax=0", "softmax=1"))
    assert not checks.verify(line.replace("Ada", "Bob")) and not checks.verify("")


def test_a_later_right_answer_replaces_a_wrong_one(capsys):
    checks.check_softmax(lambda s: s.softmax(-2))
    checks.check_softmax(RIGHT["softmax"])
    assert engine._results == {"softmax": True}


def test_report_without_any_answer(capsys):
    assert "| 0 of " in checks.report("  ") and "anonymous" in capsys.readouterr().out
    assert "| 0 of 5 |" in checks.report(of=5)


def test_contents_lists_every_exercise(capsys):
    checks.contents()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(checks.EXERCISES)
    assert all("min" in text and text.startswith("chapter ") for text in lines)
