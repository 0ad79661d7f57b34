"""A randomised campaign against what this tool promises: kill it, feed it nonsense, share it, and nothing goes wrong.

Each part is a function that yields one row for each attempt. `python tests/benchmarks/campaign.py PART …` runs parts
and adds their lines to book/results/campaign.csv, one table for all, with provenance in campaign.json. It is not part
of `make test`.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import bad_inputs
import numpy as np
import pandas as pd
import torch

from gmar_utils import data, explain, load_model
from gmar_utils.evaluation.provenance import made_by

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "book" / "results"
COLUMNS = ["part", "kind", "attempts", "in_use", "lost", "different", "refused", "passed"]
WORKERS = 3
COUNTED = {"in_use": "sum", "lost": "max", "different": "max", "refused": "sum", "passed": "sum"}


class Process:
    """A fresh interpreter with the command line, in a process group of its own, so that a kill takes all of it."""

    def __init__(self, *words, **environment):
        self.started = subprocess.Popen(
            [sys.executable, "-m", "gmar_utils", *map(str, words)],
            cwd=ROOT,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def kill(self) -> bool:
        """Whether it was still running when it was killed."""
        running = self.started.poll() is None
        if running:
            os.killpg(self.started.pid, signal.SIGKILL)
        self.started.communicate()
        return running

    def finish(self) -> None:
        """Wait for the end; RuntimeError, with what was said, for another exit code than 0."""
        said = self.started.communicate()[1].decode()
        if self.started.returncode:
            raise RuntimeError(f"exit code {self.started.returncode}: {said[-2000:]}")


# gmar evaluate --------------------------------------------------------------------------------------------------------

EVALUATE = (
    "evaluate --data shapes --model vit-shapes --limit 64 --methods gmar rollout random "
    "--metrics insertion drop iou --protocol steps=4"
).split()
LAST = 4  # blocks


def evaluate_kills(count: int, generator: random.Random) -> Iterator[dict]:
    """Kill `gmar evaluate` at random moments, by the clock or inside a write, until it has ended; default block.

    A round is one folder: kills and restarts until `gmar evaluate` has finished or half a dozen kills have fallen, then
    a run to the end, whose rows must be those of a run that nobody disturbed.
    """
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        begun = time.monotonic()
        Process(*EVALUATE, "--out", folder / "undisturbed").finish()
        duration, reference = time.monotonic() - begun, pd.read_csv(folder / "undisturbed" / "rows.csv")
        print(f"undisturbed: {duration:.0f} s, {len(reference)} rows", flush=True)
        kills = 0
        for round_ in range(count):
            out, rows, found = folder / f"round {round_}", [], ""
            for _ in range(min(6, count - kills)):
                kind = generator.choice(("by the clock", "inside a write"))
                before = _blocks(out)
                process = Process(*EVALUATE, "--out", out)
                by_clock = kind == "by the clock"
                killed = (_kill_by_the_clock if by_clock else _kill_inside_a_write)(process, out, generator, duration)
                after = _blocks(out)
                kept = all(after.get(name) == content for name, content in before.items())
                if not killed:
                    break
                kills += 1
                rows.append(
                    {
                        "part": "gmar evaluate",
                        "kind": kind,
                        "blocks": len(after),
                        "kept": kept,
                        "in_use": 0 < len(after) < LAST,
                    }
                )
            try:
                Process(*EVALUATE, "--out", out).finish()
                ours = pd.read_csv(out / "rows.csv")
                lost, different = _compare(ours, reference)
            except RuntimeError as error:
                lost, different, found = len(reference), len(reference), str(error)
            for row in rows:
                yield row | {
                    "lost": lost,
                    "different": different,
                    "passed": row["kept"] and not (lost or different),
                    "said": found,
                }
            print(f"round {round_}: {kills} kills, {lost} rows lost, {different} different {found}", flush=True)
            if kills >= count:
                return


def _kill_by_the_clock(process, out, generator, duration):
    """Half of the kills come at any moment from the start on, half at any moment after a first file was begun."""
    if generator.random() < 0.5:
        time.sleep(generator.uniform(0.05, duration))
    else:
        while process.started.poll() is None and not (out / "run.json").exists():
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.7 * duration))
    return process.kill()


def _kill_inside_a_write(process, out, generator, duration):
    """The moment that a temporary file is there: between its creation and the rename that puts it in place."""
    wanted, seen = generator.randint(1, 4), set()
    while process.started.poll() is None:
        seen |= {p.name for p in out.glob("parts/.*")} | {p.name for p in out.glob(".*")}
        if len(seen) >= wanted:
            break
    return process.kill()


def _blocks(out):
    return {p.name: p.read_bytes() for p in out.glob("parts/0*.json")}


def _compare(ours, reference):
    """Rows that are missing or doubled, and rows with another value."""
    keys = ["image", "method", "metric"]
    both = reference.merge(ours, on=keys, how="outer", suffixes=("", "_ours"), indicator=True)
    apart = ~np.isclose(both["value"], both["value_ours"], atol=1e-6, rtol=1e-6, equal_nan=True)
    return int((both["_merge"] != "both").sum()) + abs(len(ours) - len(reference)), int(apart.sum())


# gmar finetune --------------------------------------------------------------------------------------------------------

FINETUNE = "finetune --recipe shapes --scenes 160 --epochs 3 --batch-size 16 --save-every 0".split()
STEPS, WITHIN = 30, 60  # steps of a training; seconds within which a kill by the clock comes
AT_ONCE = 3  # trainings


def finetune_kills(count: int, generator: random.Random) -> Iterator[dict]:
    """Kill `gmar finetune` at random moments, about half inside the write of a state.

    A round is one training, killed five times and then run to its end; its weights, state and log must be those of a
    training that nobody disturbed, to the last bit.
    """
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        undisturbed = Path(folder) / "undisturbed" / "vit-0"  # the last part of the name stands on the card
        reference = pool.submit(Process(*FINETUNE, "--out", undisturbed).finish)
        tasks = []
        for start in range(0, count, 5):
            out, own = Path(folder) / f"round {start}" / "vit-0", random.Random(generator.random())
            tasks.append((out, pool.submit(_training_round, out, min(5, count - start), own)))
        reference.result()
        for out, task in tasks:
            rows, failed = task.result()
            apart = ["failed"] if failed else _differences(undisturbed, out)
            for row in rows:
                yield row | {"different": len(apart), "passed": not (row["lost"] or apart)}
            print(f"{out.parent.name}: {len(rows)} kills, {', '.join(apart) or 'equal'} {failed}", flush=True)


def _training_round(out, kills, generator):
    """Rows of the kills, and what was said where the training then failed."""
    rows = []
    for _ in range(kills):
        inside, before = generator.random() < 0.5, _step(out)
        process = Process(*FINETUNE, "--out", out)
        if not _kill_in_training(process, out, generator, inside):
            break
        step = _step(out)
        kind = "inside a write" if inside else "by the clock"
        lost = max(0, before - step)
        rows.append({"part": "gmar finetune", "kind": kind, "in_use": 0 < step < STEPS, "lost": lost})
        print(f"killed {kind}, at step {step}", flush=True)
    try:
        Process(*FINETUNE, "--out", out).finish()
        return rows, ""
    except RuntimeError as error:
        return rows, str(error)


def _kill_in_training(process, out, generator, inside):
    """By the clock, or while a state is being written (a file of its own until it is whole)."""
    if not inside:
        time.sleep(generator.uniform(0.05, WITHIN))
        return process.kill()
    wanted, was_there = generator.randint(1, 6), False
    while process.started.poll() is None and wanted:
        there = any((out / "training").glob(".*.state.pt"))
        wanted, was_there = wanted - (there and not was_there), there
        time.sleep(0.001)
    return process.kill()


def _step(out):
    """The step of the state on disk, 0 without one."""
    file = out / "training" / "state.pt"
    return torch.load(file, weights_only=True, mmap=True)["step"] if file.exists() else 0


def _differences(one, other):
    """What two finished trainings do not share, out of files, weights, state and log."""
    names = [{str(p.relative_to(f)) for p in f.rglob("*") if p.name != "lock"} for f in (one, other)]
    weights = [(f / "model.safetensors").read_bytes() for f in (one, other)]
    states = [dict(_leaves(torch.load(f / "training/state.pt", weights_only=True)["parts"])) for f in (one, other)]
    logs = [[json.loads(x) for x in (f / "training/log.jsonl").read_text().splitlines()] for f in (one, other)]
    for log in logs:
        for row in log:
            row.pop("images_per_s", None)
    same_state = states[0].keys() == states[1].keys() and all(_same(v, states[1][k]) for k, v in states[0].items())
    equal = {
        "files": names[0] == names[1],
        "weights": weights[0] == weights[1],
        "state": same_state,
        "log": logs[0] == logs[1],
    }
    return [name for name, is_equal in equal.items() if not is_equal]


def _leaves(value, path=""):
    """(path, value) of everything in a nested state."""
    if isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(part, f"{path}/{key}")
    else:
        yield path, value


def _same(one, other):
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


# Bad inputs -----------------------------------------------------------------------------------------------------------


def bad_input(count: int, generator: random.Random) -> Iterator[dict]:
    """Inputs of `bad_inputs.py`, in a few processes: refused in one line for each problem, or answered soundly."""
    seed = generator.randrange(2**31)
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as workers:
        for row in workers.map(partial(bad_inputs.attempt, seed), range(count)):
            passed = row["outcome"] in (bad_inputs.REFUSED, bad_inputs.ANSWERED)
            if not passed:
                print(f"{row['outcome']}: {row['kind']}: {row['tried']}\n{row['said']}\n", flush=True)
            yield {
                "part": "bad input",
                "kind": row["kind"],
                "refused": row["outcome"] == bad_inputs.REFUSED,
                "passed": passed,
            }


# Threads --------------------------------------------------------------------------------------------------------------

SHARING = ("gmar", "rollout", "legrad", "grad-cam", "chefer", "libra", "attnlrp", "cdam")


def threads(count: int, generator: random.Random) -> Iterator[dict]:
    """Ten threads on one model, each with its own order of eight methods: the maps of one thread, the model unchanged.

    An attempt is one thread's map of two photos.
    """
    vit = load_model("vit-shapes", device="cpu")
    pixels = torch.stack([vit.preprocess(scene["image"])[0] for scene in data.shapes(2, seed=0)])
    alone = {method: explain(vit.model, pixels, method, target=1) for method in SHARING}
    before = _state(vit.model)
    work = [generator.sample(SHARING, len(SHARING)) for _ in range(-(-count // len(SHARING)))]
    together = threading.Barrier(len(work))

    def share(methods):
        together.wait()
        return [(method, _tried(lambda: explain(vit.model, pixels, method, target=1))) for method in methods]  # noqa: B023

    with ThreadPoolExecutor(len(work)) as pool:
        found = [pair for pairs in pool.map(share, work) for pair in pairs]
    restored = _state(vit.model) == before
    for method, maps in found[:count]:
        equal = isinstance(maps, torch.Tensor) and torch.allclose(maps, alone[method], atol=1e-6)
        if not equal:
            print(f"{method}: {maps if isinstance(maps, str) else (maps - alone[method]).abs().max()}", flush=True)
        yield {
            "part": f"{len(work)} threads",
            "kind": f"{len(SHARING)} methods, one model",
            "different": int(not equal),
            "passed": equal and restored,
        }


def _tried(function):
    try:
        return function()
    except Exception as error:  # what any of the threads meets is a row of the table
        return f"{type(error).__name__}: {error}"


def _state(model):
    """All that a map could leave behind: hooks, switches, gradients, the attention's implementation."""
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    forwards = ["forward" in vars(m) for m in model.modules()]
    switches = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    gradients = [p.grad is None for p in model.parameters()]
    return hooks, forwards, switches, gradients, model.config._attn_implementation


# All parts ------------------------------------------------------------------------------------------------------------

PARTS: dict[str, tuple[Callable, int]] = {  # name: (function, attempts)
    "evaluate-kills": (evaluate_kills, 100),
    "finetune-kills": (finetune_kills, 20),
    "bad-inputs": (bad_input, 360),
    "threads": (threads, 80),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--count", type=int, help="attempts of each part (default: the part's own number)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of campaign.csv and campaign.json")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    failed = 0
    for name in args.parts or PARTS:
        function, count = PARTS[name]
        started, record = time.perf_counter(), made_by(part=name, seed=args.seed)  # before the table is touched
        rows = pd.DataFrame(function(args.count or count, random.Random(args.seed)))
        failed += int((~rows["passed"]).sum())
        save(args.out, name, rows, record | {"wall_time_s": round(time.perf_counter() - started)})
    return 1 if failed else 0


def save(out: Path, name: str, rows: pd.DataFrame, record: dict) -> None:
    """One line a kind of attempt, in place of the part's earlier lines; its provenance beside the other parts'."""
    out.mkdir(parents=True, exist_ok=True)
    table, about = out / "campaign.csv", out / "campaign.json"
    counted = {name: (name, how) for name, how in COUNTED.items() if name in rows}
    lines = rows.groupby(["part", "kind"], sort=False).agg(attempts=("passed", "size"), **counted)
    lines = lines.reset_index().reindex(columns=COLUMNS).astype({name: "Int64" for name in COUNTED})
    if table.exists():
        before = pd.read_csv(table).reindex(columns=COLUMNS).astype({name: "Int64" for name in COUNTED})
        lines = pd.concat([before[~before["part"].isin(lines["part"])], lines])
    lines.to_csv(table, index=False)
    parts = json.loads(about.read_text())["parts"] if about.exists() else {}
    parts[name] = record
    newest = {k: v for k, v in record.items() if k != "part"}
    about.write_text(json.dumps(newest | {"parts": parts}, indent=1) + "\n")
    print(lines.to_string(index=False), flush=True)


if __name__ == "__main__":
    sys.exit(main())
