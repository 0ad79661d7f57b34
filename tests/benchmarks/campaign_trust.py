"""Does a planted model get the card that it deserves? 100 seeds of each case, with new weights and new photos.

A sound model must raise no false alarm and get one of its sound maps recommended; a map that is random must be refused;
a head that ignores its photo, a last block that was never trained and a model that looks at one corner must be warned
of. Writes book/results/trust_campaign.csv, one line a case, and its provenance. Rows of single seeds are kept beside it
while it runs, so that it goes on where it was stopped.
"""

import argparse
import csv
import json
import sys
import time
import warnings
from pathlib import Path

import pandas as pd
import torch
from scipy.stats import binomtest

from gmar_utils import trust
from gmar_utils.evaluation.provenance import made_by

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit" / "trust"))
import planted  # noqa: E402

CASES = ("sound", "ignoring", "untrained", "cornered")
WARNED_OF = {"ignoring": "answers", "untrained": "last-block", "cornered": "place"}
SOUND_MAPS = ("legrad", "grad-cam")
OUTCOMES = {  # case, outcome: what it is
    ("sound", "false_alarm"): "sound model: a warning, or a red light for a sound map",
    ("sound", "right"): "sound model: a sound map recommended",
    ("sound", "random_refused"): "random map: not to be shown",
    ("sound", "blind_refused"): "class-blind map: not to be shown",
    ("ignoring", "right"): "head that ignores the photo: warned of",
    ("untrained", "right"): "untrained last block: warned of",
    ("cornered", "right"): "one corner: warned of",
}


def card_of(case: str, seed: int, photos: int):
    """The card of a planted model."""
    pictures, labels, masks = planted.photos(seed, photos)
    vit = planted.vit_of(getattr(planted, case)(seed))
    records = [{"image": p, "label": k, "mask": m} for p, k, m in zip(pictures, labels, masks, strict=True)]
    methods = {m: m for m in ("rollout", *SOUND_MAPS)} | {"noise": planted.noise_method}
    if case != "sound":  # the model's own lights decide
        records, methods = [{"image": p} for p in pictures], ["gmar"]
    return trust(vit, records, methods=methods, quick=True, progress=False)


def outcome(case: str, card) -> dict:
    """What the card said, as 0 or 1."""
    red = {light.check for light in card.model if light.colour == "red"}
    said = card.recommendation
    if case != "sound":
        return {"right": int(said.show is None and WARNED_OF[case] in red)}
    alarms = [x for x in card.lights if x.method in SOUND_MAPS and x.colour == "red"]
    return {
        "false_alarm": int(bool(red or alarms)),
        "right": int(said.show in SOUND_MAPS),
        "random_refused": int("noise" in said.avoid),
        "blind_refused": int("rollout" in said.avoid),
    }


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--photos", type=int, default=12)
    parser.add_argument("--out", type=Path, default=ROOT / "book" / "results" / "trust_campaign.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    started, rows_file = time.perf_counter(), args.out.with_suffix(".rows.csv")
    done = set()
    if rows_file.exists():
        with open(rows_file, newline="") as file:
            done = {(r[0], int(r[1])) for r in csv.reader(file)}
    for seed in range(args.seeds):
        for case in CASES:
            if (case, seed) in done:
                continue
            found = outcome(case, card_of(case, seed, args.photos))
            with open(rows_file, "a", newline="") as file:
                csv.writer(file).writerows([[case, seed, name, value] for name, value in found.items()])
    rows = pd.read_csv(rows_file, names=["case", "seed", "outcome", "value"])
    lines = []
    for (case, name), text in OUTCOMES.items():
        values = rows[(rows["case"] == case) & (rows["outcome"] == name)]["value"]
        low, high = binomtest(int(values.sum()), len(values)).proportion_ci(0.95, "wilson")
        lines.append({"case": text, "seeds": len(values), "count": int(values.sum()), "low": low, "high": high})
    pd.DataFrame(lines).round(4).to_csv(args.out, index=False)
    wall = round(time.perf_counter() - started)
    record = made_by(photos=args.photos, seed=0, seeds=args.seeds, wall_time_s=wall)
    args.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    rows_file.unlink()
    print(pd.DataFrame(lines).to_string(index=False))


if __name__ == "__main__":
    main()
