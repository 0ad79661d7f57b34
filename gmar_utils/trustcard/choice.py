"""The rule that turns lights into one recommendation."""

from collections.abc import Mapping
from dataclasses import dataclass

from .lights import CHECKS, Light

ESSENTIAL = ("weights", "class", "faithful")  # without a green light in each, no map is recommended
TITLES = {c.name: c.title.lower() for c in CHECKS}
WHY_NOT = {
    "weights": "hardly depends on what the model learnt",
    "class": "does not depend on the class",
    "faithful": "is not what the answer follows",
    "object": "misses the object",
    "stable": "changes with slight noise or in the mirror",
    "tokens": "lights artefact tokens",
}


@dataclass(frozen=True)
class Recommendation:
    """What to show.

    Attributes:
        show: label of the map to show, or None.
        avoid: {label: why not}; unknown: {label: what cannot be told}.
        sentence: all of it in words.
    """

    show: str | None
    avoid: dict[str, str]
    unknown: dict[str, str]
    sentence: str


def choose(lights: list[Light], model: list[Light], titles: Mapping[str, str], photos: int) -> Recommendation:
    """The map to show: of those green in every essential check and red in none, the one with the highest SRG.

    A map that is red in any check is not shown, and says why. A red light of the model itself ends the choice. The
    class is no essential check where no other class could be asked for.

    Args:
        lights: of the methods; references have none.
        model: of the model itself.
        titles: {label: name in prose}.
        photos: N.
    """
    broken = [light for light in model if light.colour == "red"]
    if broken:
        reasons = " ".join(light.sentence for light in broken)
        return Recommendation(None, {}, {}, f"Show no map of this model before it is mended. {reasons}")
    by = {label: {light.check: light for light in lights if light.method == label} for label in titles}
    by = {label: found for label, found in by.items() if found}
    asked = [c for c in ESSENTIAL if any(found[c].photos or found[c].colour != "none" for found in by.values())]
    avoid, unknown, passed = {}, {}, {}
    for label, found in by.items():
        red = [c for c, light in found.items() if light.colour == "red"]
        open_ = [c for c in asked if found[c].colour != "green"]
        if red:
            avoid[label] = " and ".join(WHY_NOT[c] for c in red)
        elif open_:
            unknown[label] = ", ".join(TITLES[c] for c in open_)
        else:
            passed[label] = found["faithful"].value
    show = max(passed, key=passed.get) if passed else None
    return Recommendation(show, avoid, unknown, _words(show, passed, avoid, unknown, titles, photos))


def _words(show, passed, avoid, unknown, titles, photos):
    parts = []
    if show:
        others = [titles[k] for k in passed if k != show]
        parts.append(f"show {titles[show]}" + (f" ({_and(others)} passed too)" if others else ""))
    else:
        parts.append("no map passes every check that matters, so none is recommended")
    reasons: dict[str, list[str]] = {}
    for label, why in avoid.items():
        reasons.setdefault(why, []).append(titles[label])
    parts += [
        f"do not show {_and(names)}, because {'its' if len(names) == 1 else 'such a'} map {why}"
        for why, names in reasons.items()
    ]
    if unknown:
        what = [f"{titles[k]} ({why})" for k, why in unknown.items()]
        parts.append(f"cannot be told with {photos} photo{'s' * (photos != 1)}: {_and(what)}")
    return f"For this model, on these {photos} photos: " + "; ".join(parts) + "."


def _and(names):
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
