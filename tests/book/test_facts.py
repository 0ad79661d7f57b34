"""Statements of the pages that a table, a file or a date can prove wrong."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from gmar_utils import METHODS
from gmar_utils.evaluation.measures import COLUMNS
from gmar_utils.teaching import samples
from gmar_utils.teaching.results import claims, show

ROOT = Path(__file__).parents[2]
VERDICT = (
    "Against equal weights, GMAR's head weights make no difference that matters in the form of either paper: less than "
    "one point of insertion, deletion and SRG, and less than two of AP on photographs. In the GMAR paper's form they "
    "lower Average Drop by about one point. In rollout's own order of the layers they raise AP, but not SRG; the older "
    "head weights of Beyond Intuition raise both there."
)


def text(page):
    """The words of a page, on one line."""
    path = ROOT / page
    words = path.read_text(encoding="utf8")
    if path.suffix == ".ipynb":
        words = "\n\n".join("".join(c["source"]) for c in json.loads(words)["cells"] if c["cell_type"] == "markdown")
    return re.sub(r"\s+", " ", words)


# --- one verdict on the head weights, the same on every page ----------------------------------------------------------


@pytest.mark.parametrize("page", ["book/index.md", "notebooks/09_gmar_table.ipynb", "notebooks/12_decide.ipynb"])
def test_pages_give_one_verdict(page):
    assert VERDICT in text(page)


def outcome(table, metric, method):
    """The verdict on a method against itself at equal head weights."""
    row = show.read(table).query(f"metric == '{metric}' and method == '{method}'").iloc[0]
    ends = [COLUMNS[metric][1] * row[k] for k in ("difference_low", "difference_high")]
    return claims.verdict(min(ends), max(ends), 0, row["images"], claims.MARGIN[metric])


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_verdict_is_what_the_paired_tables_say(norm):
    for variant in ("paper", "report"):
        for metric in ("insertion", "deletion", "srg"):
            assert outcome("tiny-imagenet", metric, f"gmar-{norm}-{variant}") == claims.SAME, (variant, metric)
        assert outcome("voc2012", "average_precision", f"gmar-{norm}-{variant}") == claims.SAME
    assert outcome("tiny-imagenet", "average_drop", f"gmar-{norm}-paper") == claims.HOLDS
    drop = show.read("tiny-imagenet").query(f"metric == 'average_drop' and method == 'gmar-{norm}-paper'")
    assert -1.5 < drop["difference"].item() < -0.5
    assert outcome("voc2012", "average_precision", f"gmar-{norm}-output-first") == claims.HOLDS
    assert outcome("tiny-imagenet", "srg", f"gmar-{norm}-output-first") != claims.HOLDS


def test_the_verdict_on_beyond_intuition():
    for table, metric in (("tiny-imagenet", "srg"), ("voc2012", "average_precision")):
        assert outcome(table, metric, "gmar-bth-output-first") == claims.HOLDS


def test_the_balance_counts_the_intervals(monkeypatch):
    lines = [("insertion", 1, 2), ("insertion", -2, -1), ("deletion", 1, 2), ("deletion", -1, 1)]
    lines += [("insertion", -0.5, 0.9), ("iou", 5, 9)]
    table = pd.DataFrame(lines, columns=["metric", "difference_low", "difference_high"])
    table = table.assign(
        method="gmar-l1-paper",
        images=200,
        twin="b",
        difference=(table["difference_low"] + table["difference_high"]) / 2,
    )
    monkeypatch.setattr(show, "read", lambda name: table)
    monkeypatch.setattr(show, "ASKED", {"q": (("t",), ("insertion", "deletion"))})
    outcomes = ["better", "no difference that matters", "cannot be told", "worse"]
    assert show.balance().loc["q", outcomes].tolist() == [1, 1, 1, 2]


# --- single statements ------------------------------------------------------------------------------------------------


def test_rollout_finds_an_object_without_being_asked_which():
    """Chapter 6, two objects: the IoU of rollout is as high as that of gradient attention rollout."""
    assert "its IoU is as high as that of gradient attention rollout" in text("notebooks/06_localisation.ipynb")
    table = show.read("shapes-two").query("metric == 'iou'").set_index("method")
    assert table.loc["rollout", "mean"] >= table.loc["chefer", "low"]


def test_head_weights_cost_something_on_shapes_and_less_than_a_point_on_photographs():
    """Chapter 6: the paired difference to equal weights, in the paper's form."""
    page = text("notebooks/06_localisation.ipynb")
    assert "On the shapes GMAR stands below its own map at equal weights" in page
    assert "On photographs less than one point lies between the two" in page
    for table in ("shapes", "shapes-two", "voc2012"):
        rows = show.read(table).query("method == 'gmar-l1-paper' and metric in ('average_precision', 'iou')")
        ends = rows[["difference_low", "difference_high"]]
        assert len(rows) == 2 and (ends.abs().lt(1) if table == "voc2012" else ends.lt(0)).all(axis=None)


def test_the_published_read_out_scores_like_dice():
    """'A map that no weight can change': insertion and deletion cannot tell it from random; the mended one they can."""
    table = show.read("audit-tiny-imagenet").set_index(["metric", "method"])
    for metric in ("insertion", "deletion"):
        shipped, mended, dice = (table.loc[metric, k] for k in ("released", "released, all heads", "random"))
        assert shipped["low"] < dice["mean"] < shipped["high"]
        assert mended["low"] > dice["high"] or mended["high"] < dice["low"]


def test_chapter_6_counts_its_scenes():
    assert "A thousand scenes" in text("notebooks/06_localisation.ipynb")
    assert set(show.read("shapes")["images"]) == set(show.read("shapes-two")["images"]) == {1000}
    assert "thousand" not in text("notebooks/07_sanity.ipynb")  # its tables hold fewer pictures


def test_pages_count_the_heads_of_the_model():
    config = json.loads((ROOT / "gmar_utils/checkpoints/vit-small-tiny-imagenet/config.json").read_text("utf8"))
    heads = config["num_hidden_layers"] * config["num_attention_heads"]
    for page in ("02_rollout", "03_gmar"):
        assert f"of {heads}" in text(f"notebooks/{page}.ipynb") or f"all {heads}" in text(f"notebooks/{page}.ipynb")


def test_what_a_heads_weight_says_of_muting():
    """Chapter 9: a little within a layer, nothing over the whole network, whose order is no better than chance."""
    table = show.read("heads").query("metric == 'weight_predicts_muting'").set_index("method")
    assert table.loc[["l1", "l2"], "low"].min() > 0
    assert table.loc["gradient norm, whole network", "low"] < 0 < table.loc["gradient norm, whole network", "high"]
    area = show.read("heads").query("metric == 'muting_area'").set_index("method")
    assert area.loc["most", "mean"] >= area.loc["random", "low"]
    assert area.loc["least", "mean"] <= area.loc["random", "high"]


def figure_titles(page):
    """All code of a chapter, where the titles of its figures stand."""
    cells = json.loads((ROOT / f"notebooks/{page}.ipynb").read_text(encoding="utf8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def test_titles_of_chapter_9():
    titles = figure_titles("09_gmar_table")
    assert "GMAR stands in the middle; AttnLRP and LibraGrad lead" in titles
    srg = show.read("tiny-imagenet").query("metric == 'srg'").set_index("method")
    assert {"attnlrp", "libra"} == set(srg["mean"].nlargest(2).index)
    for method in ("gmar-l1-paper", "gmar-l2-paper", "gmar-l1-report", "gmar-l2-report"):
        assert (
            srg.loc["center", "high"] < srg.loc[method, "low"] and srg.loc[method, "high"] < srg.loc["grad-cam", "low"]
        )
    assert "Every map is lost in the end; output-first rollouts hold on longest" in titles
    table = show.read("randomization").query("metric == 'rank_correlation'")
    wide = table.pivot(index="method", columns="stage", values="mean").drop(["random", "center"])
    assert wide["embeddings"].abs().max() < 0.3
    held = wide["block 2"]
    assert {m for m in held.index if held[m] > 0.4} == {
        "rollout",
        *(m for m in held.index if m.endswith("output-first")),
    }
    assert "Head weights move a score by little, except in the output-first product" in titles
    twins = show.read("tiny-imagenet").query("twin == twin and metric in ('insertion', 'deletion', 'srg')")
    last = twins["method"].str.endswith("output-first")
    assert twins[~last]["difference"].abs().max() < 1 < twins[last]["difference"].abs().max()


def test_both_sizes_of_chapter_9_say_the_same():
    page, titles = text("notebooks/09_gmar_table.ipynb"), figure_titles("09_gmar_table")
    assert "Four times as many patches: the methods keep their order" in titles
    cells = json.loads((ROOT / "notebooks/09_gmar_table.ipynb").read_text(encoding="utf8"))["cells"]
    (figure,) = (c["metadata"]["mystnb"]["figure"] for c in cells if c.get("id") == "sizes-figure")
    small, large = show.read("tiny-imagenet"), show.read("tiny-imagenet-224")
    counts = [show.about(name)["images"] for name in ("tiny-imagenet", "tiny-imagenet-224")]
    assert f"{counts[0]} pictures at 112 pixels, {counts[1]} of them at 224" in figure["caption"]
    four = ["average_drop", "average_increase", "insertion", "deletion"]
    said = show.same_order({"a": small, "b": large}, four)
    assert min(map(float, re.findall(r"0\.\d+", said))) > 0.8
    twins = large[large["twin"].notna() & large["metric"].isin(four)]
    assert "none excludes 0 here" in page and len(twins) == 8
    assert (twins["difference_low"] <= 0).all() and (twins["difference_high"] >= 0).all()
    drop = large.query("metric == 'average_drop'").set_index("method")
    assert {"legrad", "grad-cam"} == set(drop["mean"].nsmallest(2).index) and drop["mean"].idxmax() == "rollout"
    through = large.query("metric == 'coverage'").set_index("method")["mean"]
    for gmar in ("gmar-l1-paper", "gmar-l2-paper"):
        assert drop.loc[gmar, "high"] > drop.loc["random", "mean"] and through[gmar] < through["random"]


def test_titles_of_chapter_10():
    titles = figure_titles("10_report_table")
    asked = "setting == 'report' and metric == 'average_precision'"
    ap = {name: show.read(name).query(asked).set_index("method") for name in ("voc2012", "shapes")}
    assert (
        "On photographs most maps beat a spot in the middle; on one shape Grad-CAM, LeGrad and Occlusion do not"
        in titles
    )
    photos, shapes = (table["low"] > table.loc["center", "high"] for table in ap.values())
    assert photos.drop(["random", "center"]).mean() > 0.7
    assert set(shapes[~shapes].index) == {"grad-cam", "legrad", "occlusion", "random", "center"}
    assert len(shapes) == len(show.read("shapes-two").query(asked)) == 22
    assert "Between two objects GMAR and rollout stay close to a coin; maps that follow the class do not" in titles
    for name in ("voc-pairs", "voc-pairs-112", "shape-pairs"):
        which = show.read(name).query("metric == 'which'").set_index("method")
        tossed = {m for m in which.index if which.loc[m, "low"] <= 50 <= which.loc[m, "high"]}
        close = {m for m in which.index if abs(which.loc[m, "mean"] - 50) < 5}
        assert {m for m in which.index if m.startswith(("gmar", "rollout"))} <= close
        blind = {"rollout", "rollout-report", "attention", "random", "center"}
        assert tossed <= blind | {m for m in which.index if m.startswith("gmar")}


def test_the_threshold_decides_between_legrad_and_gmar():
    """Chapter 10: one half and the object's IoU, or the map's own mean and the mean IoU."""
    title = "Cut at one half, LeGrad's IoU is twice GMAR's; cut at the map's own mean, it is the lower one"
    page = text("notebooks/10_report_table.ipynb")
    assert title in figure_titles("10_report_table") and "*Grad-CAM* is first either way" in page
    half, mean = show.read("voc2012").query("setting == 'report'"), show.read("voc2012-chefer")
    half, mean = (t.query("metric == 'iou'").set_index("method").loc[mean["method"].unique()] for t in (half, mean))
    for gmar in ("gmar-l1-report", "gmar-l2-report"):
        assert 2 < half.loc["legrad", "mean"] / half.loc[gmar, "mean"] < 2.3
        assert mean.loc["legrad", "high"] < mean.loc[gmar, "low"]
    assert mean.loc["legrad", "high"] < mean.loc["center", "low"]
    assert half["mean"].idxmax() == mean["mean"].idxmax() == "grad-cam"
    assert "only *Attention rollout* and *LeGrad* change places" in page
    ap = [show.read(name).query("metric == 'average_precision'") for name in ("voc2012", "voc2012-chefer")]
    first, second = (table.set_index("method")["mean"].loc[mean.index].sort_values().index.tolist() for table in ap)
    places = {"rollout": first.index("rollout"), "legrad": first.index("legrad")}
    first[places["rollout"]], first[places["legrad"]] = "legrad", "rollout"
    assert first == second


def test_titles_of_ask_for_a_word():
    assert "Asked for a word, GMAR is a coin; LibraGrad and AttnLRP find the object" in figure_titles("prompts")
    which = show.read("prompt-pairs").query("metric == 'which'").set_index("method")
    gmar = which[which.index.str.startswith("gmar")]
    assert ((gmar["low"] <= 50) & (gmar["high"] >= 50)).all()
    assert (which.loc[["libra", "attnlrp"], "low"] > 80).all() and which.loc["occlusion", "low"] > 70
    assert which.loc["grad-cam", "low"] < 50 < which.loc["grad-cam", "high"]
    right = show.about("prompt-pairs")["right"]
    assert min(right["objects"], right["above"]) > 90 and 45 < right["left of"] < 55


def test_the_title_of_chapter_11():
    assert "The order of the layers moves a score most; the released code scores like random" in figure_titles(
        "11_audit"
    )
    for metric in ("insertion", "deletion"):
        table = show.read("audit-tiny-imagenet").query(f"metric == '{metric}'").set_index("method")
        assert abs(table.loc["released", "mean"] - table.loc["random", "mean"]) < 2.5
        honest = table.drop(["paper", *(m for m in table.index if m.startswith(("released", "random")))])
        assert honest["difference"].abs().idxmax() == "output-first"


def test_what_a_map_costs():
    assert "A map costs one to five forward passes; Occlusion costs far more" in figure_titles("12_decide")
    cost = show.read("cost").query("method not in ('forward', 'occlusion')")["forwards"]
    assert 1 <= cost.min() and 4.5 < cost.max() < 5.5
    assert show.read("cost").query("method == 'occlusion'")["forwards"].min() > 3 * cost.max()


def test_the_title_of_the_chapter_on_words():
    assert "LeGrad finds a plain cue always, a negated one hardly ever; LibraGrad finds both" in figure_titles("words")
    found = show.read("words").pivot(index="method", columns="metric", values="mean")
    assert (
        found.loc["legrad", "cue"] > 99
        and found.loc["legrad", "cue_or_negation"] < found.loc["random", "cue_or_negation"]
    )
    assert found.loc["libra", ["cue", "cue_or_negation"]].min() > 90


def test_methods_older_than_gmar_did_not_come_after_it():
    """Chapter 12: arXiv numbers are dates."""
    page = text("notebooks/12_decide.ipynb")
    (gmar,) = re.findall(r"April 2025\]\(https://doi.org/10.48550/arXiv\.(\d{4}\.\d{5})\)", page)
    older, since = page.split("**Older than GMAR:**")[1].split("**Since GMAR.**")
    dates = [re.findall(r"arXiv\.(\d{4}\.\d{5})", part.split("To try one")[0]) for part in (older, since)]
    assert len(dates[0]) >= 5 and max(dates[0]) < gmar
    assert len(dates[1]) >= 5 and min(dates[1]) > gmar
    assert not [m.title for m in METHODS.values() if f"**{m.title}**" in since], "it is in this library"


def test_no_page_says_that_gradients_ignore_the_mlps():
    page = text("notebooks/01_attention.ipynb")
    assert "passes *through* the MLPs" in page and "MLPs stay missing" not in page


def test_the_report_states_only_a_threshold():
    for page in ("notebooks/06_localisation.ipynb", "book/reference/methods.md"):
        assert "infer" in text(page) and "is what the comparative report uses" not in text(page), page


def test_every_photo_has_its_licence():
    """The samples by name, and what notebooks take from scikit-image themselves."""
    licences = text("book/licences.md").lower()
    used = set(samples.PHOTOS)
    for path in [*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "gmar_utils").rglob("*.py")]:
        used |= set(re.findall(r"skimage\.data\.(\w+)\(", path.read_text(encoding="utf8")))
    assert not [name for name in used if name not in licences]


@pytest.mark.parametrize("place", ["", "(max-width: 600px)"])
def test_headings_shrink_with_their_level(place):
    css = (ROOT / "book/assets/book.css").read_text(encoding="utf8")
    blocks = re.findall(r"@media ([^{]+) \{\n(.*?)\n\}", css, re.S)
    part = (
        next(body for media, body in blocks if media == place)
        if place
        else re.sub(r"@media.*?\n\}", "", css, flags=re.S)
    )
    size = {k: float(v) for k, v in re.findall(r"\.bd-article (h\d) \{ font-size: ([\d.]+)rem", part)}
    assert size["h1"] > size["h2"] > size["h3"] > size["h4"] > 1


def test_the_table_of_other_libraries_calls_what_exists():
    """Our column: names of metrics, of methods, of what `gmar_utils` exports."""
    from gmar_utils import metrics

    page = (ROOT / "book/reference/from-others.md").read_text(encoding="utf8")
    assert all(hasattr(metrics, name) for name in set(re.findall(r"`metrics\.(\w+)\(", page)))
    named = set(re.findall(r'explain\(model, x, "([\w-]+)"', page))
    assert len(named) > 2 and named <= set(METHODS)


def test_every_method_and_metric_is_defined_for_readers():
    from gmar_utils.evaluation import METRICS

    page = (ROOT / "book/reference/methods.md").read_text(encoding="utf8")
    assert not [name for name in METHODS if f"`{name}`" not in page]
    words = {
        "drop": "Average Drop",
        "drop-top": '`masking="top"`',
        "insertion": "Insertion",
        "deletion": "Deletion",
        "srg": "SRG",
        "saco": "SaCo",
        "road": "ROAD",
        "box": "pointing game",
        "iou": "`iou`",
        "which": "Which",
        "average-precision": "`ap`",
        "pixel-accuracy": "Pixel accuracy",
    }
    assert set(words) == set(METRICS), "define the new metric on the page, and name it here"
    assert not [word for word in words.values() if word not in page]


# --- the promises -----------------------------------------------------------------------------------------------------


def test_the_promises_were_kept_as_often_as_the_page_needs():
    table = show.read("campaign")
    assert (table["passed"] == table["attempts"]).all()
    tried = table.groupby("part")["attempts"].sum()
    assert tried["bad input"] >= 300 and tried["gmar finetune"] >= 20 and tried["10 threads"] >= 8 * 6
    assert tried["gmar evaluate"] >= 100
    assert not table[["lost", "different"]].fillna(0).to_numpy().any()
    assert set(show.about("campaign")["parts"]) >= {"bad-inputs", "evaluate-kills", "finetune-kills", "threads"}


def test_every_guard_has_tests_that_notice_when_it_is_gone():
    """'What this tool promises': at least three for each mechanism."""
    assert show.read("mutations")["tests that fail"].min() >= 3
