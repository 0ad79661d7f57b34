"""Metrics of explanation maps: pure functions of a model, images and maps. Each result carries its protocol."""

from .faithfulness import (
    KEPT_LIMIT,
    Curve,
    Masked,
    Protocol,
    average_drop,
    average_increase,
    deletion,
    insertion,
    masked_scores,
    morf_lerf,
)

__all__ = [
    "KEPT_LIMIT",
    "Curve",
    "Masked",
    "Protocol",
    "average_drop",
    "average_increase",
    "deletion",
    "insertion",
    "masked_scores",
    "morf_lerf",
]
