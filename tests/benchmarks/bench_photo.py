"""How long a reader of 'Your own photo' waits, in Chromium, from disk: the model, the first map, a method, the slider.

Writes book/results/photo-page.csv (milliseconds and bytes, median of the repetitions) and its provenance.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from playwright.sync_api import sync_playwright
from skimage import data

from gmar_utils.evaluation.provenance import made_by

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "_ext")]
import photo  # noqa: E402

from tests.browser.conftest import FLAGS  # noqa: E402
from tests.browser.test_photo import PAGE  # noqa: E402

RESULTS = ROOT / "book" / "results"
# what the page takes from a press to the finished drawing
DRAWN = """(press) => new Promise((done) => {
    const el = document.querySelector('[data-asked]');
    const began = performance.now();
    new MutationObserver((_, seen) => { seen.disconnect(); done(performance.now() - began); })
        .observe(el, { attributes: true, attributeFilter: ['data-asked'] });
    press === 'α' ? gmarPhoto.page.current().model.set('alpha', 10 * Math.random())
        : [...document.querySelectorAll('.gmar-ask button')].find((b) => b.textContent === press).click();
})"""


def measure(browser, site, size, repetitions):
    """Rows of (size, what, value) for a site made at one input size."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(300_000)
    page.goto((site / "index.html").as_uri())
    scripts = sum((site / "_static" / "photo" / name).stat().st_size for name in ("load.js", "code.js"))
    rows = [(size, "page without the model, bytes", scripts)]
    rows.append((size, "model and runtime, bytes", page.evaluate("() => gmarPhoto.bytes")))
    started = time.perf_counter()
    page.get_by_role("button", name="Load the model").click()
    page.wait_for_selector("#own-photo[data-ready]")
    rows.append((size, "load and start the model, ms", 1000 * (time.perf_counter() - started)))
    for k in range(repetitions):
        file = site / f"{k}.jpg"
        Image.fromarray(np.roll(data.chelsea(), k, 1)).resize((1600, 1064)).save(file)
        page.set_input_files("input[multiple]", str(file))
        page.wait_for_selector(f"#own-photo[data-done='{file.name}']")
        rows.append((size, "first map of a 1600 × 1064 photo, ms", float(page.get_attribute("#own-photo", "data-ms"))))
        for press in ("LeGrad", "GMAR, L2"):
            rows.append((size, "second method, ms", page.evaluate(DRAWN, press)))
        rows += [(size, "slider to frame, ms", page.evaluate(DRAWN, "α")) for _ in range(10)]
    context.close()
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=photo.MODEL)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 224])
    arguments = parser.parse_args()
    started, rows = time.time(), []
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        version = browser.version
        for size in arguments.sizes:
            site = Path(folder) / str(size)
            photo.pages(ROOT / "book" / "assets", site / "_static" / "photo", arguments.model, size)
            shutil.copy(ROOT / "book" / "assets" / "photo" / "load.js", site / "_static" / "photo")
            (site / "index.html").write_text(PAGE, encoding="utf8")
            rows += measure(browser, site, size, arguments.repetitions)
        browser.close()
    table = pd.DataFrame(rows, columns=["image_size", "measure", "value"])
    values = table.groupby(["image_size", "measure"], sort=False)["value"]
    table = values.agg(median="median", most="max", repetitions="count").reset_index()
    seconds = round(time.time() - started)
    record = made_by(model=Path(arguments.model).name, browser=f"Chromium {version}", wall_time_s=seconds)
    table.to_csv(RESULTS / "photo-page.csv", index=False, float_format="%.5g")
    (RESULTS / "photo-page.json").write_text(json.dumps(record, indent=1) + "\n")
    print(table.round(1).to_string(index=False))


if __name__ == "__main__":
    main()
