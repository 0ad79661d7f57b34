"""The folder of a run: kills, several processes, damage, other settings, two runs at once."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from evaluating import METHODS, equal, run, save_checkpoint

from gmar_utils import data, files, load_model
from gmar_utils.evaluation import folder, variants
from gmar_utils.evaluation import run as engine
from gmar_utils.metrics.forwards import cheap_dtype

ROOT = Path(__file__).parents[2]
RUN = {"metrics": ("insertion", "deletion", "drop"), "protocol": {"steps": 4}, "block": 4}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def vit(checkpoint):
    return load_model(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def records():
    return data.shapes(10, size=48, seed=0)


@pytest.fixture(scope="module")
def undisturbed(vit, records):
    return run(vit, records, **RUN)


@pytest.fixture
def done(vit, records, tmp_path):
    """A finished run, and the folder it is in."""
    return run(vit, records, tmp_path / "out", **RUN), tmp_path / "out"


def computed(monkeypatch):
    """The first image of each block that is computed from now on."""
    seen, original = [], engine._run_block

    def spy(*arguments):
        seen.append(arguments[-1][0])
        return original(*arguments)

    monkeypatch.setattr(engine, "_run_block", spy)
    return seen


def test_a_second_call_computes_nothing_and_gives_the_same(vit, records, done, monkeypatch):
    first, out = done
    seen = computed(monkeypatch)
    again = run(vit, records, out, **RUN, batch_size=5)
    assert not seen
    pd.testing.assert_frame_equal(again.rows, first.rows)
    assert again.to_markdown() == first.to_markdown() and again.protocol == first.protocol
    assert json.loads((out / "provenance.json").read_text())["blocks_from_earlier_run"] == 3


# Other settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, named",
    [
        ({"seed": 1}, "seed"),
        ({"protocol": {"steps": 5}}, "protocol"),
        ({"limit": 4}, "images"),
        ({"metrics": ("iou",)}, "metrics"),
        ({"methods": ["random"]}, "methods"),
        ({"block": 5}, "block"),
        ({"precision": "auto"}, "precision"),
        ({"data_name": "mine"}, "data"),
    ],
)
def test_a_folder_with_other_settings_is_refused(vit, records, done, change, named):
    if named == "precision" and cheap_dtype("cpu") == torch.float32:
        pytest.skip("this processor computes in float32 alone")
    with pytest.raises(ValueError, match=f"run with another .*{named}"):
        run(vit, records, done[1], **RUN | change)


def test_other_weights_pictures_input_and_preprocessing_are_other_settings(checkpoint, vit, records, done):
    _, out = done
    with torch.no_grad():
        vit.model.classifier.bias[0] += 1
    with pytest.raises(ValueError, match="another state_sha256"):
        run(vit, records, out, **RUN)
    with torch.no_grad():
        vit.model.classifier.bias[0] -= 1
    with pytest.raises(ValueError, match="another data_sample"):
        run(vit, data.shapes(10, size=48, seed=1), out, **RUN)
    with pytest.raises(ValueError, match="another input, preprocessing"):
        run(load_model(checkpoint, image_size=64, device="cpu"), records, out, **RUN)
    other = load_model(checkpoint, device="cpu")
    other.processor.image_mean = [0.4, 0.5, 0.5]
    with pytest.raises(ValueError, match="another preprocessing"):
        run(other, records, out, **RUN)
    other.processor.image_mean, other.processor.resample = [0.5] * 3, 0
    with pytest.raises(ValueError, match="another preprocessing"):
        run(other, records, out, **RUN)


def test_another_function_is_another_method(vit, records, tmp_path):
    def first(trace):
        return trace.attentions[0].mean(1)[:, 0]

    def second(trace):
        return trace.attentions[1].mean(1)[:, 0]

    run(vit, records, tmp_path, methods={"mine": first}, limit=4)
    run(vit, records, tmp_path, methods={"mine": first}, limit=4)
    with pytest.raises(ValueError, match="another methods"):
        run(vit, records, tmp_path, methods={"mine": second}, limit=4)


# Damage --------------------------------------------------------------------------------------------------------------


def cut(file, share):
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])


def change_a_digit(file):
    content = bytearray(file.read_bytes())
    place = max(content.rfind(b"3"), content.rfind(b"7"))
    content[place] = ord("3" if content[place] == ord("7") else "7")
    file.write_bytes(content)


DAMAGE = {
    "cut in a line": lambda f: cut(f, 0.7),
    "cut at a line's end": lambda f: f.write_bytes(f.read_bytes().partition(b"\n")[0] + b"\n"),
    "empty": lambda f: f.write_bytes(b""),
    "garbage": lambda f: f.write_bytes(os.urandom(300)),
    "one digit": change_a_digit,
    "doubled": lambda f: f.write_bytes(2 * f.read_bytes()),
    "without its checksum": lambda f: f.write_bytes(f.read_bytes().partition(b"\n")[2]),
    "as version 0.1 wrote it": lambda f: f.write_text("image,method,metric,value\n4,random,insertion,3.5\n"),
    "gone": lambda f: f.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_block_is_computed_again(vit, records, done, monkeypatch, damage):
    first, out = done
    DAMAGE[damage](out / "parts" / "00001.json")
    seen = computed(monkeypatch)
    if damage == "gone":
        again = run(vit, records, out, **RUN)
    else:
        with pytest.warns(UserWarning, match="parts/00001.json is damaged"):
            again = run(vit, records, out, **RUN)
    assert seen == [4]
    equal(again.rows, first.rows)
    assert again.to_markdown() == first.to_markdown()


@pytest.mark.parametrize("file", ["protocol.json", "provenance.json", "summary.csv", "summary.md", "rows.csv"])
@pytest.mark.parametrize("damage", ["gone", "cut in a line"])
def test_no_other_file_is_needed_to_go_on(vit, records, done, file, damage, monkeypatch):
    first, out = done
    DAMAGE[damage](out / file)
    seen = computed(monkeypatch)
    again = run(vit, records, out, **RUN)
    assert not seen and again.to_markdown() == first.to_markdown()
    assert (out / file).stat().st_size > 100


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"3", b"\xff\xfe", b"null"])
def test_settings_that_are_lost_are_written_again_where_the_blocks_fit(vit, records, done, content, monkeypatch):
    first, out = done
    before = json.loads((out / "run.json").read_text())
    (out / "run.json").unlink() if content is None else (out / "run.json").write_bytes(content)
    with pytest.raises(ValueError, match="parts/00000.json belongs to a run with other settings"):
        run(vit, records, out, **RUN, seed=5)
    seen = computed(monkeypatch)
    again = run(vit, records, out, **RUN)
    assert not seen and json.loads((out / "run.json").read_text()) == before
    pd.testing.assert_frame_equal(again.rows, first.rows)


def test_a_block_of_another_run_is_refused(vit, records, done, tmp_path):
    _, out = done
    run(vit, records, tmp_path / "other", **RUN, seed=9)
    (out / "parts" / "00001.json").write_bytes((tmp_path / "other" / "parts" / "00001.json").read_bytes())
    with pytest.raises(ValueError, match="parts/00001.json belongs to a run with other settings.*another folder"):
        run(vit, records, out, **RUN)


def test_a_folder_that_cannot_be_one_is_named(vit, records, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file.*folder of a run"):
        run(vit, records, tmp_path / "file", **RUN)


def test_a_full_disk_names_the_file_and_leaves_nothing_half(tmp_path, monkeypatch):
    file = tmp_path / "a.csv"
    file.write_text("before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="a.csv could not be written .No space left.*Make room"):
        folder.write(file, "after")
    assert file.read_text() == "before" and [p.name for p in tmp_path.iterdir()] == ["a.csv"]


# Two at once ---------------------------------------------------------------------------------------------------------


def test_of_two_runs_that_start_at_once_one_gets_the_folder(tmp_path):
    for round_ in range(20):
        out, said = tmp_path / str(round_), []
        gate = threading.Barrier(6)

        def start(seed, out=out, said=said, gate=gate):
            gate.wait()
            try:
                folder.claim(out, {"seed": seed, "filler": "x" * 5000}, [])
                said.append(seed)
            except ValueError as error:
                assert "another seed" in str(error)

        threads = [threading.Thread(target=start, args=(seed % 3,)) for seed in range(6)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert len(said) == 2 and len(set(said)) == 1  # both with the seed that won
        assert json.loads((out / "run.json").read_text())["seed"] == said[0]
        assert sorted(p.name for p in out.iterdir()) == ["parts", "run.json"]


# Kills and processes -------------------------------------------------------------------------------------------------


def command(checkpoint, out, *more):
    return [
        "-m",
        "gmar_utils",
        "evaluate",
        "--data",
        "shapes",
        "--limit",
        "40",
        "--model",
        str(checkpoint),
        "--out",
        str(out),
        "--methods",
        *METHODS,
        "--metrics",
        "insertion",
        "deletion",
        "drop",
        *more,
    ]


@pytest.fixture(scope="module")
def reference(vit, tmp_path_factory):
    """What one process that nobody disturbs gives, in the precision that `evaluate` chooses."""
    return run(
        vit,
        data.shapes(40, seed=0),
        tmp_path_factory.mktemp("reference"),
        data_name="shapes",
        limit=40,
        metrics=("insertion", "deletion", "drop"),
        precision="auto",
    )


@pytest.mark.slow
def test_killed_and_started_again(vit, checkpoint, reference, tmp_path):
    out = tmp_path / "out"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [sys.executable, *command(checkpoint, out)],
        env=env,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("parts/0*.json")):
        assert started.poll() is None and time.monotonic() < deadline, started.stderr.read().decode()
        time.sleep(0.001)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    started.stderr.close()
    done = {p.name: p.read_bytes() for p in out.glob("parts/0*.json")}
    assert not (out / "rows.csv").exists() and 1 <= len(done) < 3
    (out / "parts" / ".99.00002.json").write_text("image,method\n1,half a li")  # what a kill inside a write leaves
    resumed = run(
        vit,
        data.shapes(40, seed=0),
        out,
        data_name="shapes",
        limit=40,
        metrics=("insertion", "deletion", "drop"),
        precision="auto",
    )
    assert all((out / "parts" / name).read_bytes() == content for name, content in done.items())
    equal(resumed.rows, reference.rows)
    assert resumed.to_markdown() == reference.to_markdown()


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one(checkpoint, reference, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # On CPUs, too, --multi_gpu is what makes accelerate start several processes.
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        str(port),
    ]
    out = tmp_path / "out"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*launch, *command(checkpoint, out)],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads((out / "provenance.json").read_text())["processes"] == 2
    equal(pd.read_csv(out / "rows.csv"), reference.rows)
    assert (out / "summary.md").read_text() == reference.to_markdown()
    assert result.stdout.count("| random") == 1  # printed by one process only


def test_several_processes_need_a_folder(vit, records, monkeypatch):
    class Two:
        num_processes = 2

    monkeypatch.setattr(engine, "PartialState", lambda **_: Two())
    with pytest.raises(ValueError, match="give out="):
        run(vit, records)


def test_settings_are_json_that_reads_back(undisturbed):
    settings = variants.described({"a": (1, 2.5), 3: np.float32(1), "c": None, "d": lambda x: x})
    assert json.loads(json.dumps(settings)) == settings
    assert undisturbed.rows["value"].notna().any()
