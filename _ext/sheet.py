"""The class sheet as one A4 page: the built page, printed. Run `make sheet` after a change of book/teach/sheet.md."""

import os
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "_build/html/book/teach/sheet.html"
PDF = ROOT / "book/assets/sheet.pdf"


def printed(page: Path = PAGE) -> bytes:
    """What the browser's own *Print* makes of a page: book.css says how it looks on paper."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(color_scheme="light")
        tab.goto(page.as_uri())
        made = tab.pdf(format="A4", prefer_css_page_size=False)
        browser.close()
    return made


if __name__ == "__main__":
    PDF.write_bytes(printed())
    print(f"{PDF.relative_to(ROOT)}: {PDF.stat().st_size / 1000:.0f} kB")
