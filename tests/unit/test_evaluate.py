"""The evaluation engine: rows, targets, what it takes and what it refuses, the command line."""

import argparse
import json
import math
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from evaluating import METHODS, run, save_checkpoint

from gmar_utils import data, evaluate, explain, load_model, metrics
from gmar_utils.cli import evaluate as command
from gmar_utils.evaluation import DEFAULT_METHODS, METRICS, provenance, variants
from gmar_utils.evaluation import run as engine
from gmar_utils.evaluation.measures import BASELINE, COLUMNS, COUNTS, FAITHFULNESS, LOCALIZATION, OPTIONS
from gmar_utils.methods.weighting import gmar

EVERY = tuple(name for name in METRICS if name != "which")


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
def whole(vit, records, tmp_path_factory):
    """Every metric in one uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    return run(vit, records, out, metrics=EVERY, block=4, protocol={"steps": 4}), out


# Rows ----------------------------------------------------------------------------------------------------------------


def test_rows_are_the_metrics_own_numbers(vit, records, whole):
    rows = whole[0].rows
    assert len(rows) == rows.drop_duplicates(["image", "method", "metric"]).shape[0]
    assert set(rows["metric"]) == {*COLUMNS, *COUNTS} - {"which", "which_auroc", "top_1"}
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
        "srg": 100 * metrics.srg(vit.model, pixels, patch_maps, target, steps=4),
        "saco": 100 * metrics.saco(vit.model, pixels, patch_maps, target),
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
    kept = rows[(rows["method"] == BASELINE) & (rows["metric"] == "insertion")]["value"]
    np.testing.assert_allclose(kept, curve.baseline_kept, rtol=1e-4)


def test_without_a_folder_the_same_rows_come_from_memory(vit, records, whole):
    found = run(vit, records, metrics=EVERY, block=3, protocol={"steps": 4})
    keys = ["image", "method", "metric"]
    a, b = (r.sort_values(keys).reset_index(drop=True) for r in (found.rows, whole[0].rows))
    np.testing.assert_allclose(a["value"], b["value"], atol=2e-4, rtol=1e-4)
    pd.testing.assert_frame_equal(a[keys], b[keys], check_dtype=False)


def test_a_summary_is_a_frame_a_text_and_a_picture(whole):
    summary = whole[0]
    assert {"metric", "method", "mean", "low", "high", "twin"} <= set(summary.frame().columns)
    assert summary.to_markdown() == (whole[1] / "summary.md").read_text() == summary._repr_markdown_()
    ax = summary.plot("insertion")
    assert [t.get_text() for t in ax.get_yticklabels()] and "Insertion ↑" in ax.get_xlabel()
    with pytest.raises(ValueError, match="average_drop"):
        summary.plot("loss")


def test_the_limit_draws_images_with_the_seed(vit, records):
    a, b = (run(vit, records, methods=["center"], limit=4, seed=s).rows["image"].unique() for s in (0, 1))
    assert len(a) == len(b) == 4 and set(a) != set(b)


def test_provenance_says_what_and_hides_where(vit, whole, checkpoint, monkeypatch):
    record = json.loads((whole[1] / "provenance.json").read_text())
    assert record["weights_sha256"] == provenance.weights_sha256(vit)
    assert record["images"] == 10 and record["seed"] == 0 and record["precision"] == "float32"
    assert record["protocol"]["steps"] == 4 and record["wall_time_s"] > 0 and record["packages"]["torch"]
    assert str(checkpoint.parent) not in json.dumps(record)
    monkeypatch.setattr(
        sys, "argv", ["/home/me/bin/gmar", "evaluate", "--source=/home/me/data", "--out", "/home/me/out"]
    )
    assert provenance.made_by(note=1)["command"] == "gmar evaluate --source=data --out out"
    assert provenance.made_by(note=1)["note"] == 1
    named = SimpleNamespace(name="ViTForImageClassification", model=vit.model)
    before = provenance.weights_sha256(named)  # made in memory: the weights themselves
    with torch.no_grad():
        vit.model.classifier.bias[0] += 1
        assert provenance.weights_sha256(named) != before
        vit.model.classifier.bias[0] -= 1


# Methods -------------------------------------------------------------------------------------------------------------


def test_methods_are_labels_names_options_and_functions(vit, records):
    def mine(trace):
        return trace.attentions[0].mean(1)[:, 0]

    forms = {
        "a": ("gmar", {"norm": "l2"}),
        "b": partial(gmar, norm="l2"),
        "c": "gmar-l2-paper",
        "first layer": mine,
        "d": lambda trace: mine(trace),
    }
    rows = run(vit, records, methods=forms, metrics=("insertion",), protocol={"steps": 4}).rows
    wide = rows.pivot(index="image", columns="method", values="value")
    np.testing.assert_allclose(wide["b"], wide["a"], atol=1e-5)
    np.testing.assert_allclose(wide["c"], wide["a"], atol=1e-5)
    np.testing.assert_allclose(wide["d"], wide["first layer"], atol=1e-5)
    assert (wide["first layer"] - wide["a"]).abs().max() > 0.01
    assert set(run(vit, records, methods="legrad", limit=1).rows["method"]) == {"legrad"}


def test_every_gmar_variant_of_the_default_set_has_its_twin():
    twins = variants.twins(variants.bound_methods(None))
    assert (
        len(twins) == 7 and twins["gmar-l2-paper"] == "gmar-none-paper" and twins["gmar-bth-output-first"] == "rollout"
    )
    defaults = {k: dict(m[1]) for k, m in DEFAULT_METHODS.items()}
    for label, twin in twins.items():
        of_rollout = {"variant": "output-first"} | defaults[twin]
        assert defaults[label] | {"norm": None} == {"norm": None} | of_rollout
    two = command.parse_methods(["gmar:norm=l1,alpha=2", "gmar:norm=none"])
    assert not variants.twins(variants.bound_methods(two))  # another α is another variant
    same = command.parse_methods(["gmar:norm=l1,alpha=2", "gmar:norm=none,alpha=2"])
    assert variants.twins(variants.bound_methods(same)) == {"gmar:norm=l1,alpha=2": "gmar:norm=none,alpha=2"}
    own = {"gmar-l1-paper": ("gmar", {"alpha": 3}), "gmar-none-paper": "rollout"}
    assert not variants.twins(variants.bound_methods(own))  # a label of the default set, but not its method


def test_functions_are_told_apart_by_what_they_do():
    def made(power, offset=0):
        return lambda trace: trace.attentions[0] ** power + offset

    described = [json.dumps(variants.described(f)) for f in (made(2), made(3), made(2, 1), partial(gmar, norm="l1"))]
    assert len(set(described)) == 4
    assert json.dumps(variants.described(made(2))) == described[0]
    assert json.dumps(variants.described(partial(gmar, norm="l1"))) == described[3]
    array = variants.described({"a": torch.ones(2), "b": np.ones(2), "c": {1, 2}, "d": None})
    assert array["a"] == array["b"] and array["c"] == [1, 2]


# Targets and options -------------------------------------------------------------------------------------------------


def test_targets_predicted_label_and_several_that_count(vit):
    logits = torch.tensor([[3.0, 2, 1], [1, 2, 3]])
    assert engine._labels(vit, logits, [{"label": 1}, {"label": 0}]).tolist() == [1, 0]
    assert engine._labels(vit, logits, [{"targets": [1, 2]}, {"targets": [0, 1]}]).tolist() == [1, 1]


@pytest.mark.parametrize("target", ["predicted", "label"])
def test_the_target_is_explained_and_scored(vit, records, target):
    pixels = vit.preprocess([r["image"] for r in records])
    chosen = vit.model(pixels).logits.argmax(1) if target == "predicted" else torch.tensor(records["label"])
    maps = explain(vit.model, pixels, "gmar", chosen, upsample=False)
    expected = metrics.deletion(vit.model, pixels, maps, chosen, steps=3).auc
    found = run(vit, records, methods="gmar", metrics="deletion", protocol={"steps": 3, "target": target}).rows
    found = found[found["method"] == "gmar"]["value"]
    np.testing.assert_allclose(found, 100 * expected.detach(), atol=2e-4)


def test_the_metrics_that_records_allow_are_the_default(vit, records):
    plain = [{"image": r["image"], "label": r["label"]} for r in records]
    options = {"methods": ["center"], "metrics": None, "protocol": {"steps": 4}}
    found = {k: set(run(vit, v, **options).rows["metric"]) for k, v in {"plain": plain[:3], "mask": records}.items()}
    drops = {"average_drop", "average_increase", "coverage", "average_drop_top", "average_increase_top"}
    assert found["plain"] == drops | {"insertion", "deletion", "srg"} and len(FAITHFULNESS) == 5
    assert found["mask"] == {"pixel_accuracy", "iou", "average_precision", *COUNTS}
    with pytest.raises(ValueError, match="needs records with a mask"):
        run(vit, plain, metrics=("iou",))
    with pytest.raises(ValueError, match="needs records with a box"):
        run(vit, plain, metrics=("box",))


def test_a_baseline_may_be_a_function(vit, records):
    def black(x, shown):
        return torch.where(shown[:, None], x, torch.full_like(x, -1))

    options = {"methods": "gmar", "metrics": "deletion"}
    a, b = (run(vit, records, protocol={"baseline": f, "steps": 3}, **options) for f in (black, "zero"))
    assert "baseline black" in a.protocol["deletion"]
    assert not np.allclose(a.rows["value"], b.rows["value"], atol=0.1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"methods": ["gradcam"]}, "grad-cam"),
        ({"methods": []}, "no method"),
        ({"methods": {"a": 3}}, "method 'a'.*function of a trace"),
        ({"methods": {"a": ("gmar", 3)}}, r"'a'.*\('gmar', 3\).*function of a trace"),
        ({"methods": {"a": ("gmar", {"nrom": "l1"})}}, "norm, alpha, variant"),
        ({"methods": {"a": ("gmar", {"alpha": math.nan})}}, "'a'.*finite"),
        ({"methods": {"a": ("gmar", {"alpha": -1})}}, "'a'.*alpha"),
        ({"methods": {"a": ("gmar", {"norm": "l3"})}}, "'a'.*norm"),
        ({"methods": {"a": ("legrad", {"layers": 99})}}, "'a'.*layers"),
        ({"methods": {"a": lambda trace: trace.attentions[0].mean(1)[:, 0] * math.nan}}, "'a'.*NaN"),
        ({"methods": {"a": lambda trace: trace.attentions[0][:2, 0, 0, :3]}}, "'a' failed"),
        ({"metrics": ("loss",)}, "insertion"),
        ({"metrics": ()}, "no metric"),
        ({"protocol": {"step": 3}}, "steps"),
        ({"protocol": {"target": "best"}}, "'predicted', 'label'"),
        ({"protocol": {"aggregate": "zzz"}}, "'image', 'dataset'"),
        ({"protocol": {"iou": "both"}}, "'foreground', 'mean'"),
        ({"protocol": {"ap": 1}}, "'two-class'"),
        ({"protocol": {"masking": "blur"}}, "'multiply'"),
        ({"protocol": {"baseline": "black"}}, "'zero'"),
        ({"protocol": {"threshold": math.nan}}, "number or 'mean'"),
        ({"protocol": {"threshold": "median"}}, "number or 'mean'"),
        ({"protocol": {"steps": 0}}, "1 to 16"),
        ({"protocol": {"steps": 17}}, "1 to 16"),
        ({"protocol": {"steps": "patch", "unit": "pixel"}}, "unit='patch'"),
        ({"limit": 0}, "limit must be"),
        ({"limit": -1}, "limit must be"),
        ({"limit": 2.5}, "limit must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"batch_size": -1}, "batch_size must be"),
        ({"block": -1}, "block must be"),
        ({"precision": "float16"}, "'float32', 'auto'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(vit, records, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(engine, "_run_block", lambda *_: pytest.fail("a block was computed"))
    with pytest.raises((ValueError, TypeError), match=message):
        run(vit, records, tmp_path / "out", **{"methods": ["center"]} | options)
    assert not (tmp_path / "out").exists()


def test_no_record_is_refused(vit):
    with pytest.raises(ValueError, match="no record"):
        run(vit, [])


def test_a_mask_of_another_size_names_both(vit, records):
    wrong = [dict(r) | {"mask": r["mask"].resize((20, 30))} for r in list(records)[:2]]
    with pytest.raises(ValueError, match=r"\(48, 48\).*\(30, 20\)"):
        run(vit, wrong, methods="center", metrics="iou")


def test_masks_saved_as_pictures_give_the_same_and_a_warning(vit, records):
    some = list(records)[:3]
    as_pictures = [dict(r) | {"mask": r["mask"].point(lambda v: 255 * v)} for r in some]
    with pytest.warns(UserWarning, match="0 and 255"):
        found = run(vit, as_pictures, methods="gmar", metrics=LOCALIZATION).rows
    pd.testing.assert_frame_equal(found, run(vit, some, methods="gmar", metrics=LOCALIZATION).rows)
    assert found["value"].notna().all()


# One of two objects --------------------------------------------------------------------------------------------------


def test_two_questions_a_photo_and_intervals_by_photo(vit):
    both = data.shape_pairs(6, size=48, seed=3)
    found = run(vit, both, methods=["rollout", "random", "gmar"], metrics=None)
    assert found.rows["image"].nunique() == 12 and found.rows["photo"].nunique() == 6
    table = found.frame().set_index(["method", "metric"])
    for blind in ("rollout", "random"):  # the same map for both questions: chance by construction, on every photo
        assert table.loc[(blind, "which")][["mean", "low", "high"]].tolist() == [50, 50, 50]
        assert table.loc[(blind, "which_auroc")][["mean", "low", "high"]].tolist() == pytest.approx([50] * 3)
    assert (table["images"] == 6).all()
    pixels = vit.preprocess(list(both["image"]))
    labels = torch.tensor(both["groups"])[:, :, 0]
    expected = []
    for k in (0, 1):
        maps = vit.to_photo(explain(vit.model, pixels, "gmar", labels[:, k]), list(both["image"]))
        masks = [[torch.as_tensor(np.array(m[j])) for m in both["masks"]] for j in (k, 1 - k)]
        expected.append(metrics.auroc(maps, *masks))
    chosen = found.rows.query("method == 'gmar' and metric == 'which_auroc'").sort_values("image")["value"]
    np.testing.assert_allclose(chosen, 100 * torch.stack(expected, 1).flatten(), atol=1e-3)
    right = (vit.model(pixels).logits.argmax(1)[:, None] == labels).any(1)
    shown = table.loc[(BASELINE, "top_1"), "mean"]
    assert shown == pytest.approx(100 * right.float().mean().item())
    assert f"on {shown:.2f}" in found.to_markdown() and "Which of two ↑" in found.to_markdown()
    assert run(vit, both, methods="gmar", metrics=None, limit=2).rows["photo"].nunique() == 2


def test_known_photos_have_both_classes_among_the_first(vit):
    both = data.shape_pairs(8, size=48, seed=5)
    order = vit.model(vit.preprocess(list(both["image"]))).logits.argsort(1, descending=True)
    groups = zip(both["file"], both["groups"], order.tolist(), strict=True)
    needed = {photo: max(ranking.index(g[0]) for g in pair) + 1 for photo, pair, ranking in groups}
    first = sorted(needed.values())[3]  # of random weights: some photos are known, and some are not
    expected = [photo for photo, count in needed.items() if count <= first]
    assert 0 < len(expected) < 8
    assert list(engine.known(vit, both, first, batch_size=3)["file"]) == expected
    with pytest.raises(ValueError, match="know both"):
        engine.known(vit, both, 1)


# The command line ----------------------------------------------------------------------------------------------------


def test_the_command_line_speaks_specs_and_presets():
    methods = command.parse_methods(["gmar:norm=none,alpha=0.5", "legrad", "gmar-l2-paper"])
    assert methods == {
        "gmar:norm=none,alpha=0.5": ("gmar", {"norm": None, "alpha": 0.5}),
        "legrad": ("legrad", {}),
        "gmar-l2-paper": ("gmar", {"norm": "l2", "variant": "paper"}),
    }
    assert command.parse_protocol(["chefer", "steps=7", "steps=patch", "ap=foreground"]) == {
        "threshold": "mean",
        "iou": "mean",
        "ap": "foreground",
        "aggregate": "dataset",
        "steps": "patch",
    }
    assert math.isnan(command.parse_methods(["gmar:alpha=nan"])["gmar:alpha=nan"][1]["alpha"])
    with pytest.raises(ValueError, match="KEY=VALUE"):
        command.parse_methods(["gmar:norm"])
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args(["--limit", "5", "--protocol", "report", "--image-size", "64x96"])
    assert args.image_size == (64, 96) and args.limit == 5 and args.data == "tiny-imagenet" and args.methods is None
    assert args.block == 16 and args.precision == "auto"
    for bad in (["--limit", "0"], ["--metrics", "loss"], ["--data", "cifar"], ["--block", "0"], ["--batch-size", "-1"]):
        with pytest.raises(SystemExit):
            parser.parse_args(bad)


@pytest.mark.parametrize(
    "words",
    [
        ["--protocol", "aggregate=zzz"],
        ["--protocol", "steps=-3"],
        ["--methods", "gmar:nrom=l1"],
        ["--methods", "gmar:alpha=nan"],
        ["--methods", "gmar:alpha=[1]"],
        ["--methods", "gmar:alpha=1e308"],
        ["--methods", "gmar:variant=3"],
        ["--protocol", "steps"],
    ],
)
def test_bad_words_end_with_one_line(checkpoint, tmp_path, words, capsys):
    from gmar_utils.cli.main import main

    out = tmp_path / "out"
    code = main(["evaluate", "--data", "shapes", "--limit", "2", "--model", str(checkpoint), "--out", str(out), *words])
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and said[-1].startswith("gmar evaluate: ") and not out.exists()


def test_the_options_have_names_in_the_protocol():
    names = {f.name for f in metrics.Protocol.__dataclass_fields__.values()}
    assert set(OPTIONS) <= names
    assert evaluate.__kwdefaults__["precision"] == "auto"
    assert METHODS[0] in DEFAULT_METHODS


def test_an_order_of_patches_knows_the_sign_and_a_map_shows_what_speaks_for_the_class(vit, records):
    pixels, target = vit.preprocess([r["image"] for r in records]), torch.tensor(records["label"])
    signed = explain(vit.model, pixels, "libra", target, upsample=False, signed=True)
    shown = explain(vit.model, pixels, "libra", target, upsample=False)
    assert (signed < 0).any() and (shown == 0).sum() > 10
    expected = {
        "srg": 100 * metrics.srg(vit.model, pixels, signed, target, steps=4),
        "coverage": metrics.masked_scores(vit.model, pixels, shown, target).coverage,
    }
    rows = run(vit, records, methods="libra", metrics=("srg", "drop"), protocol={"steps": 4}).rows
    for metric, values in expected.items():
        found = rows[(rows["method"] == "libra") & (rows["metric"] == metric)]["value"]
        np.testing.assert_allclose(found, values, atol=2e-3)
