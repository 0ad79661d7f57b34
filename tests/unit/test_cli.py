"""The command line, as a user runs it: in a process of its own."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from families import build
from PIL import Image


def gmar(*arguments, cwd):
    # nothing to be fetched in tests, whatever the machine's network
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "gmar_utils", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, env=offline
    )


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
    return path


def test_a_folder_of_photos(place):
    run = gmar("explain", "photos", "--method", "gmar", "--alpha", 2, "--norm", "l2", "--out", "out", cwd=place)
    assert run.returncode == 0, run.stderr
    with open(place / "out/explanations.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [r["file"] for r in rows] == ["photos/a.png", "photos/b.png", "photos/inner/a.jpg"]
    assert len({r["overlay"] for r in rows}) == 3
    for row, size in zip(rows, [(40, 60), (64, 64), (30, 30)], strict=True):
        heatmap = np.load(place / "out" / row["map"])
        assert heatmap.shape == size and heatmap.dtype == np.float32 and 0 <= heatmap.min() <= heatmap.max() <= 1
        with Image.open(place / "out" / row["overlay"]) as overlay:
            assert overlay.size == size[::-1]
        assert row["options"] == "alpha=2.0 norm=l2" and 0 < float(row["probability"]) < 1
        assert "torch" in row["versions"] and row["label"]


@pytest.mark.parametrize("target", ["0", "goldfish"])
def test_a_target_by_number_or_word(place, target):
    run = gmar("explain", "photos/a.png", "--target", target, "--method", "legrad", "--out", "one", cwd=place)
    assert run.returncode == 0, run.stderr
    assert "goldfish" in (place / "one/explanations.csv").read_text()


def test_a_photo_in_its_own_shape(place):
    run = gmar("explain", "photos/a.png", "--image-size", "64x96", "--out", "wide", cwd=place)
    assert run.returncode == 0, run.stderr
    assert np.load(place / "wide/a.gmar.npy").shape == (40, 60)


def test_good_photos_are_written_though_others_are_bad(place):
    run = gmar("explain", "photos/a.png", "missing.png", "text.jpg", "empty.png", "cut.png", "--out", "mix", cwd=place)
    assert run.returncode == 2 and "Traceback" not in run.stderr
    lines = run.stderr.strip().splitlines()
    assert len(lines) == 4
    for name, words in [("missing.png", "no file"), ("text.jpg", "not a picture"), ("empty.png", "empty"),
                        ("cut.png", "damaged or cut short")]:  # fmt: skip
        assert any(name in line and words in line for line in lines), (name, lines)
    assert (place / "mix/a.gmar.png").exists() and len((place / "mix/explanations.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["explain", "photos/a.png", "--method", "gmarr"], "invalid choice"),
        (["explain", "photos/a.png", "--alpha", "nan"], "alpha must be a finite number"),
        (["explain", "photos/a.png", "--image-size", "64x"], "image size must be pixels"),
        (["explain", "photos/a.png", "--target", "golfish"], "no label 'golfish'"),
        (["explain", "photos/a.png", "--target", "200"], "outside the model's classes 0 to 199"),
        (["explain", "photos/a.png", "--method", "legrad", "--alpha", "1"], "it takes layers, pool"),
        (["explain", "photos/a.png", "--model", "nobody/nothing"], "out of reach"),
        (["explain", "out-of-nowhere"], "There is no file"),
        (["explain"], "required: PHOTO"),
        (["info", "nobody/nothing"], "not a bundled model"),
    ],
)
def test_bad_input_is_one_clear_line(place, arguments, words):
    run = gmar(*arguments, cwd=place)
    assert run.returncode == 2
    assert words in run.stderr and len(run.stderr.strip().splitlines()) == 1, run.stderr


def test_info(place):
    run = gmar("info", "vit-tiny-imagenet", cwd=place)
    assert run.returncode == 0 and "8 × 8 patches after 1 prefix tokens" in run.stdout


@pytest.mark.parametrize("size", [384])
def test_a_grey_three_label_folder_without_processor_file_and_16_bit_photos(place, size):
    from gmar_utils import explain, load_model

    model = build("vit", labels=3, num_channels=1, image_size=size, patch_size=32)
    model.save_pretrained(place / "scans")
    slices = np.random.default_rng(1).integers(0, 4096, (300, 200), dtype=np.uint16)
    Image.fromarray(slices).save(place / "slice.png")
    vit = load_model(place / "scans", mean=[0.5], std=[0.5])
    pixels = vit.preprocess(place / "slice.png", window=(0, 4095))
    assert pixels.shape == (1, 1, 384, 384) and len(vit.labels) == 3
    on_photo = vit.to_photo(explain(vit.model, pixels, method="gmar"), [place / "slice.png"])[0]
    assert on_photo.shape == (300, 200) and torch.isfinite(on_photo).all()
    run = gmar("explain", "slice.png", "--model", "scans", "--window", 0, 4095, "--out", "scan-out", cwd=place)
    assert run.returncode == 0 and "No processor file" in run.stderr
