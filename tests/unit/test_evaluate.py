"""The evaluation engine: resume after a kill, two processes, statistics, tables, command line."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from gmar_utils import data, explain, load_model, metrics
from gmar_utils.data.drawing import CLASSES
from gmar_utils.evaluation import run as evaluate

METHODS = ["rollout-report", "gmar-l1-report", "random"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32,
                       patch_size=8, num_labels=len(CLASSES), initializer_range=0.4)  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    ViTImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit(checkpoint):
    return load_model(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def records():
    return data.shapes(10, size=48, seed=0)


def run(vit, records, out, methods=METHODS, **options):
    return evaluate.evaluate(vit, records, out, methods=evaluate.parse_methods(methods), **options)


@pytest.fixture(scope="module")
def whole(vit, records, tmp_path_factory):
    """Every metric in one uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    return run(vit, records, out, measures=tuple(evaluate.MEASURES), block=4, protocol={"steps": 4}), out


# Rows ----------------------------------------------------------------------------------------------------------------


def test_rows_are_the_metrics_own_numbers(vit, records, whole):
    rows = whole[0].rows
    assert len(rows) == rows.drop_duplicates(["image", "method", "metric"]).shape[0]
    assert set(rows["metric"]) == {*evaluate.COLUMNS, *evaluate.COUNTS}
    assert rows.groupby(["method", "metric"])["image"].nunique().eq(10).all()
    pixels = vit.preprocess([r["image"] for r in records])
    target = torch.tensor(records["label"])
    patch_maps = explain(vit.model, pixels, "gmar", target, upsample=False, norm="l1", variant="report")
    full_maps = explain(vit.model, pixels, "gmar", target, norm="l1", variant="report")
    masks = [torch.as_tensor(np.array(r["mask"])) for r in records]
    on_photo = vit.to_photo(full_maps, [r["image"] for r in records])
    drop = metrics.masked_scores(vit.model, pixels, full_maps, target)
    curve = metrics.insertion(vit.model, pixels, patch_maps, target, steps=4)
    expected = {
        "insertion": 100 * curve.auc,
        "average_drop": metrics.average_drop(drop.full, drop.masked, per_image=True),
        "coverage": drop.coverage,
        "iou": metrics.iou(on_photo, masks),
        "average_precision": metrics.average_precision(on_photo, masks),
        "pointing_game": metrics.pointing_game(on_photo, [r["box"] for r in records]),
        "road": 100 * metrics.morf_lerf(vit.model, pixels, patch_maps, target, steps=4, baseline="linear")[2],
    }
    chosen = rows[rows["method"] == "gmar-l1-report"].pivot(index="image", columns="metric", values="value")
    for metric, values in expected.items():
        # AP counts ranks: rounding that swaps two pixels moves it in small steps.
        atol = 0.02 if metric == "average_precision" else 2e-4
        np.testing.assert_allclose(chosen[metric], values, atol=atol, rtol=1e-5, err_msg=metric)
    kept = rows[(rows["method"] == evaluate.BASELINE) & (rows["metric"] == "insertion")]["value"]
    np.testing.assert_allclose(kept, curve.baseline_kept, rtol=1e-4)


def test_a_second_call_computes_nothing_and_gives_the_same(vit, records, whole, monkeypatch):
    first, out = whole
    monkeypatch.setattr(evaluate, "_run_block", lambda *_: pytest.fail("a finished block was computed again"))
    again = run(vit, records, out, measures=tuple(evaluate.MEASURES), block=4, protocol={"steps": 4}, batch_size=5)
    pd.testing.assert_frame_equal(again.rows, first.rows)
    assert again.markdown == first.markdown
    assert json.loads((out / "provenance.json").read_text())["blocks_from_earlier_run"] == 3


def test_a_folder_with_other_settings_is_refused(vit, records, whole):
    for change in ({"seed": 1}, {"protocol": {"steps": 5}}, {"limit": 4}, {"measures": ("iou",)}):
        with pytest.raises(ValueError, match="run with another"):
            run(vit, records, whole[1], **({"measures": tuple(evaluate.MEASURES), "block": 4, "protocol": {"steps": 4}}
                                           | change))  # fmt: skip


def test_the_limit_draws_images_with_the_seed(vit, records, tmp_path):
    options = {"methods": ["center"], "measures": ("drop",), "limit": 4}
    a, b = (run(vit, records, tmp_path / str(s), seed=s, **options).rows["image"].unique() for s in (0, 1))
    assert len(a) == len(b) == 4 and set(a) != set(b)


def test_provenance_says_what_and_hides_where(vit, whole, checkpoint, monkeypatch):
    record = json.loads((whole[1] / "provenance.json").read_text())
    assert record["weights_sha256"] == evaluate.weights_sha256(vit) and record["images"] == 10 and record["seed"] == 0
    assert record["protocol"]["steps"] == 4 and record["wall_time_s"] > 0 and record["packages"]["torch"]
    assert str(checkpoint.parent) not in json.dumps(record)
    monkeypatch.setattr(
        sys, "argv", ["/home/me/bin/gmar", "evaluate", "--source=/home/me/data", "--out", "/home/me/out"]
    )
    assert evaluate.provenance(note=1)["command"] == "gmar evaluate --source=data --out out"
    assert evaluate.provenance(note=1)["note"] == 1
    named = SimpleNamespace(name="ViTForImageClassification", model=vit.model)
    before = evaluate.weights_sha256(named)  # made in memory: the weights themselves
    with torch.no_grad():
        vit.model.classifier.bias[0] += 1
        assert evaluate.weights_sha256(named) != before
        vit.model.classifier.bias[0] -= 1


# Kill and processes --------------------------------------------------------------------------------------------------


def command(checkpoint, out):
    return ["-m", "gmar_utils", "evaluate", "--data", "shapes", "--limit", "40", "--model", str(checkpoint),
            "--out", str(out),
            "--methods",
            *METHODS, "--metrics", "insertion", "deletion", "drop"]  # fmt: skip


@pytest.fixture(scope="module")
def reference(vit, tmp_path_factory):
    """What one process that nobody disturbs gives."""
    return run(vit, data.shapes(40, seed=0), tmp_path_factory.mktemp("reference"), data_name="shapes", limit=40,
               measures=("insertion", "deletion", "drop"))  # fmt: skip


def equal(rows, reference):
    keys = ["image", "method", "metric"]
    rows, reference = (r.sort_values(keys).reset_index(drop=True) for r in (rows, reference))
    pd.testing.assert_frame_equal(rows[keys], reference[keys])
    np.testing.assert_allclose(rows["value"], reference["value"], atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_killed_and_started_again(vit, checkpoint, reference, tmp_path):
    out = tmp_path / "out"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    started = subprocess.Popen([sys.executable, *command(checkpoint, out)], env=env, cwd=ROOT,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(out.glob("parts/0*.csv")):
        assert started.poll() is None and time.monotonic() < deadline, started.stderr.read().decode()
        time.sleep(0.001)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    started.stderr.close()
    done = {p.name: p.read_bytes() for p in out.glob("parts/0*.csv")}
    assert not (out / "rows.csv").exists() and 1 <= len(done) < 3
    (out / "parts" / ".00002.csv.99").write_text("image,method\n1,half a li")  # what a kill inside a write leaves
    resumed = run(vit, data.shapes(40, seed=0), out, data_name="shapes", limit=40,
                  measures=("insertion", "deletion", "drop"))  # fmt: skip
    assert all((out / "parts" / name).read_bytes() == content for name, content in done.items())
    equal(resumed.rows, reference.rows)
    assert resumed.markdown == reference.markdown


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one(checkpoint, reference, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # On CPUs, too, --multi_gpu is what makes accelerate start several processes.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
              "--main_process_port", str(port)]  # fmt: skip
    out = tmp_path / "out"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run([*launch, *command(checkpoint, out)], env=env, cwd=ROOT, capture_output=True,
                            text=True, timeout=240, check=False)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert json.loads((out / "provenance.json").read_text())["processes"] == 2
    equal(pd.read_csv(out / "rows.csv"), reference.rows)
    assert (out / "summary.md").read_text() == reference.markdown
    assert result.stdout.count("| random") == 1  # printed by one process only


# Statistics ----------------------------------------------------------------------------------------------------------


def made_up(**columns):
    """Rows of the metric `insertion` from one list of values a method."""
    return pd.DataFrame(
        [(i, m, "insertion", v) for m, values in columns.items() for i, v in enumerate(values)],
        columns=["image", "method", "metric", "value"],
    )


def test_intervals_are_scipys_and_differences_are_paired():
    rng = np.random.default_rng(0)
    base = rng.normal(50, 20, 80)
    rows = made_up(uniform=base, weighted=base + rng.normal(1, 1, 80))
    methods = {"uniform": ("gmar", {"norm": None}), "weighted": ("gmar", {"norm": "l1"})}
    table = evaluate.summarize(rows, methods, evaluate.DEFAULT_PROTOCOL).set_index("method")
    expected = scipy.stats.bootstrap((base,), np.mean, method="percentile", n_resamples=5000, rng=1).confidence_interval
    assert table.loc["uniform", "low"] == pytest.approx(expected.low, abs=0.5)
    assert table.loc["uniform", "high"] == pytest.approx(expected.high, abs=0.5)
    weighted = table.loc["weighted"]
    assert weighted["twin"] == "uniform" and pd.isna(table.loc["uniform", "twin"])
    # The two means overlap widely; image by image the difference is certain.
    assert weighted["low"] < table.loc["uniform", "high"]
    assert 0.5 < weighted["difference_low"] < weighted["difference"] < weighted["difference_high"] < 1.5
    assert weighted["best"] and not table.loc["uniform", "best"]


def test_bold_needs_the_interval_against_every_other_method():
    rng = np.random.default_rng(1)
    a = rng.normal(10, 5, 60)
    names = {"a": ("center", {}), "b": ("random", {}), "c": ("attention", {})}
    close = made_up(a=a, b=a - 5, c=a[::-1] - 0.01)
    assert not evaluate.summarize(close, names, evaluate.DEFAULT_PROTOCOL)["best"].any()
    clear = evaluate.summarize(made_up(a=a, b=a - 5, c=a - 1), names, evaluate.DEFAULT_PROTOCOL)
    assert clear.set_index("method")["best"].to_dict() == {"a": True, "b": False, "c": False}
    text = evaluate.to_markdown(clear)
    assert text.count("**") == 2 and "| Insertion ↑" in text
    lower = clear.assign(metric="deletion")
    assert "| Deletion ↓" in evaluate.to_markdown(lower)
    # for deletion the smallest wins
    rows = made_up(a=a, b=a - 5, c=a - 1).assign(metric="deletion")
    assert evaluate.summarize(rows, names, evaluate.DEFAULT_PROTOCOL).set_index("method")["best"].to_dict() == {
        "a": False, "b": True, "c": False,
    }  # fmt: skip


def test_dataset_iou_is_bootstrapped_from_counts(whole):
    rows, methods = whole[0].rows, evaluate.parse_methods(METHODS)
    protocol = evaluate.DEFAULT_PROTOCOL | {"aggregate": "dataset"}
    table = evaluate.summarize(rows, methods, protocol)
    line = table[(table["metric"] == "iou") & (table["method"] == "random")].iloc[0]
    sums = rows[rows["method"] == "random"].groupby("metric")["value"].sum()
    expected = 100 * sums["tp"] / (sums["tp"] + sums["fp"] + sums["fn"])
    assert line["mean"] == pytest.approx(expected) and line["low"] < expected < line["high"]
    per_image = whole[0].summary
    assert per_image[(per_image["metric"] == "iou") & (per_image["method"] == "random")]["mean"].item() != expected


def test_images_without_a_value_are_left_out_and_counted():
    rows = made_up(a=[1.0, 2, 3, np.nan], b=[2.0, 2, 2, np.nan]).assign(metric="iou")
    table = evaluate.summarize(rows, {"a": ("center", {}), "b": ("random", {})}, evaluate.DEFAULT_PROTOCOL)
    assert (
        table["mean"].tolist() == [2, 2] and table["images"].tolist() == [3, 3] and table["left_out"].tolist() == [1, 1]
    )
    assert "1 images without foreground" in evaluate.to_markdown(table)


def test_one_image_has_no_interval():
    table = evaluate.summarize(made_up(a=[3.0]), {"a": ("center", {})}, evaluate.DEFAULT_PROTOCOL)
    assert np.isnan(table["low"].item()) and "| 3.00 " in evaluate.to_markdown(table)


def test_a_baseline_that_keeps_much_is_flagged(whole):
    text = whole[0].markdown
    kept = whole[0].summary.query("method == @evaluate.BASELINE and metric == 'insertion'")["mean"].item()
    assert f"Insertion: the baseline image keeps {kept:.2f}" in text
    rows = pd.concat([made_up(a=[1.0, 2]), made_up(**{evaluate.BASELINE: [19.0, 20]})])
    names = {"a": ("center", {})}
    assert "⚠" not in evaluate.to_markdown(evaluate.summarize(rows, names, evaluate.DEFAULT_PROTOCOL))
    rows.loc[rows["method"] == evaluate.BASELINE, "value"] += 2
    assert "more than 20 %" in evaluate.to_markdown(evaluate.summarize(rows, names, evaluate.DEFAULT_PROTOCOL))


def test_the_markdown_names_protocol_and_pairs(whole):
    text = whole[0].markdown
    assert "gmar-l1-report − rollout-report" in text and "random −" not in text
    assert "insertion: score probability · target label · baseline zero · steps 4" in text
    assert "masking top" in text and "ROAD" in text and "Coverage" in text and "10 images" in text


def test_tables_hold_the_texts_the_bold_and_the_notes_of_the_markdown(whole):
    cards = json.loads((whole[1] / "protocol.json").read_text())
    means, differences = evaluate.tables(whole[0].summary, cards)[:2]
    assert list(means.frame.columns) == ["Avg Drop ↓", "Coverage", "Avg Increase ↑", "Insertion ↑", "Deletion ↓"]
    assert list(means.frame.index) == METHODS and list(differences.frame.index) == ["gmar-l1-report − rollout-report"]
    line = whole[0].summary.query("method == 'random' and metric == 'insertion'").iloc[0]
    assert means.frame.loc["random", "Insertion ↑"] == f"{line['mean']:.2f} [{line['low']:.2f}, {line['high']:.2f}]"
    assert means.bold.loc["random", "Insertion ↑"] == line["best"] and means.bold.shape == means.frame.shape
    assert not means.notes and all(f"- {note}" in whole[0].markdown for note in differences.notes)
    assert whole[0].markdown.endswith(evaluate.footnote(whole[0].summary) + "\n")


def test_every_gmar_variant_of_the_default_set_has_its_twin():
    twins = evaluate.uniform_twins(evaluate.DEFAULT_METHODS)
    assert twins == {
        "gmar-l1-paper": "gmar-none-paper", "gmar-l2-paper": "gmar-none-paper",
        "gmar-l1-report": "rollout-report", "gmar-l2-report": "rollout-report",
        "gmar-l1-output-first": "rollout", "gmar-l2-output-first": "rollout",
    }  # fmt: skip
    # another α is another variant
    assert not evaluate.uniform_twins(evaluate.parse_methods(["gmar:norm=l1,alpha=2", "gmar:norm=none"]))


# Targets and options -------------------------------------------------------------------------------------------------


def test_targets_predicted_label_and_several_that_count(vit, records):
    logits = torch.tensor([[3.0, 2, 1], [1, 2, 3]])
    job = SimpleNamespace(vit=vit, protocol={"target": "predicted"})
    assert evaluate._target(job, logits, [{}, {}]).tolist() == [0, 2]
    job.protocol["target"] = "label"
    assert evaluate._target(job, logits, [{"label": 1}, {"label": 0}]).tolist() == [1, 0]
    assert evaluate._target(job, logits, [{"targets": [1, 2]}, {"targets": [0, 1]}]).tolist() == [1, 1]


def test_the_command_line_speaks_specs_and_presets():
    methods = evaluate.parse_methods(["gmar:norm=none,alpha=0.5", "legrad", "gmar-l2-paper"])
    assert methods == {
        "gmar:norm=none,alpha=0.5": ("gmar", {"norm": None, "alpha": 0.5}), "legrad": ("legrad", {}),
        "gmar-l2-paper": ("gmar", {"norm": "l2", "variant": "paper"}),
    }  # fmt: skip
    assert evaluate.parse_protocol(["chefer", "steps=7", "steps=patch", "ap=foreground"]) == {
        "threshold": "mean", "iou": "mean", "ap": "foreground", "aggregate": "dataset", "steps": "patch",
    }  # fmt: skip
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    args = parser.parse_args(["--limit", "5", "--protocol", "report", "--image-size", "64x96"])
    assert args.image_size == (64, 96) and args.limit == 5 and args.data == "tiny-imagenet" and args.methods is None
    for bad in (["--limit", "0"], ["--metrics", "loss"], ["--data", "cifar"]):
        with pytest.raises(SystemExit):
            parser.parse_args(bad)


@pytest.mark.parametrize("options, message", [
    ({"methods": ["gradcam"]}, "grad-cam"),
    ({"methods": ["gmar:norm"]}, "KEY=VALUE"),
    ({"methods": ["center"], "measures": ("loss",)}, "insertion"),
    ({"methods": ["center"], "protocol": {"step": 3}}, "steps"),
    ({"methods": ["center"], "protocol": {"target": "best"}}, "'predicted' or 'label'"),
    ({"methods": ["center"], "limit": 0}, "no images"),
])  # fmt: skip
def test_errors_name_what_there_is(vit, records, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(vit, records, tmp_path, **options)


def test_a_metric_without_its_data_is_refused(vit, records, tmp_path):
    plain = [{"image": r["image"], "label": r["label"]} for r in records]
    with pytest.raises(ValueError, match="needs records with a mask"):
        run(vit, plain, tmp_path, measures=("iou",))
    with pytest.raises(ValueError, match="needs records with a box"):
        run(vit, plain, tmp_path, measures=("box",))
    results = run(vit, plain[:3], tmp_path, methods=["center"])
    assert set(results.rows["metric"]) == {"average_drop", "average_increase", "coverage", "insertion", "deletion",
                                           "average_drop_top", "average_increase_top"}  # fmt: skip
