"""The heads, two maps side by side, and patches that vanish."""

import re

import numpy as np
import pytest

from gmar_utils import explorer

from .controls import Explorer, opened, pixels
from .expected import checksum

# ------------------------------------------------------------------------------------------------ heads


def test_mute_and_solo_by_mouse_and_keyboard(page):
    e = Explorer(page, "heads")
    layers, heads, _ = e.expected.photos[0]["info"]["shape"]

    def head(layer, number):
        return e.view.locator(f'[data-head="{layer},{number}"]')

    head(layers, 2).click()
    e.changes_to(muted=[[layers, 2]])
    assert head(layers, 2).get_attribute("aria-pressed") == "true"
    head(layers, 2).press("ArrowRight")
    assert head(layers, 3).evaluate("b => b === document.activeElement")
    page.keyboard.press("Enter")
    e.changes_to(muted=[[layers, 2], [layers, 3]])
    e.view.get_by_role("button", name="All heads").click()
    e.changes_to(muted=[])
    e.view.get_by_role("button", name="Solo").click()
    head(layers, 1).click()
    e.changes_to(muted=[[layers, k] for k in range(2, heads + 1)])
    head(layers, 1).click()
    e.changes_to(muted=[])


def test_a_silent_layer_is_passed_over(page):
    e = Explorer(page, "heads")
    layers, heads, _ = e.expected.photos[0]["info"]["shape"]
    for k in range(1, heads + 1):
        e.view.locator(f'[data-head="{layers},{k}"]').click()
    e.changes_to(muted=[[layers, k] for k in range(1, heads + 1)])


def test_highest_and_lowest_are_marked(page):
    e = Explorer(page, "heads")
    for layer, w in enumerate(e.expected.weights(0), start=1):
        for word, index in (("highest", int(w[0].argmax())), ("lowest", int(w[0].argmin()))):
            button = e.view.locator(f'[data-head="{layer},{index + 1}"]')
            assert word in button.get_attribute("aria-label") and f"gmar-{word}" in button.get_attribute("class")
            assert button.inner_text().strip() == str(round(100 * float(w[0, index])))
    layers, heads, _ = e.expected.photos[0]["info"]["shape"]
    assert e.view.locator(".gmar-board .gmar-highest").count() == layers


def test_where_a_patch_looks(page):
    e = Explorer(page, "heads")
    layers = e.expected.photos[0]["info"]["shape"][0]
    rows, columns = e.expected.photos[0]["info"]["grid"]
    e.shows(checksum(e.expected.look(layers, -1)), "look")
    canvas = e.view.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    e.page.mouse.move(box["x"] + 2.5 * box["width"] / columns, box["y"] + 1.5 * box["height"] / rows)  # hover
    e.shows(checksum(e.expected.look(layers, columns + 2)), "look")
    e.page.mouse.down()
    e.page.mouse.up()
    e.page.mouse.move(5, 5)
    e.shows(checksum(e.expected.look(layers, columns + 2)), "look")  # a press holds it
    canvas.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    e.shows(checksum(e.expected.look(layers, 2 * columns + 3)), "look")
    e.press("look in layer", "Home")
    e.shows(checksum(e.expected.look(1, 2 * columns + 3)), "look")
    canvas.focus()
    page.keyboard.press("Escape")
    e.shows(checksum(e.expected.look(1, -1)), "look")


# ------------------------------------------------------------------------------------------------ compare and delete


def test_two_maps_and_their_difference(page):
    e = Explorer(page, "compare")
    e.shows(checksum(e.expected.evenly()), "left")
    e.shows(checksum(e.expected.map()), "right")
    e.shows(float(abs(e.expected.map() - e.expected.evenly()).max()), "difference")
    e.menu("left map").select_option(label="LeGrad")
    legrad = e.expected.method(list(explorer.METHODS_SHOWN).index("LeGrad"))
    e.shows(checksum(legrad), "left")
    e.shows(float(abs(e.expected.map() - legrad).max()), "difference")
    e.press("α", "Home")
    e.shows(checksum(e.expected.map(alpha=0)), "right")


def test_swipe_by_keyboard_and_mouse(page):
    e = Explorer(page, "compare")
    handle = e.view.get_by_role("slider", name="Swipe between the two maps")
    top = e.view.locator(".gmar-over canvas").nth(1)
    handle.focus()
    page.keyboard.press("Home")
    page.wait_for_timeout(200)
    assert "100%" in top.evaluate("c => c.style.clipPath")
    box = handle.bounding_box()
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2)
    page.wait_for_timeout(200)
    hidden = re.search(r"inset\(0(?:px)? ([\d.]+)%", top.evaluate("c => c.style.clipPath"))[1]
    assert float(hidden) == pytest.approx(25, abs=5)


def test_deletion_follows_the_slider_and_the_curve(page):
    e = Explorer(page, "deletion")
    photo, target = e.expected.photos[0], 0
    fractions, patches = photo["info"]["fractions"], int(np.prod(photo["info"]["grid"]))
    canvas = e.view.locator("canvas").first
    whole = pixels(canvas)
    e.press("steps", "ArrowRight", 3)
    e.shows(photo["curves"][target, 0, 3], "probability")
    assert e.data("removed") == round(fractions[3] * patches)
    gone = abs(pixels(canvas) - whole).max(2) > 12
    assert gone.mean() == pytest.approx(fractions[3], abs=0.6 * fractions[3])
    e.menu("order by").select_option(label="Random")
    e.shows(photo["curves"][target, list(explorer.METHODS_SHOWN).index("Random"), 3], "probability")
    box = e.view.locator(".gmar-chart").bounding_box()
    page.mouse.click(box["x"] + 0.97 * box["width"], box["y"] + box["height"] / 2)
    assert e.value("steps") == len(fractions) - 1
    e.shows(patches, "removed")
    assert pixels(canvas).std((0, 1)).max() < 1  # nothing left of the photo


def test_playback_and_reduced_motion(browser, address):
    with opened(browser, address) as page:
        e = Explorer(page, "deletion")
        e.view.get_by_role("button", name="Play").click()
        page.wait_for_timeout(900)
        e.view.get_by_role("button", name="Pause").click()
        assert e.data("removed") > 0
        e.view.get_by_role("button", name="Play").click()
        page.emulate_media(reduced_motion="reduce")
        e.view.locator("button", has_text=re.compile("Play|Pause")).wait_for(state="hidden")
        stopped = e.data("removed")
        page.wait_for_timeout(600)
        assert e.data("removed") == stopped
