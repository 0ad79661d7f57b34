"""A training that stops goes on exactly where it was, or is refused."""

import io
import json
import os
import pickle
import shutil
from collections import defaultdict
from dataclasses import asdict, replace

import pytest
import torch
from finetuning import RECIPE, STEADY, WORDS, assert_same_weights, coloured_pictures, rows_of, run, saved_at

from gmar_utils import training
from gmar_utils.training import starting_point, state


@pytest.fixture(scope="module")
def coloured():
    return coloured_pictures()


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


def test_a_copy_can_be_finished_earlier_as_if_it_had_been_meant_so(tmp_path, coloured):
    saved_at(tmp_path / "long", coloured, 6)
    shutil.copytree(tmp_path / "long", tmp_path / "copy")
    short = replace(STEADY, epochs=2)  # 8 steps, the last 2 with a falling rate
    assert_same_weights(run(tmp_path / "copy", coloured, short), run(tmp_path / "short", coloured, short))
    assert state.read(tmp_path / "copy/state.pt")["epochs"] == 2
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
        (3, replace(STEADY, schedule="constant_with_warmup"), 0.5),  # fewer steps than were made, at one rate
        (3, replace(STEADY, warmup=0.25), 8),  # the warm-up would have been longer
        (3, replace(STEADY, stages=((0.5, 8), (0.5, 16))), 1),  # other sizes for steps already made
    ],
)
def test_a_length_that_does_not_fit_the_steps_made_is_refused(tmp_path, coloured, steps, recipe, epochs):
    folder = saved_at(tmp_path, coloured, steps, recipe)
    before = (folder / "state.pt").read_bytes()
    with pytest.raises(ValueError, match=rf"state\.pt was begun with epochs 4 and is at step {steps}; epochs"):
        run(folder, coloured, replace(recipe, epochs=epochs))
    assert (folder / "state.pt").read_bytes() == before


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


def test_states_are_as_old_as_was_asked_for(tmp_path, coloured, monkeypatch):
    steps, write = defaultdict(list), state.write
    monkeypatch.setattr(state, "write", lambda file, found: (steps[name].append(found["step"]), write(file, found)))
    for name, seconds in (("each", 0), ("last", 1e6)):
        run(tmp_path / name, coloured, save_every=seconds)
    assert steps == {"each": list(range(1, 9)), "last": [8]}
