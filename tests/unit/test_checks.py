"""The exercise machinery, and the checks of chapters 1 to 4: each usual mistake gets its own hint."""

import pytest
import torch

from gmar_utils.teaching import checks
from gmar_utils.teaching.checks import engine


@pytest.fixture(autouse=True)
def clean_slate(monkeypatch):
    monkeypatch.setattr(engine, "_results", {})


def said(capsys, name, answer):
    checks.EXERCISES[name].check(answer)
    return capsys.readouterr().out


def share(x):
    return x / x.sum(1, keepdim=True)


def fuse(a, w):
    return torch.einsum("bh,bhij->bij", w, a)


def fused(attentions, weights):
    return [fuse(a, w) for a, w in zip(attentions, weights, strict=True)]


def roll(attentions, step, reverse=True):
    order = attentions[::-1] if reverse else attentions
    r = step(order[0])
    for a in order[1:]:
        r = r @ step(a)
    return r[:, 0]


def lazy(a):
    return (a.mean(1) + torch.eye(a.shape[-1])) / 2


def recursion(attentions, weights, alpha, fuse=fuse, after=None):
    eye = torch.eye(attentions[0].shape[-1])
    r = eye
    for a, w in zip(attentions, weights, strict=True):
        r = r @ fuse(a, w) + (alpha * eye if after is None else after)
    return r[:, 0]


def line(attentions, weights, last=True):
    eye = torch.eye(attentions[0].shape[-1])
    constant, slope = eye, torch.zeros_like(eye)
    for a, w in zip(attentions, weights, strict=True):
        constant, slope = constant @ fuse(a, w), slope @ fuse(a, w) + eye
    return constant[:, 0], (slope if last else slope - eye)[:, 0]


def generic(attentions, gradients, step, keep=True, reverse=False):
    r = torch.eye(attentions[0].shape[-1])
    for a, g in zip(attentions, gradients, strict=True):
        s = step(a, g)
        r = (r if keep else 0) + (r @ s if reverse else s @ r)
    return r[:, 0]


def picture(scores, prefix, grid):
    return scores[:, prefix:].unflatten(1, grid)


def own(step):
    return lambda t: t.patches(sum(step(a, g) for a, g in zip(t.attentions, t.gradients, strict=True)))


RIGHT = {
    "token_count": lambda h, w, p, prefix: (h // p) * (w // p) + prefix,
    "softmax": lambda s: s.softmax(-1),
    "attention": lambda q, k: (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1),
    "cls_map": lambda a, p, grid: picture(a.mean(1)[:, 0], p, grid),
    "laziness": lambda alpha: alpha / (1 + alpha),
    "unused_rows": [1, 2],
    "residual": lazy,
    "rollout": lambda attentions: roll(attentions, lazy),
    "gmar_weights": lambda g, norm: share(torch.linalg.vector_norm(g, ord=int(norm[1]), dim=(2, 3))),
    "fuse": fuse,
    "gmar": recursion,
    "alpha_line": line,
    "tie": lambda c, s, i, j: (c[j] - c[i]) / (s[i] - s[j]),
    "legrad_layer": lambda g, p, grid: picture(g.relu().mean((1, 2)), p, grid),
    "gradcam": lambda x, d, p, grid: picture((x * d[:, p:].mean(1, keepdim=True)).sum(-1).relu(), p, grid),
    "gradient_rollout": lambda a, g: generic(a, g, lambda a, g: (g * a).relu().mean(1)),
    "my_method": own(lambda a, g: (g * a).relu().sum((1, 2))),
}

# (exercise, a plausible mistake, words that only the hint for this mistake holds)
WRONG = [
    ("token_count", lambda h, w, p, prefix: (h // p) * (w // p), "prefix tokens"),
    ("token_count", lambda h, w, p, prefix: h // p + prefix, "one side only"),
    ("token_count", lambda h, w, p, prefix: (h // p) ** 2 + prefix, "need not be square"),
    ("token_count", lambda h, w, p, prefix: h * w + prefix, "not pixels"),
    ("softmax", lambda s: s.softmax(-2), "columns sum to 1"),
    ("softmax", lambda s: s.exp() / s.exp().sum(-1), "keepdim=True"),
    ("softmax", lambda s: s.exp() / s.exp().sum(), "whole matrix"),
    ("softmax", lambda s: s / s.sum(-1, keepdim=True), "exponential is missing"),
    ("softmax", lambda s: s.exp(), "divide each row"),
    ("softmax", lambda s: s.exp() / s.exp().sum(-1, keepdim=True), "overflows"),
    ("attention", lambda q, k: (q @ k.mT).softmax(-1), "scale is missing"),
    ("attention", lambda q, k: (q @ k.mT / q.shape[-1]).softmax(-1), "not by d"),
    ("attention", lambda q, k: (k @ q.mT / q.shape[-1] ** 0.5).softmax(-1), "swapped"),
    ("attention", lambda q, k: (q @ k.mT / q.shape[-1] ** 0.5).softmax(-2), "over the queries"),
    ("attention", lambda q, k: (q @ k.mT / q.shape[-1] ** 0.5).softmax(1), "over the heads"),
    ("attention", lambda q, k: q @ k.mT / q.shape[-1] ** 0.5, "softmax is still missing"),
    ("cls_map", lambda a, p, grid: a.mean(1)[:, 0], "drop the first `prefix` columns before"),
    ("cls_map", lambda a, p, grid: a.mean(1)[:, 0, :-p].unflatten(1, grid), "not the last"),
    ("cls_map", lambda a, p, grid: picture(a[:, 0, 0], p, grid), "head 0 only"),
    ("cls_map", lambda a, p, grid: picture(a.sum(1)[:, 0], p, grid), "that is the sum over heads"),
    ("cls_map", lambda a, p, grid: a.mean(1)[:, p:, 0].unflatten(1, grid), "that is a column"),
    ("cls_map", lambda a, p, grid: picture(a.mean((1, 2)), p, grid), "mean over all queries"),
    ("cls_map", lambda a, p, grid: picture(a.mean(1)[:, 0], p, grid[::-1]), "row by row"),
    ("cls_map", lambda a, p, grid: a.mean(1)[:, 0, p:], "a map is a picture"),
    ("laziness", lambda alpha: 1 / (1 + alpha), "the rest stays"),
    ("laziness", lambda alpha: alpha, "at most 1"),
    ("laziness", lambda alpha: 1 - alpha, "never leave"),
    ("unused_rows", {0}, "row 0 is [CLS]"),
    ("unused_rows", {0, 1, 2}, "row 0 is [CLS]"),
    ("unused_rows", {1}, "more rows than you name"),
    ("residual", lambda a: a.mean(1) + torch.eye(7), "rows sum to 2"),
    ("residual", lambda a: (a.mean(1) + 1) / 2, "adding 1 adds to every entry"),
    ("residual", lambda a: (a.mean(1) + 1) / (a.mean(1) + 1).sum(-1, keepdim=True), "after you divided"),
    ("residual", lambda a: a.mean(1), "residual is missing"),
    ("residual", lambda a: (a[:, 0] + torch.eye(7)) / 2, "head 0 only"),
    ("residual", lambda a: (a.sum(1) + torch.eye(7)) / 5, "sums the heads"),
    ("residual", lambda a: 2 * lazy(a) / (2 * lazy(a)).sum(-2, keepdim=True), "columns sum to 1"),
    ("rollout", lambda t: roll(t, lazy, reverse=False), "product is reversed"),
    ("rollout", lambda t: roll(t, lambda a: 2 * lazy(a)), "up to a factor"),
    ("rollout", lambda t: roll(t, lambda a: a.mean(1)), "residual is missing"),
    ("rollout", lambda t: roll(t, lambda a: (a[:, 0] + torch.eye(7)) / 2), "head 0 only"),
    ("rollout", lambda t: lazy(t[-1])[:, 0], "last layer only"),
    ("rollout", lambda t: lazy(t[0])[:, 0], "first layer only"),
    ("rollout", lambda t: (lazy(t[2]) @ lazy(t[1]) @ lazy(t[0]))[:, :, 0], "column of the product"),
    ("rollout", lambda t: (lazy(t[2]) * lazy(t[1]) * lazy(t[0]))[:, 0], "entry by entry"),
    ("rollout", lambda t: sum(lazy(a) for a in t)[:, 0] / 3, "average of the layers"),
    ("rollout", lambda t: lazy(t[2]) @ lazy(t[1]) @ lazy(t[0]), "whole matrix"),
    ("gmar_weights", lambda g, norm: g.abs().sum((2, 3)), "divide by their sum"),
    ("gmar_weights", lambda g, norm: g.abs().sum((2, 3)) / g.abs().sum((1, 2, 3)), "keepdim=True"),
    ("gmar_weights", lambda g, norm: g.abs().sum((2, 3)) / g.abs().sum((0, 2, 3)), "not over the batch"),
    ("gmar_weights", lambda g, norm: g.abs().sum((2, 3)) / g.abs().sum(), "over the whole batch"),
    ("gmar_weights", lambda g, norm: g.abs().sum((2, 3)).softmax(1), "softmax is another way"),
    ("gmar_weights", lambda g, norm: share(g.sum((2, 3))), "absolute values before"),
    ("gmar_weights", lambda g, norm: share(g.sum((2, 3)).abs()), "inside the sum"),
    ("gmar_weights", lambda g, norm: share(g.abs().sum(3)), "both token axes"),
    ("gmar_weights", lambda g, norm: torch.full(g.shape[:2], 0.25), "every head gets the same"),
    ("gmar_weights", lambda g, norm: share(g.norm(dim=(2, 3))), "that is L2"),
    ("gmar_weights", lambda g, norm: share((g.abs() if norm == "l1" else g * g).sum((2, 3))), "root is missing"),
    ("gmar_weights", lambda g, norm: share(g.abs().sum((2, 3))), "you returned the L1 weights"),
    ("gmar_weights", lambda g, norm: share(g.abs().sum((2, 3))) if norm == "l1" else g.norm(dim=(2, 3)),
     "those are the norms"),
    ("fuse", lambda a, w: a.mean(1), "plain mean"),
    ("fuse", lambda a, w: (a * w[:, :, None, None]).mean(1), "divides by H once more"),
    ("fuse", lambda a, w: a * w[:, :, None, None], "not yet summed"),
    ("fuse", lambda a, w: a[:, 0] * w[:, 0, None, None], "head 0 only"),
    ("fuse", lambda a, w: a.sum(1), "plain sum"),
    ("gmar", lambda a, w, alpha: recursion(a, w, 1.0), "result for α = 1"),
    ("gmar", lambda a, w, alpha: recursion(a, w, 0.0), "nothing is added"),
    ("gmar", lambda a, w, alpha: roll(fused(a, w), lambda m: m + alpha * torch.eye(7), False),
     "the other reading. Eq. 3"),
    ("gmar", lambda a, w, alpha: roll(fused(a, w), lambda m: (m + alpha * torch.eye(7)) / (1 + alpha), False),
     "scaled"),
    ("gmar", lambda a, w, alpha: recursion(a[::-1], w[::-1], alpha), "from the last to the first"),
    ("gmar", lambda a, w, alpha: recursion(a, w, alpha, fuse=lambda a, w: a.mean(1)), "head weights are not used"),
    ("gmar", lambda a, w, alpha: recursion(a, w, alpha, after=alpha), "every entry"),
    ("alpha_line", lambda a, w: sum(line(a, w)), "return two tensors"),
    ("alpha_line", lambda a, w: line(a, w)[::-1], "swapped"),
    ("alpha_line", lambda a, w: (sum(line(a, w)), line(a, w)[1]), "the constant is the result at α = 0"),
    ("alpha_line", lambda a, w: (torch.zeros(2, 7), line(a, w)[1]), "not with zero"),
    ("alpha_line", lambda a, w: (line(a, w)[0], sum(line(a, w))), "subtract the constant"),
    ("alpha_line", lambda a, w: line(a, w, last=False), "last layer is missing"),
    ("alpha_line", lambda a, w: (line(a, w)[0], line(a[1:], w[1:])[1]), "longest product"),
    ("tie", lambda c, s, i, j: (c[i] - c[j]) / (s[i] - s[j]), "sign is turned"),
    ("tie", lambda c, s, i, j: (s[i] - s[j]) / (c[j] - c[i]), "upside down"),
    ("legrad_layer", lambda g, p, grid: picture(g.mean((1, 2)), p, grid), "ReLU is missing"),
    ("legrad_layer", lambda g, p, grid: picture(g.mean((1, 2)).relu(), p, grid), "ReLU comes first"),
    ("legrad_layer", lambda g, p, grid: picture(g.mean(1).relu().mean(1), p, grid), "before the mean over heads"),
    ("legrad_layer", lambda g, p, grid: picture(g.abs().mean((1, 2)), p, grid), "abs keeps"),
    ("legrad_layer", lambda g, p, grid: picture(g.relu().mean(1)[:, 0], p, grid), "row of [CLS]"),
    ("legrad_layer", lambda g, p, grid: picture(g.relu().mean((1, 3)), p, grid), "mean over keys"),
    ("legrad_layer", lambda g, p, grid: g.relu().mean((1, 2)), "drop the first `prefix` keys"),
    ("legrad_layer", lambda g, p, grid: picture(g.relu()[:, 0].mean(1), p, grid), "head 0 only"),
    ("legrad_layer", lambda g, p, grid: picture(g.relu().sum((1, 2)), p, grid), "sum over heads and queries"),
    ("gradcam", lambda x, d, p, grid: picture((x * d[:, p:].mean(1, keepdim=True)).sum(-1), p, grid),
     "missing at the end"),
    ("gradcam", lambda x, d, p, grid: picture((x * d[:, p:].mean(1, keepdim=True)).relu().sum(-1), p, grid),
     "not before"),
    ("gradcam", lambda x, d, p, grid: picture((x * d.mean(1, keepdim=True)).sum(-1).relu(), p, grid), "[CLS] is in"),
    ("gradcam", lambda x, d, p, grid: picture((x * d).sum(-1).relu(), p, grid), "patch by patch"),
    ("gradcam", lambda x, d, p, grid: picture((x * d.mean(-1, keepdim=True)).sum(-1).relu(), p, grid),
     "mean over channels"),
    ("gradcam", lambda x, d, p, grid: picture(x.sum(-1).relu(), p, grid), "not weighted"),
    ("gradcam", lambda x, d, p, grid: (x * d[:, p:].mean(1, keepdim=True)).sum(-1).relu(), "drop them"),
    ("gradient_rollout", lambda a, g: generic(a, g, lambda a, g: (g * a).relu().mean(1), reverse=True),
     "order is reversed"),
    ("gradient_rollout", lambda a, g: generic(a, g, lambda a, g: (g * a).mean(1).relu()), "before the mean"),
    ("gradient_rollout", lambda a, g: generic(a, g, lambda a, g: (g * a).mean(1)), "ReLU is missing"),
    ("gradient_rollout", lambda a, g: generic(a, g, lambda a, g: (g * a).relu().mean(1), keep=False), "old R is lost"),
    ("gradient_rollout", lambda a, g: generic(a, g, lambda a, g: a.mean(1)), "gradient is not used"),
    ("gradient_rollout", lambda a, g: generic(a, g, lambda a, g: g.relu().mean(1)), "attention is not used"),
    ("gradient_rollout", lambda a, g: generic(a, g, lambda a, g: (g * a).relu()[:, 0]), "head 0 only"),
    ("my_method", own(lambda a, g: a.mean((1, 2))), "the same for both classes"),
    ("my_method", own(lambda a, g: -(g * a).relu().sum((1, 2))), "mostly from the cat patch"),
    ("my_method", own(lambda a, g: (g * a).relu().sum((0, 1, 2)).expand(len(a), -1)), "on its own"),
    ("my_method", lambda t: t.attentions[0].mean(1), "return a map"),
]  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass(capsys, name):
    assert said(capsys, name, RIGHT[name]).startswith(f"✓ {name}: right.")
    assert engine._results == {name: True}


@pytest.mark.parametrize(("name", "answer", "words"), WRONG, ids=[f"{n}-{w}" for n, _, w in WRONG])
def test_a_usual_mistake_gets_its_hint(capsys, name, answer, words):
    text = said(capsys, name, answer)
    assert text.startswith(f"✗ {name}: ") and words in text
    assert engine._results == {name: False}


def test_every_exercise_of_these_chapters_is_tested():
    ours = {name for name, e in checks.EXERCISES.items() if 1 <= e.chapter <= 4}
    assert ours == set(RIGHT) and len(ours) >= 12
    assert {name for name, _, _ in WRONG} == ours
    assert {checks.EXERCISES[n].level for n in ours} == set(checks.LEVELS)


def half_filled(*_):
    r = ...
    return r[:, 0]


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("stub", [None, ..., lambda *a: ..., lambda *a: None, lambda *a: (..., ...), half_filled])
def test_an_unfilled_stub_is_met_with_a_friendly_line(capsys, name, stub):
    if name == "unused_rows" and callable(stub):
        pytest.skip("this exercise takes a set, not a function")
    assert "not filled in yet" in said(capsys, name, stub)
    assert engine._results == {}


def test_other_mistakes_get_the_error_the_shape_or_a_number(capsys):
    def broken(attentions):
        raise KeyError("layer 7")

    assert "stopped with KeyError: 'layer 7'" in said(capsys, "rollout", broken)
    assert "must have shape (2, 7), got (3,)" in said(capsys, "rollout", lambda t: torch.zeros(3))
    assert "one entry should be" in said(capsys, "rollout", lambda t: torch.full((2, 7), 0.123))
    assert "NaN or infinity" in said(capsys, "rollout", lambda t: torch.full((2, 7), torch.nan))
    assert "must be a tensor or number, got str" in said(capsys, "rollout", lambda t: "cat")
    assert "pass the function itself" in said(capsys, "rollout", torch.zeros(2, 7))


def test_lists_and_arrays_are_answers_too(capsys):
    assert "✓" in said(capsys, "rollout", lambda t: roll(t, lazy).tolist())
    assert "✓" in said(capsys, "rollout", lambda t: roll(t, lazy).numpy())


def test_a_solution_counts_for_nothing_and_must_be_right(capsys):
    checks.rollout(RIGHT["rollout"], solution=True)
    assert engine._results == {} and "✓" in capsys.readouterr().out
    for wrong in (lambda t: roll(t, lazy, reverse=False), ...):
        with pytest.raises(AssertionError, match="rollout"):
            checks.rollout(wrong, solution=True)


def test_report_is_one_line_that_verifies(capsys):
    checks.rollout(RIGHT["rollout"])
    checks.softmax(lambda s: s.softmax(-2))
    line = checks.report("Ada | Lovelace")
    assert capsys.readouterr().out.endswith(line + "\n") and "\n" not in line
    assert line.startswith(f"Ada / Lovelace | 1 of {len(checks.EXERCISES)} | rollout=1 softmax=0 | ")
    assert checks.verify(line) and checks.verify(f"  {line}\n")
    assert not checks.verify(line.replace("softmax=0", "softmax=1"))
    assert not checks.verify(line.replace("Ada", "Bob")) and not checks.verify("")


def test_a_later_right_answer_replaces_a_wrong_one(capsys):
    checks.softmax(lambda s: s.softmax(-2))
    checks.softmax(RIGHT["softmax"])
    assert engine._results == {"softmax": True}


def test_report_without_any_answer(capsys):
    assert "| 0 of " in checks.report("  ") and "anonymous" in capsys.readouterr().out


def test_contents_lists_every_exercise(capsys):
    checks.contents()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(checks.EXERCISES)
    assert all("min" in text and text.startswith("chapter ") for text in lines)
