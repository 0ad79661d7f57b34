"""A small model, and pages of explorers on it."""

import functools
import http.server
import json
import threading
from pathlib import Path

import pytest
from ipywidgets.embed import dependency_state, embed_data

from gmar_utils import explorer

from ..conftest import HTML, missing
from .controls import opened

WIDGETS = Path(__file__).parents[3] / "book" / "assets" / "vendor" / "widgets"
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


@pytest.fixture(scope="session")
def scope():
    space = {}
    exec(MODEL, space)  # the live test runs the same text in a notebook
    return space


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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


@pytest.fixture
def page(browser, address):
    with opened(browser, address) as page:
        yield page


@pytest.fixture(params=["file", "http"])
def light(request, small, server):
    return server.replace("index", "light") if request.param == "http" else (small / "light.html").as_uri()
