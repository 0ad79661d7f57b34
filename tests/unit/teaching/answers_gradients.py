"""Right answers and usual mistakes: chapters 3 and 4."""

import torch


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
    return lambda t: sum(step(a, g) for a, g in zip(t.attentions, t.gradients, strict=True))


RIGHT = {
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
    (
        "gmar_weights",
        lambda g, norm: share(g.abs().sum((2, 3))) if norm == "l1" else g.norm(dim=(2, 3)),
        "those are the norms",
    ),
    ("fuse", lambda a, w: a.mean(1), "plain mean"),
    ("fuse", lambda a, w: (a * w[:, :, None, None]).mean(1), "divides by H once more"),
    ("fuse", lambda a, w: a * w[:, :, None, None], "not yet summed"),
    ("fuse", lambda a, w: a[:, 0] * w[:, 0, None, None], "head 0 only"),
    ("fuse", lambda a, w: a.sum(1), "plain sum"),
    ("gmar", lambda a, w, alpha: recursion(a, w, 1.0), "result for α = 1"),
    ("gmar", lambda a, w, alpha: recursion(a, w, 0.0), "nothing is added"),
    (
        "gmar",
        lambda a, w, alpha: roll(fused(a, w), lambda m: m + alpha * torch.eye(7), False),
        "the other reading. Eq. 3",
    ),
    (
        "gmar",
        lambda a, w, alpha: roll(fused(a, w), lambda m: (m + alpha * torch.eye(7)) / (1 + alpha), False),
        "scaled",
    ),
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
    (
        "gradcam",
        lambda x, d, p, grid: picture((x * d[:, p:].mean(1, keepdim=True)).sum(-1), p, grid),
        "missing at the end",
    ),
    (
        "gradcam",
        lambda x, d, p, grid: picture((x * d[:, p:].mean(1, keepdim=True)).relu().sum(-1), p, grid),
        "not before",
    ),
    ("gradcam", lambda x, d, p, grid: picture((x * d.mean(1, keepdim=True)).sum(-1).relu(), p, grid), "[CLS] is in"),
    ("gradcam", lambda x, d, p, grid: picture((x * d).sum(-1).relu(), p, grid), "patch by patch"),
    (
        "gradcam",
        lambda x, d, p, grid: picture((x * d.mean(-1, keepdim=True)).sum(-1).relu(), p, grid),
        "mean over channels",
    ),
    ("gradcam", lambda x, d, p, grid: picture(x.sum(-1).relu(), p, grid), "not weighted"),
    ("gradcam", lambda x, d, p, grid: (x * d[:, p:].mean(1, keepdim=True)).sum(-1).relu(), "drop them"),
    (
        "gradient_rollout",
        lambda a, g: generic(a, g, lambda a, g: (g * a).relu().mean(1), reverse=True),
        "order is reversed",
    ),
    ("gradient_rollout", lambda a, g: generic(a, g, lambda a, g: (g * a).mean(1).relu()), "before the mean"),
    ("gradient_rollout", lambda a, g: generic(a, g, lambda a, g: (g * a).mean(1)), "ReLU is missing"),
    ("gradient_rollout", lambda a, g: generic(a, g, lambda a, g: (g * a).relu().mean(1), keep=False), "old R is lost"),
    ("gradient_rollout", lambda a, g: generic(a, g, lambda a, g: a.mean(1)), "gradient is not used"),
    ("gradient_rollout", lambda a, g: generic(a, g, lambda a, g: g.relu().mean(1)), "attention is not used"),
    ("gradient_rollout", lambda a, g: generic(a, g, lambda a, g: (g * a).relu()[:, 0]), "head 0 only"),
    ("my_method", own(lambda a, g: a.mean((1, 2))), "the same for both classes"),
    ("my_method", own(lambda a, g: -(g * a).relu().sum((1, 2))), "mostly from the cat patch"),
    ("my_method", own(lambda a, g: (g * a).relu().sum((0, 1, 2)).expand(len(a), -1)), "on its own"),
    ("my_method", lambda t: t.attentions[0].mean(1), "a score for each token"),
    ("my_method", lambda t: t.patches(t.gradients[0].mean((1, 2))), "a score for each token"),
    ("my_method", lambda t: (t.attentions[0] * t.gradients[0]).sum((1, 2))[:1], "a batch of 2"),
]
