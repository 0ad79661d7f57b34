"""The exercises of chapters 3 and 4: GMAR and the other maps that use gradients."""

import torch

from ...capture import Trace, trace
from ...methods.weighting import alpha_polynomial, head_weights, weighted_rollout
from .. import three_tokens
from .engine import Hint, ask, case, chain, exercise, expect, same

# chapter 3: GMAR -----------------------------------------------------------------------------------------------


@exercise(3, "medium", 10)
def check_gmar_weights(answer):
    """Gradient of one layer (B, H, N, N) → head weights (B, H): my_weights(g, norm), norm "l1" or "l2\""""
    g = case(seed=6).gradients[0]
    l1, squares = g.abs().sum((2, 3)), g.square().sum((2, 3))
    signed = g.sum((2, 3))
    share = lambda s: s / s.sum(1, keepdim=True)  # noqa: E731
    wrong = {
        "those are the norms; divide by their sum over heads.": l1,
        "divide by the sum over the heads of one image (dim=1), not over the batch.": l1 / l1.sum(0, keepdim=True),
        "divide by the sum over the heads of each image; yours is over the whole batch.": l1 / l1.sum(),
        "softmax is another way to make a sum of 1; the paper divides by the sum.": l1.softmax(1),
        "plus and minus cancel: take absolute values before you sum.": share(signed),
        "plus and minus cancel: the absolute value belongs inside the sum.": share(signed.abs()),
        "one weight a head: sum over both token axes.": g.abs().sum(-1) / g.abs().sum(-1).sum(1, keepdim=True),
        "every head gets the same weight: use the gradient.": torch.full_like(l1, 1 / l1.shape[1]),
    }
    wrong["that is L2; for norm='l1' sum the absolute values."] = share(squares.sqrt())
    expect(ask(answer, g, "l1"), share(l1), wrong, "the L1 weights")
    expect(
        ask(answer, g, "l2"),
        share(squares.sqrt()),
        {
            "the root is missing: L2 is the square root of the sum of squares.": share(squares),
            "for norm='l2' you returned the L1 weights.": share(l1),
            "those are the norms; divide by their sum over heads.": squares.sqrt(),
            "take the root of the sum, not the sum of the roots.": share(g.square().sqrt().sum((2, 3))),
        },
        "the L2 weights",
    )


@exercise(3, "warm-up", 5)
def check_fuse(answer):
    """Attention (B, H, N, N), weights (B, H) → weighted sum over heads (B, N, N): my_fuse(a, w)"""
    c = case(seed=7)
    a, w = c.attentions[0], head_weights(c.gradients, "l1")[0]
    right = torch.einsum("bh,bhij->bij", w, a)
    expect(
        ask(answer, a, w),
        right,
        {
            "that is the plain mean; use the weights.": a.mean(1),
            "sum over heads; the mean divides by H once more, and the weights already sum to 1.": right / a.shape[1],
            "the heads are weighted but not yet summed.": a * w[:, :, None, None],
            "that is head 0 only; sum over all heads.": w[:, :1, None] * a[:, 0],
            "that is the plain sum; use the weights.": a.sum(1),
        },
        "the fused attention",
    )


@exercise(3, "medium", 15)
def check_gmar(answer):
    """The [CLS] row (B, N) of R ← R Â + αI: my_gmar(attentions, weights, alpha)"""
    c = case(seed=8)
    weights, start = head_weights(c.gradients, "l1"), torch.eye(7)[0]
    for alpha in (0.5, 2.0):
        args = (c.attentions, weights, start)
        reverse = (c.attentions[::-1], weights[::-1], start)
        uniform = (c.attentions, head_weights(c.gradients, None), start)
        product = weighted_rollout(*args, alpha, "report")
        expect(
            ask(answer, c.attentions, weights, alpha),
            weighted_rollout(*args, alpha),
            {
                "α is forgotten: that is the result for α = 1.": weighted_rollout(*args, 1.0),
                "α is forgotten: nothing is added after each layer.": weighted_rollout(*args, 0.0),
                "that is the product of (Â + αI), the other reading. Eq. 3 adds αI after the multiplication.": product
                * (1 + alpha) ** 3,
                "that is the product of (Â + αI), scaled. Eq. 3 adds αI after the multiplication.": product,
                "the layers run from the last to the first; Eq. 3 as printed starts with the first.": weighted_rollout(
                    *reverse, alpha
                ),
                "the head weights are not used: that is the plain mean over heads.": weighted_rollout(*uniform, alpha),
                "αI is added to every entry; I is the identity matrix.": _eq3_ones(*args, alpha),
            },
            f"the [CLS] row at α = {alpha:g}",
        )


def _eq3_ones(attentions, weights, start, alpha):
    r = torch.eye(7).expand(2, -1, -1)
    for a, w in zip(attentions, weights, strict=True):
        r = r @ torch.einsum("bh,bhij->bij", w, a) + alpha
    return r[:, 0]


@exercise(3, "hard", 20)
def check_alpha_line(answer):
    """GMAR's [CLS] row is constant + α·slope; return both, each (B, N): my_line(attentions, weights)"""
    c = case(seed=9)
    weights, start = head_weights(c.gradients, "l1"), torch.eye(7)[0]
    constant, slope = alpha_polynomial(c.attentions, weights, start).unbind(1)
    result = ask(answer, c.attentions, weights)
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise Hint("return two tensors: constant, slope.")
    if same(torch.as_tensor(result[0]).float(), slope) and same(torch.as_tensor(result[1]).float(), constant):
        raise Hint("constant and slope are swapped.")
    expect(
        result[0],
        constant,
        {
            "that is the result at α = 1; the constant is the result at α = 0.": constant + slope,
            "the constant starts with the [CLS] row of I, not with zero.": torch.zeros_like(constant),
        },
        "the constant",
    )
    expect(
        result[1],
        slope,
        {
            "that is the result at α = 1; subtract the constant.": constant + slope,
            "the I of the last layer is missing in the slope.": slope - start,
            "every layer adds one I to the slope, also the first; yours lacks the longest product.": alpha_polynomial(
                c.attentions[1:], weights[1:], start
            )[:, 1],
        },
        "the slope",
    )


@exercise(3, "medium", 10)
def check_tie(answer):
    """The α at which two patches of GMAR's map are equally bright: my_tie(constant, slope, i, j), both (N,)"""
    constant, slope = torch.tensor([0.35, 0.28, 0.37]), torch.tensor([1.2, 0.52, 0.28])
    expect(
        ask(answer, constant, slope, 1, 2),
        0.375,
        {
            "the sign is turned: at the tie the differences cancel, c₁ − c₂ + α (s₁ − s₂) = 0.": -0.375,
            "turned upside down: α is a difference of constants divided by a difference of slopes.": 1 / 0.375,
        },
        "α for the three-token ViT",
    )
    constant, slope = torch.tensor([0.1, 0.5, 0.2]), torch.tensor([0.3, 0.1, 0.2])
    expect(ask(answer, constant, slope, 0, 1), 2.0, what="α for other numbers")


# chapters 4 and 4b: gradients --------------------------------------------------------------------------------------


@exercise(4, "medium", 10)
def check_legrad_layer(answer):
    """Gradient of one layer (B, H, N, N) → LeGrad's map of that layer (B, R, C): my_legrad(g, prefix, grid)"""
    c = case(seed=10)
    g, p = c.gradients[0], c.prefix
    picture = lambda t: t[:, p:].unflatten(1, c.grid)  # noqa: E731
    relu = g.clamp_min(0)
    expect(
        ask(answer, g, p, c.grid),
        picture(relu.mean((1, 2))),
        {
            "ReLU is missing: negative gradients count as 0.": picture(g.mean((1, 2))),
            "ReLU comes first, then the mean; after the mean, plus and minus have cancelled.": picture(
                g.mean((1, 2)).relu()
            ),
            "ReLU comes before the mean over heads, too.": picture(g.mean(1).relu().mean(1)),
            "abs keeps the negative gradients; ReLU makes them 0.": picture(g.abs().mean((1, 2))),
            "that is the row of [CLS]; LeGrad takes the mean over all queries.": picture(relu.mean(1)[:, 0]),
            "that is the mean over keys; average over queries (dim 2), so that keys remain.": picture(
                relu.mean((1, 3))
            ),
            "prefix tokens are not patches: drop the first `prefix` keys, then reshape.": relu.mean((1, 2)),
            "head 0 only; take the mean over all heads.": picture(relu[:, 0].mean(1)),
            "that is the sum over heads and queries; take the mean.": picture(relu.sum((1, 2))),
        },
        "the map",
    )


@exercise(4, "medium", 12)
def check_gradcam(answer):
    """Activation and gradient (B, N, D) → Grad-CAM (B, R, C): my_gradcam(activation, gradient, prefix, grid)"""
    g = torch.Generator().manual_seed(11)
    x, d = torch.randn(2, 2, 7, 5, generator=g).unbind(0)
    picture = lambda t: t[:, 1:].unflatten(1, (2, 3))  # noqa: E731
    weights = d[:, 1:].mean(1, keepdim=True)
    expect(
        ask(answer, x, d, 1, (2, 3)),
        picture((x * weights).sum(-1).relu()),
        {
            "ReLU is missing at the end.": picture((x * weights).sum(-1)),
            "ReLU comes after the sum over channels, not before.": picture((x * weights).relu().sum(-1)),
            "[CLS] is in your channel weights: average the gradient over the patches only.": picture(
                (x * d.mean(1, keepdim=True)).sum(-1).relu()
            ),
            "that is gradient times activation, patch by patch; average the gradient over the patches first.": picture(
                (x * d).sum(-1).relu()
            ),
            "channel weights are a mean over patches, one for each channel; yours is a mean over channels.": picture(
                (x * d.mean(-1, keepdim=True)).sum(-1).relu()
            ),
            "the activation is not weighted; multiply it by the channel weights.": picture(x.sum(-1).relu()),
            "prefix tokens are not patches: drop them and reshape.": (x * weights).sum(-1).relu(),
        },
        "the map",
    )


@exercise(4, "hard", 20)
def check_gradient_rollout(answer):
    """The [CLS] row (B, N) of R ← R + mean_h(ReLU(G ⊙ A)) R: my_chefer(attentions, gradients)"""
    c = case(seed=12)
    eye = torch.eye(7)
    products = [g * a for a, g in zip(c.attentions, c.gradients, strict=True)]
    step = [p.relu().mean(1) for p in products]
    expect(
        ask(answer, c.attentions, c.gradients),
        chain([s + eye for s in step][::-1]),
        {
            "the order is reversed: the new layer multiplies from the left, mean(...) @ R.": chain(
                [s + eye for s in step]
            ),
            "ReLU comes before the mean over heads.": chain([p.mean(1).relu() + eye for p in products][::-1]),
            "ReLU is missing.": chain([p.mean(1) + eye for p in products][::-1]),
            "the old R is lost: add it, R + mean(...) @ R.": chain(step[::-1]),
            "the gradient is not used: multiply it with the attention, entry by entry.": chain(
                [a.mean(1) + eye for a in c.attentions][::-1]
            ),
            "the attention is not used: multiply it with the gradient, entry by entry.": chain(
                [g.relu().mean(1) + eye for g in c.gradients][::-1]
            ),
            "head 0 only; take the mean over all heads.": chain([p.relu()[:, 0] + eye for p in products][::-1]),
            "that is the whole matrix; return the row of [CLS], row 0.": (step[2] + eye)
            @ (step[1] + eye)
            @ (step[0] + eye),
        },
        "the [CLS] row",
    )


@exercise(4, "project", 45)
def check_my_method(answer):
    """Your own method: my_map(trace) → token scores (B, N). It must find a planted truth and depend on the class"""
    model = three_tokens.ThreeTokenViT()
    values = {}
    for target, name in enumerate(three_tokens.CLASSES):
        seen = trace(model, three_tokens.PICTURE, target=target)
        got = ask(answer, seen)
        shape = tuple(getattr(got, "shape", ()))
        if shape != (1, 3):
            raise Hint(
                f"return a score for each token, (B, N): (1, 3) for the three-token ViT, got {shape}. "
                "Prefix tokens have one, too; it is not shown."
            )
        values[name] = seen.patches(got.detach()).flatten().tolist()
    if values["cat"] == values["cup"]:
        raise Hint("the map is the same for both classes, so it cannot say why it is a cat: use trace.gradients.")
    if not (values["cat"][0] > values["cat"][1] and values["cup"][1] > values["cup"][0]):
        raise Hint(
            "the logit of 'cat' comes mostly from the cat patch, that of 'cup' from the cup patch; "
            f"your map says {values} (cat patch, cup patch)."
        )
    planted = _planted()
    got = ask(answer, planted)
    if tuple(got.shape) != (2, 7):
        raise Hint(f"a batch of 2 with 7 tokens must give (2, 7), got {tuple(got.shape)}.")
    if planted.patches(got).flatten(1).argmax(1).tolist() != [4, 1]:
        raise Hint(
            "a planted patch is missed: a single patch gets all attention and all gradient, and your map is "
            "brightest elsewhere. In a batch each image must be treated on its own."
        )


def _planted():
    """A trace whose attention and gradient all point at patch 4 (first image) and at patch 1 (second image)."""
    attention = torch.full((2, 4, 7, 7), 0.02)
    gradient = torch.zeros(2, 4, 7, 7)
    for image, patch in enumerate((4, 1)):
        attention[image, :, :, 1 + patch] = 0.88
        gradient[image, :, :, 1 + patch] = 1.0
    none = torch.zeros(2, 2)
    return Trace(
        attentions=(attention,) * 3,
        gradients=(gradient,) * 3,
        logits=none,
        target=none[0].long(),
        prefix_tokens=1,
        grid=(2, 3),
        readout=torch.eye(7)[:1].expand(2, -1),
    )
