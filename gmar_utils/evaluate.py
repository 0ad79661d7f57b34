"""Methods × metrics over a data set: blocks that survive a kill, several processes, error bars, provenance.

Images are dealt in fixed blocks. A finished block is one file, put in place by a rename, so a run that is killed and
started again computes only what is missing, and several processes need no more than each taking every n-th block. All
maps of a block come from one trace where they share it; the metrics' forwards take the fast attention path.
"""

import ast
import hashlib
import importlib.util
import inspect
import json
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import PartialState
from scipy.stats import bootstrap
from tqdm import tqdm

from . import __version__, data, metrics
from .capture import logits_of, resolve_target
from .explain import METHODS, explain_many, minmax
from .metrics.faithfulness import evaluating
from .models import CHECKPOINTS, Vit, bundled, load_model

# label: (method, options). `rollout` is GMAR at uniform weights for "output-first", `rollout-report` for "report".
DEFAULT_METHODS = {
    "grad-cam": ("grad-cam", {}),
    "rollout": ("rollout", {}),
    "rollout-report": ("rollout", {"variant": "report"}),
    **{
        f"gmar-{norm or 'none'}-{variant}": ("gmar", {"norm": norm, "variant": variant})
        for variant, norms in {
            "paper": (None, "l1", "l2"),
            "report": ("l1", "l2"),
            "output-first": ("l1", "l2"),
        }.items()
        for norm in norms
    },
    **{name: (name, {}) for name in ("legrad", "chefer", "attention", "random", "center")},
}

# metric: (title, direction). Direction +1 means higher is better, 0 that the column only describes.
COLUMNS = {
    "average_drop": ("Avg Drop", -1),
    "coverage": ("Coverage", 0),
    "average_increase": ("Avg Increase", 1),
    "insertion": ("Insertion", 1),
    "deletion": ("Deletion", -1),
    "average_drop_top": ("Avg Drop, top half", -1),
    "average_increase_top": ("Avg Increase, top half", 1),
    "morf": ("MoRF", -1),
    "lerf": ("LeRF", 1),
    "lerf_minus_morf": ("LeRF − MoRF", 1),
    "road_morf": ("ROAD MoRF", -1),
    "road_lerf": ("ROAD LeRF", 1),
    "road": ("ROAD, LeRF − MoRF", 1),
    "pointing_game": ("Pointing game", 1),
    "energy_in_box": ("Energy in box", 1),
    "pixel_accuracy": ("Pixel accuracy", 1),
    "iou": ("IoU", 1),
    "average_precision": ("AP", 1),
}
COUNTS = ("tp", "fp", "fn", "tn")
BASELINE = "(baseline)"  # the method name of rows that describe a curve's baseline, not a method
TABLES = (  # one Markdown table each
    ("average_drop", "coverage", "average_increase", "insertion", "deletion"),
    ("average_drop_top", "average_increase_top"),
    ("morf", "lerf", "lerf_minus_morf", "road_morf", "road_lerf", "road"),
    ("pointing_game", "energy_in_box"),
    ("pixel_accuracy", "iou", "average_precision"),
)
FAITHFULNESS = ("drop", "drop-top", "insertion", "deletion")
LOCALIZATION = ("pixel-accuracy", "iou", "average-precision")
DEFAULT_PROTOCOL = {  # target None: "label" for records with a mask, which is one object's, else "predicted"
    "score": "probability", "target": None, "masking": "multiply", "baseline": "zero", "steps": None,
    "unit": "patch", **metrics.PRESETS["report"],
}  # fmt: skip


@dataclass(frozen=True)
class Results:
    """rows (image, method, metric, value); summary (one line per method and metric); the Markdown of both tables."""

    rows: pd.DataFrame
    summary: pd.DataFrame
    markdown: str


@dataclass(frozen=True)
class _Job:
    """What a block needs: the model, how it is called for metric forwards, and the options."""

    vit: Vit
    forward: torch.nn.Module
    methods: dict
    measures: tuple
    protocol: dict
    seed: int
    batch_size: int


def evaluate(
    vit: Vit,
    records,
    out: str | Path,
    *,
    methods: dict | None = None,
    measures: tuple[str, ...] | None = None,
    protocol: dict | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    block: int = 16,
    data_name: str = "",
) -> Results:
    """Run `methods` × `measures` over `records`; rows, summary and provenance land in the folder `out`.

    records     a sequence of {"image", and "label" (or "targets", several that count), "box", "mask" where needed}
    methods     {label: (method, options)}; default `DEFAULT_METHODS`
    measures    keys of `MEASURES`; default: localisation for records with a mask, else faithfulness
    protocol    options that differ from `DEFAULT_PROTOCOL`
    limit       so many images, drawn with `seed`; batch_size: images per metric forward; block: images per file
    data_name   the data set's name, for the provenance

    Killed and called again with the same arguments it computes what is missing; called under `accelerate launch` the
    processes share the blocks. Rows do not depend on either. A record is the unit of the bootstrap: a photo with two
    objects is two records. ValueError when `out` holds a run with other settings.
    """
    started, state, out = time.perf_counter(), _processes(), Path(out)
    methods = dict(DEFAULT_METHODS if methods is None else methods)
    chosen = np.arange(len(records))
    if limit is not None and limit < len(records):
        chosen = np.sort(np.random.default_rng(seed).permutation(len(records))[:limit])
    if not len(chosen):
        raise ValueError(f"There are no images to evaluate (limit {limit}, {len(records)} records).")
    fields = set(records[0])
    measures = tuple(measures or (LOCALIZATION if "mask" in fields else FAITHFULNESS))
    protocol = _checked_protocol(protocol or {}, fields)
    _check_measures(measures, fields)
    settings = {
        "gmar_utils": __version__, "model": _shown(vit.name), "weights_sha256": weights_sha256(vit), "data": data_name,
        "records": len(records), "images": len(chosen), "seed": seed, "block": block, "methods": methods,
        "metrics": measures, "protocol": protocol,
    }  # fmt: skip
    if state.is_main_process:
        _claim(out, settings)
    state.wait_for_everyone()

    compile_it = vit.device.type == "cuda" and importlib.util.find_spec("triton") is not None
    forward = torch.compile(vit.model) if compile_it else vit.model
    job = _Job(vit, forward, methods, measures, protocol, seed, batch_size)
    blocks = [chosen[i : i + block] for i in range(0, len(chosen), block)]
    files = [out / "parts" / f"{i:05d}.csv" for i in range(len(blocks))]
    mine = [i for i in range(len(blocks)) if i % state.num_processes == state.process_index]
    todo = [i for i in mine if not files[i].exists()]
    total, left = (sum(len(blocks[i]) for i in some) for some in (mine, todo))
    with tqdm(total=total, initial=total - left, unit="image", disable=None if state.is_main_process else True) as bar:
        for i in todo:
            rows, cards = _run_block(job, [(int(k), records[int(k)]) for k in blocks[i]])
            _write(out / "protocol.json", json.dumps(cards, indent=1))
            _write(files[i], pd.DataFrame(rows, columns=["image", "method", "metric", "value"]).to_csv(index=False))
            bar.update(len(blocks[i]))
    state.wait_for_everyone()

    rows = pd.concat([pd.read_csv(f) for f in files], ignore_index=True)
    cards = json.loads((out / "protocol.json").read_text())
    summary = summarize(rows, methods, protocol, seed)
    markdown = to_markdown(summary, cards)
    if state.is_main_process:
        _write(out / "rows.csv", rows.to_csv(index=False))
        _write(out / "summary.csv", summary.to_csv(index=False))
        _write(out / "summary.md", markdown)
        seconds = round(time.perf_counter() - started, 1)
        record = provenance(
            **settings, batch_size=batch_size, processes=state.num_processes, wall_time_s=seconds,
            blocks=len(blocks), blocks_from_earlier_run=len(mine) - len(todo), device=describe_device(vit.device),
        )  # fmt: skip
        _write(out / "provenance.json", json.dumps(record, indent=1))
    return Results(rows, summary, markdown)


def _processes():
    """Accelerate's view of the processes. Without cpu=True it would take several on CPUs for so many single ones."""
    return PartialState(cpu=not torch.cuda.is_available())


def _run_block(job: _Job, numbered: list) -> tuple[list, dict]:
    """Rows (image, method, metric, value) of one block, and the protocol of each metric."""
    records = [r for _, r in numbered]
    images = [r["image"] for r in records]
    pixel_values = job.vit.preprocess(images)
    with evaluating(job.vit.model, pixel_values):
        logits = logits_of(job.vit.model(pixel_values)).float()
    target = _target(job, logits.clone(), records)  # a clone leaves inference mode: the maps need a backward pass
    with torch.autocast(pixel_values.device.type, enabled=False):  # a caller's autocast is for the metrics' forwards
        maps = explain_many(job.vit.model, pixel_values, _seeded(job.methods, job.seed), target, upsample=False)
    rows, cards, baselines = [], {}, {}
    for label, patch_maps in maps.items():
        values = {}
        for name in job.measures:
            found, kept, card = MEASURES[name](job, pixel_values, target, patch_maps, records)
            values |= found
            baselines |= kept  # the same for every method
            cards |= dict.fromkeys(found, card)
        rows += _rows(numbered, label, values)
    return rows + _rows(numbered, BASELINE, baselines), cards


def _rows(numbered, method, values):
    return [
        (image, method, metric, value)
        for metric, numbers in values.items()
        for (image, _), value in zip(numbered, numbers.tolist(), strict=True)
    ]


def _target(job, logits, records):
    if job.protocol["target"] == "predicted":
        return resolve_target(job.vit.model, logits)
    if "targets" in records[0]:
        return data.best_target(logits, [r["targets"] for r in records])
    return resolve_target(job.vit.model, logits, torch.tensor([int(r["label"]) for r in records]))


def _on_photo(job, pixel_values, maps, records):
    """Maps at the model's input size, min–max, then on each photo's own pixels (a list; NaN outside the crop)."""
    maps = F.interpolate(maps[:, None], pixel_values.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return job.vit.to_photo(minmax(maps), [r["image"] for r in records])


def _card(job, protocol):
    return str(replace(protocol, target=job.protocol["target"], images=None))


# One function for each entry of --metrics: ({metric: (B,) values}, {metric: percent the baseline keeps}, card) ----


def _drop(job, pixel_values, target, maps, records, masking=None):
    suffix = "" if masking is None else "_top"
    result = metrics.masked_scores(
        job.forward, pixel_values, maps, target, score=job.protocol["score"],
        masking=masking or job.protocol["masking"], batch_size=job.batch_size,
        mean=getattr(job.vit.processor, "image_mean", None), std=getattr(job.vit.processor, "image_std", None),
    )  # fmt: skip
    values = {
        f"average_drop{suffix}": metrics.average_drop(result.full, result.masked, per_image=True),
        f"average_increase{suffix}": metrics.average_increase(result.full, result.masked, per_image=True),
    }
    if masking is None:
        values["coverage"] = result.coverage
    return values, {}, _card(job, result.protocol)


def _drop_top(*block):
    return _drop(*block, masking="top")


def _curve(function):
    def measure(job, pixel_values, target, maps, records):
        options = {k: job.protocol[k] for k in ("score", "baseline", "steps", "unit")}
        curve = function(job.forward, pixel_values, maps, target, batch_size=job.batch_size, seed=job.seed, **options)
        name = curve.protocol.metric
        return {name: _scale(job) * curve.auc}, _kept(job, name, curve), _card(job, curve.protocol)

    return measure


def _morf_lerf(job, pixel_values, target, maps, records, road=False):
    options = {k: job.protocol[k] for k in ("score", "baseline", "steps", "unit")}
    names = ("morf", "lerf", "lerf_minus_morf")
    if road:  # a sparse solve for each image and step: ten steps unless the protocol says otherwise
        options |= {"baseline": "linear", "steps": job.protocol["steps"] or min(10, maps[0].numel())}
        names = ("road_morf", "road_lerf", "road")
    morf, lerf, difference = metrics.morf_lerf(
        job.forward, pixel_values, maps, target, batch_size=job.batch_size, seed=job.seed, **options
    )
    values = {name: _scale(job) * v for name, v in zip(names, (morf.auc, lerf.auc, difference), strict=True)}
    card = _card(job, replace(morf.protocol, metric="ROAD" if road else "MoRF and LeRF", order=None))
    return values, _kept(job, names[0], morf), card


def _scale(job):
    """Probabilities are printed ×100; logits as they are."""
    return 100 if job.protocol["score"] == "probability" else 1


def _kept(job, name, curve):
    """What the baseline keeps; a share of a logit would mean nothing."""
    return {name: curve.baseline_kept} if job.protocol["score"] == "probability" else {}


def _road(*block):
    return _morf_lerf(*block, road=True)


def _box(job, pixel_values, target, maps, records):
    on_photo = [m.nan_to_num(0) for m in _on_photo(job, pixel_values, maps, records)]
    boxes = [r["box"] for r in records]
    values = {
        "pointing_game": metrics.pointing_game(on_photo, boxes),
        "energy_in_box": metrics.energy_in_box(on_photo, boxes),
    }
    return values, {}, _card(job, metrics.Protocol("boxes", unit="photo pixel"))


def _masks(name):
    def measure(job, pixel_values, target, maps, records):
        masks = [torch.as_tensor(np.array(r["mask"])) for r in records]
        on_photo, masks = metrics.outside_is_void(_on_photo(job, pixel_values, maps, records), masks)
        options = job.protocol
        if name == "average_precision":
            values = {name: metrics.average_precision(on_photo, masks, options["ap"])}
            return values, {}, f"AP: target {options['target']} · ap {options['ap']}"
        found = metrics.counts(on_photo, masks, options["threshold"])
        value = metrics.accuracy_of(found) if name == "pixel_accuracy" else metrics.iou_of(found, options["iou"])
        # The counts go into the rows too: dataset-level figures are made of their sums.
        kind = "" if name == "pixel_accuracy" else f" · iou {options['iou']}"
        card = (
            f"{COLUMNS[name][0]}: target {options['target']} · threshold {options['threshold']}{kind} · "
            f"aggregate {options['aggregate']}"
        )
        return dict(zip(COUNTS, found.T, strict=True)) | {name: value}, {}, card

    return measure


MEASURES = {
    "drop": _drop,
    "drop-top": _drop_top,
    "insertion": _curve(metrics.insertion),
    "deletion": _curve(metrics.deletion),
    "morf-lerf": _morf_lerf,
    "road": _road,
    "box": _box,
    "pixel-accuracy": _masks("pixel_accuracy"),
    "iou": _masks("iou"),
    "average-precision": _masks("average_precision"),
}


# Statistics -----------------------------------------------------------------------------------------------------------


def summarize(rows: pd.DataFrame, methods: dict, protocol: dict, seed: int = 0, resamples: int = 5000) -> pd.DataFrame:
    """One line per method and metric: mean, 95 % interval, and the difference from the method's uniform-weight twin.

    Intervals are percentiles of a bootstrap over images (scipy). Every method sees the same resampled images, so
    differences are paired. `best` is True where a method beats each other one with an interval that excludes 0.
    Images for which a metric is not defined (no foreground) are left out, and counted.
    """
    lines = []
    values = rows.pivot(index="image", columns=["metric", "method"], values="value")
    twins = uniform_twins(methods)
    for metric, (_, direction) in COLUMNS.items():
        if metric not in values.columns.get_level_values(0):
            continue
        estimates, draws, images = _bootstrap(values, metric, list(methods), protocol, seed, resamples)
        leader = int(np.argmax(direction * estimates)) if direction and images else None
        for i, label in enumerate(methods):
            line = {"metric": metric, "method": label, "mean": estimates[i]}
            line["low"], line["high"] = _interval(draws[i])
            line |= {"images": images, "left_out": len(values) - images}
            line["best"] = (
                i == leader
                and images > 1
                and all(_excludes_zero(direction * (draws[i] - draws[j]), 1) for j in range(len(methods)) if j != i)
            )
            if label in twins:
                j = list(methods).index(twins[label])
                line |= {"twin": twins[label], "difference": estimates[i] - estimates[j]}
                line["difference_low"], line["difference_high"] = _interval(draws[i] - draws[j])
            lines.append(line)
        if (metric, BASELINE) in values.columns:
            estimate, draw, count = _bootstrap(values, metric, [BASELINE], {"aggregate": "image"}, seed, resamples)
            low, high = _interval(draw[0])
            lines.append({"metric": metric, "method": BASELINE, "mean": estimate[0], "low": low, "high": high,
                          "images": count, "left_out": len(values) - count, "best": False})  # fmt: skip
    columns = ["twin", "difference", "difference_low", "difference_high"]
    return pd.DataFrame(lines).reindex(columns=[*lines[0], *(c for c in columns if c not in lines[0])])


def uniform_twins(methods: dict) -> dict[str, str]:
    """{label of a GMAR variant: label of the same variant at norm=None}; plain rollout is such a twin too."""

    def settings(name, options):
        defaults = {
            k: p.default for k, p in inspect.signature(METHODS[name].function).parameters.items() if k != "trace"
        }
        full = defaults | options
        return full["alpha"], full["variant"], full.get("norm")

    rollouts = {k: settings(*m) for k, m in methods.items() if m[0] in ("gmar", "rollout")}
    uniform = {s[:2]: k for k, s in reversed(rollouts.items()) if s[2] is None}
    return {k: uniform[s[:2]] for k, s in rollouts.items() if s[2] is not None and s[:2] in uniform}


def _bootstrap(values, metric, labels, protocol, seed, resamples):
    """Estimates (M,), bootstrap draws (M, resamples) with the same images for every method, and the image count."""
    if protocol["aggregate"] == "dataset" and metric in ("iou", "pixel_accuracy"):
        kind = protocol.get("iou", "foreground")

        def statistic(*counts, axis):
            sums = torch.from_numpy(np.stack([c.sum(axis) for c in counts], -1))
            flat = sums.reshape(-1, 4)
            found = metrics.iou_of(flat, kind) if metric == "iou" else metrics.accuracy_of(flat)
            return found.reshape(sums.shape[:-1]).numpy()

        names = COUNTS
    else:
        statistic, names = np.mean, (metric,)
    defined = values[metric][labels].notna().all(axis=1)
    arrays = tuple(values.loc[defined, name][labels].to_numpy().T for name in names)
    images = arrays[0].shape[-1]
    if images < 2:
        estimates = statistic(*arrays, axis=-1) if images else np.full(len(labels), np.nan)
        return estimates, np.full((len(labels), 1), np.nan), images
    batch = max(1, 4_000_000 // arrays[0].size)
    result = bootstrap(
        arrays, statistic, paired=len(arrays) > 1, vectorized=True, axis=-1, n_resamples=resamples, batch=batch,
        method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    return statistic(*arrays, axis=-1), result.bootstrap_distribution, images


def _interval(draws):
    return tuple(np.percentile(draws, [2.5, 97.5]))


def _excludes_zero(draws, sign=0):
    low, high = _interval(draws)
    return bool(low > 0 or (high < 0 and sign == 0))


class Table(NamedTuple):
    """One table of a summary, as text: `frame` has a line per method, a column per metric (title and direction arrow)
    and cells "mean [low, high]"; `bold` (same shape, bool) says where the interval supports a winner; `notes` stand
    under it (protocol, what the baseline keeps, images left out)."""

    frame: pd.DataFrame
    bold: pd.DataFrame
    notes: list[str]


def tables(summary: pd.DataFrame, cards: dict | None = None) -> list[Table]:
    """The tables of a summary: means, and paired differences from uniform head weights, for each group of metrics."""
    found = []
    for group in TABLES:
        shown = [m for m in group if (summary["metric"] == m).any()]
        if not shown:
            continue
        lines = summary[summary["metric"].isin(shown)]
        plain, base = lines[lines["method"] != BASELINE], lines[lines["method"] == BASELINE]
        notes = list(dict.fromkeys((cards or {}).get(m, "") for m in shown))
        notes += [_baseline_note(r) for _, r in base.iterrows()]
        left_out = {int(n) for n in plain["left_out"]} - {0}
        notes += [f"{n} images without foreground are left out and not in the count." for n in left_out]
        found.append(_table(plain.assign(bold=plain["best"]), shown, "Method"))
        paired = plain[plain["twin"].notna()]
        if len(paired):
            low, high = paired["difference_low"], paired["difference_high"]
            paired = paired.assign(
                method=paired["method"] + " − " + paired["twin"], mean=paired["difference"], low=low, high=high,
                bold=(low > 0) | (high < 0),
            )  # fmt: skip
            found.append(_table(paired, shown, "Paired difference", sign="+"))
        found[-1].notes.extend(n for n in notes if n)
    return found


def footnote(summary: pd.DataFrame) -> str:
    """The sentences under all tables: images, intervals, what bold means."""
    images = int(summary["images"].max())
    return (
        f"Means over {images} images, with 95 % intervals of a paired bootstrap over images. Bold in the first kind of "
        "table: better than every other method, with each paired interval on one side of 0. Bold in a difference: its "
        "interval excludes 0. Intervals are not corrected for the number of comparisons."
    )


def to_markdown(summary: pd.DataFrame, cards: dict | None = None) -> str:
    """`tables` as Markdown, with their notes and the footnote."""
    parts = []
    for frame, bold, notes in tables(summary, cards):
        marked = frame.where(~bold, frame.replace(r"^(\S+)", r"**\1**", regex=True))
        parts += [marked.to_markdown(disable_numparse=True)] + (["\n".join(f"- {n}" for n in notes)] if notes else [])
    return "\n\n".join([*parts, footnote(summary)]) + "\n"


def _table(lines, shown, corner, sign=""):
    texts = [_cell(m, low, high, sign) for m, low, high in zip(lines["mean"], lines["low"], lines["high"], strict=True)]
    wide = lines.assign(text=texts).pivot(index="method", columns="metric", values=["text", "bold"])
    wide = wide.reindex(index=lines["method"].unique()).rename_axis(corner)
    frame, bold = (wide[part].reindex(columns=shown).rename_axis(columns=None) for part in ("text", "bold"))
    titles = {m: f"{COLUMNS[m][0]} {'↓ ↑'[COLUMNS[m][1] + 1]}".strip() for m in shown}
    return Table(frame.fillna("–").rename(columns=titles), bold.eq(True).rename(columns=titles), [])


def _cell(mean, low, high, sign=""):
    if np.isnan(mean):
        return "–"
    return f"{mean:{sign}.2f}" + ("" if np.isnan(low) else f" [{low:{sign}.2f}, {high:{sign}.2f}]")


def _baseline_note(line):
    kept = _cell(line["mean"], line["low"], line["high"])
    note = f"{COLUMNS[line['metric']][0]}: the baseline image keeps {kept} % of the full score."
    if line["mean"] > metrics.KEPT_LIMIT:
        note += f" ⚠ That is more than {metrics.KEPT_LIMIT:.0f} %: this baseline does not remove the object."
    return note


# Provenance and files -------------------------------------------------------------------------------------------------


def provenance(**extra) -> dict:
    """What made a result: command, date, commit, versions, device; `extra` adds model, data, seed, wall time and so on.

    Paths are cut to their last part: a results file says nothing about the machine's folders.
    """
    program = Path(sys.argv[0]).name
    command = ["gmar" if program in ("__main__.py", "gmar") else program, *map(_shown, sys.argv[1:])]
    packages = ("torch", "transformers", "numpy", "scipy", "scikit-learn", "scikit-image", "accelerate", "datasets")
    record = {
        "command": " ".join(command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "gmar_utils": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "device": describe_device(),
    }
    return record | extra


def describe_device(device: torch.device | str = "cpu") -> str:
    """The GPU's name, or the CPU's with the number of threads."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def weights_sha256(vit: Vit) -> str:
    """SHA-256 of the checkpoint's model.safetensors; of the weights themselves for a model made in memory."""
    folder = CHECKPOINTS / vit.name if vit.name in bundled() else Path(vit.name)
    file = folder / "model.safetensors"
    if not file.is_file() and vit.name.count("/") == 1:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(vit.name, "model.safetensors")
        file = Path(cached) if isinstance(cached, str) else file
    digest = hashlib.sha256()
    if file.is_file():
        digest.update(file.read_bytes())
    else:
        for name, tensor in sorted(vit.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _claim(out, settings):
    """Make `out` this run's folder, or make sure that it is."""
    (out / "parts").mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(settings))
    file = out / "run.json"
    if file.exists():
        before = json.loads(file.read_text())
        if changed := [k for k in settings if before.get(k) != settings[k]]:
            raise ValueError(
                f"The folder {_shown(str(out))!r} holds a run with another {', '.join(changed)}. Give another --out, "
                "or delete the folder to start again."
            )
    _write(file, json.dumps(settings, indent=1))


def _write(file, text):
    """All of the file or none of it, whenever the process is killed."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


def _shown(text):
    """A path, or --option=path, without the folders of this machine."""
    return re.sub(r"(^|=)/\S*/", r"\1", text)


def _git(*arguments):
    here = Path(__file__).parent
    if not (here.parent / ".git").exists():
        return None
    run = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=False)
    return run.stdout.strip() if run.returncode == 0 else None


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


# Command line ---------------------------------------------------------------------------------------------------------


def add_arguments(parser) -> None:
    """The options of `gmar evaluate`."""
    parser.epilog = (
        "Several processes, on GPUs or CPUs: accelerate launch --multi_gpu --num_processes N -m gmar_utils evaluate …"
    )
    parser.add_argument("--data", default="tiny-imagenet", choices=DATA, help="data set (default: %(default)s)")
    parser.add_argument(
        "--source", help="where the data set is: folder, file or hub id (default: its environment variable)"
    )
    parser.add_argument(
        "--model", default="vit-tiny-imagenet", help="bundled name, folder or hub id (default: %(default)s)"
    )
    parser.add_argument("--image-size", type=int, help="run the model at another resolution, in pixels")
    parser.add_argument("--limit", type=_positive, help="so many images, drawn with --seed (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="draws images, random maps and bootstrap (default: 0)")
    parser.add_argument("--batch-size", type=_positive, default=64, help="images per forward pass (default: 64)")
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD",
        help=f"labels ({', '.join(DEFAULT_METHODS)}), methods, or METHOD:option=value,… such as gmar:norm=l2,alpha=2; "
        "default: all labels",
    )  # fmt: skip
    parser.add_argument(
        "--metrics", nargs="+", metavar="METRIC", choices=MEASURES,
        help=f"{', '.join(MEASURES)} (default: {' '.join(LOCALIZATION)} for data with masks, else "
        f"{' '.join(FAITHFULNESS)})",
    )  # fmt: skip
    parser.add_argument(
        "--protocol", nargs="+", metavar="KEY=VALUE", default=[],
        help=f"options of the metrics: {', '.join(DEFAULT_PROTOCOL)}; or a preset: {', '.join(metrics.PRESETS)}",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("evaluation"),
        help="output folder; the same command continues a run that was cut off (default: %(default)s)",
    )  # fmt: skip


def main(args) -> int:
    """`gmar evaluate`."""
    state = _processes()
    methods, protocol = parse_methods(args.methods), parse_protocol(args.protocol)
    device = str(state.device) if state.num_processes > 1 else "auto"
    vit = load_model(args.model, image_size=args.image_size, device=device)
    records = DATA[args.data](args, vit)
    results = evaluate(
        vit, records, args.out, methods=methods, measures=args.metrics, protocol=protocol, limit=args.limit,
        seed=args.seed, batch_size=args.batch_size, data_name=args.data,
    )  # fmt: skip
    if state.is_main_process:
        print(results.markdown)
        print(f"Rows, summary and provenance are in {args.out}")
    state.destroy_process_group()
    return 0


DATA = {
    "tiny-imagenet": lambda args, vit: data.tiny_imagenet("valid", args.source),
    "voc2012": lambda args, vit: data.voc2012(args.source, classes=len(vit.labels)),
    "shapes": lambda args, vit: data.shapes(args.limit or 200, seed=args.seed),
}


def parse_methods(words: list[str] | None) -> dict:
    """{label: (method, options)} from labels, method names and METHOD:option=value,…"""
    methods = {}
    for word in words or DEFAULT_METHODS:
        name, _, options = word.partition(":")
        if word not in DEFAULT_METHODS and name not in METHODS:
            raise ValueError(f"Unknown method {name!r}; there are {', '.join([*DEFAULT_METHODS, *METHODS])}.")
        methods[word] = DEFAULT_METHODS.get(word) or (name, _options(options.split(",") if options else [], "method"))
    return methods


def parse_protocol(words: list[str]) -> dict:
    """Protocol options from KEY=VALUE words and presets, later ones winning."""
    protocol = {}
    for word in words:
        protocol |= metrics.PRESETS[word] if word in metrics.PRESETS else _options([word], "protocol")
    return protocol


def _options(words, kind):
    options = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"A {kind} option is written KEY=VALUE, got {word!r}.")
        try:
            options[key] = None if value.lower() == "none" else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return options


def _checked_protocol(given, fields):
    if unknown := [k for k in given if k not in DEFAULT_PROTOCOL]:
        raise ValueError(f"Unknown protocol option {unknown[0]!r}; there are {', '.join(DEFAULT_PROTOCOL)}.")
    protocol = DEFAULT_PROTOCOL | given
    protocol["target"] = protocol["target"] or ("label" if "mask" in fields else "predicted")
    if protocol["target"] not in ("predicted", "label"):
        raise ValueError(f"target must be 'predicted' or 'label', got {protocol['target']!r}.")
    return protocol


def _check_measures(measures, fields):
    for name in measures:
        if name not in MEASURES:
            raise ValueError(f"Unknown metric {name!r}; there are {', '.join(MEASURES)}.")
        needed = "mask" if name in LOCALIZATION else "box" if name == "box" else "image"
        if needed not in fields:
            raise ValueError(
                f"The metric {name} needs records with a {needed}; these have {', '.join(sorted(fields))}."
            )


def _seeded(methods, seed):
    return {k: (m, {"seed": seed, **o} if m == "random" else o) for k, (m, o) in methods.items()}


def _positive(text):
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value
