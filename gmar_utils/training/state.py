"""The state of a training on disk: whole or not there, of this training or refused."""

import hashlib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from torch import nn

from ..evaluation.provenance import state_sha256
from ..files import atomic
from .recipe import Recipe, plan

KEYS = ("step", "epochs", "settings", "log", "running", "parts")
MEND = "Delete it to start again, or put a whole copy in its place."


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """This process alone trains in ``folder``. The claim is the operating system's: it ends with the process.

    Raises:
        ValueError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            for left in folder.glob(".*.state.pt"):  # by a process that was killed while it wrote
                left.unlink()
            yield
    except Timeout:
        raise ValueError(f"{folder}: another process is training here. Wait for it, or give another --out.") from None


def settings(
    recipe: Recipe, model: nn.Module, processor: object, images: torch.Tensor, labels: torch.Tensor, engine: Accelerator
) -> dict[str, object]:
    """All that decides the weights, name by name, apart from the number of epochs.

    The name or path of the starting weights is left out: their hash says more, and folders move.
    """
    some, labels = images[:: max(1, len(images) // 1000)].cpu(), labels.cpu()
    digest = hashlib.sha256(labels.numpy().tobytes() + some.numpy().tobytes())
    return {k: v for k, v in asdict(recipe).items() if k not in ("epochs", "init")} | {
        "starting weights": state_sha256(model),
        "training pictures": [len(images), digest.hexdigest()],
        "preprocessing": [list(processor.image_mean), list(processor.image_std)],
        "processes": engine.num_processes,
        "precision": engine.mixed_precision,
    }


def write(file: Path, state: dict) -> None:
    """All of the state or none of it, whenever the process is killed or the disk is full.

    Raises:
        OSError: it could not be written; the state before it is whole.
    """
    try:
        with atomic(file) as temporary:
            torch.save(state, temporary)
    except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError for a full disk
        reason = str(error).splitlines()[0]
        raise OSError(f"{file}: could not be written ({reason}). The state before it is kept; make room.") from error


def read(file: Path) -> dict | None:
    """The state in ``file``; None if there is none.

    Raises:
        ValueError: the file is not a whole state; it is named, and nothing in it was executed.
    """
    if not file.exists():
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.testzip():  # torch itself compares no checksums
                raise ValueError("a part of it is damaged")
        state = torch.load(file, map_location="cpu", weights_only=True)
        return {k: state[k] for k in KEYS}
    except Exception as error:  # whatever torch and pickle say of a damaged or foreign file
        raise ValueError(f"{file} is not a whole state of gmar finetune ({type(error).__name__}). {MEND}") from None


def agree(file: Path, state: dict, recipe: Recipe, ours: dict[str, object], per_epoch: int) -> None:
    """Make sure that a saved state is of this training.

    Another number of ``epochs`` is this training too, where the steps already made are those that it begins with.

    Args:
        file: Where the state was, for the message.
        state: As `read` returns it.
        recipe: The recipe now asked for.
        ours: As `settings` returns them.
        per_epoch: Steps of an epoch.

    Raises:
        ValueError: another training, or a length that the steps already made do not fit.
    """
    before, step = state["epochs"], state["step"]
    if changed := [k for k in ours if state["settings"].get(k) != ours[k]]:
        raise ValueError(
            f"{file} is of another training ({', '.join(changed)} differ). Give another --out, or delete it."
        )
    then, now = (round(epochs * per_epoch) for epochs in (before, recipe.epochs))
    if before != recipe.epochs and (step > now or plan(recipe, then, step) != plan(recipe, now, step)):
        raise ValueError(
            f"{file} was begun with epochs {before:g} and is at step {step}; epochs {recipe.epochs:g} ({now} steps) do "
            "not fit the steps already made, which would have had another rate or size. The length of a training can "
            f"change only before its learning rate falls. Give epochs {before:g}, or another --out."
        )


def restore(file: Path, saved: dict, parts: dict[str | int, object]) -> None:
    """Put what a state saved of them back into the parts of a training: whatever has a ``load_state_dict``.

    Raises:
        ValueError: the state is of another model.
    """
    try:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{file} does not fit the model that it was begun with ({reason}). {MEND}") from None
