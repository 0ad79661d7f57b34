"""Makes the tables of book/results, each with its provenance: `python -m gmar_utils.teaching.results.make [JOB …]`

Rows of single images stay in _build/results, so that a run that was cut off goes on where it stopped; what lands in
book/results are means, 95 % intervals and verdicts. `--small` takes few images and writes beside the rows instead.
"""

import argparse
import hashlib
import json
import math
import time

import pandas as pd

from gmar_utils.evaluation.summary import interval

from . import RESULTS, cues, gallery, probes, tables, trustcards
from .claims import CLAIMS, ENOUGH, OPEN, needed, overall, verdict
from .work import FIELD, GMAR_TABLE, REPORT_TABLE, Run


def _tables(run):
    """{job: SHA-256 of its table}, of every job that a claim reads."""
    jobs = sorted({part.job for claim in CLAIMS.values() for part in claim.parts})
    files = {job: run.out / f"{job}.csv" for job in jobs}
    return {job: hashlib.sha256(file.read_bytes()).hexdigest() for job, file in files.items() if file.exists()}


def claims(run):
    """The verdict for each claim, from the rows of the jobs. Where a job's rows are not at hand, because its table was
    made on another machine, what they said last time stays, as long as it is still that table.

    Raises:
        ValueError: for a job without rows whose table is not the one that the last verdicts were read from."""
    started, lines, cache = time.perf_counter(), [], {}
    file = RESULTS / "claims.csv"
    before = pd.read_csv(file).set_index(["claim", "part"]) if file.exists() else pd.DataFrame()
    read, last = _tables(run), {}
    if file.exists():
        last = json.loads(file.with_suffix(".json").read_text()).get("tables", {})
    for job, digest in read.items():
        if not (run.work / job / "rows.csv").exists() and last.get(job, digest) != digest:
            raise ValueError(
                f"{job}.csv is newer than the verdicts, and its rows are not here: run make.py {job} claims"
            )
    for name, claim in CLAIMS.items():
        for part in claim.parts:
            rows = run.work / part.job / "rows.csv"
            if rows.exists():
                if part.job not in cache:
                    cache[part.job] = pd.read_csv(rows)
                values = part.values(cache[part.job])
                mean, low, high, images = *interval(values), len(values)
            elif (name, part.text) in before.index:
                mean, low, high, images = before.loc[(name, part.text), ["mean", "low", "high", "images"]]
            else:
                mean, low, high, images = math.nan, math.nan, math.nan, 0
            said = low, high, part.threshold, images, part.margin
            lines.append(
                {
                    "claim": name,
                    "source": claim.source,
                    "place": claim.place,
                    "statement": claim.statement,
                    "part": part.text,
                    "job": part.job,
                    "mean": mean,
                    "low": low,
                    "high": high,
                    "threshold": part.threshold,
                    "margin": part.margin,
                    "images": int(images),
                    "verdict": verdict(*said),
                    "needed": needed(mean, *said) if verdict(*said) == OPEN else None,
                }
            )
    table = pd.DataFrame(lines).astype({"needed": "Int64"})
    table["claim_verdict"] = table.groupby("claim")["verdict"].transform(lambda part: overall(list(part)))
    run.save(
        "claims",
        table,
        started=started,
        smallest_sample=ENOUGH,
        tables=read,
        not_run=sorted({c.job for c in table.itertuples() if c.images == 0 and c.verdict == OPEN}),
    )


JOBS = {
    "photos": probes.photos,
    "shapes": tables.table_shapes,
    "tiny-imagenet": lambda run: tables.table_faithfulness(run, "tiny-imagenet", 112, 500, FIELD),
    "tiny-imagenet-224": lambda run: tables.table_faithfulness(run, "tiny-imagenet-224", 224, 100, GMAR_TABLE),
    "voc2012": tables.table_voc,
    "voc2012-chefer": lambda run: tables.table_voc(run, "voc2012-chefer", "chefer", methods=REPORT_TABLE),
    "voc2012-112": lambda run: tables.table_voc(run, "voc2012-112", pixels=112, methods=FIELD),
    "voc-pairs": tables.table_voc_pairs,
    "voc-pairs-112": lambda run: tables.table_voc_pairs(run, "voc-pairs-112", 112, FIELD),
    "shape-pairs": tables.table_shape_pairs,
    "prompt-pairs": tables.table_prompt_pairs,
    "confidence": probes.confidence,
    "classes": probes.classes,
    "heads": probes.heads,
    "randomization": probes.randomization,
    "artefacts": probes.artefacts,
    "cost": probes.cost,
    "trust-cards": trustcards.cards,
    "audit-tiny-imagenet": lambda run: tables.audit(run, "tiny-imagenet"),
    "sensitivity-tiny-imagenet": lambda run: tables.sensitivity(run, "tiny-imagenet"),
    "audit-shapes": lambda run: tables.audit(run, "shapes"),
    "sensitivity-shapes": lambda run: tables.sensitivity(run, "shapes"),
    "gallery": gallery.table,
    "words": cues.table,
    "claims": claims,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"{', '.join(JOBS)} (default: all)")
    parser.add_argument("--small", action="store_true", help="12 images, into _build/results/small")
    parser.add_argument("--images", type=int, help="at most so many images, pairs or repeats for each job")
    parser.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "float32"],
        help="of the metrics' forward passes (default: %(default)s)",
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.jobs) - set(JOBS):
        parser.error(f"unknown job {', '.join(sorted(unknown))}; there are {', '.join(JOBS)}")
    run = Run(arguments.small, arguments.precision, arguments.images)
    for name in arguments.jobs or JOBS:
        JOBS[name](run)


if __name__ == "__main__":
    main()
