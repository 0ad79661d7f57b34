"""Training: recipes as stated, pictures in many sizes and mixtures, a loss that falls."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from finetuning import RECIPE, STEADY, TINY, WORDS, coloured_pictures, rows_of, run
from transformers import Dinov2Config, Dinov2ForImageClassification

from gmar_utils import data, load_model
from gmar_utils.data import drawing as shapes
from gmar_utils.training import RECIPES, Recipe, checkpoint, loop, pictures, starting_point
from gmar_utils.training.augment import mixed, random_views, resized
from gmar_utils.training.recipe import pixels_at, plan, schedule


@pytest.fixture(scope="module")
def coloured():
    return coloured_pictures()


def test_the_papers_recipe_is_the_papers():
    paper = RECIPES["paper"]
    assert (paper.epochs, paper.batch_size, paper.stages) == (100, 32, ((1.0, 224),))
    assert paper.init == "google/vit-large-patch16-224"
    (solver,) = loop.optimizers(dinov2(), paper)
    assert type(solver) is torch.optim.Adam
    for group in solver.param_groups:
        assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (5e-5, (0.9, 0.999), 1e-8, 0)
    assert [schedule(paper, 100)(step) for step in (0, 50, 99)] == [1, 1, 1]


def test_resolution_and_rate_follow_the_recipe():
    stages = replace(RECIPE, stages=((0.25, 32), (0.5, 48), (0.25, 64)))
    assert [pixels_at(stages, step, 8) for step in range(8)] == [32] * 2 + [48] * 4 + [64] * 2
    turns = replace(RECIPE, stages=((0.5, (32, 48, 32)), (0.5, 64)))
    assert [pixels_at(turns, step, 10) for step in range(10)] == [32, 48, 32, 32, 48] + [64] * 5
    assert (stages.usual_size(), turns.usual_size(), RECIPES["tiny-imagenet"].usual_size()) == (48, 64, 112)
    cosine = schedule(replace(RECIPE, schedule="cosine", warmup=0.1), 100)
    assert [cosine(step) for step in (0, 5, 10, 55, 100)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    decaying = replace(RECIPE, warmup=0)
    assert [schedule(decaying, 100)(s) for s in (0, 70, 85, 100)] == pytest.approx([1, 1, 0.5, 0])
    assert plan(decaying, 100, 100) == [(8, 1.0)] * 50 + [(16, 1.0)] * 20 + [
        (16, pytest.approx(1 - step / 30)) for step in range(30)
    ]


def test_muon_takes_the_matrices_inside_and_leaves_the_head():
    model, _ = starting_point(RECIPE, WORDS)
    adamw, muon = loop.optimizers(model, RECIPE)
    inner = [p for g in muon.param_groups for p in g["params"]]
    rest = [p for g in adamw.param_groups for p in g["params"]]
    assert len(inner) == 2 * 6 and all(p is not model.classifier.weight for p in inner)
    assert len(inner) + len(rest) == len(list(model.parameters()))


def dinov2(**changes):
    """Three layers, as many classes as the width: a head is not told by its shape."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "image_size": 56, "patch_size": 14, "num_labels": 16}
    torch.manual_seed(0)
    return Dinov2ForImageClassification(Dinov2Config(**sizes | {"num_hidden_layers": 3} | changes)).eval()


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_rates_fall_by_depth(optimizer):
    model, recipe = dinov2(), replace(RECIPES["tiny-imagenet"], optimizer=optimizer)
    expected = {}
    for name, _ in model.named_parameters():
        if name.startswith("classifier"):
            expected[name] = 8.0
        elif "embeddings" in name:
            expected[name] = 0.8**3
        else:
            (block,) = [i for i in range(3) if f".{i}." in name] or [2]  # the final norm is as deep as the last block
            expected[name] = 0.8 ** (2 - block)
    names = {id(p): name for name, p in model.named_parameters()}
    solvers = loop.optimizers(model, recipe)
    assert {names[id(p)]: g["factor"] for s in solvers for g in s.param_groups for p in g["params"]} == expected
    decayed = {names[id(p)] for s in solvers for g in s.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {name for name, p in model.named_parameters() if p.ndim > 1}


def test_a_cut_position_table_is_the_interpolated_one():
    model, pixels = dinov2(), torch.randn(2, 3, 28, 28)
    torch.nn.init.normal_(model.dinov2.embeddings.position_embeddings)
    with torch.no_grad():
        before = model(pixels).logits
        checkpoint.cut_positions(model, 28)
        torch.testing.assert_close(model(pixels).logits, before, atol=1e-5, rtol=0)
    assert model.dinov2.embeddings.position_embeddings.shape == (1, 5, 16) and model.config.image_size == 28
    checkpoint.cut_positions(model, 56)  # never made larger: the model interpolates
    assert model.config.image_size == 28


def test_sizes_that_the_patches_do_not_fill_are_refused(tmp_path, coloured):
    with pytest.raises(ValueError, match="expected sizes that patches of 8 px fill, got 12; the nearest is 16"):
        run(tmp_path / "out", coloured, replace(RECIPE, stages=((1.0, (8, 12)),)))
    assert not (tmp_path / "out").exists()


def test_views_without_a_crop_are_flips_and_turns():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 255, (12, 3, 8, 8), generator=generator).to(torch.uint8)
    for turn, number in ((False, 1), (True, 4)):
        views = random_views(images, generator, 8, crop=1.0, turn=turn)
        kinds = set()
        for image, view in zip(images.float(), views, strict=True):
            both = {False: image, True: image.flip(-1)}
            known = {(k, flip): torch.rot90(both[flip], k, (1, 2)) for k in range(number) for flip in both}
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


def test_a_training_that_diverges_stops_and_says_so(tmp_path, coloured):
    with pytest.raises(ValueError, match="the training diverged"):
        run(tmp_path, coloured, replace(STEADY, learning_rate=1e30, clip=math.inf))
    assert not (tmp_path / "state.pt").exists()


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
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == [50, 100, 150, 200]
    assert rows[-1]["watch"]["loss"] < 0.3 < 1.0986 and rows[-1]["running_top1"] > rows[0]["running_top1"]
    processor = starting_point(recipe, WORDS)[1]
    assert checkpoint.accuracy(model, processor, *coloured, 16)["top1"] == rows[-1]["watch"]["top1"] > 95


def test_the_first_layers_of_a_trained_model_and_a_new_head():
    recipe = replace(RECIPES["shapes"], init="vit-shapes", layers=2)
    model, processor = starting_point(recipe, shapes.CLASSES)
    trained = load_model("vit-shapes", device="cpu")
    before = trained.model.state_dict()
    kept = [k for k in model.state_dict() if ".layers." in k]
    assert model.config.num_hidden_layers == 2 and len(kept) == 2 * 16
    assert all(torch.equal(model.state_dict()[k], before[k]) for k in kept)
    assert model.classifier.out_features == len(shapes.CLASSES) and model.config.id2label[0] == "disc"
    assert processor.image_mean == trained.processor.image_mean


def test_pictures_are_watched_or_tested_never_both(monkeypatch):
    for n, watched in ((10, [0, 2, 4, 6, 8]), (5000, list(range(0, 5000, 10))), (10_000, list(range(0, 10_000, 20)))):
        rows = torch.arange(n)
        monkeypatch.setattr(data, "tiny_imagenet_arrays", lambda split, source, rows=rows: (rows, rows))
        assert pictures("tiny-imagenet", "watch")[1].tolist() == watched
        assert pictures("tiny-imagenet", "test")[1].tolist() == list(range(1, n, 2))
    assert len(watched) == 500


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
    for n in (1, 4, 7):
        assert len(pictures("shapes", "train", recipe=replace(RECIPES["shapes"], scenes=n))[0]) == n
