"""Methods × metrics over a data set: blocks that survive a kill, several processes.

Images are dealt in fixed blocks. A finished block is one file, put in place by a rename, so a run that is killed and
started again computes only what is missing, and several processes need no more than each taking every n-th block. All
maps of a block come from one trace where they share it; the metrics' forwards take the fast attention path.
"""

import json
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from accelerate import PartialState
from datasets import Dataset
from datasets.fingerprint import Hasher
from tqdm import tqdm

from .. import __version__
from ..capture.checks import check_whole
from ..capture.layout import logits_of
from ..capture.target import resolve_target
from ..data import best_target
from ..methods.registry import registered, scaled, scores_of
from ..metrics.faithfulness import step_count
from ..metrics.forwards import evaluating
from ..model import Vit
from .folder import claim, read_block, write, write_block
from .measures import BASELINE, METRICS, Case, checked_metrics, checked_options
from .provenance import describe_device, made_by, shown, state_sha256, weights_sha256
from .summary import Summary, summarize
from .variants import bound_methods, described, twins


def evaluate(
    vit: Vit,
    data: Sequence[dict] | Dataset,
    methods: str | Iterable[str] | dict[str, str | tuple | Callable] | None = None,
    metrics: str | Iterable[str] | None = None,
    out: str | Path | None = None,
    *,
    protocol: dict | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    block: int = 16,
    precision: str = "auto",
    data_name: str = "",
) -> Summary:
    """Run methods × metrics over records.

    With a folder `out`, rows, summary and provenance land there, and a run that was killed goes on when it is called
    again with the same arguments; under `accelerate launch` the processes share the blocks. Rows depend on neither.

    Args:
        vit: the model, as `load_model` gives it.
        data: a sequence of {"image", and "label" (or "targets", several that count), "box", "mask", "other" (the mask
            of a photo's other object) where a metric needs it}; or photos of two objects, as `data.voc_pairs` gives
            them, each asked about twice. Records with the same "photo" are drawn together by the bootstrap; without
            that field each record counts for itself.
        methods: labels of `DEFAULT_METHODS` and names of METHODS, or {label: name, (name, options), or a function
            of a trace, such as a functools.partial}. Default: `DEFAULT_METHODS`, without those that cannot read this
            model; a warning names them.
        metrics: names of `METRICS`. Default: what the records allow.
        out: a folder; None keeps everything in memory.
        protocol: options of the metrics that differ from `measures.OPTIONS`.
        limit: so many records (photos, of pairs), drawn with `seed`.
        seed: draws records, random maps and the bootstrap.
        batch_size: images in a metric's forward pass.
        block: records in a file.
        precision: of the metrics' forward passes: "auto", the cheapest that the processor computes in (norms, softmax
            and head in float32), or "float32". The maps are always made in the model's own.
        data_name: the data set's name, for the provenance.

    Returns:
        The summary; `.frame()`, `.to_markdown()`, `.plot()`.

    Raises:
        ValueError: for arguments that do not fit, before anything runs; when `out` holds a run with other settings.
    """
    started, state = time.perf_counter(), PartialState(cpu=not torch.cuda.is_available())
    out = None if out is None else Path(out)
    if out is None and state.num_processes > 1:
        raise ValueError("Several processes share their rows through a folder: give out=.")
    for name, value in {"limit": 1 if limit is None else limit, "batch_size": batch_size, "block": block}.items():
        check_whole(name, value)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(data))[:limit])
    if not len(chosen):
        raise ValueError("There are no images to evaluate: the data hold no record.")
    record_of = data.__getitem__
    if "groups" in data[int(chosen[0])]:  # photos of two objects
        record_of, chosen = partial(_question, data), (2 * chosen[:, None] + np.arange(2)).ravel()
    first = record_of(int(chosen[0]))
    metrics, options = checked_metrics(metrics, set(first)), checked_options(protocol, set(first))
    pixel_values = vit.preprocess([first["image"]])
    with evaluating(vit.model, pixel_values, precision) as found:
        forward = {"seed": seed, "batch_size": batch_size, "precision": precision}
    maps_of = _working(vit, pixel_values, bound_methods(methods, seed), options, methods is None)
    settings = {
        "gmar_utils": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": shown(vit.name),
        "weights_sha256": weights_sha256(vit),
        "state_sha256": state_sha256(vit.model),
        "input": list(pixel_values.shape[1:]),
        "preprocessing": json.loads(vit.processor.to_json_string()),
        "device": pixel_values.device.type,
        "dtype": str(pixel_values.dtype),
        "precision": found,
        "data": data_name,
        "records": len(data),
        "data_sample": _sample(record_of, chosen),
        "images": len(chosen),
        "seed": seed,
        "block": block,
        "methods": maps_of,
        "metrics": metrics,
        "protocol": options,
    }
    settings = described(settings)

    blocks = [chosen[i : i + block].tolist() for i in range(0, len(chosen), block)]
    files = [out / "parts" / f"{i:05d}.json" for i in range(len(blocks))] if out else []
    if out and state.is_main_process:
        claim(out, settings, files)
    state.wait_for_everyone()
    mine = range(state.process_index, len(blocks), state.num_processes)
    done = {i: read_block(files[i], settings) for i in mine} if out else {}
    todo = [i for i in mine if done.get(i) is None]
    for i in tqdm(todo, unit="block", disable=None if state.is_main_process else True):
        records = [record_of(k) for k in blocks[i]]
        done[i] = _run_block(vit, maps_of, metrics, options | forward, records, blocks[i])
        if out:
            write_block(files[i], done[i], settings)
    state.wait_for_everyone()

    if out:  # from the files alone, so that the rows are the same whoever computed them
        done = {i: read_block(f, settings) for i, f in enumerate(files)}
        if lost := [files[i].name for i, found in done.items() if found is None]:
            raise ValueError(f"Block files are missing or damaged: {', '.join(lost)}. Call again to compute them.")
    rows = pd.concat([pd.DataFrame(done[i]["rows"]) for i in range(len(blocks))], ignore_index=True)
    table = summarize(rows, list(maps_of), options, twins(maps_of), seed)
    summary = Summary(rows, table, done[0]["protocol"])
    if out and state.is_main_process:
        record = settings | {
            "device": describe_device(vit.device),
            "batch_size": batch_size,
            "processes": state.num_processes,
            "blocks_from_earlier_run": len(mine) - len(todo),
            "wall_time_s": round(time.perf_counter() - started, 1),
        }
        write(out / "rows.csv", rows.to_csv(index=False))
        write(out / "summary.csv", table.to_csv(index=False))
        write(out / "summary.md", summary.to_markdown())
        write(out / "protocol.json", json.dumps(summary.protocol, indent=1))
        write(out / "provenance.json", json.dumps(made_by(**record), indent=1))
    return summary


def known(vit: Vit, pairs: Dataset, first: int = 10, batch_size: int = 32) -> Dataset:
    """The photos of two objects that the model knows both: each has a class among the model's first ten.

    Args:
        vit: the model.
        pairs: as `data.voc_pairs` gives them.
        first: how many of the model's classes count.
        batch_size: images in a forward pass.

    Raises:
        ValueError: when no photo is left.
    """
    kept = []
    for start in tqdm(range(0, len(pairs), batch_size), desc="Photos the model knows", delay=2, disable=None):
        records = [pairs[k] for k in range(start, min(start + batch_size, len(pairs)))]
        top = vit.predict([r["image"] for r in records], first)["class_id"].to_numpy().reshape(len(records), -1)
        kept += [start + i for i, r in enumerate(records) if all({*group} & {*top[i]} for group in r["groups"])]
    if not kept:
        raise ValueError(f"Of none of these {len(pairs)} photos does {vit.name} know both objects.")
    return pairs.select(kept)


def _question(pairs, number):
    """Record number 2·photo + which: the photo with the mask and the classes of one object, and the other's."""
    photo, which = divmod(number, 2)
    record, order = pairs[photo], slice(None, None, -1 if which else 1)
    mask, other = record["masks"][order]
    targets, other_targets = record["groups"][order]
    found = {"image": record["image"], "photo": record.get("file", photo)}
    return found | {"mask": mask, "other": other, "targets": targets, "other_targets": other_targets}


def _working(vit, pixel_values, maps_of, options, by_default):
    """The methods that can map one image: what cannot work is known before anything runs. Of methods that nobody named,
    some may be left out, with a warning."""
    working = {}
    for label, function in maps_of.items():
        try:
            with torch.autocast(pixel_values.device.type, enabled=False):
                scores = scores_of(vit.model, pixel_values, {label: function})[label]
            working[label] = function
        except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
            if not by_default:
                raise ValueError(f"method {label!r} failed on the first image: {error}") from error
            warnings.warn(f"Left out: {label}, which failed on the first image: {error}", stacklevel=3)
    if not working:
        raise ValueError(f"None of the methods can read {vit.name}.")
    units = scores[0].numel() if options["unit"] == "patch" else pixel_values[0, 0].numel()
    step_count(options["steps"], options["unit"], units)
    return working


def _run_block(vit, maps_of, names, options, records, ids):
    """The rows {image, photo, method, metric, value: a list each} of one block, and how each metric was measured."""
    pixel_values = vit.preprocess([r["image"] for r in records])
    with torch.autocast(pixel_values.device.type, enabled=False):  # a caller's is for the metrics' forwards
        with evaluating(vit.model, pixel_values):
            logits = logits_of(vit.model(pixel_values)).float()
        logits = logits.clone()  # this leaves inference mode: the maps need a backward pass
        predicted = resolve_target(vit.model, logits)
        target = predicted if options["target"] == "predicted" else _labels(vit, logits, records)
        every = scores_of(vit.model, pixel_values, maps_of, target)
    about = pd.DataFrame({"image": ids, "photo": [r.get("photo", i) for i, r in zip(ids, records, strict=True)]})
    found, protocols = {label: {} for label in (*maps_of, BASELINE)}, {}
    for label, scores in every.items():
        maps = scaled(scores, registered(maps_of[label]))
        case = Case(vit, options, pixel_values, predicted, target, scores, maps, records)
        for name in names:
            values, protocol, shared = METRICS[name].run(case)
            found[label] |= values
            found[BASELINE] |= shared  # the same for every method
            protocols |= dict.fromkeys(values, str(replace(protocol, target=options["target"], images=None)))
    values = {label: {k: v.tolist() for k, v in columns.items()} for label, columns in found.items() if columns}
    wide = [about.assign(method=label, **columns) for label, columns in values.items()]
    rows = pd.concat([w.melt(["image", "photo", "method"], var_name="metric") for w in wide])
    return {"protocol": protocols, "rows": rows.to_dict("list")}


def _labels(vit, logits, records):
    """(B,) the class of each record; the best-scoring one where several count."""
    if "targets" in records[0]:
        return best_target(logits, [r["targets"] for r in records])
    return resolve_target(vit.model, logits, torch.tensor([int(r["label"]) for r in records]))


def _sample(record_of, chosen, count=8):
    """A hash of a few records, evenly spread: the same folder with other pictures is another run."""
    spread = np.linspace(0, len(chosen) - 1, min(count, len(chosen))).round().astype(int)
    return Hasher.hash([record_of(int(k)) for k in chosen[spread]])
