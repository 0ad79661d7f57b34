"""What a training leaves: checkpoints that load, measured cards, and the command line."""

import shutil
from dataclasses import asdict, replace

import pytest
import torch
from finetuning import RECIPE, STEADY, TINY, WORDS, coloured_pictures, rows_of, run
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from gmar_utils import load_model, training
from gmar_utils.cli import finetune as command_line
from gmar_utils.cli.main import main
from gmar_utils.data import drawing as shapes
from gmar_utils.training import checkpoint, pictures, starting_point, state


@pytest.fixture(scope="module")
def coloured():
    return coloured_pictures()


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
    assert "832 images seen in 52 steps. 64 training pictures" in card
    last = rows_of(tmp_path / "vit/training")[-1]
    watched = [last["watch"][k] for k in ("px", "top1", "top5")]
    row = [52, 832, 16, *(last[k] for k in ("loss", "images_per_s", "running_top1")), *watched]
    assert "|".join(["", *map(str, row), ""]) in card.replace(" ", "")


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
    for other in (["--seed", "1"], ["--epochs", "0.5"], ["--epochs", "20"]):
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
