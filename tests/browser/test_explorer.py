"""The explorer in a browser: every control, by keyboard and by mouse, against the library's own numbers.

The same tests run on a small page made here (from disk and over http), and on the book's chapter when there is one.
What a page should show is computed from the state saved in that very page. `test_live` drives JupyterLab with a kernel.
"""

import base64
import contextlib
import functools
import http.server
import importlib.util
import io
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from ipywidgets.embed import dependency_state, embed_data
from PIL import Image

from gmar_utils import explorer
from gmar_utils.explorer import packing
from gmar_utils.methods.weighting import VARIANTS
from gmar_utils.photo import minmax

from .conftest import HTML, missing
from .test_pages import AXE, violations

WIDGETS = Path(__file__).parents[2] / "book" / "assets" / "vendor" / "widgets"
STATE = 'script[type="application/vnd.jupyter.widget-state+json"]'
TOLERANCE = 1e-4
HEAVY = ("map", "heads", "compare", "deletion")
PAGES = ["small-file", "small-http", "book-file"]
MODEL = """
import numpy as np, torch
from transformers import ViTConfig, ViTForImageClassification
from gmar_utils import explorer, load_model
torch.manual_seed(0)
config = ViTConfig(hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=32, image_size=48,
                   patch_size=8, num_labels=5, initializer_range=0.4)
vit = load_model(ViTForImageClassification(config), mean=[0.5] * 3, std=[0.25] * 3, size=48, device="cpu")
y, x = np.mgrid[:96, :128]
photos = {name: np.stack([128 + 127 * np.sin(x / a), 128 + 127 * np.cos(y / b), (x * y) % 256], -1).astype("uint8")
          for name, a, b in (("waves", 9, 14), ("other waves", 5, 23))}
"""


# ------------------------------------------------------------------------------------------------ pages


@pytest.fixture(scope="module")
def scope():
    space = {}
    exec(MODEL, space)  # the live test runs the same text in a notebook
    return space


@pytest.fixture(scope="module")
def small(scope, tmp_path_factory):
    """A folder with two pages of explorers on a tiny random model: one with all attention, one light."""
    folder = tmp_path_factory.mktemp("page")
    for file in WIDGETS.glob("widgets.*"):
        (folder / file.name).write_bytes(file.read_bytes())
    packed = explorer.pack(scope["vit"], scope["photos"], curves=True, heads=True)
    write_page(folder / "index.html", [explorer.explore(packed, show=show) for show in HEAVY])
    light = explorer.pack(scope["vit"], scope["photos"], targets=2)
    first = explorer.explore(light[:1], show="ask", answer="One sentence says what the picture shows, in numbers.")
    write_page(folder / "light.html", [first, *(explorer.explore(light, show=show) for show in ("map", "compare"))])
    return folder


def write_page(path, explorers):
    data = embed_data(explorers, state=dependency_state(explorers, drop_defaults=False))
    kind = "application/vnd.jupyter.widget-{}+json"
    views = "".join(
        f'<div><script type="{kind.format("view")}">{json.dumps(view)}</script></div>' for view in data["view_specs"]
    )
    path.write_text(
        '<!doctype html><html lang="en"><meta charset="utf8"><title>Explorer</title><meta name="viewport" '
        f'content="width=device-width"><link rel="icon" href="data:,"><main><h1>Explorer</h1>{views}</main>'
        f'<script type="{kind.format("state")}">{json.dumps(data["manager_state"])}</script>'
        '<script src="widgets.js"></script></html>',
        encoding="utf8",
    )


@pytest.fixture(scope="module")
def server(small):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=small)) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/index.html"
        httpd.shutdown()


@pytest.fixture(scope="module", params=PAGES)
def address(request, small, server):
    if request.param == "book-file":
        chapter = HTML / "notebooks" / "explore.html"
        if not chapter.exists():
            missing("the book has no chapter 'Explore': run `make book`")
        return chapter.as_uri()
    return server if request.param == "small-http" else (small / "index.html").as_uri()


@contextlib.contextmanager
def opened(browser, address, **context):
    """The page, loaded and drawn. At the end: nothing failed, no complaint, no other site was asked for anything."""
    context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, **context})
    page = context.new_page()
    page.set_default_timeout(90_000)  # a busy machine is slow, not wrong
    problems = []
    home = ("data:", "blob:", "file:") if address.startswith("file:") else ("data:", "blob:", address.rsplit("/", 1)[0])
    page.on("request", lambda r: problems.append(f"asked for {r.url}") if not r.url.startswith(home) else None)
    page.on("requestfailed", lambda r: problems.append(f"failed: {r.url[-90:]}"))
    # anywidget's complaint after two seconds on a busy machine; it draws all the same, which the tests look at
    slow = "[anywidget] Failed to initialize model."
    page.on("pageerror", lambda e: problems.append(f"error: {e}") if slow not in str(e) else None)
    page.on("console", lambda m: problems.append(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None)
    page.goto(address)
    page.wait_for_function(
        """() => document.querySelectorAll('.gmar[data-checksum]').length >=
                 document.querySelectorAll('script[type="application/vnd.jupyter.widget-view+json"]').length"""
    )
    yield page
    context.close()
    assert not problems


@pytest.fixture
def page(browser, address):
    with opened(browser, address) as page:
        yield page


# ------------------------------------------------------------------------------------------------ what it should show


class Expected:
    """An explorer's numbers, computed by the library from the state that is saved in the page."""

    def __init__(self, page, show):
        state = json.loads(page.locator(STATE).inner_text())["state"]
        views = [m for m in state.values() if m["state"].get("show") == [show]]
        self.view = views[0]["state"]
        self.photos = [self._photo(state[p.removeprefix("IPY_MODEL_")]) for p in self.view["photos"]]
        self.settings = {k: self.view[k] for k in ("photo", "target", "norm", "variant", "alpha", "layers", "muted")}

    @staticmethod
    def _photo(model):
        data = {b["path"][0]: base64.b64decode(b["data"]) for b in model["buffers"]}
        info = model["state"]["info"]
        layers, heads, n = info["shape"]
        targets = len(info["targets"])
        maps = np.frombuffer(data["maps"], np.uint16).reshape(targets, len(info["methods"]), -1) / 65535
        curves = np.frombuffer(data.get("curves", b""), np.float32)
        curves = curves.reshape(targets, len(info["methods"]), -1) if curves.size else None
        numbers = {"info": info, "maps": maps, "curves": curves}
        if data.get("polynomials"):
            codes = np.frombuffer(data["polynomials"], np.uint16).reshape(1 + 2 * targets, 2 * layers + 4, -1)
            scales = np.frombuffer(data["scales"], np.float32).reshape(1 + 2 * targets, -1, 1)
            return {**numbers, "polynomials": codes * scales.astype(np.float64)}
        codes = np.frombuffer(zlib.decompress(data["attention"]), np.uint8).reshape(layers, heads, n, n)
        attention = packing.dequantise(codes.cumsum(2, dtype=np.uint8))
        weights = np.frombuffer(data["weights"], np.float32).reshape(targets, 2, layers, heads)
        readout = torch.from_numpy(np.frombuffer(data["readout"], np.float32).copy())
        return {**numbers, "attention": attention, "weights": weights, "readout": readout}

    def weights(self, norm):
        photo = self.photos[self.settings["photo"]]
        layers, heads, _ = photo["info"]["shape"]
        if explorer.NORMS[norm] is None:
            return [torch.full((1, heads), 1 / heads)] * layers
        return [torch.from_numpy(w[None].copy()) for w in photo["weights"][self.settings["target"], norm]]

    def map(self, **changes):
        """The map (R·C,) after changing these settings for good."""
        self.settings.update(changes)
        return self._map(self.settings["norm"])

    def evenly(self):
        return self._map(2)

    def _map(self, norm):
        s, photo = self.settings, self.photos[self.settings["photo"]]
        if "polynomials" in photo:
            return self.at(norm, s["variant"], s["alpha"], s["target"])
        attentions = [torch.from_numpy(a[None]) for a in photo["attention"]]
        muted = [tuple(p) for p in s["muted"]]
        scores = packing.muted_rollout(
            attentions, self.weights(norm), photo["readout"], s["alpha"], VARIANTS[s["variant"]], s["layers"], muted
        )
        rows, columns = photo["info"]["grid"]
        return minmax(scores[:, -rows * columns :])[0].numpy()

    def at(self, norm, variant, alpha, target):
        """The map of a light photo: its polynomial in α, lowest power first."""
        photo = self.photos[self.settings["photo"]]
        depth = photo["info"]["shape"][0]
        first, last = [(0, 2), (2, depth + 3), (depth + 3, 2 * depth + 4)][variant]
        powers = photo["polynomials"][0 if norm == 2 else 1 + 2 * target + norm, first:last]
        return minmax(torch.from_numpy(np.polynomial.polynomial.polyval(alpha, powers))[None])[0].numpy()

    def look(self, layer, query):
        """Where a patch (or, at −1, the classifier) looks in a layer counted from 1."""
        photo, norm = self.photos[self.settings["photo"]], self.settings["norm"]
        fused = (self.weights(norm)[layer - 1][0, :, None, None].numpy() * photo["attention"][layer - 1]).sum(0)
        rows, columns = photo["info"]["grid"]
        row = photo["readout"].numpy() @ fused if query < 0 else fused[-rows * columns + query]
        return minmax(torch.from_numpy(row[None, -rows * columns :]))[0].numpy()

    def method(self, index):
        return self.photos[self.settings["photo"]]["maps"][self.settings["target"], index]


def checksum(values):
    k = np.arange(1, len(values) + 1)
    return float((values * k).sum() / k.sum())


class Explorer:
    """One explorer of the page, with its controls by name."""

    def __init__(self, page, show):
        self.page = page
        has = "show => [...document.querySelectorAll('.gmar')].findIndex(view => view.querySelector(show))"
        index = page.evaluate(has, f".gmar-{show}")
        self.view = page.locator(".gmar").nth(index)
        self.box = page.locator(".gmar-explorer").nth(index)
        self.expected = Expected(page, show)
        self.box.scroll_into_view_if_needed()

    def slider(self, name):
        return self.box.get_by_role("slider", name=name, exact=True)

    def menu(self, name):
        return self.box.get_by_role("combobox", name=name, exact=True)

    def press(self, name, key, times=1):
        self.slider(name).focus()
        for _ in range(times):
            self.page.keyboard.press(key)

    def drag(self, name, pixels):
        handle = self.slider(name)
        handle.scroll_into_view_if_needed()
        box = handle.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + pixels, y, steps=8)
        self.page.mouse.up()

    def value(self, name):
        return float(self.slider(name).get_attribute("aria-valuetext"))

    def data(self, name="checksum"):
        return float(self.view.get_attribute(f"data-{name}"))

    def shows(self, value, name="checksum"):
        """The view arrives at this number, and it was not there by standing still: callers change something first."""
        deadline = time.monotonic() + 5
        while abs(self.data(name) - value) > TOLERANCE and time.monotonic() < deadline:
            self.page.wait_for_timeout(20)
        assert self.data(name) == pytest.approx(value, abs=TOLERANCE)

    def changes_to(self, **settings):
        before = checksum(self.expected.map())
        after = checksum(self.expected.map(**settings))
        assert abs(after - before) > 2 * TOLERANCE, "this change would go unnoticed: choose another"
        self.shows(after)


# ------------------------------------------------------------------------------------------------ the map


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


def pixels(canvas):
    """What the canvas holds, (height, width, 3)."""
    png = canvas.evaluate("c => c.toDataURL('image/png')").partition(",")[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")).astype(float)


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


# ------------------------------------------------------------------------------------------------ light, ask, links


@pytest.fixture(params=["file", "http"])
def light(request, small, server):
    return server.replace("index", "light") if request.param == "http" else (small / "light.html").as_uri()


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


# ------------------------------------------------------------------------------------------------ code, speech, touch


def test_the_code_makes_the_picture(browser, small, scope):
    """Text copied from the view, run here, gives the map at full precision: within the error that the page states."""
    with opened(browser, (small / "index.html").as_uri()) as page:
        e = Explorer(page, "heads")
        e.view.locator('[data-head="4,2"]').click()
        e.menu("head weights").select_option(label="L2 norm")
        e.menu("photo").select_option(index=1)
        e.press("α", "ArrowLeft", 5)
        e.changes_to(muted=[[4, 2]], norm=1, photo=1, alpha=0.75)
        space = dict(scope)
        exec("import gmar_utils, gmar_utils.explorer, gmar_utils.metrics", space)
        exec(e.view.locator("code").text_content(), space)
        error = e.expected.photos[1]["info"]["error"]
        assert abs(space["map"].flatten().numpy() - e.expected.map()).max() <= error + 1e-5
        e = Explorer(page, "compare")
        e.menu("right map").select_option(label="Grad-CAM")
        e.shows(checksum(e.expected.method(list(explorer.METHODS_SHOWN).index("Grad-CAM"))), "right")
        exec(e.view.locator("code").text_content(), space)
        assert checksum(space["right"].flatten().numpy()) == pytest.approx(e.data("right"), abs=TOLERANCE)
        e = Explorer(page, "deletion")
        exec(e.view.locator("code").text_content(), space)
        assert np.allclose(space["curve"].scores[0], e.expected.photos[0]["curves"][0, 0], atol=1e-4)


def test_speaks_the_strongest_patch(page):
    e = Explorer(page, "map")
    e.press("α", "End")
    best = int(e.expected.map(alpha=10).argmax())
    _, columns = e.expected.photos[0]["info"]["grid"]
    words = f"row {best // columns + 1} of .*, column {best % columns + 1} of .*α = 10.00"
    live = e.view.locator("[aria-live=polite]").element_handle()
    page.wait_for_function("([el, words]) => new RegExp(words).test(el.textContent)", arg=[live, words])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(browser, address, scheme):
    """Names, sizes and contrasts on a small touch screen; nothing sticks out; no filter spoils the colours."""
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    with opened(browser, address, **phone) as page:
        page.add_script_tag(content=AXE.read_text(encoding="utf8"))
        page.wait_for_timeout(400)
        assert not violations(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        too_small = page.evaluate(
            """() => [...document.querySelectorAll('.gmar-explorer :is(button, select, summary, input, .noUi-handle)')]
                .filter(e => e.checkVisibility()).map(e => [e, e.getBoundingClientRect()])
                .filter(([e, box]) => Math.min(box.width, box.height) < 24).map(([e]) => e.outerHTML.slice(0, 90))"""
        )
        assert not too_small
        unnamed = page.evaluate("() => [...document.querySelectorAll('.noUi-handle')].filter(h => !h.ariaLabel).length")
        assert unnamed == 0
        filtered = page.evaluate(
            """() => {
                const spoiled = (e) => e && (getComputedStyle(e).filter !== 'none' || spoiled(e.parentElement));
                return [...document.querySelectorAll('.gmar canvas')].filter(spoiled).length;
            }"""
        )
        assert filtered == 0
        e = Explorer(page, "heads")
        layers = e.expected.photos[0]["info"]["shape"][0]
        e.view.locator(f'[data-head="{layers},1"]').tap()
        e.changes_to(muted=[[layers, 1]])


# ------------------------------------------------------------------------------------------------ time and size


@pytest.mark.parametrize("pack", ["heads", "light"])
def test_a_move_is_painted_within_a_frame(browser, address, pack):
    """From the key event on the slider to the frame that shows the new map; best of three rounds of twenty moves."""
    if pack == "light" and not address.endswith("index.html"):
        pytest.skip("this page has no light pack")
    with opened(browser, address.replace("index.html", "light.html") if pack == "light" else address) as page:
        e = Explorer(page, "map")
        e.slider("α").focus()
        page.evaluate(
            """() => {
                window.took = [];
                addEventListener('keydown', event => {
                    const began = event.timeStamp;
                    requestAnimationFrame(() => {           // after the view's own callback, in the same frame
                        const channel = new MessageChannel();
                        channel.port1.onmessage = () => took.push(performance.now() - began);
                        channel.port2.postMessage(0);
                    });
                });
            }"""
        )
        rounds = []
        for key in ("ArrowRight", "ArrowLeft", "ArrowRight"):
            for _ in range(20):
                page.keyboard.press(key)
                page.wait_for_timeout(40)
            rounds.append(statistics.median(page.evaluate("took.splice(0)")))
        print(f"{address.split(':')[0]}: event to painted frame, medians {[round(r, 1) for r in rounds]} ms")
        e.shows(checksum(e.expected.map(alpha=2.0)))
        assert min(rounds) <= 16


def test_bytes_of_a_photo(page):
    state = json.loads(page.locator(STATE).inner_text())["state"]
    sizes = [sum(len(b["data"]) for b in m["buffers"]) for m in state.values() if "info" in m["state"]]
    assert sizes and max(sizes) <= 600_000


def test_every_live_picture_has_a_still_one(html):
    """A reader without JavaScript finds a figure below every explorer."""
    chapter = html / "notebooks" / "explore.html"
    if not chapter.exists():
        missing("the book has no chapter 'Explore': run `make book`")
    text = re.sub(r"<script[^>]*widget-view.*?</script>", "LIVE", chapter.read_text(encoding="utf8"), flags=re.S)
    places = text.split("LIVE")[1:]
    assert len(places) >= 5
    without = [i for i, rest in enumerate(places) if not re.search(r'<img[^>]+alt="[^"]{20,}"|<table', rest)]
    assert not without


# ------------------------------------------------------------------------------------------------ live, with a kernel


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.slow
def test_live_in_jupyterlab(browser, tmp_path):
    """The same widget with a kernel: the view recomputes, and the kernel's traits follow."""
    if importlib.util.find_spec("jupyterlab") is None:
        missing("there is no JupyterLab: pip install -r requirements.txt")
    source = MODEL + 'ui = explorer.explore(vit, photos, show=("map", "heads"))\nui'
    cells = [source, "print('KERNEL', ui.view.arguments(), ui.view.photo)"]
    notebook = {
        "cells": [
            {"cell_type": "code", "id": f"c{i}", "metadata": {}, "execution_count": None, "outputs": [], "source": c}
            for i, c in enumerate(cells)
        ],
        "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (tmp_path / "live.ipynb").write_text(json.dumps(notebook))
    port = free_port()
    root = str(Path(__file__).parents[2])
    home = {"JUPYTER_CONFIG_DIR": f"{tmp_path}/config", "JUPYTER_RUNTIME_DIR": f"{tmp_path}/run", "PYTHONPATH": root}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1",
               "--IdentityProvider.token=", f"--ServerApp.root_dir={tmp_path}", "--LabApp.news_url=",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]  # fmt: skip
    log = (tmp_path / "log").open("w")
    lab = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **home}, stdout=log, stderr=log)
    try:
        base = f"http://127.0.0.1:{port}"
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{base}/api")
                break
            time.sleep(0.5)
        context = browser.new_context(viewport={"width": 1300, "height": 1200})
        page = context.new_page()
        off_site, here = [], (base, "data:", "blob:", base.replace("http", "ws"))
        errors = []
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("request", lambda r: None if r.url.startswith(here) else off_site.append(r.url))
        page.goto(f"{base}/lab/tree/live.ipynb?reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
        page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=120_000)

        def run(number):
            """Press until the prompt says that the cell runs: for its first seconds JupyterLab hears no shortcut."""
            prompt = page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt").nth(number)
            for _ in range(60):
                prompt.click()
                page.keyboard.press("Control+Enter")
                page.wait_for_timeout(500)
                if prompt.inner_text().strip() != "[ ]:":
                    return
            pytest.fail("JupyterLab does not run the cell")

        run(0)
        view = page.locator(".gmar[data-checksum]")
        view.wait_for(timeout=180_000)
        explorer_box = page.locator(".gmar-explorer")
        before = view.get_attribute("data-checksum")
        explorer_box.get_by_role("combobox", name="variant").select_option(label="report")
        explorer_box.get_by_role("slider", name="α", exact=True).focus()
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        explorer_box.get_by_role("combobox", name="photo").select_option(index=1)
        explorer_box.get_by_role("combobox", name="head weights").select_option(label="L2 norm")
        view.locator('[data-head="4,2"]').click()
        handle = explorer_box.get_by_role("slider", name="layers, first")
        handle.scroll_into_view_if_needed()
        at = handle.bounding_box()
        page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
        page.mouse.down()
        page.mouse.move(at["x"] + at["width"] / 2 + 80, at["y"] + at["height"] / 2, steps=8)
        page.mouse.up()
        page.wait_for_timeout(1500)
        shown = float(view.get_attribute("data-checksum"))
        assert shown != float(before)
        run(1)
        output = page.locator(".jp-OutputArea-output pre", has_text="KERNEL")
        output.wait_for(timeout=60_000)
        words = output.inner_text()
        assert "'alpha': 1.25" in words and "'variant': 'report'" in words and "'norm': 'l2'" in words
        assert "'layers': (2, 4)" in words and "'muted': [(4, 2)]" in words
        assert words.strip().endswith("1")
        assert not off_site
        assert not errors
        space = {}
        exec(MODEL, space)
        arguments = eval(words.strip().removeprefix("KERNEL").strip().rsplit(" ", 1)[0])
        exact = explorer.state_map(space["vit"], space["photos"]["other waves"], **arguments)
        assert shown == pytest.approx(checksum(exact.flatten().numpy()), abs=0.01)  # the page's against exact attention
        context.close()
    finally:
        lab.terminate()
        lab.wait(timeout=30)
        log.close()
