"""Every page of the built book, from disk: on a phone and a desktop, light and dark."""

from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from .conftest import HTML

AXE = Path(__file__).parent / "vendor" / "axe.min.js"
SCREENS = {"phone": (390, 844), "desktop": (1280, 900)}
FOREIGN = {"_static", "_sources", "reports"}
PAGES = [p for p in sorted(HTML.rglob("*.html")) if not FOREIGN & set(p.parts) and p != HTML / "index.html"]
PAGE_BYTES = 3_000_000
NAMES = [str(p.relative_to(HTML)) for p in PAGES] or ["no book built"]


def wait_until_drawn(page):
    """Loaded, mathematics typeset, widgets rendered."""
    page.wait_for_load_state("load")
    page.evaluate("() => window.MathJax?.startup?.promise")
    page.wait_for_function(
        """() => document.querySelectorAll('.widget-subarea > *').length >=
                 document.querySelectorAll('script[type="application/vnd.jupyter.widget-view+json"]').length"""
    )


def sideways(page):
    """What sticks out of the screen: elements that no scrolling box of their own contains."""
    return page.evaluate(
        """() => {
            const width = document.documentElement.clientWidth;
            if (document.documentElement.scrollWidth <= width) return [];
            const scrolls = (e) => e && (getComputedStyle(e).overflowX !== 'visible' || scrolls(e.parentElement));
            return [...document.querySelectorAll('body *')]
                .filter((e) => e.getBoundingClientRect().right > width + 1 && !scrolls(e.parentElement))
                .slice(0, 5).map((e) => e.outerHTML.slice(0, 120)).concat(`${document.documentElement.scrollWidth} px`);
        }"""
    )


def violations(page):
    """axe-core's serious and critical findings, one line each."""
    found = page.evaluate("() => axe.run(document, { resultTypes: ['violations'], preload: false })")["violations"]
    return [
        f"{v['id']}: {v['help']}: {node['html'][:150]} ({(node.get('any') or [{}])[0].get('message', '')[:150]})"
        for v in found
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"][:4]
    ]


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("name", NAMES)
def test_page(html, browser, name, screen):
    width, height = SCREENS[screen]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme="light")
    context.set_default_timeout(120_000)  # a busy machine is slow, not wrong
    page = context.new_page()
    requests, problems = set(), []
    page.on("request", lambda r: requests.add(r.url.split("#")[0].split("?")[0]))
    page.on("requestfailed", lambda r: problems.append(f"failed: {r.url[-100:]}"))
    page.on("pageerror", lambda e: problems.append(f"error: {e}"))
    page.on("console", lambda m: problems.append(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None)

    page.goto((html / name).as_uri())
    wait_until_drawn(page)
    page.add_script_tag(content=AXE.read_text(encoding="utf8"))
    seen = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function("s => document.documentElement.dataset.theme === s", arg=scheme)
        page.wait_for_timeout(350)  # colours change in a transition
        seen[scheme] = sideways(page) + violations(page)
    context.close()

    off_site = sorted(r for r in requests if not r.startswith(("file:", "data:", "blob:")))
    files = {unquote(urlparse(r).path) for r in requests if r.startswith("file:")}
    size = sum(Path(f).stat().st_size for f in files if Path(f).is_file())
    assert not off_site
    assert not problems
    assert seen == {"light": [], "dark": []}
    assert size <= PAGE_BYTES, f"{size / 1e6:.2f} MB: " + ", ".join(
        sorted(files, key=lambda f: -Path(f).stat().st_size)[:5]
    )
