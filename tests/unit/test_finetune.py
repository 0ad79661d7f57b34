"""Training: recipes as stated, exact resume, a loss that falls, checkpoints that load, cards that are measured."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gmar_utils import data, load_model
from gmar_utils.cli.main import main
from gmar_utils.data import drawing as shapes
from gmar_utils.training import loop as finetune
from gmar_utils.training.augment import mixed, random_views, resized
from gmar_utils.training.loop import RECIPES, Recipe, pictures

TINY = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2}  # fmt: skip
RECIPE = Recipe(data="shapes", init=TINY, stages=((0.5, 8), (0.5, 16)), epochs=2, batch_size=16, optimizer="muon",
                schedule="trapezoid", mix=0.5, turn=True, label_smoothing=0.1, ema=0.9)  # fmt: skip
WORDS = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def coloured():
    """64 noisy pictures of three colours."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 3
    images = torch.randint(0, 160, (64, 3, 16, 16), generator=generator)
    images[torch.arange(64), labels] += 90
    return images.to(torch.uint8), labels


def run(out, coloured, recipe=RECIPE, **options):
    model, processor = finetune.starting_point(recipe, WORDS)
    return finetune.train(model, processor, *coloured, recipe, out, **options)


def test_the_papers_recipe_is_the_papers():
    paper = RECIPES["paper"]
    assert (paper.epochs, paper.batch_size, paper.stages, paper.init) == (
        100, 32, ((1.0, 224),), "google/vit-large-patch16-224")  # fmt: skip
    (solver,) = finetune.optimizers(torch.nn.Linear(3, 2), paper)
    assert type(solver) is torch.optim.Adam
    group = solver.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (5e-5, (0.9, 0.999), 1e-8, 0)
    assert [finetune.rate_at(paper, step, 100) for step in (0, 50, 99)] == [1, 1, 1]


def test_resolution_and_rate_follow_the_recipe():
    stages = replace(RECIPE, stages=((0.25, 32), (0.5, 48), (0.25, 64)))
    assert [finetune.pixels_at(stages, step, 8) for step in range(8)] == [32] * 2 + [48] * 4 + [64] * 2
    cosine = replace(RECIPE, schedule="cosine", warmup=0.1)
    rates = [finetune.rate_at(cosine, step, 100) for step in (0, 9, 10, 55, 100)]
    assert rates == pytest.approx([1 / 11, 10 / 11, 1, 0.5, 0])
    trapezoid = replace(RECIPE, schedule="trapezoid", warmup=0)
    assert [finetune.rate_at(trapezoid, s, 100) for s in (0, 70, 85, 100)] == pytest.approx([1, 1, 0.5, 0])


def test_muon_takes_the_matrices_inside_and_leaves_the_head():
    model, _ = finetune.starting_point(RECIPE, WORDS)
    adamw, muon = finetune.optimizers(model, RECIPE)
    inner = [p for g in muon.param_groups for p in g["params"]]
    rest = [p for g in adamw.param_groups for p in g["params"]]
    assert len(inner) == 2 * 6 and all(p is not model.classifier.weight for p in inner)
    assert len(inner) + len(rest) == len(list(model.parameters()))
    with pytest.raises(ValueError, match="expected optimizer"):
        finetune.optimizers(model, replace(RECIPE, optimizer="sgd"))


def test_views_without_a_crop_are_flips_and_turns():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 255, (12, 3, 8, 8), generator=generator).to(torch.uint8)
    for turn, number in ((False, 1), (True, 4)):
        views = random_views(images, generator, 8, crop=1.0, turn=turn)
        kinds = set()
        for image, view in zip(images.float(), views, strict=True):
            known = {(k, flip): torch.rot90(image.flip(-1) if flip else image, k, (1, 2)) for k in range(number)
                     for flip in (False, True)}  # fmt: skip
            kinds |= {name for name, kind in known.items() if torch.allclose(kind, view, atol=1e-3)}
        assert len(kinds) > number


def test_crops_stay_inside_and_resizing_keeps_the_mean():
    ramp = torch.arange(64).repeat(64, 1).to(torch.uint8).expand(16, 3, 64, 64)
    views = random_views(ramp, torch.Generator().manual_seed(2), 32, crop=0.25)
    widths = (views.amax((1, 2, 3)) - views.amin((1, 2, 3))) / 64
    assert widths.min() > 0.45 and widths.max() <= 1 and widths.std() > 0.05
    assert resized(ramp, 32).mean() == pytest.approx(31.5)


def test_mixed_targets_are_the_share_of_the_pixels():
    generator, seen = torch.Generator().manual_seed(3), set()
    pixels = torch.stack([torch.zeros(3, 20, 20), torch.ones(3, 20, 20)])
    for _ in range(20):
        out, targets = mixed(pixels, torch.eye(2), generator)
        torch.testing.assert_close(out.mean((1, 2, 3)), targets[:, 1])
        torch.testing.assert_close(targets.sum(1), torch.ones(2))
        seen.add(len(out[0].unique()) == 1)
    assert seen == {True, False}  # mixup and cutmix


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(tmp_path, coloured):
    whole = run(tmp_path / "whole", coloured)
    calls = 0
    while (kept := run(tmp_path / "cut", coloured, minutes=0)) is None:  # stops after every step
        calls += 1
    assert calls == 7  # of 8 steps
    for name, value in whole.state_dict().items():
        assert torch.equal(value, kept.state_dict()[name]), name
    begun = finetune.starting_point(RECIPE, WORDS)[0].classifier.weight
    assert not torch.equal(whole.classifier.weight, begun)
    with pytest.raises(ValueError, match=r"state\.pt is of another recipe \(crop differ\)"):
        run(tmp_path / "cut", coloured, replace(RECIPE, crop=0.9))


def test_a_batch_in_parts_is_the_same_batch(tmp_path, coloured):
    one, parts = (run(tmp_path / str(n), coloured, accumulate=n) for n in (1, 4))
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, parts.state_dict()[name], atol=2e-3, rtol=1e-2, msg=name)
    with pytest.raises(ValueError, match="expected a batch size that 1 processes × 3 parts divide"):
        run(tmp_path / "three", coloured, accumulate=3)


def test_the_loss_falls_on_64_images(tmp_path, coloured):
    recipe = Recipe(
        data="shapes", init=TINY, stages=((1.0, 16),), epochs=50, batch_size=16, learning_rate=3e-3, crop=0.8
    )
    model = run(tmp_path, coloured, recipe, watch=coloured)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [50, 100, 150, 200]
    assert rows[-1]["watch"]["loss"] < 0.3 < 1.0986 and rows[-1]["running_top1"] > rows[0]["running_top1"]
    normalize = finetune._normalizer(finetune.starting_point(recipe, WORDS)[1], "cpu")
    assert finetune.accuracy(model, *coloured, 16, normalize)["top1"] == rows[-1]["watch"]["top1"] > 95


def test_pictures_of_two_things_share_the_target(tmp_path, coloured):
    images, labels = coloured
    run(tmp_path, (images, torch.stack([labels, (labels + 1) % 3], 1)))
    assert (tmp_path / "state.pt").exists()


def test_the_first_layers_of_a_trained_model_and_a_new_head():
    model, processor = finetune.starting_point(RECIPES["shapes"], shapes.CLASSES)
    trained = load_model("vit-tiny-imagenet", device="cpu")
    before = trained.model.state_dict()
    kept = [k for k in model.state_dict() if ".layers." in k]
    assert model.config.num_hidden_layers == 3 and len(kept) == 3 * 16
    assert all(torch.equal(model.state_dict()[k], before[k]) for k in kept)
    assert model.classifier.out_features == len(shapes.CLASSES) and model.config.id2label[0] == "disc"
    assert processor.image_mean == trained.processor.image_mean


@pytest.fixture(scope="module")
def forty():
    made = shapes.scenes(40, 64, seed=7)
    return torch.from_numpy(made.images).movedim(-1, 1), torch.from_numpy(made.labels[:, 0])


@pytest.fixture
def few(monkeypatch, forty):
    """Forty scenes, wherever pictures are asked for."""
    monkeypatch.setattr(finetune, "pictures", lambda *arguments: forty)


def test_saved_in_half_precision_with_a_card_that_is_measured(tmp_path, few):
    recipe = replace(RECIPE, init=TINY | {"image_size": 64})
    model, processor = finetune.starting_point(recipe, shapes.CLASSES)
    found = finetune.save(model, processor, shapes.CLASSES, tmp_path / "mine", recipe, story="It was a dark night.")
    assert model.dtype == torch.float32  # the caller's is untouched
    assert {v.dtype for v in load_file(tmp_path / "mine/model.safetensors").values()} == {torch.float16}
    vit = load_model(tmp_path / "mine")
    assert vit.labels == list(shapes.CLASSES) and vit.processor.image_mean == processor.image_mean
    assert finetune.measure(vit) == found and len(found) == 2
    card = (tmp_path / "mine/README.md").read_text()
    assert all(f"| {what} | {n['top1']} |" in card for what, n in found.items())
    assert all(f"| {k} |" in card for k in asdict(recipe)) and "It was a dark night." in card
    assert "license: mit" in card and str(tmp_path) not in card


def test_from_the_command_line(tmp_path, few, capsys):
    command = ["finetune", "--scenes", "40", "--batch-size", "20", "--epochs", "1", "--out", str(tmp_path / "vit")]
    assert main([*command, "--minutes", "0"]) == 0
    assert "The same command goes on from there" in capsys.readouterr().out
    assert main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert main(["finetune", "--measure", str(tmp_path / "vit")]) == 0
    assert capsys.readouterr().out.splitlines() == printed
    card = (tmp_path / "vit/README.md").read_text()
    assert "license: other" in card and "began with the weights of vit-tiny-imagenet" in card and "| 2 | 64 |" in card
    assert main([*command, "--seed", "1"]) == 2
    assert "another recipe" in capsys.readouterr().err


def test_bad_input_is_one_line(tmp_path, capsys):
    assert main(["finetune", "--init", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert main(["finetune", "--recipe", "scratch", "--source", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    first, second = capsys.readouterr().err.strip().splitlines()
    assert str(tmp_path) in first and "expected train-*.parquet files" in second


def test_even_rows_are_watched_and_odd_rows_tested(monkeypatch):
    rows = torch.arange(10)
    monkeypatch.setattr(data, "tiny_imagenet_arrays", lambda split, source: (rows, rows))
    assert pictures("tiny-imagenet", "watch")[1].tolist() == [0, 2, 4, 6, 8]
    assert pictures("tiny-imagenet", "test")[1].tolist() == [1, 3, 5, 7, 9]


def test_test_scenes_are_not_training_scenes(monkeypatch):
    asked = []

    def scenes(n, size, seed, occlusion):
        asked.append((n, seed, occlusion))
        return SimpleNamespace(images=np.zeros((n, 8, 8, 3), np.uint8), labels=np.full((n, 1), seed))

    monkeypatch.setattr(shapes, "scenes", scenes)
    images, labels = pictures("shapes", "train", recipe=replace(RECIPES["shapes"], scenes=100))
    assert images.shape == (100, 3, 8, 8) and labels.tolist() == [0] * 80 + [1] * 20
    for split in ("watch", "test", "hidden"):
        pictures("shapes", split)
    assert [occlusion for _, _, occlusion in asked] == [0, 0.3, 0, 0, 0.3]
    assert len({seed for _, seed, _ in asked}) == 5
