"""Takes each mechanism against silent errors out, one at a time, and counts the tests that notice.

`python tests/benchmarks/mutations.py [KIND …]` writes book/results/mutations.csv, or these lines of it. It stops at
three failed tests a kind: that is what is asked. As a plugin of pytest (`-p mutations`) this file takes the mechanism
that GMAR_MUTATION names out of the library.
"""

import functools
import importlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import torch

ROOT = Path(__file__).parents[2]
ENOUGH = 3
RESULT = ROOT / "book/results/mutations.csv"


def nothing(*arguments, **options):
    return None


def same(value, *arguments, **options):
    return value


def first_token(recorder, logits):
    v0 = logits.new_zeros(len(logits), recorder.attentions[0].shape[-1])
    v0[:, 0] = 1
    return v0


def any_mask(values, mask, number):
    mask = torch.as_tensor(mask)
    return (mask != 0) & (mask != 255), mask == 255


def raising(function):
    """A command's run without the net around it."""

    @functools.wraps(function)
    def run(argv=None):
        os.environ["GMAR_DEBUG"] = "1"
        return function(argv)

    return run


# kind: (module, name in it or Class.method, what stands in its place, tests)
MECHANISMS = {
    "layout and chain": ("capture.recorder", "Recorder._check", nothing, "test_capture_layout test_capture"),
    "read-out": ("capture.recorder", "Recorder.readout", first_token, "test_capture_layout test_models"),
    "wrappers": ("capture.layout", "unwrap", same, "test_capture_wrappers"),
    "one lock a model": ("capture.settling", "_lock", lambda key: threading.RLock(), "test_capture_wrappers"),
    "whole checkpoints": ("checkpoint", "_check_complete", nothing, "test_checkpoint"),
    "sound weights": ("checkpoint", "check_weights", nothing, "test_checkpoint"),
    "input before use": ("capture.checks", "check_pixel_values", same, "test_capture_inputs"),
    "targets before use": ("capture.target", "resolve_target", lambda m, y, t=None: y.argmax(1), "test_capture_inputs"),
    "where a processor looks": ("photo", "check_geometry", nothing, "test_photo"),
    "masks": ("metrics.localization", "_parts", any_mask, "test_metrics_localization test_metrics_input"),
    "settings of a run": ("evaluation.folder", "digest", lambda settings: "0", "test_evaluate_folder test_evaluate"),
    "the command line's net": ("cli.main", "main", raising, "test_cli"),
    "fits in memory": ("memory", "check_fits", nothing, "test_memory"),
}


def pytest_configure(config):
    kind = os.environ.get("GMAR_MUTATION")
    if not kind:
        return
    place, name, instead, _ = MECHANISMS[kind]
    module = importlib.import_module(f"gmar_utils.{place}")
    for other in ("explanation", "model", "metrics", "evaluation", "cli.main", "cli.explain", "cli.evaluate"):
        importlib.import_module(f"gmar_utils.{other}")
    if "." in name:
        owner, name = name.split(".")
        setattr(getattr(module, owner), name, instead)
        return
    original = getattr(module, name)
    instead = raising(original) if instead is raising else instead
    for known in [m for key, m in sys.modules.items() if key.startswith("gmar_utils")]:
        for attribute, value in list(vars(known).items()):
            if value is original:
                setattr(known, attribute, instead)


def noticed(kind):
    """How many tests failed, up to ENOUGH, and the name of the first."""
    files = [str(ROOT / f"tests/unit/{name}.py") for name in MECHANISMS[kind][3].split()]
    here = {"GMAR_MUTATION": kind, "PYTHONPATH": f"{Path(__file__).parent}:{ROOT}", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "mutations", f"--maxfail={ENOUGH}", "-rfE", "--tb=no", *files],
        cwd=ROOT,
        env=os.environ | here,
        capture_output=True,
        text=True,
    ).stdout
    failed = re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", found, re.M)
    return len(failed), failed[0] if failed else ""


def main():
    from gmar_utils.evaluation.provenance import made_by

    begun, rows = time.time(), []
    for kind in sys.argv[1:] or MECHANISMS:
        place, name, _, _ = MECHANISMS[kind]
        count, first = noticed(kind)
        rows.append({"mechanism": kind, "where": f"{place}.{name}", "tests that fail": count, "one of them": first})
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows).set_index("mechanism")
    if sys.argv[1:] and RESULT.exists():  # the others' lines stay
        before = pd.read_csv(RESULT, index_col="mechanism")
        table = table.reindex(before.index.union(table.index, sort=False)).fillna(before)
    table.astype({"tests that fail": int}).to_csv(RESULT)
    record = made_by(seed=0, wall_time_s=round(time.time() - begun), stops_at=ENOUGH)
    RESULT.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
