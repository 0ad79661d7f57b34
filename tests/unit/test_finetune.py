"""Training: recipes as stated, exact resume or a refusal, a loss that falls, checkpoints that load, measured cards."""

import io
import json
import os
import pickle
import shutil
from collections import defaultdict
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2ForImageClassification

from gmar_utils import data, load_model, training
from gmar_utils.cli import finetune as command_line
from gmar_utils.cli.main import main
from gmar_utils.data import drawing as shapes
from gmar_utils.training import RECIPES, Recipe, checkpoint, loop, pictures, starting_point, state
from gmar_utils.training.augment import mixed, random_views, resized
from gmar_utils.training.recipe import full_rate, pixels_at, schedule

TINY = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
RECIPE = Recipe(
    data="shapes",
    init=TINY,
    stages=((0.5, 8), (0.5, 16)),
    epochs=2,
    batch_size=16,
    optimizer="muon",
    schedule="warmup_stable_decay",
    mix=0.5,
    turn=True,
    label_smoothing=0.1,
    ema=0.9,
)
STEADY = replace(RECIPE, stages=((1.0, (8, 16)),), optimizer="adamw", warmup=1, decay=0.25, epochs=4)  # 16 steps
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
    model, processor = starting_point(recipe, WORDS)
    return training.train(model, processor, *coloured, recipe, out, **options)


def assert_same_weights(one, other):
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def rows_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


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
    assert full_rate(decaying, 100) == range(0, 71) and full_rate(replace(decaying, schedule="cosine"), 100) == range(0)
    assert set(schedule(decaying, 100)(s) for s in full_rate(decaying, 100)) == {1.0}


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


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights_and_log(tmp_path, coloured):
    recipe = replace(RECIPE, epochs=13)  # 52 steps: the log has two rows
    whole = run(tmp_path / "whole", coloured, recipe)
    calls, log = 0, tmp_path / "cut/log.jsonl"
    while (kept := run(tmp_path / "cut", coloured, recipe, minutes=0)) is None:  # stops after every step
        calls += 1
        if calls == 50:  # what kills leave: half a state, and after the state's step a row to come again and half a row
            (tmp_path / "cut/.1.state.pt").write_bytes(b"half")
            with open(log, "a") as file:
                file.write(json.dumps({"step": 51, "loss": 0.0}) + '\n{"step": 5')
    assert calls == 51 and not (tmp_path / "cut/.1.state.pt").exists()
    assert_same_weights(whole, kept)
    begun = starting_point(recipe, WORDS)[0].classifier.weight
    assert not torch.equal(whole.classifier.weight, begun)
    rows, ours = (rows_of(tmp_path / name) for name in ("whole", "cut"))
    assert all(row.pop("images_per_s") > 0 for row in (*rows, *ours))
    assert ours == rows and [row["step"] for row in rows] == [50, 52]


def saved_at(folder, coloured, steps, recipe=STEADY):
    """A training of ``recipe`` that stopped after so many steps."""
    for _ in range(steps):
        run(folder, coloured, recipe, minutes=0)
    return folder


def test_a_copy_can_be_finished_earlier_as_if_it_had_been_meant_so(tmp_path, coloured):
    saved_at(tmp_path / "long", coloured, 6)
    shutil.copytree(tmp_path / "long", tmp_path / "copy")
    short = replace(STEADY, epochs=2)  # 8 steps, the last 2 with a falling rate
    assert_same_weights(run(tmp_path / "copy", coloured, short), run(tmp_path / "short", coloured, short))
    assert state.read(tmp_path / "copy/state.pt")["changes"] == [{"step": 6, "epochs": 2, "before": 4}]
    assert_same_weights(run(tmp_path / "long", coloured, STEADY), run(tmp_path / "whole", coloured, STEADY))


@pytest.mark.parametrize(
    "steps, recipe, epochs",
    [
        (16, STEADY, 2),  # finished, then called with fewer
        (16, STEADY, 8),  # or with more
        (14, STEADY, 8),  # the rate falls already
        (9, STEADY, 2),  # it would have fallen
        (3, STEADY, 0.5),  # fewer steps than were made
        (3, replace(STEADY, schedule="cosine"), 2),
        (3, replace(STEADY, stages=((0.5, 8), (0.5, 16))), 1),  # other sizes for steps already made
    ],
)
def test_a_length_that_does_not_fit_the_steps_made_is_refused(tmp_path, coloured, steps, recipe, epochs):
    folder = saved_at(tmp_path, coloured, steps, recipe)
    before = (folder / "state.pt").read_bytes()
    with pytest.raises(ValueError, match=rf"state\.pt was begun with epochs 4 and is at step {steps}; epochs"):
        run(folder, coloured, replace(recipe, epochs=epochs))
    assert (folder / "state.pt").read_bytes() == before


def test_the_refusal_names_the_shortest_length_that_fits(tmp_path, coloured):
    folder = saved_at(tmp_path, coloured, 9)
    with pytest.raises(ValueError, match=r"can be shortened to epochs 3\.") as refused:
        run(folder, coloured, replace(STEADY, epochs=2))
    epochs = float(str(refused.value).split("to epochs ")[1].split(". ")[0])
    assert run(folder, coloured, replace(STEADY, epochs=epochs)) is not None


def other_weights(model, processor, images, labels):
    model.classifier.bias.data += 1e-6
    return model, processor, images, labels


def other_pictures(model, processor, images, labels):
    return model, processor, 255 - images, labels


def fewer_pictures(model, processor, images, labels):
    return model, processor, images[:48], labels[:48]


def other_labels(model, processor, images, labels):
    return model, processor, images, labels.flip(0)


def other_normalisation(model, processor, images, labels):
    processor.image_std = [0.2, 0.2, 0.2]
    return model, processor, images, labels


@pytest.mark.parametrize(
    "change, name",
    [
        (other_weights, "starting weights"),
        (other_pictures, "training pictures"),
        (fewer_pictures, "training pictures"),
        (other_labels, "training pictures"),
        (other_normalisation, "preprocessing"),
        ({"crop": 0.9}, "crop"),
        ({"seed": 3}, "seed"),
        ({"stages": ((1.0, 16),)}, "stages"),
        ({"learning_rate": 1e-4}, "learning_rate"),
        ({"head_rate": 2.0}, "head_rate"),
    ],
)
def test_a_state_of_another_training_is_refused(tmp_path, coloured, change, name):
    folder = saved_at(tmp_path, coloured, 1)
    recipe = replace(STEADY, **change) if isinstance(change, dict) else STEADY
    start = (*starting_point(recipe, WORDS), *coloured)
    start = start if isinstance(change, dict) else change(*start)
    with pytest.raises(ValueError, match=rf"state\.pt is of another training \(.*{name}.* differ\)"):
        training.train(*start, recipe, folder)


class Bomb:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


DAMAGE = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "cut by a byte": lambda whole: whole[:-1],
    "empty": lambda whole: b"",
    "garbage": lambda whole: b"\x00garbage" * 1000,
    "text": lambda whole: b"version https://git-lfs.github.com/spec/v1\n",
    "a flipped bit": lambda whole: flipped(whole),
    "pickle": lambda whole: pickle.dumps(Bomb()),
    "pickle in torch's file": lambda whole: saved(Bomb()),
    "list": lambda whole: saved([1, 2]),
    "no keys": lambda whole: saved({}),
    "no step": lambda whole: saved({"step": None, "recipe": asdict(STEADY), "parts": {}}),
    "of another program": lambda whole: saved({"step": 1, "recipe": {"lr": 3}, "parts": {}}),
}


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_one_line_that_names_it(tmp_path, coloured, damage, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = saved_at(tmp_path / "run", coloured, 1)
    broken = DAMAGE[damage]((folder / "state.pt").read_bytes())
    (folder / "state.pt").write_bytes(broken)
    with pytest.raises(ValueError, match=r"state\.pt is not a whole state of gmar finetune.*Delete it") as refused:
        run(folder, coloured, STEADY)
    assert "\n" not in str(refused.value) and "weights_only" not in str(refused.value)
    assert (folder / "state.pt").read_bytes() == broken and not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("part", ["model", "average", 0])
def test_a_state_without_a_part_is_refused(tmp_path, coloured, part):
    folder = saved_at(tmp_path, coloured, 1)
    found = torch.load(folder / "state.pt", weights_only=True)
    del found["parts"][part]
    torch.save(found, folder / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt does not fit the model that it was begun with.*Delete it"):
        run(folder, coloured, STEADY)


def test_one_process_in_a_folder(tmp_path, coloured):
    with state.claim(tmp_path), pytest.raises(ValueError, match="another process is training here"):
        run(tmp_path, coloured)
    run(tmp_path, coloured)


def test_a_full_disk_keeps_the_state_before(tmp_path, coloured):
    resource = pytest.importorskip("resource")
    folder = saved_at(tmp_path, coloured, 3)
    before, limits = (folder / "state.pt").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match=r"state\.pt: could not be written .* is kept; make room"):
            run(folder, coloured, STEADY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (folder / "state.pt").read_bytes() == before and {p.name for p in folder.iterdir()} <= {
        "state.pt",
        "log.jsonl",
        "lock",
    }
    assert_same_weights(run(folder, coloured, STEADY), run(tmp_path / "whole", coloured, STEADY))


def test_a_training_that_diverges_stops_and_says_so(tmp_path, coloured):
    with pytest.raises(ValueError, match="the training diverged"):
        run(tmp_path, coloured, replace(STEADY, learning_rate=1e30, clip=None))
    assert not (tmp_path / "state.pt").exists()


def test_states_are_as_old_as_was_asked_for(tmp_path, coloured, monkeypatch):
    steps, write = defaultdict(list), state.write
    monkeypatch.setattr(state, "write", lambda file, found: (steps[name].append(found["step"]), write(file, found)))
    for name, seconds in (("each", 0), ("last", 1e6)):
        run(tmp_path / name, coloured, save_every=seconds)
    assert steps == {"each": list(range(1, 9)), "last": [8]}


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


@pytest.fixture(scope="module")
def forty():
    made = shapes.scenes(40, 64, seed=7)
    return torch.from_numpy(made.images).movedim(-1, 1), torch.from_numpy(made.labels[:, 0])


@pytest.fixture
def few(monkeypatch, forty):
    """Forty scenes, wherever pictures are asked for."""
    for module in (checkpoint, command_line):
        monkeypatch.setattr(module, "pictures", lambda *arguments: forty)


def test_saved_in_half_precision_with_a_card_that_is_measured(tmp_path, few):
    recipe = replace(RECIPE, init=TINY | {"image_size": 64}, stages=((1.0, (64, 16, 64)),))
    model, processor = starting_point(recipe, shapes.CLASSES)
    found = training.save(model, processor, tmp_path / "mine", recipe)
    assert model.dtype == torch.float32  # the caller's is untouched
    assert {v.dtype for v in load_file(tmp_path / "mine/model.safetensors").values()} == {torch.float16}
    vit = load_model(tmp_path / "mine")
    assert vit.labels == list(shapes.CLASSES) and vit.processor.image_mean == processor.image_mean
    assert training.measure(vit) == found and len(found) == 2
    card = (tmp_path / "mine/README.md").read_text()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card.splitlines()]
    assert all([what, *map(str, n.values())] in cells for what, n in found.items())
    assert all([k, str(v)] in cells for k, v in asdict(recipe).items())
    assert str(tmp_path) not in card and not (tmp_path / "mine/.new").exists()
    metadata = ModelCard.load(tmp_path / "mine/README.md").data
    assert metadata.license == "mit" and metadata.model_name == "mine"
    assert [r.metric_value for r in metadata.eval_results] == [n["top1"] for n in found.values()]
    assert all(r.dataset_name == "Generated shapes" and r.metric_type == "accuracy" for r in metadata.eval_results)


def test_a_checkpoint_that_cannot_be_finished_leaves_nothing(tmp_path, few, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    recipe = replace(RECIPE, init=TINY | {"image_size": 64})
    start = starting_point(recipe, shapes.CLASSES)
    monkeypatch.setattr(checkpoint, "measure", full)
    with pytest.raises(OSError, match="mine: the checkpoint could not be written .*No space left.* call again"):
        training.save(*start, tmp_path / "mine", recipe)
    assert not list((tmp_path / "mine").iterdir())


def test_the_card_tells_the_training(tmp_path, coloured):
    recipe = replace(STEADY, stages=((1.0, 16),), epochs=13)
    saved_at(tmp_path / "vit/training", coloured, 3, replace(recipe, epochs=20))
    kept = run(tmp_path / "vit/training", coloured, recipe, watch=coloured)
    card = str(
        checkpoint.model_card(
            "vit",
            kept.config,
            asdict(recipe),
            {"pictures": {"top1": 1.0}},
            state.read(tmp_path / "vit/training/state.pt"),
        )
    )
    assert "832 images seen in 52 steps" in card and "epochs were changed from 20 to 13" in card
    watched = rows_of(tmp_path / "vit/training")[-1]["watch"]
    assert f"|52|832|16|{watched['top1']}|{watched['top5']}|" in card.replace(" ", "")


COMMAND = ["finetune", "--init", "vit-shapes", "--scenes", "40", "--batch-size", "20", "--epochs", "1"]


def test_from_the_command_line(tmp_path, few, capsys):
    command = [*COMMAND, "--out", str(tmp_path / "vit"), "--save-every", "0"]
    assert main([*command, "--minutes", "0"]) == 0
    assert "The same command goes on from there" in capsys.readouterr().out
    assert main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 and "up to 30 % of the object hidden, 64 px: top1" in printed[1]
    measure = ["finetune", "--measure", str(tmp_path / "vit")]
    assert main(measure) == 0
    assert capsys.readouterr().out.splitlines() == printed
    assert main([*measure, "--image-size", "32", "64"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if ", 64 px:" in line] == printed
    card = (tmp_path / "vit/README.md").read_text()
    assert "license: other" in card and "began with the weights of vit-shapes" in card
    assert "40 images seen in 2 steps" in card
    for other in (["--seed", "1"], ["--epochs", "0.5"], ["--epochs", "2"]):
        before = {p: p.read_bytes() for p in (tmp_path / "vit").rglob("*") if p.is_file()}
        assert main([*command, *other]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
        assert {p: p.read_bytes() for p in (tmp_path / "vit").rglob("*") if p.is_file()} == before
    shutil.rmtree(tmp_path / "vit/training")
    assert main(command) == 2
    assert "holds a checkpoint, but no training/state.pt" in capsys.readouterr().err


def test_from_a_folder(tmp_path, few, capsys):
    model, processor = starting_point(replace(RECIPE, init=TINY | {"image_size": 64}), WORDS)
    model.save_pretrained(tmp_path / "mine")
    processor.save_pretrained(tmp_path / "mine")
    out = str(tmp_path / "out")
    assert main([*COMMAND, "--init", str(tmp_path / "mine"), "--layers", "1", "--out", out]) == 0
    vit = load_model(out)
    assert vit.model.config.num_hidden_layers == 1 and vit.labels == list(shapes.CLASSES)
    assert "| init " in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(
    "options",
    [
        *(["--epochs", value] for value in ("0", "-1", "nan", "inf", "-inf", "1e-9", "1e300", "many")),
        *(["--batch-size", value] for value in ("0", "-1", "41", "2.5")),
        *(["--layers", value] for value in ("0", "-1", "99", "7")),
        *(["--accumulate", value] for value in ("0", "-1", "3")),
        *(["--minutes", value] for value in ("nan", "-1", "soon")),
        *(["--save-every", value] for value in ("nan", "-1")),
        *(["--scenes", value] for value in ("0", "-5")),
        *(["--learning-rate", value] for value in ("0", "-1", "nan", "inf")),
        *(["--seed", value] for value in ("-1", "99999999999999999999")),
        *(["--init", value] for value in ("", "no-such-model", ".", "no/such/folder")),
        *(["--recipe", "tiny-imagenet", "--source", value] for value in ("", ".", "no-such-folder")),
        ["--recipe", "tiny-imagenet", "--scenes", "5"],
        ["--out", ""],
        ["--measure", ""],
        ["--measure", "no-such-model"],
        ["--measure", "vit-shapes", "--image-size", "63"],
        ["--measure", "vit-shapes", "--image-size", "0"],
        ["--image-size", "64"],
    ],
    ids=" ".join,
)
def test_bad_options_are_one_line_and_leave_nothing(tmp_path, few, capsys, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if "--source" in options:
        monkeypatch.setattr(command_line, "pictures", pictures)  # not the forty scenes
        monkeypatch.setattr(command_line, "starting_point", lambda *arguments: (None, None))
    try:
        code = main(
            [*COMMAND[:1], *options] if "--recipe" in options or "--measure" in options else [*COMMAND, *options]
        )
    except SystemExit as refused:
        code = refused.code
    printed = capsys.readouterr()
    assert code == 2 and len(printed.err.strip().splitlines()) == 1 and not printed.out
    assert not list(tmp_path.iterdir())


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
