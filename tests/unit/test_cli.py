"""The command line: what it writes, and one clear line for each problem. In this process, once in one of its own."""

import csv
import json
import os
import stat
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import transformers
from families import build
from PIL import Image

from gmar_utils import explain, load_model
from gmar_utils.cli import main as command_line

WORDS = ["tabby, tabby cat", "tiger cat", "=cmd|' /C calc'!A0", "$\\foo$ <b>", "\x1b[31mred\x1b[0m\nline"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    (path / "photos" / "inner").mkdir(parents=True)
    for name, size in [("photos/a.png", (40, 60)), ("photos/inner/a.jpg", (30, 30)), ("photos/b.png", (64, 64))]:
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path / name)
    (path / "text.jpg").write_text("not a picture")
    (path / "empty.png").write_bytes(b"")
    (path / "cut.png").write_bytes((path / "photos/b.png").read_bytes()[:900])
    Image.new("1", (11000, 11000)).save(path / "bomb.png")  # 17 kB
    Image.new("1", (20000, 9500)).save(path / "bomb190.png")
    (path / "nothing").mkdir()
    model = build("vit", image_size=64)
    model.config.id2label = dict(enumerate(WORDS))
    model.save_pretrained(path / "model")
    transformers.ViTImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(path / "model")
    return path


@pytest.fixture
def gmar(place, monkeypatch, capsys):
    """Runs a command in `place`: exit code, what it printed, lines of what it complained about."""
    monkeypatch.chdir(place)

    def run(*arguments, model="model"):
        arguments = [str(a) for a in arguments]
        if arguments[0] == "explain" and model:
            arguments += ["--model", str(model)]
        capsys.readouterr()
        show = warnings.showwarning
        try:
            with warnings.catch_warnings():
                code = command_line.main(arguments)
        except SystemExit as stopped:
            code = stopped.code
        finally:
            warnings.showwarning = show
        said = capsys.readouterr()
        return code, said.out, said.err.strip().splitlines()

    return run


def table(path):
    with open(path / "explanations.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_of_photos(gmar, place):
    code, out, err = gmar("explain", "photos", "--method", "gmar", "--alpha", 2, "--norm", "l2", "--out", "out")
    assert (code, err) == (0, []) and "3 explained, in out" in out
    rows = table(place / "out")
    assert [r["file"] for r in rows] == ["photos/a.png", "photos/b.png", "photos/inner/a.jpg"]
    assert len({r["overlay"] for r in rows}) == 3
    vit = load_model(place / "model", device="cpu")
    for row, size in zip(rows, [(40, 60), (64, 64), (30, 30)], strict=True):
        heatmap = np.load(place / "out" / row["map"])
        x = vit.preprocess(place / row["file"])
        expected = vit.to_photo(explain(vit.model, x, "gmar", alpha=2.0, norm="l2"), place / row["file"])[0]
        assert heatmap.shape == size and heatmap.dtype == np.float32
        np.testing.assert_allclose(heatmap, expected, atol=1e-5)
        with Image.open(place / "out" / row["overlay"]) as overlay:
            assert overlay.size == size[::-1]
        assert row["options"] == "alpha=2.0 norm=l2" and "torch" in row["versions"]
        probability = vit.model(x).logits.softmax(-1).max().item()
        assert float(row["probability"]) == pytest.approx(probability, abs=1e-4)


@pytest.mark.parametrize("target", ["0", "Tabby", "tabby cat"])
def test_a_target_by_number_or_word(gmar, place, target):
    code, _, err = gmar("explain", "photos/a.png", "--target", target, "--method", "legrad", "--out", "one")
    assert (code, err) == (0, []) and table(place / "one")[0]["label"] == "tabby"


def test_a_photo_in_its_own_shape(gmar, place):
    assert gmar("explain", "photos/a.png", "--image-size", "64x96", "--out", "wide")[0] == 0
    assert np.load(place / "wide/a.gmar.npy").shape == (40, 60)


def test_good_photos_are_written_though_others_are_bad(gmar, place):
    bad = {
        "missing.png": "no file",
        "text.jpg": "not a picture",
        "empty.png": "empty",
        "cut.png": "damaged or cut short",
        "bomb.png": "million pixels",
        "bomb190.png": "million pixels",
        "nothing": "holds no picture",
    }
    code, _, err = gmar("explain", *bad, "", "photos/a.png", "text.jpg", "--out", "mix")
    assert code == 2 and len(err) == len(bad) + 1, err
    for name, words in (bad | {"path is empty": ""}).items():
        assert any(name in line and words in line for line in err), (name, err)
    assert (place / "mix/a.gmar.png").exists() and len(table(place / "mix")) == 1


def test_labels_are_safe_in_tables_and_terminals(gmar, place):
    for target, cell in [(2, "'=cmd|' /C calc'!A0"), (3, "$\\foo$ <b>")]:
        assert gmar("explain", "photos/a.png", "--target", target, "--out", "safe")[0] == 0
        assert table(place / "safe")[0]["label"] == cell
    assert gmar("explain", "photos/a.png", "--target", 4, "--out", "safe")[0] == 0
    text = (place / "safe/explanations.csv").read_text()
    assert "\x1b" not in text and len(text.splitlines()) == 2
    code, out, err = gmar("info", "model")
    assert code == 0 and "\x1b" not in out and "8 × 8 patches after 1 prefix tokens" in out


@pytest.mark.parametrize("name", ["=1+1.png", "+a.png", "-b.png", "@c.png", "\x1b[2J.png"])
def test_file_names_are_safe_too(gmar, place, name):
    (place / "odd").mkdir(exist_ok=True)
    Image.new("RGB", (20, 20)).save(place / "odd" / name)
    code, out, _ = gmar("explain", f"{place}/odd/{name}", "--out", "odd-out")
    assert code == 0 and table(place / "odd-out")[0]["overlay"][0] not in "=+-@\x1b"
    (place / "odd" / name).unlink()


BAD = [  # arguments, words of the one line
    (["--method", "gmarr"], "invalid choice"),
    (["--alpha", "nan"], "alpha must be a finite number"),
    (["--alpha", "inf"], "alpha must be a finite number"),
    (["--alpha", "-1"], "alpha must be a finite number"),
    (["--alpha", "1e308"], "alpha must be a finite number from 0 to 1e"),
    (["--alpha", "much"], "invalid alpha value: 'much'"),
    (["--alpha", ""], "invalid alpha value: ''"),
    (["--norm", "l3"], "invalid choice"),
    (["--image-size", "64x"], "image size must be pixels"),
    (["--image-size", "0"], "image size must be pixels"),
    (["--image-size", "²"], "image size must be pixels"),
    (["--image-size", "9" * 30], "image size must be pixels"),
    (["--image-size", "7"], "cannot run at 7×7 pixels"),
    (["--image-size", "1"], "cannot run at 1×1 pixels"),
    (["--image-size", "1x900"], "cannot run at 1×900 pixels"),
    (["--image-size", "100000"], "GB are available"),
    (["--image-size", "9"], "one patch"),
    (["--target", "golfish"], "no label 'golfish'"),
    (["--target", "5"], "outside the model's classes 0 to 4"),
    (["--target", "-1"], "outside the model's classes 0 to 4"),
    (["--target", "²"], "no label '²'"),
    (["--target", "99999999999999999999"], "outside the model's classes 0 to 4"),
    (["--target", ""], "no label ''"),
    (["--target=--"], "argument --target: expected a value"),
    (["--alpha=--"], "argument --alpha: expected a value"),
    (["--out=--"], "argument --out: expected a value"),
    (["--window", "5", "5"], "low < high, got [5.0, 5.0]"),
    (["--window", "5", "1"], "low < high"),
    (["--window", "nan", "1"], "two finite numbers"),
    (["--window", "0", "inf"], "two finite numbers"),
    (["--window", "low", "high"], "invalid float value: 'low'"),
    (["--method", "legrad", "--alpha", "1"], "it takes layers, pool"),
    (["--out", "text.jpg"], "takes a folder to write to; 'text.jpg' is none: File exists"),
    (["--out", "text.jpg/maps"], "'text.jpg/maps' is none: Not a directory"),
    (["--out", "text.jpg/inside"], "text.jpg"),
    (["--out", ""], "empty path"),
    (["--nonsense"], "unrecognized arguments"),
]


@pytest.mark.parametrize("arguments, words", BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
@pytest.mark.parametrize("photos", [["photos/a.png"], ["photos"]], ids=["one", "three"])
def test_bad_input_is_one_clear_line(gmar, arguments, words, photos):
    code, out, err = gmar("explain", *photos, *arguments)
    assert code == 2 and len(err) == 1 and words in err[0], err
    assert not out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["explain", "out-of-nowhere"], "There is no file"),
        (["explain", ""], "path is empty"),
        (["explain", " "], "path is empty"),
        (["explain", "nothing"], "holds no picture"),
        (["explain", "bomb.png"], "million pixels"),
        (["explain", "photos/a.png", "--model", "text.jpg"], "not a bundled model"),
        (["explain", "photos/a.png", "--model", "photos"], "could not be loaded"),
        (["explain", "photos/a.png", "--model", ""], "A model is"),
        (["explain"], "required: PHOTO"),
        ([""], "invalid choice"),
        (["explian"], "invalid choice"),
        (["info", "text.jpg"], "not a bundled model"),
        (["info", ""], "A model is"),
    ],
    ids=" ".join,
)
def test_so_is_every_other_problem(gmar, arguments, words, monkeypatch):
    monkeypatch.setattr("gmar_utils.checkpoint._hub_answers", lambda name: False)
    code, _, err = gmar(*arguments, model=None if "--model" in arguments else "model")
    assert code == 2 and len(err) == 1 and words in err[0], err


def test_checkpoints_that_are_broken_are_one_line(gmar, place, tmp_path):
    for change in ({"num_attention_heads": 0}, {"num_hidden_layers": 9}, {"patch_size": 0}):
        build("vit").save_pretrained(tmp_path / "broken")
        config = json.loads((tmp_path / "broken/config.json").read_text()) | change
        (tmp_path / "broken/config.json").write_text(json.dumps(config))
        code, _, err = gmar("explain", "photos/a.png", model=tmp_path / "broken")
        assert code == 2 and len(err) == 1, err


def test_what_nobody_expected_is_one_line_and_the_other_photos_are_done(gmar, place, monkeypatch):
    from gmar_utils.explanation import Explanation

    save = Explanation.save

    def fail(self, path):
        if self.photo.size == (60, 40):
            raise ZeroDivisionError("by zero")
        save(self, path)

    monkeypatch.setattr(Explanation, "save", fail)
    code, out, err = gmar("explain", "photos", "--out", "some")
    assert code == 2 and err == ["gmar explain: ZeroDivisionError: by zero (GMAR_DEBUG=1 shows where)"]
    assert [r["file"] for r in table(place / "some")] == ["photos/b.png", "photos/inner/a.jpg"]
    monkeypatch.setenv("GMAR_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        gmar("explain", "photos", "--out", "some")
    monkeypatch.delenv("GMAR_DEBUG")
    monkeypatch.setattr("gmar_utils.cli.info.say", lambda *a: 1 / 0)
    assert gmar("info")[0] == 2


def test_a_table_is_written_whole_or_not_at_all(gmar, place, monkeypatch):
    assert gmar("explain", "photos/a.png", "--out", "whole")[0] == 0
    before = (place / "whole/explanations.csv").read_bytes()

    def cut(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gmar_utils.cli.explain.plain_cell", cut)
    code, _, err = gmar("explain", "photos", "--out", "whole")
    assert code == 2 and len(err) == 1 and "No space left" in err[0] and "explanations.csv" in err[0]
    assert (place / "whole/explanations.csv").read_bytes() == before
    assert not [p for p in (place / "whole").iterdir() if p.name.startswith(".")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to(gmar, place):
    (place / "closed").mkdir()
    (place / "closed").chmod(stat.S_IRUSR | stat.S_IXUSR)
    code, _, err = gmar("explain", "photos/a.png", "--out", "closed")
    assert code == 2 and len(err) == 1 and "closed" in err[0]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_terminal_can_show_it(encoding, monkeypatch):
    import io

    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    command_line.say("8 × 8 – “Größe” 猫")
    stream.flush()
    assert b"8" in stream.buffer.getvalue()


def test_in_a_process_of_its_own(place):
    """A grey three-label folder without processor file, and 16-bit photos."""
    build("vit", labels=3, num_channels=1, image_size=384, patch_size=32).save_pretrained(place / "scans")
    slices = np.random.default_rng(1).integers(0, 4096, (300, 200), dtype=np.uint16)
    Image.fromarray(slices).save(place / "slice.png")
    vit = load_model(place / "scans", mean=[0.5], std=[0.5])
    pixels = vit.preprocess(place / "slice.png", window=(0, 4095))
    assert pixels.shape == (1, 1, 384, 384) and len(vit.labels) == 3
    on_photo = vit.to_photo(explain(vit.model, pixels, method="gmar"), [place / "slice.png"])[0]
    assert on_photo.shape == (300, 200) and torch.isfinite(on_photo).all()
    command = ["explain", "slice.png", "--model", "scans", "--window", "0", "4095", "--out", "scan-out"]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "gmar_utils", *command]
    run = subprocess.run(command, cwd=place, capture_output=True, text=True, env=offline)
    assert run.returncode == 0 and run.stderr.count("\n") == 1 and "No processor file" in run.stderr, run.stderr
    np.testing.assert_allclose(np.load(place / "scan-out/slice.gmar.npy"), on_photo, atol=1e-5)
