"""The exercises of chapters 5 to 7: faithfulness, localisation, sanity."""

import torch

from .engine import Hint, ask, exercise, expect

# chapter 5: faithfulness ---------------------------------------------------------------------------------------


@exercise(5, "warm-up", 5)
def check_average_drop(answer):
    """Scores (B,) of the full and of the masked images → Average Drop in percent: my_drop(full, masked)"""
    full, masked = torch.tensor([0.8, 0.5, 0.2, 0.9]), torch.tensor([0.2, 0.6, 0.1, 0.9])
    lost = (full - masked).clamp(min=0)
    expect(
        ask(answer, full, masked),
        100 * (lost / full).mean(),
        {
            "a gain is no negative drop: max(0, Y − O) per image, before the mean.": 100
            * ((full - masked) / full).mean(),
            "divide by the full image's score Y: a loss of 0.1 weighs more if there was only 0.2.": 100 * lost.mean(),
            "divide by the full score Y, not by the masked score O.": 100 * (lost / masked).mean(),
            "percent: times 100.": (lost / full).mean(),
            "first the ratio of each image, then the mean; you divided the means.": 100 * lost.mean() / full.mean(),
            "that is Average Increase, the share of images whose score rose.": 100 * (masked > full).float().mean(),
            "take the mean over the images: one number.": 100 * lost / full,
        },
        "the drop",
    )


@exercise(5, "warm-up", 3)
def check_fool_drop(answer):
    """A map in [0, 1] that gets Average Drop 0 from every model: my_map(pixel_values) → (B, height, width)"""
    pixels = torch.rand(2, 3, 8, 16, generator=torch.Generator().manual_seed(0))
    got = ask(answer, pixels)
    expect(
        got,
        torch.ones(2, 8, 16),
        {
            "zero everywhere hides the whole picture: that is the largest drop one can get.": torch.zeros(2, 8, 16),
            "one map for each image of the batch: (B, height, width).": torch.ones(8, 16),
            "a map has no channels: (B, height, width).": torch.ones(2, 3, 8, 16),
            "half the brightness everywhere still changes the picture, so a score may fall.": torch.full(
                (2, 8, 16), 0.5
            ),
        },
        "the map",
    )


@exercise(5, "medium", 10)
def check_delete_patches(answer):
    """Images (B, C, h, w) whose `count` highest patches are 0: my_delete(pixels, maps (B, R, C), count)"""
    g = torch.Generator().manual_seed(0)
    pixels, maps = 1 + torch.rand(2, 3, 8, 12, generator=g), torch.rand(2, 2, 3, generator=g)

    def cut(count, descending=True, keep=False, grid=maps):
        rank = grid.flatten(1).argsort(1, descending=descending).argsort(1).view_as(grid)
        hidden = (rank < count).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
        return pixels * (hidden if keep else ~hidden)

    first = maps[:1].expand_as(maps)
    for count in (2, 0, 6):
        expect(
            ask(answer, pixels.clone(), maps, count),
            cut(count),
            {
                "you removed the lowest patches; Deletion removes the highest first.": cut(count, descending=False),
                "that keeps the highest patches and removes the others: the start of Insertion.": cut(count, keep=True),
                "one patch too many is gone: exactly `count` patches.": cut(count + 1),
                "every image has its own map; you used the first map for all.": cut(count, grid=first),
                "argsort gives the places in order, not the rank of each place: take argsort of the argsort.": pixels
                * ~(maps.flatten(1).argsort(1, descending=True).view_as(maps) < count)
                .repeat_interleave(4, 1)
                .repeat_interleave(4, 2)[:, None],
            },
            f"the images without {count} patches",
        )


@exercise(5, "medium", 8)
def check_area(answer):
    """Fractions (S + 1,) and scores (B, S + 1) → area (B,) by trapezoids: my_area(fractions, scores)"""
    fractions = torch.tensor([0.0, 0.1, 0.4, 1.0])
    scores = torch.tensor([[0.9, 0.5, 0.3, 0.1], [0.2, 0.8, 0.4, 0.0]])
    width, right = fractions.diff(), torch.trapezoid(scores, fractions)
    expect(
        ask(answer, fractions, scores),
        right,
        {
            "that is the mean score. The steps need not be equally wide: weigh each by its width.": scores.mean(1),
            "the left end of each step only; a trapezoid takes the mean of both ends.": (scores[:, :-1] * width).sum(1),
            "the right end of each step only; a trapezoid takes the mean of both ends.": (scores[:, 1:] * width).sum(1),
            "that treats all steps as equally wide: multiply each by its width, fractions.diff().": torch.trapezoid(
                scores, dx=1 / 3
            ),
            "the steps are taken as one unit wide: the fractions run from 0 to 1.": torch.trapezoid(scores),
            "one area for each image: do not mix the images.": right.mean(),
            "a trapezoid is the mean of both ends, not their sum: divide by 2.": 2 * right,
        },
        "the area",
    )


# chapter 6: localisation ---------------------------------------------------------------------------------------


@exercise(6, "medium", 10)
def check_iou(answer):
    """Map and mask (h, w), 1 object, 0 ground, 255 void → the object's IoU in percent: my_iou(map, mask, threshold)"""
    g = torch.Generator().manual_seed(0)
    values, mask = torch.rand(6, 8, generator=g), torch.zeros(6, 8, dtype=torch.long)
    mask[1:4, 2:6], mask[1:4, 6], values[1:3, 6] = 1, 255, 0.9
    found, known = values > 0.4, mask != 255
    truth = mask == 1
    both, either = (found & truth).sum(), ((found | truth) & known).sum()
    ground = (~found & ~truth & known).sum() / ((~found | ~truth) & known).sum()
    expect(
        ask(answer, values, mask, 0.4),
        100 * both / either,
        {
            "void pixels (255) count nowhere: leave them out of both the intersection and the union.": 100
            * both
            / (found | truth).sum(),
            "void pixels (255) are neither object nor ground; you counted them as object.": 100
            * (found & (mask > 0)).sum()
            / (found | (mask > 0)).sum(),
            "that is precision: you divided by what the map found; divide by the union.": 100
            * both
            / (found & known).sum(),
            "that is recall: you divided by the object; divide by the union.": 100 * both / truth.sum(),
            "that is the Dice score: twice the intersection over the sum. IoU divides by the union.": 200
            * both
            / (truth.sum() + (found & known).sum()),
            "that is pixel accuracy: it also counts ground that was left alone.": 100
            * ((found == truth) & known).sum()
            / known.sum(),
            "that is the mean of object and ground; asked for is the object alone.": 50 * (both / either + ground),
            "percent: times 100.": both / either,
        },
        "the IoU",
    )


@exercise(6, "warm-up", 5)
def check_pointing(answer):
    """Is the highest pixel of a map (h, w) in a box (x0, y0, x1, y1), the last two exclusive: my_hit(map, box)"""
    for (row, column), hints in {
        (5, 2): "x counts columns and y counts rows: map[row, column] is map[y, x].",
        (3, 6): "x1 and y1 are exclusive: a box from x0 = 4 to x1 = 6 holds columns 4 and 5.",
        (2, 5): "the highest pixel is inside the box here, at row 2 and column 5.",
        (1, 4): "x0 and y0 belong to the box: compare with <=.",
        (0, 0): "the highest pixel is at row 0, column 0 here, far outside.",
    }.items():
        values = torch.rand(8, 7, generator=torch.Generator().manual_seed(1))
        values[row, column] = 2
        box = (4, 1, 6, 4)
        right = box[0] <= column < box[2] and box[1] <= row < box[3]
        if bool(ask(answer, values, box)) != right:
            raise Hint(hints)


@exercise(6, "hard", 20)
def check_precision_average(answer):
    """Scores (n,), no ties, and truth (n,) of 0 and 1 → average precision in percent: my_ap(scores, truth)"""
    g = torch.Generator().manual_seed(3)
    scores, truth = torch.rand(12, generator=g), (torch.rand(12, generator=g) < 0.4).long()
    hits = truth[scores.argsort(descending=True)].float()
    rank = torch.arange(1, 13)
    precision = hits.cumsum(0) / rank
    rising = truth[scores.argsort()].float()
    expect(
        ask(answer, scores, truth),
        100 * (precision * hits).sum() / hits.sum(),
        {
            "you went up from the lowest score; start at the highest.": 100
            * (rising.cumsum(0) / rank * rising).sum()
            / rising.sum(),
            "average the precision at the true pixels only, not at every pixel.": 100 * precision.mean(),
            "divide by the number of true pixels, not by that of all pixels.": 100 * (precision * hits).mean(),
            "percent: times 100.": (precision * hits).sum() / hits.sum(),
        },
        "the average precision",
    )


# chapter 7: sanity ---------------------------------------------------------------------------------------------


@exercise(7, "medium", 10)
def check_rank_correlation(answer):
    """Spearman's correlation of two sets of maps (B, R, C), no ties → (B,): my_correlation(a, b)"""
    g = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 4, generator=g)
    b = a + 0.5 * torch.rand(2, 3, 4, generator=g)
    a, b = a**6, b  # far from a straight line, so that Pearson on the values differs

    def rank(x):
        return x.argsort(-1).argsort(-1).float()

    def pearson(x, y):
        x, y = (v - v.mean(-1, keepdim=True) for v in (x, y))
        return (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))

    x, y = a.flatten(1), b.flatten(1)
    right = pearson(rank(x), rank(y))
    expect(
        ask(answer, a, b),
        right,
        {
            "that is Pearson's correlation of the values; replace each value by its rank first.": pearson(x, y),
            "argsort gives the places in order, not the rank of each place: take argsort of the argsort.": pearson(
                x.argsort(-1).float(), y.argsort(-1).float()
            ),
            "one number for each image: rank and correlate each image on its own.": pearson(
                rank(a.flatten()), rank(b.flatten())
            ),
            "one number for each image, not their mean.": right.mean(),
            "one number for each image: flatten the map first, or each row is ranked on its own.": pearson(
                rank(a), rank(b)
            ),
        },
        "the correlation",
    )


@exercise(7, "medium", 8)
def check_randomised(answer):
    """A copy of a model with fresh weights; the model itself stays as it is: my_random_copy(model) → model"""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 3))
    before = [p.clone() for p in model.parameters()]
    got = ask(answer, model)
    if not isinstance(got, torch.nn.Module):
        raise Hint(f"return the new model, got {type(got).__name__}.")
    if any((p != q).any() for p, q in zip(model.parameters(), before, strict=True)):
        raise Hint("the original model changed: work on copy.deepcopy(model), or you lose what it learned.")
    if [p.shape for p in got.parameters()] != [q.shape for q in before]:
        raise Hint("the copy must have the same layers and sizes as the model.")
    same = [n for (n, p), q in zip(got.named_parameters(), before, strict=True) if p.ndim > 1 and torch.equal(p, q)]
    if same:
        raise Hint(
            f"{', '.join(same)} did not change: give every layer that has them new weights "
            "(layer.reset_parameters() where a layer has it)."
        )
    if any(p.ndim > 1 and p.detach().std() == 0 for p in got.parameters()):
        raise Hint("all weights of a layer are equal; draw them at random, or the model cannot tell patches apart.")


@exercise(7, "project", 45)
def check_faithful_heads(answer):
    """Head weights (B, H) and effects of muting each head (B, H) → the median over images of Spearman's correlation"""
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.1, 0.2, 0.3], [0.25, 0.15, 0.5, 0.1]])
    change = torch.tensor([[0.1, -0.2, 0.6, -0.9], [-0.8, 0.3, 0.1, -0.2], [0.3, -0.1, 0.2, 0.05]])

    def spearman(x, y):
        x, y = x.argsort(-1).argsort(-1).float(), y.argsort(-1).argsort(-1).float()
        return torch.corrcoef(torch.stack([x, y]))[0, 1]

    each = torch.stack([spearman(w, c.abs()) for w, c in zip(weights, change, strict=True)])
    signed = torch.stack([spearman(w, c) for w, c in zip(weights, change, strict=True)])
    expect(
        ask(answer, weights, change),
        each.median(),
        {
            "a head may also push the score down: take the size of the change, |Δy|.": signed.median(),
            "asked for is the median over the images, not the mean.": each.mean(),
            "one number: the median over the images.": each,
            "correlate within each image; pooled, the images mix.": spearman(weights.flatten(), change.abs().flatten()),
        },
        "the median",
    )
