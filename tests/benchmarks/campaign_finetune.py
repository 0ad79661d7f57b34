"""Kill `gmar finetune` at random moments, in fresh processes, and compare what it ends with.

    python tests/benchmarks/campaign_finetune.py --kills 20

Every other kill waits for the file that a state is written to, so it falls inside the write; the others fall anywhere
between the start of the process and its end. A round is one training, killed again and again until it comes through;
its weights, its state and its log must be those of a training that nobody killed. Writes
book/results/campaign_finetune.csv (one row a kill) and its provenance; exit code 1 if anything differs.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from gmar_utils.evaluation.provenance import provenance

COMMAND = "finetune --recipe shapes --scenes 160 --epochs 3 --batch-size 16 --save-every 0 --out"
LIMIT = 600  # seconds that one process may take


def start(folder: Path) -> subprocess.Popen:
    """A fresh process in a group of its own, with one thread."""
    return subprocess.Popen(
        [sys.executable, "-m", "gmar_utils", *COMMAND.split(), str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def kill(process: subprocess.Popen, folder: Path, moment: float, write: int) -> dict | None:
    """SIGKILL after ``moment`` seconds, or inside the ``write``-th write from now if that is not 0.

    Returns what was found then; None if the process ended before.
    """
    fresh, began, seen, was_there = folder / "training/state.new", time.monotonic(), 0, True
    while process.poll() is None and time.monotonic() - began < LIMIT:
        there = fresh.exists()
        seen, was_there = seen + (there and not was_there), there
        if there and seen >= write if write else time.monotonic() - began > moment:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return {"seconds": round(time.monotonic() - began, 2), "inside_write": fresh.exists()}
        time.sleep(0.001)
    process.wait()
    return None


def step_of(folder: Path) -> int:
    """The step of the state on disk, 0 without one."""
    file = folder / "training/state.pt"
    return torch.load(file, weights_only=True, mmap=True)["step"] if file.exists() else 0


def difference(one: Path, other: Path) -> list[str]:
    """What two finished trainings do not share: weights, any part of the state, rows of the log, files."""
    found = []
    names = [sorted(str(p.relative_to(f)) for p in f.rglob("*") if p.name != "lock") for f in (one, other)]
    if names[0] != names[1]:
        found.append(f"files: {set(names[0]) ^ set(names[1])}")
    if (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes():
        found.append("weights")
    states = [torch.load(f / "training/state.pt", weights_only=True) for f in (one, other)]
    flat = [dict(leaves(s["parts"])) for s in states]
    if flat[0].keys() != flat[1].keys() or not all(same(v, flat[1][k]) for k, v in flat[0].items()):
        found.append("state")
    logs = [(f / "training/log.jsonl").read_text().splitlines() for f in (one, other)]
    rows = [[{k: v for k, v in json.loads(line).items() if k != "images_per_s"} for line in log] for log in logs]
    if rows[0] != rows[1]:
        found.append("log")
    return found


def leaves(value, path=""):
    """(path, value) of everything in a nested state."""
    if isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, f"{path}/{key}")
    else:
        yield path, value


def same(one, other) -> bool:
    """Equal to the last bit."""
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def campaign(kills: int, seed: int, work: Path) -> pd.DataFrame:
    """One row for each kill; ``differs`` is empty where the training it belongs to ended as the unkilled one."""
    rng, rows, number = random.Random(seed), [], 0
    began = time.monotonic()
    if start(work / "vit-0").wait(LIMIT) != 0:
        raise RuntimeError("the training that nobody kills failed")
    whole = time.monotonic() - began
    while len(rows) < kills:
        number += 1
        folder, mine = work / f"round-{number}" / "vit-0", []  # the same name: it is on the card
        folder.parent.mkdir()
        while True:
            more = len(rows) + len(mine) < kills
            write = 0 if len(mine) % 2 else rng.randint(1, 12)
            process = start(folder)
            found = kill(process, folder, rng.uniform(0, whole) if more else LIMIT, write if more else 0)
            if found is None:
                break
            mine.append({"round": number, "kill": len(rows) + len(mine) + 1, **found, "step": step_of(folder)})
            print(mine[-1], flush=True)
        differs = "; ".join(difference(work / "vit-0", folder)) if process.returncode == 0 else "it failed"
        print(f"round {number}: {len(mine)} kills, {differs or 'equal'}", flush=True)
        rows += [row | {"differs": differs} for row in mine]
    return pd.DataFrame(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "book/results/campaign_finetune.csv")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        table = campaign(args.kills, args.seed, Path(work))
    table.to_csv(args.out, index=False)
    record = provenance(command_killed=f"gmar {COMMAND} …", kills=args.kills, seed=args.seed)
    args.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    print(table.to_string(index=False))
    sys.exit(bool(table["differs"].any()))
