"""'Your own photo' in a browser, from disk and over http: the page's maps are the library's, and no request leaves.

A small page is made here with the runtime and a bundled model; the book's own page is tested where there is a built
book.
"""

import functools
import http.server
import importlib.util
import io
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from gmar_utils import explain, load_model, trace
from gmar_utils.metrics import deletion

from .conftest import HTML, missing
from .test_pages import AXE, sideways, violations

ROOT = Path(__file__).parents[2]
MODEL = "vit-shapes"
PAGE = """<!doctype html><html lang="en" data-theme="light"><meta charset="utf-8"><title>Your own photo</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"><main><h1>Your own photo</h1>
<div id="own-photo" class="gmar gmar-own"></div></main>
<script src="_static/photo/code.js"></script><script src="_static/photo/load.js"></script></html>"""
# the page's buttons and what they are in Python
METHODS = [
    ("rollout", {}),
    ("gmar", {"norm": "l1"}),
    ("gmar", {"norm": "l2"}),
    ("gmar", {"norm": None}),
    ("legrad", {}),
    ("grad-cam", {}),
    ("chefer", {}),
    ("attention", {}),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for name in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            missing(f"there is no {name}: pip install -r requirements.txt")
    sys.path.insert(0, str(ROOT / "_ext"))
    try:
        import photo
    finally:
        sys.path.pop(0)
    folder = tmp_path_factory.mktemp("site")
    photo.pages(ROOT / "book" / "assets", folder / "_static" / "photo", MODEL)
    shutil.copy(ROOT / "book" / "assets" / "photo" / "load.js", folder / "_static" / "photo")
    (folder / "index.html").write_text(PAGE, encoding="utf8")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Photos that a reader may have: {name: file}."""
    folder = tmp_path_factory.mktemp("pictures")
    cat = Image.fromarray(data.chelsea())
    cat.save(folder / "cat.jpg", quality=92)
    cat.convert("L").save(folder / "grey.png")
    cut_out = cat.convert("RGBA")
    cut_out.putalpha(Image.fromarray(np.uint8(255 * (np.indices(cat.size[::-1])[1] > 150))))
    cut_out.save(folder / "transparent.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter, as a phone stores it
    cat.resize((4000, 3000)).save(folder / "phone.jpg", quality=90, exif=exif)
    (folder / "iphone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0" + bytes(200))
    (folder / "words.jpg").write_text("not a picture")
    (folder / "empty.png").touch()
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module", params=["file", "http"])
def page(request, browser, site):
    """A page with the model loaded."""
    if request.param == "file":
        address, server = (site / "index.html").as_uri(), None
    else:
        handler = functools.partial(Quiet, directory=str(site))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/index.html"
    page = opened(browser, address)
    load(page)
    yield page
    assert not page.problems
    assert not [r for r in page.requests if not r.startswith(("data:", "blob:", address.rsplit("/", 1)[0]))]
    page.context.close()
    if server:
        server.shutdown()


def opened(browser, address, **context):
    page = browser.new_context(viewport={"width": 1000, "height": 900}, **context).new_page()
    page.set_default_timeout(120_000)  # a busy machine is slow, not wrong
    page.problems, page.requests = [], []
    page.on("pageerror", lambda e: page.problems.append(str(e)))
    page.on("console", lambda m: page.problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("request", lambda r: page.requests.append(r.url))
    page.goto(address)
    return page


def load(page):
    page.get_by_role("button", name="Load the model").click()
    page.wait_for_selector("#own-photo[data-ready]")


def show(page, *files):
    page.set_input_files("input[multiple]", [str(f) for f in files])
    page.wait_for_selector(f"#own-photo[data-done='{files[-1].name}']")


def maps_of(page, t):
    """(8, R·C): every method's map of the t-th class, from the page."""
    script = """(t) => { const { page } = gmarPhoto; const { model, view } = page.current();
        return view.methods.map((_, m) => [...page.mapAt(model, view, t, m)]); }"""
    return np.array(page.evaluate(script, t))


@pytest.mark.parametrize("name", ["cat.jpg", "grey.png", "transparent.png", "phone.jpg"])
def test_the_maps_are_pythons(page, pictures, name):
    show(page, pictures / name)
    vit = load_model(MODEL, device="cpu")
    pixels = vit.preprocess([pictures / name])
    logits = trace(vit.model, pixels).logits[0]
    targets = page.evaluate("() => gmarPhoto.page.current().view.targets")
    assert targets[0] == int(logits.argmax())
    assert len(set(targets) & set(logits.topk(len(targets)).indices.tolist())) >= len(targets) - 1
    for t in (0, 1):
        for (method, options), ours in zip(METHODS, maps_of(page, t), strict=True):
            theirs = explain(vit.model, pixels, method, targets[t], upsample=False, **options).flatten().numpy()
            if theirs.any() or ours.any():
                assert np.corrcoef(ours, theirs)[0, 1] > 0.99, (method, options)


def test_a_turned_photo_stands_upright(page, pictures):
    show(page, pictures / "phone.jpg")
    size = page.evaluate(
        "() => { const { colour } = gmarPhoto.page.current().view; return [colour.width, colour.height]; }"
    )
    assert size == [480, 640]


@pytest.mark.parametrize(
    ("name", "words"), [("iphone.heic", "HEIC"), ("words.jpg", "not a picture"), ("empty.png", "empty")]
)
def test_what_cannot_be_read_is_refused_in_words(page, pictures, name, words):
    page.set_input_files("input[multiple]", str(pictures / name))
    page.wait_for_function("words => document.querySelector('.gmar-own-status').textContent.includes(words)", arg=words)
    show(page, pictures / "cat.jpg")  # and the page goes on


def test_several_photos_one_after_the_other(page, pictures):
    show(page, pictures / "cat.jpg", pictures / "grey.png")
    page.get_by_role("group", name="Photos").get_by_role("button", name="cat.jpg").last.click()
    page.wait_for_selector("#own-photo[data-done='cat.jpg']")
    assert page.locator(".gmar-ask canvas").get_attribute("aria-label").startswith("cat.jpg")


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_drop_and_paste(page, pictures, way):
    show(page, pictures / "grey.png")
    content = list((pictures / "cat.jpg").read_bytes())
    page.evaluate(
        """([way, content]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(content)], `${way}.jpg`, { type: 'image/jpeg' }));
            document.querySelector('.gmar-drop').dispatchEvent(way === 'drop'
                ? new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true })
                : new ClipboardEvent('paste', { clipboardData: data, bubbles: true }));
        }""",
        [way, content],
    )
    page.wait_for_selector(f"#own-photo[data-done='{way}.jpg']")


def test_controls_by_keyboard_and_the_same_map_in_the_pair(page, pictures):
    show(page, pictures / "cat.jpg")
    asked = page.locator(".gmar-ask")
    before = page.locator("[data-asked]").get_attribute("data-asked")
    asked.get_by_role("button", name="LeGrad").press("Enter")
    page.wait_for_function("before => document.querySelector('[data-asked]').dataset.asked !== before", arg=before)
    page.wait_for_function("() => document.querySelector('.gmar-two canvas').ariaLabel.includes('LeGrad')")
    code = page.locator("pre code").first
    assert '"legrad"' in code.text_content() and f'load_model("{MODEL}"' in code.text_content()
    asked.get_by_role("button", name="GMAR, L1").press("Enter")
    slider = asked.get_by_role("slider", name="α")
    before = page.locator("[data-asked]").get_attribute("data-asked")
    slider.press("ArrowRight")
    page.wait_for_function("before => document.querySelector('[data-asked]').dataset.asked !== before", arg=before)
    page.get_by_text("The heads:").click()
    board = page.get_by_role("group", name="Head weights")
    board.get_by_role("button").first.click()
    page.wait_for_function("() => document.querySelector('.gmar-board button').textContent === '×'")
    page.get_by_label("order of GMAR").select_option("report")
    page.wait_for_function("() => document.querySelector('pre code').textContent.includes('variant=\"report\"')")


def test_the_deletion_curve_is_pythons(page, pictures):
    show(page, pictures / "cat.jpg")
    page.locator(".gmar-ask").get_by_role("button", name="LeGrad").click()
    page.get_by_text("Deletion:").click()
    for method in ("LeGrad", "Grad-CAM"):
        page.locator(".gmar-ask").get_by_role("button", name=method).click()
        page.get_by_role("button", name="Remove its patches").click()
        page.wait_for_function(
            "name => gmarPhoto.page.current().view.curves[0]?.some((c) => c.label === name)", arg=method
        )
    ours = page.evaluate("() => gmarPhoto.page.current().view.curves[0].map(({ curve }) => curve)")
    vit = load_model(MODEL, device="cpu")
    pixels = vit.preprocess([pictures / "cat.jpg"])
    for curve, method in zip(ours, ("legrad", "grad-cam"), strict=True):
        maps = explain(vit.model, pixels, method, upsample=False)
        theirs = deletion(vit.model, pixels, maps, steps=16).scores[0].numpy()
        assert np.abs(np.array(curve) - theirs).max() < 0.05
    chart = page.locator(".gmar-deletion svg[role=img]")
    assert "Grad-CAM" in chart.get_attribute("aria-label")
    page.get_by_role("slider", name="steps").press("End")
    page.wait_for_function("() => document.querySelector('[data-removed]').dataset.removed === '64'")


def test_the_picture_can_be_saved(page, pictures):
    show(page, pictures / "cat.jpg")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as PNG").click()
    assert download.value.suggested_filename.startswith("cat.") and download.value.suggested_filename.endswith(".png")
    with Image.open(io.BytesIO(Path(download.value.path()).read_bytes())) as saved:
        width, height = saved.size
        assert width >= 480 and height > 60 + width * 2 // 3 - 20
        assert len(np.unique(np.asarray(saved.convert("L"))[-60:])) > 2  # words under the picture


def test_no_barriers_on_a_desktop_and_a_phone(page, pictures):
    show(page, pictures / "cat.jpg")
    page.add_script_tag(content=AXE.read_text(encoding="utf8"))
    for width in (1000, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert violations(page) + sideways(page) == []
    page.set_viewport_size({"width": 1000, "height": 900})


def test_a_photo_may_come_before_the_model(browser, site, pictures):
    page = opened(browser, (site / "index.html").as_uri())
    page.set_input_files("input[multiple]", str(pictures / "cat.jpg"))
    assert "waits" in page.locator(".gmar-own-status").inner_text()
    load(page)
    page.wait_for_selector("#own-photo[data-done='cat.jpg']")
    page.context.close()


def test_a_missing_part_is_named(browser, site, tmp_path):
    broken = tmp_path / "site"
    shutil.copytree(site, broken)
    (broken / "_static" / "photo" / "wasm-1.js").unlink()
    page = opened(browser, (broken / "index.html").as_uri())
    page.get_by_role("button", name="Load the model").click()
    page.wait_for_function("() => document.querySelector('.gmar-own-status').textContent.includes('wasm-1.js')")
    assert page.get_by_role("button", name="Load the model").is_enabled()
    page.context.close()


def test_the_books_page_explains_a_phones_photo_with_the_network_off(browser, pictures):
    if not (HTML / "book" / "photo.html").exists():
        missing("there is no built book: run `make book`")
    page = opened(browser, (HTML / "book" / "photo.html").as_uri())
    page.context.set_offline(True)
    load(page)
    started = time.perf_counter()
    show(page, pictures / "phone.jpg")
    print(f"five classes in {time.perf_counter() - started:.1f} s")
    with page.expect_download():
        page.get_by_role("button", name="Save as PNG").click()
    assert not page.problems
    assert all(r.startswith(("file:", "blob:", "data:")) for r in page.requests)
    page.context.close()
