"""A page of explorers, opened, and the controls of each."""

import base64
import contextlib
import io
import time

import numpy as np
import pytest
from PIL import Image

from .expected import Expected, checksum

TOLERANCE = 1e-4


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


def pixels(canvas):
    """What the canvas holds, (height, width, 3)."""
    png = canvas.evaluate("c => c.toDataURL('image/png')").partition(",")[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")).astype(float)
