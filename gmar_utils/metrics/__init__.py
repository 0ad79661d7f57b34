"""Metrics of explanation maps: pure functions of a model, images and maps. Each result carries its protocol."""

from .faithfulness import KEPT_LIMIT, Curve, Protocol, deletion, insertion, morf_lerf, srg
from .heads import MutedHeads, head_ablation, head_effects
from .localization import (
    PRESETS,
    accuracy_of,
    auroc,
    average_precision,
    counts,
    energy_in_box,
    iou,
    iou_of,
    outside_is_void,
    pixel_accuracy,
    pointing_game,
    which,
)
from .randomization import Randomization, parameter_randomization, randomized, rank_correlation
from .salience import Masked, average_drop, average_increase, consistency, masked_scores, saco
