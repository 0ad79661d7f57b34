"""Generated shapes as a data set: every object's mask and box are known exactly."""

import datasets
import numpy as np
from PIL import Image

from . import drawing


def shapes(n: int, size: int = 64, seed: int = 0, objects: int = 1, occlusion: float = 0.0) -> datasets.Dataset:
    """Generated scenes, one record per object.

    Args:
        n: Scenes.
        size: Pixels.
        seed: Same seed, same scenes.
        objects: 1 or 2 in a scene.
        occlusion: The largest share of the (first) object that may be hidden.

    Returns:
        Records of ``image``, ``label``, ``mask`` (uint8 PIL image, 1 the visible object, 0 the rest), ``box`` (x1 and
        y1 exclusive), ``scene`` (0 to n − 1).

    Raises:
        ValueError: no scenes, another number of objects, or an occlusion outside [0, 1).
    """
    made = drawing.scenes(n, size, seed, objects, occlusion)
    which = np.repeat(np.arange(n), objects)
    masks = made.masks.reshape(-1, size, size).astype(np.uint8)
    columns = {
        "image": [Image.fromarray(made.images[i]) for i in which],
        "label": made.labels.ravel(),
        "mask": [Image.fromarray(m) for m in masks],
        "box": made.boxes.reshape(-1, 4),
        "scene": which,
    }
    whole = datasets.Value("int64")
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(drawing.CLASSES))}
    features |= {"mask": datasets.Image(), "box": datasets.List(whole), "scene": whole}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))  # a cast would show a bar


def shape_pairs(n: int, size: int = 64, seed: int = 0) -> datasets.Dataset:
    """Generated scenes of two objects of different classes, one record per scene: the layout of `voc_pairs`.

    Args:
        n: Scenes.
        size: Pixels.
        seed: Same seed, same scenes.

    Returns:
        Records of ``image``, ``masks`` (two uint8 PIL images, 1 the object), ``groups`` (the class of each, as a list
        of one) and ``file`` (the number of the scene).

    Raises:
        ValueError: no scenes.
    """
    made = drawing.scenes(n, size, seed, objects=2)
    columns = {
        "image": [Image.fromarray(image) for image in made.images],
        "masks": [[Image.fromarray(m) for m in some] for some in made.masks.astype(np.uint8)],
        "groups": made.labels[:, :, None],
        "file": [f"scene {i}" for i in range(n)],
    }
    return datasets.Dataset.from_dict(columns)
