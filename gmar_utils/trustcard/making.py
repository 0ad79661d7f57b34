"""The run behind a card: photo by photo, check by check, each kept as it is done."""

import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from .. import __version__
from ..capture.settling import once
from ..evaluation.folder import digest, write
from ..evaluation.provenance import made_by, shown, state_sha256, weights_sha256
from ..methods import METHODS
from ..model import Vit, load_model
from ..photo import Picture, Pictures
from . import measures
from .card import TrustCard
from .choice import choose
from .health import model_lights
from .lights import Light, lights_of
from .photos import read_photos

STEPS = ("maps", "weights", "faithful", "object", "tokens")
QUICK = {"steps": 8, "draws": 1}
FULL = {"steps": None, "draws": 4}


def trust(
    vit: Vit | str | os.PathLike | nn.Module,
    photos: Pictures | Mapping[str, Picture] | Sequence[Mapping],
    labels: Mapping[str, str | int] | str | os.PathLike | None = None,
    masks: Mapping[str, Picture] | str | os.PathLike | None = None,
    *,
    methods: str | Iterable[str] | Mapping[str, str | Callable] | None = None,
    quick: bool = False,
    work: str | os.PathLike | None = None,
    book: str = "",
    batch_size: int = 64,
    progress: bool = True,
) -> TrustCard:
    """Which explanation of this model may be shown? Judged on the reader's own photos.

    Every method gets a light for each check of `lights.CHECKS`, tested over photos (sign flips, from 30 photos on a t
    test), with Holm's correction for the number of lights; below 6 photos there is no light. The model is checked
    first. `choice.choose` makes one recommendation of it.

    Args:
        vit: a Vit, or what `load_model` takes.
        photos: pictures as `Vit.preprocess` takes them, folders of them, {name: picture}, or records {"image", and
            "label", "mask", "box" where known}. What cannot be read is named on the card, and left out.
        labels: {file: label word or class id}, or a CSV file (file, label[, x0, y0, x1, y1]).
        masks: {file: mask}, or a folder with a mask of the same stem for each photo (0 background, 255 void).
        methods: names of METHODS, or {label: name or function of a trace}; None: all, or six of them with `quick`.
        quick: six methods, 8 steps and one random map a photo in place of all, 32 and four.
        work: a folder that keeps what is done: the same call goes on from there.
        book: address of the book, for the links to its chapters; "" makes them relative.
        batch_size: pictures in a forward pass.
        progress: show a bar with the time left.

    Returns:
        The card; it shows itself in a notebook, and `.save("trust.html")` writes one file that needs no network.

    Raises:
        ValueError: when no photo can be used, and for methods that do not exist, before anything runs.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.")
    vit = vit if isinstance(vit, Vit) else load_model(vit)
    chosen = measures.judged(methods, quick)
    found, problems = read_photos(vit, photos, labels, masks)
    protocol = (QUICK if quick else FULL) | {"precision": "auto", "batch_size": batch_size}
    run = _Run(vit, chosen, protocol, None if work is None else Path(work))
    results = []
    with tqdm(total=len(found) * len(STEPS) + 3, desc="trust", unit="check", disable=not progress) as bar:
        for photo in found:
            try:
                results.append((photo, run.photo(photo, bar.update)))
            except (ValueError, TypeError, RuntimeError, MemoryError) as error:
                problems.append(f"{photo.name}: {' '.join(str(error).split()) or type(error).__name__}")
        if not results:
            raise ValueError("No photo could be judged. " + " ".join(problems))
        photos_done = [photo for photo, _ in results]
        said = [r["answers"] for _, r in results]
        model = run.model_lights(photos_done, said, bar.update)
    rows = [_row(r) for _, r in results]
    found_lights = lights_of(rows, chosen)
    titles = {k: m.title for k, m in chosen.items()}
    judged = {k: t for k, t in titles.items() if not chosen[k].reference}
    return TrustCard(
        vit=vit,
        photos=photos_done,
        results=[r for _, r in results],
        methods=chosen,
        lights=found_lights,
        model=model,
        recommendation=choose(found_lights, model, judged, len(results)),
        problems=problems + _failures(results, titles),
        provenance=made_by(
            model=shown(vit.name),
            weights_sha256=weights_sha256(vit),
            photos=len(results),
            quick=quick,
            protocol=protocol,
        ),
        book=book,
    )


class _Run:
    """The steps of a run, and the files that keep them."""

    def __init__(self, vit, methods, protocol, work):
        self.vit, self.methods, self.protocol, self.work = vit, methods, protocol, work
        if work is not None:
            work.mkdir(parents=True, exist_ok=True)
            self.settings = digest(
                {
                    "gmar_utils": __version__,
                    "torch": torch.__version__,
                    "weights": state_sha256(vit.model),
                    "methods": {k: _told(m) for k, m in methods.items()},
                    "protocol": protocol,
                }
            )

    @once
    def broken(self):
        return measures.broken_copies(self.vit.model)

    def photo(self, photo, step):
        """All that is measured on a photo."""
        said = self._kept(photo.key, "answers", lambda: measures.answers(self.vit, photo.pixel_values))
        made = self._kept(photo.key, "maps", lambda: measures.photo_maps(self.vit, photo, said, self.methods))
        step()
        candidates = {k: m for k, m in made["maps"].items() if k != "random"}
        if all(self.methods[k].reference for k in candidates):  # nothing to judge; the card says why
            step(len(STEPS) - 1)
            nothing = {"weights": {}, "faithful": {"srg": {}, "saco": {}}, "object": {}}
            return {"answers": said, "maps": made, "tokens": {"outliers": 0, "lit": {}}} | nothing
        tasks = {
            "weights": lambda: measures.weights_values(self.broken, photo, said, self.methods, candidates),
            "faithful": lambda: measures.faithful_values(self.vit, photo, said, candidates, self.protocol),
            "object": lambda: measures.object_values(self.vit, photo, made["maps"]),
            "tokens": lambda: measures.token_values(self.vit, photo, candidates),
        }
        found = {"answers": said, "maps": made}
        for name, task in tasks.items():
            found[name] = self._kept(photo.key, name, task)
            step()
        return found

    def model_lights(self, photos, said, step):
        key = digest({"photos": [p.key for p in photos]})
        size = self.protocol["batch_size"]
        found = self._kept(key, "model", lambda: [asdict(x) for x in model_lights(self.vit, photos, said, size, step)])
        return [Light(**x) for x in found]

    def _kept(self, key, name, make):
        """The result of `make`, or what an earlier run with these settings left of it."""
        if self.work is None:
            return make()
        file = self.work / f"{key}.{name}.json"
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            if kept["settings"] == self.settings and kept["crc32"] == zlib.crc32(json.dumps(kept["result"]).encode()):
                return kept["result"]
        except (OSError, ValueError, KeyError, TypeError):  # missing, cut short, or something else: made again
            pass
        result = json.loads(json.dumps(make()))  # as it will be read
        check = zlib.crc32(json.dumps(result).encode())
        write(file, json.dumps({"settings": self.settings, "crc32": check, "result": result}))
        return result


def _told(method):
    """What a method is, as text that says when it has changed; of the caller's own function its name and code."""
    function = method.function.func
    known = next((m.name for m in METHODS.values() if m.function is function), None)
    options = {k: repr(v) for k, v in method.function.keywords.items()}
    code = getattr(getattr(function, "__code__", None), "co_code", b"").hex()
    return [known or getattr(function, "__qualname__", type(function).__name__), "" if known else code, options]


def _row(result):
    """What `lights_of` reads of a photo."""
    values = result["maps"]["values"]
    tokens = result["tokens"]
    return values | {
        "weights": result["weights"],
        "srg": result["faithful"]["srg"],
        "saco": result["faithful"]["saco"],
        "object": result["object"],
        "lit": tokens["lit"],
        "outliers": tokens["outliers"],
    }


def _failures(results, titles):
    """A sentence for each method that gave no map, with the photos where."""
    found = {}
    for photo, result in results:
        for label, why in result["maps"]["failed"].items():
            found.setdefault((titles[label], why), []).append(photo.name)
    return [
        f"{title} gives no map of {len(names)} photos ({names[0]} …): {why}" for (title, why), names in found.items()
    ]
