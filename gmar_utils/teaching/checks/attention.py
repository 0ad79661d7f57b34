"""The exercises of the first page and of chapters 1 and 2: tokens, attention, rollout."""

import numpy as np
import torch

from .engine import Hint, Unfilled, ask, case, chain, exercise, expect

# Start: your own model -----------------------------------------------------------------------------------------


@exercise(0, "warm-up", 5)
def check_window(answer):
    """A 16-bit picture → 8 bits through a fixed window: my_window(pixels, low, high) → np.uint8, rounded"""
    pixels = np.array([[100, 600, 1400], [2600, 3100, 9000]], dtype=np.uint16)
    for low, high in ((600, 3100), (0, 4080)):
        share = (pixels.astype(float) - low) / (high - low)
        right = (255 * share.clip(0, 1)).round()
        got = np.asarray(ask(answer, pixels, low, high))
        own = 255.0 * (pixels - pixels.min()) / np.ptp(pixels)
        expect(
            got,
            right,
            {
                "values outside the window wrapped around: clip to [0, 1] before you turn them into np.uint8.": (
                    255 * share
                )
                .round()
                .astype(np.int64)
                % 256,
                "that cuts at 255 and ignores the window: subtract low and divide by (high − low).": pixels.clip(
                    0, 255
                ),
                "divide by (high − low), not by high.": (255 * ((pixels - float(low)) / high).clip(0, 1)).round(),
                "subtract low first, also from what you divide.": (255 * (pixels / (high - low)).clip(0, 1)).round(),
                "that is the picture's own range; the window is the same for every picture.": own.round(),
                "that is the share, from 0 to 1; 8 bits go from 0 to 255.": share.clip(0, 1),
                "round to the nearest whole number; turning into np.uint8 alone cuts off the decimals.": np.floor(
                    255 * share.clip(0, 1)
                ),
            },
            "the picture",
        )
        if got.dtype != np.uint8:
            raise Hint(f"the numbers are right; now return them as np.uint8, not {got.dtype}.")


# chapter 1: attention ------------------------------------------------------------------------------------------


@exercise(1, "warm-up", 3)
def check_token_count(answer):
    """How many tokens a ViT makes: my_count(height, width, patch, prefix) → int"""
    for h, w, p, prefix in ((224, 224, 16, 1), (64, 128, 8, 2)):
        n = (h // p) * (w // p)
        expect(
            ask(answer, h, w, p, prefix),
            n + prefix,
            {
                "do not forget the prefix tokens, such as [CLS], in front of the patches.": n,
                "that is one side only: patches fill rows and columns.": h // p + prefix,
                "a picture need not be square: rows come from the height, columns from the width.": (h // p) ** 2
                + prefix,
                "count patches, not pixels: divide both sides by the patch size.": h * w + prefix,
            },
            f"the count for {h} × {w} pixels, patch {p}, {prefix} prefix",
        )


@exercise(1, "warm-up", 5)
def check_softmax(answer):
    """Scores (..., N, N) → attention: my_softmax(scores); each row sums to 1, without torch.softmax if you can"""
    g = torch.Generator().manual_seed(1)
    for scores in (2 * torch.randn(4, 4, generator=g), 2 * torch.randn(2, 3, 4, 4, generator=g)):
        e = scores.exp()
        expect(
            ask(answer, scores),
            e / e.sum(-1, keepdim=True),
            {
                "your columns sum to 1. Each query (row) shares out its attention: sum over the last axis, dim=-1.": e
                / e.sum(-2, keepdim=True),
                "the sum lost an axis, so that the division paired row sums with columns. Use keepdim=True.": e
                / e.sum(-1)[..., None, :],
                "you divided by the sum of the whole matrix; every row needs its own sum.": e
                / e.sum((-2, -1), keepdim=True),
                "the exponential is missing: scores can be negative, attention cannot.": scores
                / scores.sum(-1, keepdim=True),
                "that is the exponential only; divide each row by its sum.": e,
            },
            "the attention",
        )
    if not ask(answer, scores + 200).isfinite().all():
        raise Hint("right for small scores, but exp(200) overflows. Subtract each row's maximum first.")


@exercise(1, "medium", 8)
def check_attention(answer):
    """Queries and keys (B, H, N, d) → attention (B, H, N, N): my_attention(q, k)"""
    g = torch.Generator().manual_seed(2)
    q, k = torch.randn(2, 2, 3, 5, 4, generator=g).unbind(0)
    s, root = q @ k.mT, 4**0.5
    expect(
        ask(answer, q, k),
        (s / root).softmax(-1),
        {
            "the scale is missing: divide the scores by √d, d the length of a key.": s.softmax(-1),
            "divide by √d, not by d.": (s / 4).softmax(-1),
            "queries and keys are swapped: row i belongs to query i, so the scores are q kᵀ.": (s.mT / root).softmax(
                -1
            ),
            "softmax runs over the keys, the last axis; yours runs over the queries.": (s / root).softmax(-2),
            "softmax runs over the keys, the last axis; yours runs over the heads.": (s / root).softmax(1),
            "those are the scaled scores; softmax is still missing.": s / root,
        },
        "the attention",
    )


@exercise(1, "medium", 8)
def check_cls_map(answer):
    """Attention of one layer (B, H, N, N) → what [CLS] looks at (B, R, C), mean over heads: my_map(a, prefix, grid)"""
    c = case(seed=3)
    a, p, (rows, columns) = c.attentions[-1], c.prefix, c.grid
    row = a.mean(1)[:, 0]
    expect(
        ask(answer, a, p, c.grid),
        row[:, p:].unflatten(1, c.grid),
        {
            "prefix tokens are not patches: drop the first `prefix` columns before you reshape.": row,
            "prefix tokens are not patches: drop the first `prefix` columns, not the last.": row[:, :-p].unflatten(
                1, c.grid
            ),
            "that is head 0 only; take the mean over all heads.": a[:, 0, 0, p:].unflatten(1, c.grid),
            "that is the sum over heads; take the mean.": len(a[0]) * row[:, p:].unflatten(1, c.grid),
            "that is a column: what looks at [CLS]. What [CLS] looks at is its row.": a.mean(1)[:, p:, 0].unflatten(
                1, c.grid
            ),
            "that is the mean over all queries; take the row of [CLS], row 0.": a.mean((1, 2))[:, p:].unflatten(
                1, c.grid
            ),
            "patches are numbered row by row: reshape to (rows, columns), in this order.": row[:, p:].unflatten(
                1, (columns, rows)
            ),
            "drop the prefix and reshape to (rows, columns): a map is a picture.": row[:, p:],
        },
        "the map",
    )


# chapter 2: rollout --------------------------------------------------------------------------------------------


@exercise(2, "warm-up", 3)
def check_laziness(answer):
    """The share of a lazy walker that stays in place, for residual strength α: my_laziness(alpha)"""
    for alpha in (1.0, 3.0, 0.25):
        expect(
            ask(answer, alpha),
            alpha / (1 + alpha),
            {
                "that is the share that moves; the rest stays.": 1 / (1 + alpha),
                "a share is at most 1: divide by the whole row, which sums to 1 + α.": alpha,
                "at α = 0 nobody stays, and the share must never leave [0, 1].": 1 - alpha,
            },
            f"the share for α = {alpha:g}",
        )


@exercise(2, "warm-up", 5)
def check_unused_rows(answer):
    """Rows (0, 1, 2) of the last layer's attention that the three-token ViT never reads: pass a set"""
    if answer is None or answer is ...:
        raise Unfilled
    rows = set(answer) if isinstance(answer, set | list | tuple) else {answer}
    if 0 in rows:
        raise Hint("row 0 is [CLS] reading the patches: change it and the logits change.")
    if rows != {1, 2}:
        raise Hint("change one row of the last layer and look at the logits: more rows than you name can change.")


@exercise(2, "medium", 6)
def check_residual(answer):
    """Attention (B, H, N, N) → (mean over heads + I), rows summing to 1, (B, N, N): my_residual(a)"""
    a = case(seed=4).attentions[0]
    mean, eye = a.mean(1), torch.eye(a.shape[-1])
    expect(
        ask(answer, a),
        (mean + eye) / 2,
        {
            "the rows sum to 2: divide by 2.": mean + eye,
            "adding 1 adds to every entry; the residual is the identity, torch.eye(N).": (mean + 1) / 2,
            "adding 1 adds to every entry, also after you divided; the residual is the identity matrix.": (mean + 1)
            / (mean + 1).sum(-1, keepdim=True),
            "the residual is missing: add the identity matrix.": mean,
            "head 0 only; take the mean over all heads.": (a[:, 0] + eye) / 2,
            "that sums the heads; take their mean, then add I.": (a.sum(1) + eye) / (len(a[0]) + 1),
            "your columns sum to 1; divide each row by the row's sum.": (mean + eye)
            / (mean + eye).sum(-2, keepdim=True),
        },
        "the matrix",
    )


@exercise(2, "medium", 15)
def check_rollout(answer):
    """L attentions (B, H, N, N) → the [CLS] row of attention rollout, output first, (B, N): my_rollout(attentions)"""
    attentions = case(seed=5).attentions
    eye = torch.eye(7)
    m = [(a.mean(1) + eye) / 2 for a in attentions]
    back = m[::-1]
    product = back[0] @ back[1] @ back[2]
    expect(
        ask(answer, attentions),
        chain(back),
        {
            "the product is reversed: you start with the first layer. [CLS] is read after the last layer, "
            "so the last layer stands leftmost.": chain(m),
            "right up to a factor: divide each (A + I) by 2, so that a row keeps its sum.": 8 * chain(back),
            "the residual is missing: add I to each layer's mean attention.": chain(
                [a.mean(1) for a in attentions][::-1]
            ),
            "head 0 only; take the mean over all heads.": chain([(a[:, 0] + eye) / 2 for a in attentions][::-1]),
            "that is the last layer only; multiply all layers.": m[-1][:, 0],
            "that is the first layer only; multiply all layers.": m[0][:, 0],
            "that is a column of the product: where [CLS] goes, not where it comes from. Take row 0.": product[:, :, 0],
            "`*` multiplies entry by entry; a product of matrices is `@`.": (m[0] * m[1] * m[2])[:, 0],
            "that is the average of the layers; rollout multiplies them.": torch.stack(m).mean(0)[:, 0],
            "that is the whole matrix; return the row of [CLS], row 0.": product,
        },
        "the [CLS] row",
    )
