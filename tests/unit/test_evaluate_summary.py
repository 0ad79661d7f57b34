"""From rows to tables: means, paired intervals, twins, notes."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from gmar_utils.evaluation.measures import BASELINE, COUNTS, checked_options
from gmar_utils.evaluation.summary import footnote, interval, paired_bootstrap, summarize, to_markdown

OPTIONS = checked_options()


def made_up(metric="insertion", **columns):
    """Rows of one metric from one list of values a method."""
    return pd.DataFrame(
        [(i, m, metric, v) for m, values in columns.items() for i, v in enumerate(values)],
        columns=["image", "method", "metric", "value"],
    )


def test_intervals_are_scipys_and_differences_are_paired():
    rng = np.random.default_rng(0)
    base = rng.normal(50, 20, 80)
    rows = made_up(uniform=base, weighted=base + rng.normal(1, 1, 80))
    table = summarize(rows, ["uniform", "weighted"], OPTIONS, {"weighted": "uniform"}).set_index("method")
    expected = scipy.stats.bootstrap((base,), np.mean, method="percentile", n_resamples=5000, rng=1).confidence_interval
    assert table.loc["uniform", "low"] == pytest.approx(expected.low, abs=0.5)
    assert table.loc["uniform", "high"] == pytest.approx(expected.high, abs=0.5)
    assert interval(base) == pytest.approx((base.mean(), *table.loc["uniform", ["low", "high"]]))
    weighted = table.loc["weighted"]
    assert weighted["twin"] == "uniform" and pd.isna(table.loc["uniform", "twin"])
    # The two means overlap widely; image by image the difference is certain.
    assert weighted["low"] < table.loc["uniform", "high"]
    assert 0.5 < weighted["difference_low"] < weighted["difference"] < weighted["difference_high"] < 1.5
    assert weighted["best"] and not table.loc["uniform", "best"]


def test_one_bootstrap_draws_the_same_images_for_all():
    values = np.random.default_rng(2).normal(size=(3, 40))
    draws = paired_bootstrap(values, seed=4, resamples=300)
    assert draws.shape == (3, 300)
    both = paired_bootstrap(values[:1] - values[1:2], seed=4, resamples=300)
    np.testing.assert_allclose(draws[:1] - draws[1:2], both)
    sums = paired_bootstrap(values, 2 * values, statistic=lambda a, b, axis: (a + b).mean(axis), seed=4, resamples=300)
    np.testing.assert_allclose(sums, 3 * draws)
    assert np.isnan(paired_bootstrap(values[:, :1])).all()
    assert interval([2.0, np.nan]) == (2, 2, 2) and np.isnan(interval([np.nan])).all()
    assert interval([5.0] * 9) == (5, 5, 5)


def test_photos_are_drawn_and_not_their_records():
    values = np.random.default_rng(3).normal(size=30)
    single = made_up(a=values)
    double = pd.concat([single, single.assign(image=single["image"] + 30)])
    assert summarize(double, ["a"], OPTIONS)["images"].item() == 60
    by_photo = summarize(double.assign(photo=double["image"] % 30), ["a"], OPTIONS)
    pd.testing.assert_frame_equal(by_photo, summarize(single, ["a"], OPTIONS))


def test_bold_needs_the_interval_against_every_other_method():
    rng = np.random.default_rng(1)
    a = rng.normal(10, 5, 60)
    names = ["a", "b", "c"]
    close = made_up(a=a, b=a - 5, c=a[::-1] - 0.01)
    assert not summarize(close, names, OPTIONS)["best"].any()
    clear = summarize(made_up(a=a, b=a - 5, c=a - 1), names, OPTIONS)
    assert clear.set_index("method")["best"].to_dict() == {"a": True, "b": False, "c": False}
    text = to_markdown(clear)
    assert text.count("**") == 2 and "| Insertion ↑" in text
    assert "| Deletion ↓" in to_markdown(clear.assign(metric="deletion"))
    # for deletion the smallest wins
    lowest = summarize(made_up("deletion", a=a, b=a - 5, c=a - 1), names, OPTIONS)
    assert lowest.set_index("method")["best"].to_dict() == {"a": False, "b": True, "c": False}


def test_dataset_iou_is_bootstrapped_from_counts():
    counts = np.random.default_rng(5).integers(1, 50, (20, 4)).astype(float)
    rows = pd.concat([made_up(name, a=column) for name, column in zip(COUNTS, counts.T, strict=True)])
    per_image = 100 * counts[:, 0] / counts[:, :3].sum(1)
    rows = pd.concat([rows, made_up("iou", a=per_image)])
    line = summarize(rows, ["a"], OPTIONS | {"aggregate": "dataset"}).iloc[0]
    tp, fp, fn, _ = counts.sum(0)
    assert line["mean"] == pytest.approx(100 * tp / (tp + fp + fn)) and line["low"] < line["mean"] < line["high"]
    assert summarize(rows, ["a"], OPTIONS)["mean"].item() == pytest.approx(per_image.mean())
    assert abs(line["mean"] - per_image.mean()) > 0.01


def test_images_without_a_value_are_left_out_and_counted():
    rows = made_up("iou", a=[1.0, 2, 3, np.nan], b=[2.0, 2, 2, np.nan])
    table = summarize(rows, ["a", "b"], OPTIONS)
    assert table["mean"].tolist() == [2, 2] and table["images"].tolist() == [3, 3]
    assert table["left_out"].tolist() == [1, 1] and "1 images without foreground" in to_markdown(table)


def test_one_image_has_no_interval():
    table = summarize(made_up(a=[3.0]), ["a"], OPTIONS)
    assert np.isnan(table["low"].item()) and "| 3.00 " in to_markdown(table)


def test_a_baseline_that_keeps_much_is_flagged():
    rows = pd.concat([made_up(a=[1.0, 2]), made_up(**{BASELINE: [19.0, 20]})])
    text = to_markdown(summarize(rows, ["a"], OPTIONS))
    assert "Insertion: the baseline image keeps 19.50" in text and "⚠" not in text
    rows.loc[rows["method"] == BASELINE, "value"] += 2
    assert "more than 20 %" in to_markdown(summarize(rows, ["a"], OPTIONS))
    # a metric without a baseline has no such note
    both = pd.concat([rows, made_up("deletion", a=[1.0, 2])])
    assert to_markdown(summarize(both, ["a"], OPTIONS)).count("the baseline image") == 1


def test_the_text_holds_means_differences_bold_and_notes():
    rows = pd.concat([made_up(m, a=[1.0, 2, 4], b=[0.5, 1, 1.5]) for m in ("insertion", "average_drop")])
    summary = summarize(rows, ["a", "b"], OPTIONS, {"b": "a"})
    protocol = {"insertion": "how it was measured", "average_drop": "how it was measured"}
    text = to_markdown(summary, protocol)
    means, differences, notes = text.split("\n\n")[:3]
    assert [c.strip() for c in means.splitlines()[0].split("|")[1:-1]] == ["Method", "Avg Drop ↓", "Insertion ↑"]
    assert [line.split("|")[1].strip() for line in means.splitlines()[2:]] == ["a", "b"]
    assert differences.splitlines()[0].startswith("| Paired difference") and "| b − a " in differences
    line = summary.query("method == 'a' and metric == 'average_drop'").iloc[0]
    assert f"| {line['mean']:.2f} [{line['low']:.2f}, {line['high']:.2f}]" in means.splitlines()[2]
    assert means.splitlines()[3].split("|")[2].strip().startswith("**1.00** [")
    assert notes == "- how it was measured" and text.endswith(footnote(summary) + "\n")
