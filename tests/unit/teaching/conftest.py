"""What the tests of the exercises share."""

import pytest

from gmar_utils.teaching.checks import EXERCISES, engine


@pytest.fixture(autouse=True)
def clean_slate(monkeypatch):
    """No answer counts beyond its test."""
    monkeypatch.setattr(engine, "_results", {})


@pytest.fixture
def said(capsys):
    """What a check prints about an answer: said(exercise, answer)."""

    def ask(name, answer):
        EXERCISES[name].check(answer)
        return capsys.readouterr().out

    return ask
