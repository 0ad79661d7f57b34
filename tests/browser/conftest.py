"""One Chromium for all browser tests, on the built book, opened from disk as a reader without network would."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

HTML = Path(__file__).parents[2] / "_build" / "html"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def missing(reason):
    """Without a browser or a book these tests skip; .ci/run sets REQUIRE_BROWSER, and then that is a failure."""
    (pytest.fail if os.environ.get("REQUIRE_BROWSER") else pytest.skip)(reason)


@pytest.fixture(scope="session")
def html():
    if not (HTML / "index.html").exists():
        missing("there is no built book: run `make book`")
    return HTML


@pytest.fixture(scope="session")
def browser():
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        missing("there is no Chromium: apt-get install chromium, or set CHROMIUM to one")
    if importlib.util.find_spec("playwright") is None:
        missing("there is no playwright: pip install -r requirements.txt")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()
