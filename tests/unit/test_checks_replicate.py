"""The checks of chapters 9 to 11: right answers pass, each usual mistake gets its own hint."""

import pytest
import torch

from gmar_utils.teaching import checks


def said(capsys, name, answer):
    checks.EXERCISES[name].check(answer)
    return capsys.readouterr().out


def verdict(low, high, threshold):
    return "holds" if low > threshold else "does not" if high < threshold else "cannot be told"


def interval(a, b, draws):
    return torch.quantile((a - b)[draws].mean(1), torch.tensor([0.025, 0.975]))


def empty(mask):
    return 100 * (mask == 0).sum() / (mask != 255).sum()


def read_out(chains, prefix, grid):
    return chains[:, :, 0, prefix:].mean(1).unflatten(1, grid)


RIGHT = {"verdict": verdict, "paired_interval": interval, "empty_accuracy": empty, "read_out": read_out}
WRONG = [
    ("verdict", lambda low, high, t: "holds" if (low + high) / 2 > t else "does not", "lies inside"),
    ("verdict", lambda low, high, t: verdict(low, high, 0), "not with 0"),
    ("verdict", lambda low, high, t: {"holds": "does not", "does not": "holds"}.get(v := verdict(low, high, t), v),
     "swapped"),
    ("paired_interval", lambda a, b, d: (a.sort().values[[1, 58]] - b.sort().values[[1, 58]]), "is off"),
    ("paired_interval", lambda a, b, d: interval(b, a, d), "turn it round"),
    ("paired_interval", lambda a, b, d: torch.quantile(a - b, torch.tensor([0.025, 0.975])), "single images"),
    ("paired_interval", lambda a, b, d: (a - b).mean(), "two ends"),
    ("paired_interval", lambda a, b, d: ((a - b)[d].mean(1).min(), (a - b)[d].mean(1).max()), "smallest"),
    ("paired_interval", lambda a, b, d: torch.quantile((a - b)[d].mean(1), torch.tensor([0.05, 0.95])), "90"),
    ("paired_interval",
     lambda a, b, d: torch.quantile(a[d].mean(1) - b[d.flip(0)].mean(1), torch.tensor([0.025, 0.975])), "pair them"),
    ("empty_accuracy", lambda mask: (mask == 0).sum() / (mask != 255).sum(), "times 100"),
    ("empty_accuracy", lambda mask: 100 * (mask == 0).float().mean(), "void counts neither"),
    ("empty_accuracy", lambda mask: 100 * (mask != 1).float().mean(), "out of the total"),
    ("empty_accuracy", lambda mask: 100 * (mask == 1).sum() / (mask != 255).sum(), "object's share"),
    ("read_out", lambda c, p, g: c[:, 0, 0, p:].unflatten(1, g), "head 0 only"),
    ("read_out", lambda c, p, g: c[:, 0, 1:].reshape(len(c), -1, *g), "drops the"),
    ("read_out", lambda c, p, g: c[:, 0, 1:].reshape(len(c), -1, *g).mean(1), "hides that"),
    ("read_out", lambda c, p, g: c[:, :, 0, p:].sum(1).unflatten(1, g), "take the mean"),
    ("read_out", lambda c, p, g: c[:, :, p:, 0].mean(1).unflatten(1, g), "a column"),
    ("read_out", lambda c, p, g: c[..., p:].mean((1, 2)).unflatten(1, g), "row 0"),
    ("read_out", lambda c, p, g: c[:, :, 0, p:].mean(1), "reshape"),
]  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass(capsys, name):
    assert "✓" in said(capsys, name, RIGHT[name])
    assert "not filled in" in said(capsys, name, lambda *a: ...)


@pytest.mark.parametrize(("name", "answer", "hint"), WRONG, ids=[f"{n}-{h}" for n, _, h in WRONG])
def test_mistakes_get_their_hint(capsys, name, answer, hint):
    out = said(capsys, name, answer)
    assert "✗" in out and hint in out
