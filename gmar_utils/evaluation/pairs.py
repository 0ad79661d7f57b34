"""One of two objects: photos of two objects that a model knows, asked about each."""

from collections.abc import Sequence

import datasets
import torch
from tqdm import tqdm

from ..capture.layout import logits_of
from ..metrics.forwards import evaluating
from ..model import Vit


def question(pairs: Sequence[dict], number: int) -> dict:
    """Record number 2·photo + which: the photo with the mask and the classes of one object, and the other's."""
    photo, which = divmod(number, 2)
    record = pairs[photo]
    mask, other = record["masks"][which], record["masks"][1 - which]
    targets, others = record["groups"][which], record["groups"][1 - which]
    return {
        "image": record["image"],
        "mask": mask,
        "other": other,
        "targets": list(targets),
        "other_targets": list(others),
        "photo": record.get("file", photo),
    }


def known(vit: Vit, pairs: datasets.Dataset, first: int = 10, batch_size: int = 32) -> datasets.Dataset:
    """The photos whose two objects the model knows: each has a class among the model's first ten.

    Args:
        vit: the model.
        pairs: as `data.voc_pairs` gives them.
        first: how many of the model's classes count.
        batch_size: images in a forward pass.

    Raises:
        ValueError: when no photo is left.
    """
    kept = []
    for start in tqdm(range(0, len(pairs), batch_size), desc="Photos the model knows", delay=2, disable=None):
        records = [pairs[k] for k in range(start, min(start + batch_size, len(pairs)))]
        pixel_values = vit.preprocess([r["image"] for r in records])
        with evaluating(vit.model, pixel_values), torch.autocast(pixel_values.device.type, enabled=False):
            logits = logits_of(vit.model(pixel_values))
        top = logits.topk(min(first, logits.shape[1])).indices.tolist()
        for k, (record, classes) in enumerate(zip(records, top, strict=True), start):
            if all(set(group) & set(classes) for group in record["groups"]):
                kept.append(k)
    if not kept:
        raise ValueError(f"Of none of these {len(pairs)} photos does {vit.name} know both objects.")
    return pairs.select(kept)
