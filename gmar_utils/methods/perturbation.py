"""Occlusion: what the score loses when a part of the image is hidden."""

import torch

from ..capture import Trace
from ..capture.checks import check_whole
from ..capture.layout import logits_of


def occlusion(trace: Trace, size: int = 2, baseline: float = 0.0, batch_size: int = 64) -> torch.Tensor:
    """Occlusion (B, N), signed [zeiler2014visualizing]: the drop of y when a square of patches is replaced.

    The squares do not overlap; every patch of one gets its drop. It asks the model and nothing else, so it is the
    yardstick that knows nothing of attention; it costs one forward pass for each square.

    Args:
        trace: Supplies the model, the images and the target; its attention is not read.
        size: Patches on a square's side; squares at the lower and right edge may be smaller.
        baseline: What replaces the pixels, after normalisation: 0 is the mean colour of the training images, and what
            Insertion and Deletion use by default. The paper uses grey, too.
        batch_size: Forward passes at a time, rows of image × square.

    Returns:
        Signed token scores (B, N), 0 for the prefix: below 0 where hiding helps the class.

    Raises:
        ValueError: For a `size` or a `batch_size` that is not a whole number of at least 1.
    """
    check_whole("size", size)
    check_whole("batch_size", batch_size)
    if trace.pixel_values.ndim != 4:
        raise ValueError("Occlusion hides pixels, and this model reads words. Use another method, such as gmar.")
    rows, columns = trace.grid
    height, width = (s // n for s, n in zip(trace.pixel_values.shape[-2:], trace.grid, strict=True))
    across = -(-columns // size)
    square = (torch.arange(rows)[:, None] // size) * across + torch.arange(columns) // size  # (R, C) → its number
    squares, square = int(square.max()) + 1, square.to(trace.pixel_values.device)
    hidden = torch.nn.functional.one_hot(square, squares).bool().permute(2, 0, 1)
    hidden = hidden.repeat_interleave(height, 1).repeat_interleave(width, 2)  # (squares, R·h, C·w)
    scores = []
    with trace.recording() as recorder, torch.no_grad():
        for part in torch.arange(len(trace.pixel_values) * squares, device=square.device).split(batch_size):
            images, which = part // squares, part % squares
            shown = recorder.pixel_values[images]
            shown[..., : rows * height, : columns * width].masked_fill_(hidden[which, None], baseline)
            scores.append(trace.score_of(logits_of(recorder.model(shown)), images).float())
    drop = trace.score_of(trace.logits).float()[:, None] - torch.cat(scores).view(-1, squares)
    return torch.cat([drop.new_zeros(len(drop), trace.prefix_tokens), drop[:, square.flatten()]], 1)
