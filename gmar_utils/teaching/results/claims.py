"""What the two papers claim, as differences that can be measured, and the verdict that an interval allows."""

import math
from typing import NamedTuple

from gmar_utils.evaluation.measures import COLUMNS

HOLDS, NOT, SAME = "holds here", "does not hold here", "no difference that matters"
OPEN = "cannot be told"
ENOUGH = 100  # images; with fewer no verdict is given
# Fixed before the tables were made: a smaller difference between two methods does not matter, in points of the metric.
MARGIN = dict.fromkeys(("average_drop", "average_drop_top", "insertion", "deletion", "srg", "confidence_kept"), 1.0)
MARGIN |= dict.fromkeys(("average_increase", "average_increase_top", "pointing_game", "energy_in_box"), 2.0)
MARGIN |= dict.fromkeys(("pixel_accuracy", "iou", "average_precision"), 2.0)


class Part(NamedTuple):
    """One measured difference: a better than b by more than `threshold` in `metric`, image by image.

    b None compares a's own value with the threshold. `metric_b`: a's value in `metric` minus its value in that metric.
    """

    job: str
    metric: str
    a: str
    b: str | None = None
    threshold: float = 0.0
    metric_b: str | None = None

    @property
    def margin(self):
        """Of a comparison of two methods; a value against a threshold has none."""
        return MARGIN.get(self.metric, 0.0) if self.b and not self.threshold else 0.0

    @property
    def text(self):
        title, sign = COLUMNS.get(self.metric, (self.metric.replace("_", " "), 1))
        if self.metric_b:
            return f"{self.a}: {title} − {COLUMNS[self.metric_b][0]} > {self.threshold:g}"
        if self.b is None:
            return f"{self.a}: {title} > {self.threshold:g}"
        return f"{title}: {self.a} {'below' if sign < 0 else 'above'} {self.b}" + (
            f" by more than {self.threshold:g}" if self.threshold else ""
        )

    def values(self, rows):
        """(images,) each image's difference, positive where the claim is right; rows as `evaluate` writes them."""
        wide = rows[rows["method"].isin([self.a, self.b])].pivot(
            index="image", columns=["metric", "method"], values="value"
        )
        if self.metric_b:
            return (wide[self.metric, self.a] - wide[self.metric_b, self.a]).dropna().to_numpy()
        sign = COLUMNS.get(self.metric, ("", 1))[1] or 1
        values = (
            wide[self.metric, self.a]
            if self.b is None
            else sign * (wide[self.metric, self.a] - wide[self.metric, self.b])
        )
        return values.dropna().to_numpy()


class Claim(NamedTuple):
    source: str  # key of book/references.bib
    place: str
    statement: str
    parts: tuple[Part, ...]


FOUR = ("average_drop", "average_increase", "insertion", "deletion")
MASKS = ("pixel_accuracy", "iou", "average_precision")
BOTH = ("gmar-l1-paper", "gmar-l2-paper")
TINY = "tiny-imagenet"


def _localization(job):
    """The report's claims on one data set with masks; its GMAR is the product form."""
    gmars = ("gmar-l1-report", "gmar-l2-report")
    return {
        f"legrad-leads-{job}": Claim(
            "joita2025comparative",
            "Table 1",
            f"LeGrad leads on every localisation metric ({job})",
            tuple(Part(job, m, "legrad", other) for other in ("rollout-report", *gmars) for m in MASKS),
        ),
        f"gmar-above-rollout-{job}": Claim(
            "joita2025comparative",
            "Table 1",
            f"GMAR localises better than rollout ({job})",
            tuple(Part(job, m, g, "rollout-report") for g in gmars for m in MASKS),
        ),
        f"l2-above-l1-{job}": Claim(
            "joita2025comparative",
            "Section 4.1",
            f"GMAR-L2 is slightly more precise than GMAR-L1 ({job})",
            (Part(job, "average_precision", gmars[1], gmars[0]),),
        ),
    }


CLAIMS = {
    "beats-rollout": Claim(
        "jo2025gmar",
        "Table 1",
        "GMAR beats rollout (input-first, as both texts print it) on all four",
        tuple(Part(TINY, m, g, "rollout-report") for g in BOTH for m in FOUR),
    ),
    "beats-rollout-output-first": Claim(
        "jo2025gmar",
        "Table 1",
        "GMAR beats rollout (output-first, as Abnar and Zuidema define it) on all four",
        tuple(Part(TINY, m, g, "rollout") for g in BOTH for m in FOUR),
    ),
    "weights-help": Claim(
        "jo2025gmar",
        "Section 3.2",
        "Head weights help: GMAR beats itself at uniform weights on all four metrics",
        tuple(Part(TINY, m, g, "gmar-none-paper") for g in BOTH for m in FOUR),
    ),
    "only-l2-beats-grad-cam-on-drop": Claim(
        "jo2025gmar",
        "Table 1",
        "On Average Drop, L2 beats Grad-CAM and L1 does not",
        (Part(TINY, "average_drop", BOTH[1], "grad-cam"), Part(TINY, "average_drop", "grad-cam", BOTH[0])),
    ),
    "beats-grad-cam-on-insertion": Claim(
        "jo2025gmar",
        "Table 1",
        "GMAR, L1 and L2, beats Grad-CAM on Insertion",
        tuple(Part(TINY, "insertion", g, "grad-cam") for g in BOTH),
    ),
    "grad-cam-increase-deletion": Claim(
        "jo2025gmar",
        "Section 5.1",
        "Grad-CAM is better on Average Increase and Deletion",
        tuple(Part(TINY, m, "grad-cam", g) for g in BOTH for m in ("average_increase", "deletion")),
    ),
    "norms-differ": Claim(
        "jo2025gmar",
        "Table 1",
        "L1 and L2 differ: L2's Average Drop is lower, by 1.8 points",
        (Part(TINY, "average_drop", BOTH[1], BOTH[0]), Part(TINY, "average_drop", BOTH[1], BOTH[0], threshold=1.8)),
    ),
    "rollout-insertion-below-deletion": Claim(
        "jo2025gmar",
        "Table 1",
        "Attention rollout's Insertion lies below its Deletion",
        (Part(TINY, "deletion", "rollout-report", metric_b="insertion"),),
    ),
    "raises-confidence": Claim(
        "jo2025gmar",
        "Figure 4",
        "Weighted maps keep more of the model's confidence than unweighted ones",
        tuple(Part("confidence", "confidence_kept", g, "gmar-none-paper") for g in BOTH),
    ),
    "heads-differ": Claim(
        "jo2025gmar",
        "Figure 2",
        "Heads differ in importance: a layer's largest weight is at least a tenth above 1/H",
        tuple(Part("heads", "largest_weight", norm, threshold=1.1) for norm in ("l1", "l2")),
    ),
    "weight-predicts-muting": Claim(
        "jo2025gmar",
        "Section 3.3.1",
        "A head's weight tells how much muting it changes the score",
        tuple(Part("heads", "weight_predicts_muting", norm) for norm in ("l1", "l2")),
    ),
    "class-specific": Claim(
        "jo2025gmar",
        "Section 1",
        "The map changes with the class: rank correlation with the runner-up's map < 0.9",
        tuple(Part("classes", "changes_with_class", g, threshold=0.1) for g in BOTH),
    ),
    "slightly-more-costly": Claim(
        "joita2025comparative",
        "Section 2.3",
        "GMAR costs slightly more than rollout: less than twice the time",
        (Part("cost", "time", "gmar", "rollout"), Part("cost", "time", "twice rollout", "gmar")),
    ),
    **{k: v for job in ("voc2012", "shapes", "shapes-two") for k, v in _localization(job).items()},
}


def verdict(low, high, threshold=0.0, images=ENOUGH, margin=0.0):
    """SAME where the interval lies inside the margin around the threshold, HOLDS where it lies above the threshold, NOT
    where it lies below, else OPEN; OPEN with few images."""
    if images < ENOUGH or not (math.isfinite(low) and math.isfinite(high)):
        return OPEN
    if threshold - margin < low and high < threshold + margin:
        return SAME
    return HOLDS if low > threshold else NOT if high < threshold else OPEN


def needed(mean, low, high, threshold=0.0, images=0, margin=0.0):
    """About how many images decide an open question, if the mean and the spread stay as they are; None if none can."""
    distance = abs(mean - threshold)
    reach = max(distance, margin - distance)  # half an interval may be so long
    if not images or reach == 0 or not math.isfinite(high - low):
        return None
    return max(ENOUGH, math.ceil(images * ((high - low) / 2 / reach) ** 2))


def overall(verdicts):
    """A claim with several parts holds if all do, and does not if one does not."""
    return next((v for v in (NOT, OPEN, SAME) if v in set(verdicts)), HOLDS if len(verdicts) else OPEN)
