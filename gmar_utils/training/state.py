"""The state of a training on disk: whole or not there, of this training or refused."""

import hashlib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from torch import nn

from ..evaluation.provenance import state_sha256
from ..files import atomic
from .recipe import Recipe, full_rate, pixels_at

KEYS = ("step", "epochs", "settings", "changes", "log", "running", "parts")
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


def agree(file: Path, state: dict, recipe: Recipe, ours: dict[str, object], per_epoch: int) -> list[dict]:
    """Make sure that a saved state is of this training; the changes of its length so far, with this one.

    Args:
        file: Where the state was, for the message.
        state: As `read` returns it.
        recipe: The recipe now asked for; it may have other ``epochs``, where both have the full rate.
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
    if before == recipe.epochs:
        return state["changes"]
    totals = [round(epochs * per_epoch) for epochs in (before, recipe.epochs)]
    fits_before, fits_now = (step in full_rate(recipe, total) for total in totals)
    same = all(pixels_at(recipe, s, totals[0]) == pixels_at(recipe, s, totals[1]) for s in range(step))
    if not (fits_before and fits_now and same):
        shortest = next(t for t in count(step) if step in full_rate(recipe, t)) if fits_before else None
        hint = f"; from step {step} on it can be shortened to epochs {shortest / per_epoch:.7g}" if shortest else ""
        raise ValueError(
            f"{file} was begun with epochs {before:g} and is at step {step}; epochs {recipe.epochs:g} "
            f"({totals[1]} steps) do not fit the steps already made. The length of a training can change only while "
            f"its learning rate stands still{hint}. Give epochs {before:g}, or another --out."
        )
    return [*state["changes"], {"step": step, "epochs": recipe.epochs, "before": before}]
