"""The map: its controls, its colours, and what is read out."""

import numpy as np

from gmar_utils import explorer

from .conftest import HEAVY
from .controls import Explorer, pixels
from .expected import Expected, checksum


def test_start(page):
    for show in HEAVY:
        e = Explorer(page, show)
        e.shows(checksum(e.expected.map()))


def test_alpha_by_keyboard_and_mouse(page):
    e = Explorer(page, "map")
    e.menu("variant").select_option(label="report")
    e.changes_to(variant=1)
    e.press("α", "ArrowRight", 4)
    e.changes_to(alpha=1.2)
    e.press("α", "Home")
    e.changes_to(alpha=0)
    e.drag("α", 60)
    assert e.value("α") > 0.3
    e.changes_to(alpha=e.value("α"))


def test_menus(page):
    e = Explorer(page, "map")
    e.menu("head weights").select_option(label="equal")
    e.changes_to(norm=2)
    e.menu("variant").focus()
    page.keyboard.press("End")
    e.changes_to(variant=2)
    e.menu("head weights").focus()
    page.keyboard.press("Home")
    e.changes_to(norm=0)
    e.menu("class").select_option(index=1)
    e.changes_to(target=1)


def test_layers_by_keyboard_and_mouse(page):
    e = Explorer(page, "map")
    last = e.expected.view["layers"][1]
    e.press("layers, last", "ArrowLeft")
    e.changes_to(layers=[1, last - 1])
    e.press("layers, first", "ArrowRight", 2)
    e.changes_to(layers=[3, last - 1])
    e.drag("layers, first", -300)
    e.changes_to(layers=[1, last - 1])


def test_another_photo_brings_its_own_classes(page):
    e = Explorer(page, "map")
    e.menu("class").select_option(index=1)
    e.changes_to(target=1)
    e.menu("photo").select_option(index=1)
    e.changes_to(photo=1, target=0)
    names = [name.replace("\xa0", " ") for name in e.menu("class").locator("option").all_inner_texts()]
    assert names == e.expected.photos[1]["info"]["target_names"]


def test_opacity_changes_the_picture_and_not_the_map(page):
    e = Explorer(page, "map")
    before, canvas = pixels(e.view.locator("canvas").first), e.view.locator("canvas").first
    e.press("opacity", "Home")
    page.wait_for_timeout(200)
    photo = pixels(canvas)
    assert abs(photo - before).mean() > 5
    e.shows(checksum(e.expected.map()))
    assert np.ptp(photo, axis=2).mean() < 2  # the photo is grey


def test_colours_are_magma(page):
    """At full opacity the strongest patch is as bright as magma ends, and the weakest as dark as it begins."""
    e = Explorer(page, "map")
    e.press("opacity", "End")
    page.wait_for_timeout(200)
    picture = pixels(e.view.locator("canvas").first)
    height, width, _ = picture.shape
    rows, columns = e.expected.photos[0]["info"]["grid"]
    values = e.expected.map().reshape(rows, columns)
    for value, colour in ((values.argmax(), (252, 253, 191)), (values.argmin(), (0, 0, 4))):
        row, column = divmod(int(value), columns)
        middle = picture[int((row + 0.5) * height / rows), int((column + 0.5) * width / columns)]
        assert abs(middle - np.array(colour)).max() < 40


def test_presets(page):
    e = Explorer(page, "map")
    e.menu("variant").select_option(label="report")
    e.expected.map(variant=1)
    for preset in explorer.PRESETS:
        button = e.view.get_by_role("button", name=preset["label"], exact=True)
        button.focus()
        page.keyboard.press("Enter")
        e.shows(checksum(e.expected.map(**preset["state"])))
        assert button.get_attribute("aria-pressed") == "true"
        assert e.value("α") == preset["state"]["alpha"]  # the slider follows
        assert preset["say"] in e.view.inner_text()
    assert len({round(checksum(Expected(page, "map").map(**p["state"])), 4) for p in explorer.PRESETS}) > 2


def test_speaks_the_strongest_patch(page):
    e = Explorer(page, "map")
    e.press("α", "End")
    best = int(e.expected.map(alpha=10).argmax())
    _, columns = e.expected.photos[0]["info"]["grid"]
    words = f"row {best // columns + 1} of .*, column {best % columns + 1} of .*α = 10.00"
    live = e.view.locator("[aria-live=polite]").element_handle()
    page.wait_for_function("([el, words]) => new RegExp(words).test(el.textContent)", arg=[live, words])
