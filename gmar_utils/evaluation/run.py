"""Methods × metrics over a data set: blocks that survive a kill, several processes; the options of `gmar evaluate`.

Images are dealt in fixed blocks. A finished block is one file, put in place by a rename, so a run that is killed and
started again computes only what is missing, and several processes need no more than each taking every n-th block. All
maps of a block come from one trace where they share it; the metrics' forwards take the fast attention path.
"""

import ast
import importlib.util
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from tqdm import tqdm

from .. import __version__, data, metrics
from ..capture.layout import logits_of
from ..capture.target import resolve_target
from ..cli import types
from ..methods.registry import METHODS, bind, explain_many
from ..metrics.faithfulness import evaluating
from ..model import Vit, load_model
from .measures import MEASURES, Job
from .provenance import describe_device, provenance, shown, weights_sha256
from .summary import BASELINE, COLUMNS, COUNTS, Table, footnote, summarize, tables, to_markdown, uniform_twins

__all__ = [  # with what its neighbours define: one place to read from
    "BASELINE", "COLUMNS", "COUNTS", "DEFAULT_METHODS", "DEFAULT_PROTOCOL", "FAITHFULNESS", "LOCALIZATION", "MEASURES",
    "Results", "Table", "describe_device", "evaluate", "footnote", "provenance", "summarize", "tables", "to_markdown",
    "uniform_twins", "weights_sha256",
]  # fmt: skip

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
        "gmar_utils": __version__, "model": shown(vit.name), "weights_sha256": weights_sha256(vit), "data": data_name,
        "records": len(records), "images": len(chosen), "seed": seed, "block": block, "methods": methods,
        "metrics": measures, "protocol": protocol,
    }  # fmt: skip
    if state.is_main_process:
        _claim(out, settings)
    state.wait_for_everyone()

    compile_it = vit.device.type == "cuda" and importlib.util.find_spec("triton") is not None
    forward = torch.compile(vit.model) if compile_it else vit.model
    job = Job(vit, forward, methods, measures, protocol, seed, batch_size)
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


def _run_block(job: Job, numbered: list) -> tuple[list, dict]:
    """Rows (image, method, metric, value) of one block, and the protocol of each metric."""
    records = [r for _, r in numbered]
    images = [r["image"] for r in records]
    pixel_values = job.vit.preprocess(images)
    with evaluating(job.vit.model, pixel_values):
        logits = logits_of(job.vit.model(pixel_values)).float()
    target = _target(job, logits.clone(), records)  # a clone leaves inference mode: the maps need a backward pass
    with torch.autocast(pixel_values.device.type, enabled=False):  # a caller's autocast is for the metrics' forwards
        maps = explain_many(job.vit.model, pixel_values, _bound(job.methods, job.seed), target, upsample=False)
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


def _claim(out, settings):
    """Make `out` this run's folder, or make sure that it is."""
    (out / "parts").mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(settings))
    file = out / "run.json"
    if file.exists():
        before = json.loads(file.read_text())
        if changed := [k for k in settings if before.get(k) != settings[k]]:
            raise ValueError(
                f"The folder {shown(str(out))!r} holds a run with another {', '.join(changed)}. Give another --out, "
                "or delete the folder to start again."
            )
    _write(file, json.dumps(settings, indent=1))


def _write(file, text):
    """All of the file or none of it, whenever the process is killed."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


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
    parser.add_argument("--image-size", type=types.image_size, metavar="N|HxW",
                        help="run the model at another resolution or shape, in pixels")  # fmt: skip
    parser.add_argument("--limit", type=types.positive, help="so many images, drawn with --seed (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="draws images, random maps and bootstrap (default: 0)")
    parser.add_argument("--batch-size", type=types.positive, default=64, help="images in a forward (default: 64)")
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


def _bound(methods, seed):
    return {k: bind(m, **({"seed": seed, **o} if m == "random" else o)) for k, (m, o) in methods.items()}
