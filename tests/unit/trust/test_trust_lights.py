"""The tests behind the lights, by hand; and the rule that chooses, on cards made by hand."""

import itertools

import numpy as np
import pytest
from scipy import stats

from gmar_utils.trustcard import lights as module
from gmar_utils.trustcard.choice import choose
from gmar_utils.trustcard.lights import CHECKS, Light, holm, lights_of, sign_flip
from gmar_utils.trustcard.measures import judged, outliers

METHODS = judged({"legrad": "legrad", "rollout": "rollout", "own": lambda trace: None}, quick=False)


@pytest.mark.parametrize("seed", range(3))
def test_sign_flips_are_all_of_them(seed):
    d = np.random.default_rng(seed).normal(0.4, 1, 7)
    means = np.array([np.mean(d * s) for s in itertools.product((1, -1), repeat=7)])
    greater, less = (means >= d.mean() - 1e-12).mean(), (means <= d.mean() + 1e-12).mean()
    assert sign_flip(d) == pytest.approx(2 * min(greater, less))


def test_from_thirty_photos_on_a_t_test():
    d = np.random.default_rng(0).normal(0.3, 1, 30)
    assert sign_flip(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue)
    assert sign_flip(d[:29]) != pytest.approx(stats.ttest_1samp(d[:29], 0).pvalue, rel=1e-6)


def test_no_difference_is_no_evidence():
    assert sign_flip(np.zeros(8)) == sign_flip(np.zeros(40)) == 1
    assert sign_flip(np.full(40, 0.5)) < 1e-3  # no spread: the t test has no answer, the flips have


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])


def rows(n, **given):
    """n photos on which every check passes for every method, unless `given` says otherwise: check={label: value}."""
    rng = np.random.default_rng(0)
    good = {"weights": 0.1, "class": 0.2, "srg": 0.5, "saco": 0.5, "object": 80.0, "stable": 0.9, "lit": 0}
    made = []
    for _ in range(n):
        row = {"outliers": 1}
        for check, value in good.items():
            row[check] = {k: value if check == "lit" else value + 0.02 * rng.normal() for k in METHODS}
            if check in ("srg", "saco", "object"):
                row[check] |= {"random": 0.0, "center": 0.1}
            row[check] |= given.get(check, {})
        made.append(row)
    return made


def colours(found, label):
    return {x.check: x.colour for x in found if x.method == label}


def test_what_passes_is_green_and_what_fails_is_red():
    bad = {"weights": 0.95, "class": 0.99, "srg": -0.4, "object": 0.05, "stable": 0.1, "lit": 1}
    found = lights_of(rows(24, **{check: {"own": value} for check, value in bad.items()}), METHODS)
    assert set(colours(found, "legrad").values()) == {"green"}
    assert set(colours(found, "own").values()) == {"red"}
    assert colours(found, "rollout") == colours(found, "legrad") | {"class": "red"}  # by its definition, untested
    assert next(x for x in found if (x.check, x.method) == ("class", "rollout")).p is None


@pytest.mark.parametrize("n", [1, 5])
def test_no_light_below_six_photos(n):
    found = [x for x in lights_of(rows(n), METHODS) if (x.check, x.method) != ("class", "rollout")]
    assert {x.colour for x in found} == {"none"}
    assert all("6 photos are needed" in x.sentence for x in found)


def test_six_photos_give_lights_but_many_of_them_cannot_tell():
    found = lights_of(rows(6), METHODS)
    amber = [x for x in found if x.colour == "amber"]
    assert amber and all(x.needed > 6 and "Cannot be told with 6 photos" in x.sentence for x in amber)


def test_without_artefact_tokens_there_is_nothing_to_test():
    made = [r | {"outliers": 0} for r in rows(12)]
    tokens = [x for x in lights_of(made, METHODS) if x.check == "tokens"]
    assert all(x.colour == "green" and x.p is None for x in tokens)


def test_checks_that_could_not_be_asked_say_so():
    made = [r | {"object": {}, "class": {}} for r in rows(12)]
    found = [x for x in lights_of(made, METHODS) if x.check in ("object", "class")]
    assert len(found) == 6 and all(x.colour == "none" and x.sentence.startswith("Not asked") for x in found)


def test_missing_values_are_left_out_of_the_count():
    made = rows(12)
    for r in made[:8]:
        r["weights"]["legrad"] = None
    light = next(x for x in lights_of(made, METHODS) if (x.check, x.method) == ("weights", "legrad"))
    assert light.photos == 4 and light.colour == "none"


def test_better_than_random_is_not_enough_where_the_centre_does_better():
    made = rows(24, srg={"own": 0.3, "center": 0.8, "random": 0.0})
    light = next(x for x in lights_of(made, METHODS) if (x.check, x.method) == ("faithful", "own"))
    assert light.colour == "red"


def test_the_family_of_lights_is_corrected_together():
    few, many = ({k: METHODS["own"] for k in names} for names in (["own"], [f"own{i}" for i in range(60)]))
    base = {"weights": 0.5, "stable": 0.5}
    rng = np.random.default_rng(1)
    made = []
    for _ in range(11):
        r = {check: {k: v + 0.1 * rng.normal() for k in many} for check, v in base.items()}
        r["stable"]["own"] = r["stable"]["own0"] = 0.5 + abs(0.1 * rng.normal()) + 0.01
        r["weights"]["own"] = 0.5 + 0.1 * rng.normal()
        made.append(r | {"outliers": 0})
    alone = next(x for x in lights_of(made, few) if x.check == "stable")
    crowd = next(x for x in lights_of(made, many) if (x.check, x.method) == ("stable", "own0"))
    assert alone.colour == "green" and crowd.colour == "amber" and crowd.p > alone.p


# --- the choice


def card(**given):
    """Lights of two maps: {"legrad_faithful": colour}; everything else green."""
    found = []
    for label, srg in (("legrad", 0.4), ("own", 0.6)):
        for check in CHECKS:
            colour = given.get(f"{label}_{check.name}", "green")
            found.append(Light(check.name, label, colour, srg, None, None, 12, 0.01, ""))
    return found


TITLES = {"legrad": "LeGrad", "own": "Own"}
FINE = [Light("answers", "", "green", 1.0, None, None, 12, None, "Fine.")]


def test_the_most_faithful_of_those_that_pass():
    said = choose(card(), FINE, TITLES, 12)
    assert said.show == "own" and "LeGrad passed too" in said.sentence
    assert said.sentence.startswith("For this model, on these 12 photos: show Own")


@pytest.mark.parametrize("check", [c.name for c in CHECKS])
def test_a_red_light_in_any_check_excludes(check):
    said = choose(card(**{f"own_{check}": "red"}), FINE, TITLES, 12)
    assert said.show == "legrad" and list(said.avoid) == ["own"] and "do not show Own, because" in said.sentence


@pytest.mark.parametrize("check", ["weights", "class", "faithful"])
@pytest.mark.parametrize("colour", ["amber", "none"])
def test_what_cannot_be_told_is_not_chosen(check, colour):
    said = choose(card(**{f"own_{check}": colour}), FINE, TITLES, 12)
    assert said.show == "legrad" and list(said.unknown) == ["own"]
    assert "cannot be told with 12 photos: Own" in said.sentence


def test_an_amber_light_elsewhere_does_not_exclude():
    assert choose(card(own_stable="amber", own_object="none"), FINE, TITLES, 12).show == "own"


def test_nothing_passes():
    said = choose(card(own_faithful="amber", legrad_weights="red"), FINE, TITLES, 12)
    assert said.show is None and "none is recommended" in said.sentence


def test_a_red_light_of_the_model_ends_the_choice():
    broken = [*FINE, Light("place", "", "red", 0.9, None, None, 12, 0.01, "It looks at one place.")]
    said = choose(card(), broken, TITLES, 12)
    assert said.show is None and "It looks at one place." in said.sentence


def test_references_are_never_judged():
    found = lights_of(rows(12), METHODS)
    assert {x.method for x in found} == {"legrad", "rollout", "own"}
    assert choose(found, FINE, {k: m.title for k, m in METHODS.items()}, 12).show not in ("random", "center", "rollout")


def test_outlying_norms():
    import torch

    norms = 50 + torch.randn(256, generator=torch.Generator().manual_seed(0))
    assert not outliers(norms).any()
    norms[[3, 77]] = torch.tensor([180.0, 300.0])
    assert outliers(norms).nonzero()[:, 0].tolist() == [3, 77]
    assert not outliers(norms * 0 + 1).any()


def test_thresholds_are_stated_to_the_reader():
    for check in CHECKS:
        stated = {"faithful": "above random", "object": "above random", "tokens": "a quarter"}.get(check.name)
        assert (stated or f"{check.threshold:g}") in check.question
    assert module.NEEDED == 6 and module.EXACT == 30
