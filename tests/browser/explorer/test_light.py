"""Packs without all attention: every setting, a button for each question, links that bring a picture back."""

import re

import pytest

from ..test_pages import AXE, violations
from .controls import Explorer, opened
from .expected import Expected, checksum


def test_a_light_pack_follows_every_setting(browser, light):
    with opened(browser, light) as page:
        e = Explorer(page, "map")
        for variant in (1, 2, 0):
            e.menu("variant").select_option(index=variant)
            e.changes_to(variant=variant)
            e.press("α", "ArrowRight", 7)
            e.changes_to(alpha=e.value("α"))
        for norm in (2, 1):
            e.menu("head weights").select_option(index=norm)
            e.changes_to(norm=norm)
        e.menu("class").select_option(index=1)
        e.changes_to(target=1)
        e.menu("photo").select_option(index=1)
        e.changes_to(photo=1, target=0)
        e.press("α", "End")
        e.changes_to(alpha=10)
        e.press("α", "Home")
        e.changes_to(alpha=0)
        assert e.box.get_by_role("slider", name="layers, first").count() == 0
        assert "two bytes a number" in e.view.inner_text()
        e = Explorer(page, "compare")
        e.shows(checksum(e.expected.evenly()), "left")
        e.press("α", "End")
        e.shows(checksum(e.expected.map(alpha=10)), "right")


@pytest.mark.parametrize("touch", [False, True])
def test_ask_by_every_hand(browser, light, touch):
    """A button for each class and each method: mouse or finger, keyboard, and what a screen reader is told."""
    screen = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True} if touch else {}
    with opened(browser, light, **screen) as page:
        e = Explorer(page, "ask")
        info = e.expected.photos[0]["info"]
        questions = e.view.get_by_role("group", name="Why this class?").get_by_role("button")
        methods = e.view.get_by_role("group", name="Method").get_by_role("button")
        assert questions.all_inner_texts() == info["target_names"] and methods.all_inner_texts() == info["methods"]
        assert "One sentence says what the picture shows" in e.view.inner_text()

        def press(button):
            if touch:
                button.tap()
            else:
                button.focus()
                page.keyboard.press("Enter")

        for m in (3, 0, 4, 1):
            for t in (1, 0):
                press(questions.nth(t))
                press(methods.nth(m))
                e.shows(checksum(e.expected.photos[0]["maps"][t, m]), "asked")
                for group, chosen in ((questions, t), (methods, m)):
                    pressed = [b.get_attribute("aria-pressed") for b in group.all()]
                    assert pressed == [str(i == chosen).lower() for i in range(len(pressed))]
                label = e.view.locator("canvas").get_attribute("aria-label")
                assert info["methods"][m] in label and info["words"][t] in label
        alpha = e.view.get_by_role("slider", name="α")
        alpha.focus()
        page.keyboard.press("End")
        norm, variant = info["follows"][1]
        e.shows(checksum(e.expected.at(norm, variant, 10, 0)), "asked")
        press(methods.nth(info["methods"].index("LeGrad")))
        alpha.wait_for(state="hidden")
        assert "never asks" not in e.view.inner_text()
        press(methods.nth(info["methods"].index("Attention rollout")))
        alpha.wait_for()
        page.wait_for_function("el => el.textContent.includes('never asks which')", arg=e.view.element_handle())


@pytest.mark.parametrize("screen", [(390, 844), (1280, 800)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ask_fits_the_first_screen(browser, light, screen, scheme):
    """Picture, buttons and answer, seen without scrolling, with room for a heading; nothing is too small to press."""
    size = {"viewport": dict(zip(("width", "height"), screen, strict=True)), "color_scheme": scheme}
    with opened(browser, light, **size) as page:
        ask = page.locator(".gmar-ask")
        parts = [ask.locator(".gmar-answer"), ask.locator("canvas"), *ask.get_by_role("button").all()]
        for part in parts:
            box = part.bounding_box()
            assert box["y"] + box["height"] <= screen[1] - 40 and box["x"] + box["width"] <= screen[0]
        assert min(b.bounding_box()["height"] for b in ask.get_by_role("button").all()) >= 44
        page.add_script_tag(content=AXE.read_text(encoding="utf8"))
        assert not violations(page)


def test_a_link_brings_the_picture_back(browser, light):
    context = {"permissions": ["clipboard-read", "clipboard-write"]} if light.startswith("http") else {}
    with opened(browser, light, **context) as page:
        e = Explorer(page, "map")
        e.menu("photo").select_option(index=1)
        e.changes_to(photo=1, target=0)
        e.menu("class").select_option(index=1)
        e.menu("variant").select_option(index=1)
        e.press("α", "ArrowRight", 9)
        e.changes_to(target=1, variant=1, alpha=1.45)
        e.view.locator("summary").click()
        e.view.get_by_role("button", name="Copy link").click()
        e.view.get_by_text(re.compile("Link copied|stands in the address bar")).wait_for()
        link, shown = page.url, e.data()
        assert link.startswith(f"{light}#explorer=map-") and link.endswith("&photo=1&target=1&variant=1&alpha=1.45")
        if context:
            assert page.evaluate("() => navigator.clipboard.readText()") == link
    with opened(browser, link) as page:
        e = Explorer(page, "map")
        e.expected.map(photo=1, target=1, variant=1, alpha=1.45)
        e.shows(shown)
        assert e.value("α") == 1.45 and e.menu("variant").input_value() == "report"
        assert [e.menu(name).evaluate("menu => menu.selectedIndex") for name in ("photo", "class")] == [1, 1]
        other = Explorer(page, "compare")
        other.shows(checksum(other.expected.map()), "right")  # the link spoke of one view only
        e.press("α", "ArrowRight")
        e.changes_to(alpha=1.5)  # and the sliders still move
        page.evaluate("() => { location.hash = location.hash.replace('variant=1', 'variant=2'); }")
        e.changes_to(variant=2, alpha=1.45)


@pytest.mark.parametrize(
    "wrong",
    [
        "photo=9&target=-1&norm=3&variant=1.5&alpha=NaN",
        "alpha=1e9&opacity=-1&muted=a.b_99.99&layers=9-1&query=&look=0",
        "photo=<script>&alpha=%00&variant[]=1&__proto__=1&layers=1-",
        "left=77&right=x&method=1e400&step=-3",
    ],
)
def test_a_wrong_link_changes_nothing(browser, light, wrong):
    with opened(browser, light) as page:
        name = Expected(page, "map").view["link"]
    with opened(browser, f"{light}#explorer={name}&{wrong}") as page:
        e = Explorer(page, "map")
        e.shows(checksum(e.expected.map()))
        e.press("α", "End")
        e.changes_to(alpha=10)
