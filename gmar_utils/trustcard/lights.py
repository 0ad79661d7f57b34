"""From numbers to lights: tests paired over photos, corrected together, and never a light on few photos."""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

NEEDED = 6  # photos, for a light
EXACT = 30  # photos, from which on the t test stands for the sign-flip test
LEVEL = 0.05
RESAMPLES = 10_000  # all sign flips of up to 13 photos


@dataclass(frozen=True)
class Check:
    """A question to every method. A map passes when its mean lies on the right side of `threshold`.

    Attributes:
        name: key; title and question: its words; chapter: the page of the book; better: +1 above, −1 below the
            threshold; unit: what the number is.
    """

    name: str
    title: str
    question: str
    unit: str
    threshold: float
    better: int
    chapter: str


CHECKS = (
    Check(
        "weights",
        "Depends on the weights",
        "Does the map change when the head and the last half of the blocks get "
        "random weights? ρ with the map before, below 0.5.",
        "ρ",
        0.5,
        -1,
        "notebooks/07_sanity",
    ),
    Check(
        "class",
        "Depends on the class",
        "Does the map change when it is asked for the second class? ρ between the two maps, below 0.9.",
        "ρ",
        0.9,
        -1,
        "notebooks/04_grad_cam",
    ),
    Check(
        "faithful",
        "Faithful",
        "Does the answer follow what the map calls important? SRG (order) and SaCo (sizes), "
        "both above random maps and above the centre, photo by photo.",
        "SRG",
        0.0,
        1,
        "notebooks/05_metrics",
    ),
    Check(
        "object",
        "Finds the object",
        "Does the map lie on the object? Average precision on the masks, above random maps and above the centre.",
        "AP, %",
        0.0,
        1,
        "notebooks/06_localisation",
    ),
    Check(
        "stable",
        "Stable",
        "Does the map stay with slight noise, and in the mirror? The lower of both ρ, above 0.5.",
        "ρ",
        0.5,
        1,
        "notebooks/07_sanity",
    ),
    Check(
        "tokens",
        "Free of artefacts",
        "Is the highest patch an artefact token (one that enters the last block "
        "with an outlying norm)? On less than a quarter of the photos.",
        "share",
        0.25,
        -1,
        "notebooks/07_sanity",
    ),
)


@dataclass(frozen=True)
class Light:
    """One light.

    Attributes:
        check, method: what is asked of which map (method "" for the model itself).
        colour: "green", "red", "amber" (cannot be told) or "none" (not asked, or too few photos).
        value, low, high: mean over photos and its 95 % interval, None where there is none.
        photos: how many it is from; p: of the test, corrected for the number of lights.
        sentence: what it means.
        needed: about how many photos would tell, where these do not.
    """

    check: str
    method: str
    colour: str
    value: float | None
    low: float | None
    high: float | None
    photos: int
    p: float | None
    sentence: str
    needed: int | None = None
    favourable: bool | None = None


def sign_flip(differences: np.ndarray) -> float:
    """Two-sided p of a mean of 0: all sign flips (10,000 at random above 13 photos); from 30 photos on a t test."""
    differences = np.asarray(differences, dtype=float)
    if not np.any(differences):
        return 1.0
    if len(differences) >= EXACT and differences.std() > 0:
        return float(stats.ttest_1samp(differences, 0).pvalue)

    def mean(x, axis):
        return x.mean(axis)

    rng = np.random.default_rng(0)
    return float(
        stats.permutation_test(
            (differences,), mean, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES, rng=rng
        ).pvalue
    )


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % t interval of the mean."""
    if len(values) < 2:
        return -math.inf, math.inf
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    return tuple(float(v) for v in stats.ttest_1samp(values, 0).confidence_interval(0.95))


def holm(p: list[float]) -> list[float]:
    """p values corrected for their number [holm1979]: the i-th smallest times (m − i + 1), never falling."""
    order = np.argsort(p, kind="stable")
    corrected = np.maximum.accumulate([(len(p) - i) * p[k] for i, k in enumerate(order)])
    result = np.empty(len(p))
    result[order] = np.minimum(corrected, 1)
    return result.tolist()


def photos_needed(differences: np.ndarray, tests: int) -> int | None:
    """About how many photos would tell at the same mean and spread, with 80 % power; None where the mean is 0."""
    mean, spread = float(np.mean(differences)), float(np.std(differences, ddof=1))
    least = math.ceil(math.log2(2 * tests / LEVEL))  # all signs alike
    if mean == 0:
        return None
    z = stats.norm.isf(LEVEL / 2 / tests) + stats.norm.isf(0.2)
    found = max(least, math.ceil((z * spread / mean) ** 2), len(differences) + 1)
    return found if found <= 10_000 else None


def lights_of(rows: list[dict], methods: dict) -> list[Light]:
    """A light for every check and method, corrected together.

    Args:
        rows: per photo {"weights": {label: ρ}, "class": …, "srg", "saco", "object", "stable": …, "lit": {label: 0 or
            1}, "outliers": count}; a number may be None.
        methods: {label: Method}; references get none.
    """
    drafts = [_draft(check, label, m, rows) for check in CHECKS for label, m in methods.items() if not m.reference]
    tested = [i for i, (light, _) in enumerate(drafts) if light.p is not None]
    corrected = dict(zip(tested, holm([drafts[i][0].p for i in tested]), strict=True)) if tested else {}
    found = []
    for i, (light, differences) in enumerate(drafts):
        if i in corrected:
            light = replace(light, p=corrected[i], colour="amber")
            if corrected[i] <= LEVEL:
                light = replace(light, colour="green" if light.favourable else "red")
            else:
                light = replace(light, needed=photos_needed(differences, len(tested)))
        found.append(replace(light, sentence=_sentence(light, _asked(rows, light.check))))
    return found


def _draft(check, label, method, rows):
    """(light without colour, the differences that it tests)."""
    if check.name == "class" and method.blind and _asked(rows, "class"):
        return Light("class", label, "red", 1.0, None, None, len(rows), None, "", favourable=False), None
    if check.name == "tokens":
        return _tokens(label, rows)
    if check.name in ("faithful", "object"):
        return _compared(check, label, rows)
    values = _values(rows, check.name, label)
    differences = check.better * (values - check.threshold)
    return _light(check.name, label, values, [differences]), differences


def _compared(check, label, rows):
    """All comparisons must hold for green (the largest p counts); for red one may fail (Bonferroni within)."""
    kinds = ("srg", "saco") if check.name == "faithful" else ("object",)
    values = _values(rows, kinds[0], label)
    differences = []
    for kind in kinds:
        for reference in ("random", "center"):
            pairs = [(r.get(kind, {}).get(label), r.get(kind, {}).get(reference)) for r in rows]
            differences.append(np.array([a - b for a, b in pairs if a is not None and b is not None]))
    light = _light(check.name, label, values, differences)
    weakest = min(differences, key=lambda d: d.mean() if len(d) else 0)
    return light, weakest


def _light(check, label, values, comparisons):
    n = len(values)
    if n < NEEDED:
        return Light(check, label, "none", float(values.mean()) if n else None, None, None, n, None, "")
    found = [(sign_flip(d), d.mean() > 0) for d in comparisons]
    against = [p for p, good in found if not good]
    p = min(1.0, min(against) * len(found)) if against else max(p for p, _ in found)
    return Light(check, label, "amber", float(values.mean()), *interval(values), n, p, "", favourable=not against)


def _asked(rows, check):
    """Whether the check could be made on a photo."""
    return check not in NOT_ASKED or not rows or any(r.get(check) for r in rows)


def _tokens(label, rows):
    lit = _values(rows, "lit", label)
    n, k = len(lit), int(lit.sum())
    if n < NEEDED:
        return Light("tokens", label, "none", k / n if n else None, None, None, n, None, ""), None
    low, high = stats.binomtest(k, n).proportion_ci(0.95, "wilson")
    if not any(r.get("outliers") for r in rows):  # none there, none lit: nothing to test
        return Light("tokens", label, "green", 0.0, low, high, n, None, "", favourable=True), None
    p = stats.binomtest(k, n, 0.25).pvalue
    return Light("tokens", label, "amber", k / n, low, high, n, p, "", favourable=k / n < 0.25), 0.25 - lit


def _values(rows, check, label):
    found = (r.get(check, {}).get(label) for r in rows)
    return np.array([v for v in found if v is not None], dtype=float)


def correct_share(right: list[bool], classes: int) -> Light:
    """The share of labelled photos that the model gets right, against guessing among its classes."""
    n, k = len(right), sum(right)
    low, high = stats.binomtest(k, n).proportion_ci(0.95, "wilson")
    text = f"The model is right on {k} of {n} labelled photos."
    if n < NEEDED:
        return Light("right", "", "none", k / n, low, high, n, None, text)
    p = stats.binomtest(k, n, 1 / classes, alternative="greater").pvalue
    if p <= LEVEL:
        return Light("right", "", "green", k / n, low, high, n, p, text)
    text += f" Whether that is better than guessing among {classes} classes cannot be told with {n} photos."
    return Light("right", "", "amber", k / n, low, high, n, p, text)


WORDS = {
    "weights": ("The map comes from what the model learnt.", "The map hardly needs what the model learnt."),
    "class": ("Another class, another map.", "The map is much the same for another class: it does not say why."),
    "faithful": (
        "The answer follows the map more than random maps and the centre.",
        "The answer follows the map less than a random map or the centre.",
    ),
    "object": (
        "The map lies on the object better than random maps and the centre.",
        "The map lies on the object less well than a random map or the centre.",
    ),
    "stable": ("The map stays under slight noise and in the mirror.", "Slight noise or a mirror changes the map."),
    "tokens": ("The map's highest patch is seldom an artefact.", "The map's highest patch is often an artefact token."),
}
NOT_ASKED = {
    "object": "Not asked: no masks and no boxes were given.",
    "class": "Not asked: the model has one output, and there is no other class to ask for.",
}


def _sentence(light, asked):
    good, bad = WORDS[light.check]
    if light.colour == "green":
        if light.check == "tokens" and light.p is None:
            return "No photo has an artefact token."
        return good
    if light.colour == "red":
        return "By its definition this map is the same for every class." if light.p is None else bad
    if light.colour == "none":
        if not light.photos:
            return NOT_ASKED.get(light.check, "") if not asked else "Not asked: the method gives no map here."
        return f"No light: {NEEDED} photos are needed, there are {light.photos} with a value."
    more = f"; about {light.needed} photos would tell, if the difference stays" if light.needed else ""
    return f"Cannot be told with {light.photos} photos{more}."
