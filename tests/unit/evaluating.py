"""A small model and its photos for the tests of the evaluation."""

import numpy as np
import pandas as pd
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from gmar_utils import evaluate
from gmar_utils.data.drawing import CLASSES

METHODS = ["rollout-report", "gmar-l1-report", "random"]


def save_checkpoint(folder):
    """A ViT of two layers with random weights, and its processor."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_labels=len(CLASSES),
        initializer_range=0.4,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    ViTImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    return folder


def run(vit, records, out=None, methods=METHODS, metrics=("drop",), **options):
    """`evaluate` in float32, so that single numbers can be compared."""
    return evaluate(vit, records, methods, metrics, out, **{"precision": "float32"} | options)


def equal(rows, reference):
    keys = ["image", "method", "metric"]
    rows, reference = (r.sort_values(keys).reset_index(drop=True) for r in (rows, reference))
    pd.testing.assert_frame_equal(rows[keys], reference[keys], check_dtype=False)
    np.testing.assert_allclose(rows["value"], reference["value"], atol=1e-6, rtol=1e-6)
