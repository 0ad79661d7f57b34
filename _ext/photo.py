"""Writes what the page 'Your own photo' loads: its modules as text, and the model as parts on a button.

A page opened from disk may not fetch files, so the runtime and the graph are cut into scripts (gzip in base64): the
same files serve both ways.
"""

import base64
import gzip
import json
import os
import re
from pathlib import Path

import onnx
from huggingface_hub import ModelCard

from gmar_utils import METHODS
from gmar_utils.checkpoint import CHECKPOINTS
from gmar_utils.explorer.widget import MODULES, STYLES
from gmar_utils.export import export

MODEL = os.environ.get("GMAR_PHOTO_MODEL", "vit-small-tiny-imagenet")
PART = 1_500_000  # characters a script: small enough for a progress bar that moves
SHOWN = ["rollout", "gmar", "gmar", "gmar", "legrad", "grad-cam", "chefer", "attention"]  # the buttons of reading.js
PAGE = ("reading", "panels", "page")  # the page's own modules: what one imports first


def write(app, exception):
    if exception is None and app.builder.format == "html" and "book/photo" in app.env.found_docs:
        pages(Path(app.srcdir) / "book" / "assets", Path(app.outdir) / "_static" / "photo", MODEL)


def pages(assets: Path, out: Path, model: str, image_size: int | None = None) -> None:
    """code.js and the parts, for any page in whose folder `out` lies."""
    import gmar_utils.explorer

    out.mkdir(parents=True, exist_ok=True)
    scripts, vendor = Path(gmar_utils.explorer.__file__).parent, assets / "vendor" / "onnxruntime"
    graph = export(model, out / "graph.onnx", image_size)
    about = described(onnx.load(graph), model)
    runtime = {
        "code": gzip.compress((vendor / "ort.wasm.bundle.min.mjs").read_bytes(), 9, mtime=0),
        "wasm": (vendor / "ort-wasm-simd-threaded.wasm.gz").read_bytes(),
        "graph": gzip.compress(graph.read_bytes(), 9, mtime=0),
    }
    graph.unlink()
    parts = {name: _parts(out, name, data) for name, data in runtime.items()}
    explorer, own = scripts / "js", assets / "photo"
    modules = [*(explorer / f"{name}.js" for name in MODULES), *(own / f"{name}.js" for name in PAGE)]
    worker = [own / f"{name}.js" for name in ("methods", "resize", "worker")]
    sheets = [*(scripts / f"{name}.css" for name in STYLES), own / "photo.css"]
    code = {
        "about": about,
        "bytes": sum(part["bytes"] for files in parts.values() for part in files),
        "parts": parts,
        "modules": [(module.stem, module.read_text("utf8")) for module in modules],
        "worker": "".join(_plain(module.read_text("utf8")) for module in worker),
        "style": "".join(sheet.read_text("utf8") for sheet in sheets),
    }
    (out / "code.js").write_text(f"window.gmarPhoto = {json.dumps(code)};\n", "utf8")


def described(graph, model: str) -> dict:
    """The graph's own metadata, and what the page says of the model and the methods."""
    about = {p.key: p.value for p in graph.metadata_props}
    for key in (
        "image_size",
        "resize",
        "resample",
        "crop",
        "grid",
        "prefix_tokens",
        "readout",
        "mean",
        "std",
        "labels",
        "bits",
    ):
        about[key] = json.loads(about[key])
    shape = {o.name: [d.dim_value for d in o.type.tensor_type.shape.dim] for o in graph.graph.output}["attention"]
    patches = shape[2] - about["prefix_tokens"]
    card = CHECKPOINTS / model / "README.md"
    results = ModelCard.load(card).data.eval_results if card.is_file() else []
    size = f", {about['image_size'][0]} px"
    accuracy = next((r.metric_value for r in results or () if size in r.dataset_config), None)
    shown = [METHODS[name] for name in SHOWN]
    return about | {
        "shape": shape[:3],
        "readout": about["readout"] + [0] * patches,
        "accuracy": accuracy,
        "colours": [m.color for m in shown],
        "sentences": [
            f"Map computed with {m.title}{f' [{m.citation}]' if m.citation else ''} as implemented in "
            f"{about['written_by']}, scaled to [0, 1] and interpolated bilinearly. A map is not a segmentation."
            for m in shown
        ],
    }


def _parts(out, name, data):
    text = base64.b64encode(data).decode()
    found = []
    for number, start in enumerate(range(0, len(text), PART)):
        file, piece = f"{name}-{number}.js", text[start : start + PART]
        (out / file).write_text(f'gmarPhoto.arrived = "{piece}";\n', "utf8")
        found.append({"file": file, "bytes": len(piece)})
    return found


def _plain(module):
    """A module as part of a classic script: what it imports stands in front of it."""
    return re.sub(
        r"^export (?=(async )?(function|const))", "", re.sub(r"^import .*;\n", "", module, flags=re.M), flags=re.M
    )


def setup(app):
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
