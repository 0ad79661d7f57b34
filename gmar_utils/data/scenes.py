"""Generated shapes as a data set: every object's mask and box are known exactly."""

from __future__ import annotations

import numpy as np
from PIL import Image

from . import drawing


def shapes(n, size=64, seed=0, objects=1, occlusion=0.0):
    """Generated scenes (see `drawing`), one record per object: ``image``, ``label``, ``mask`` (uint8 PIL
    image, 1 the visible object, 0 the rest), ``box`` (x1 and y1 exclusive), ``scene`` (0 to n − 1), ``hidden`` (share
    covered)."""
    import datasets

    made = drawing.scenes(n, size, seed, objects, occlusion)
    which = np.repeat(np.arange(n), objects)
    masks = made.masks.reshape(-1, size, size).astype(np.uint8)
    features = datasets.Features({
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list(drawing.CLASSES)),
        "mask": datasets.Image(),
        "box": datasets.List(datasets.Value("int64")),
        "scene": datasets.Value("int64"),
        "hidden": datasets.Value("float64"),
    })  # fmt: skip
    columns = {
        "image": [Image.fromarray(made.images[i]) for i in which],
        "label": made.labels.ravel(),
        "mask": [Image.fromarray(m) for m in masks],
        "box": made.boxes.reshape(-1, 4),
        "scene": which,
        "hidden": np.repeat(made.hidden, objects),
    }
    return datasets.Dataset.from_dict(columns, features=features)
