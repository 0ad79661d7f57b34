"""The state of a training on disk: whole or not there, of this training or refused."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from .recipe import Recipe, full_rate, pixels_at

MEND = "Delete it to start again, or put a whole copy in its place."


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """This process alone trains in ``folder``. The claim is the operating system's: it ends with the process.

    Raises:
        ValueError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{folder}: another process is training here. Wait for it, or give another --out.") from None
    try:
        yield
    finally:
        lock.release()


def settings(
    recipe: Recipe, weights: Mapping[str, torch.Tensor], images: torch.Tensor, labels: torch.Tensor, processor, **others
) -> dict[str, object]:
    """All that decides the weights, name by name, apart from the number of epochs.

    The name or path of the starting weights is left out: their hash says more, and folders move.
    """
    recipe = {k: v for k, v in asdict(recipe).items() if k not in ("epochs", "init")}
    some = images[:: max(1, len(images) // 1000)]
    return recipe | {
        "starting weights": fingerprint(weights),
        "training pictures": [len(images), fingerprint({"labels": labels, "images": some})],
        "preprocessing": [list(processor.image_mean), list(processor.image_std)],
        **others,
    }


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of named tensors: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def write(file: Path, state: dict) -> None:
    """All of the state or none of it, whenever the process is killed or the disk is full.

    Raises:
        OSError: it could not be written; the state before it is whole.
    """
    fresh = file.with_suffix(".new")
    try:
        torch.save(state, fresh)
        settle(fresh, file)
    except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError for a full disk
        with suppress(OSError):
            fresh.unlink()
        reason = str(error).splitlines()[0]
        raise OSError(f"{file}: could not be written ({reason}). The state before it is kept; make room.") from error


def settle(fresh: Path, file: Path) -> None:
    """Put a written file in its place so that neither a kill nor a power cut leaves half of it."""
    for path, rename in ((fresh, True), (file.parent, False)):
        if rename or os.name == "posix":  # only there a folder can be synchronised
            handle = os.open(path, os.O_RDONLY if not rename else os.O_RDWR)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        if rename:
            os.replace(fresh, file)


def read(file: Path) -> dict | None:
    """The state in ``file``; None if there is none.

    Raises:
        ValueError: the file is not a whole state; it is named, and nothing in it was executed.
    """
    if not file.exists():
        return None
    try:
        with zipfile.ZipFile(file) as archive:  # torch itself compares no checksums
            whole = archive.testzip() is None
        state = torch.load(file, map_location="cpu", weights_only=True)
        whole = whole and isinstance(state["step"], int) and state["step"] >= 0 and isinstance(state["parts"], dict)
        before = state["recipe"]
        # version 0.1 wrote neither settings nor log, and called the schedule a trapezoid
        names = {"trapezoid": "warmup_stable_decay", "constant": "constant_with_warmup"}
        state["recipe"] = Recipe(**before | {"schedule": names.get(before["schedule"], before["schedule"])})
        state["log"] = state.get("log") or _whole_rows(file.with_name("log.jsonl"), state["step"])
    except Exception as error:  # whatever torch and pickle say of a damaged or foreign file
        raise ValueError(f"{file} is not a whole state of gmar finetune ({type(error).__name__}). {MEND}") from None
    if not whole:
        raise ValueError(f"{file} is not a whole state of gmar finetune (damaged, or no step in it). {MEND}")
    return {"settings": None, "changes": [], "running": [0.0, 0], **state}


def agree(file: Path, state: dict, recipe: Recipe, ours: dict[str, object], per_epoch: int) -> list[dict]:
    """Make sure that a saved state is of this training; the changes of its length so far, with this one.

    Args:
        file: Where the state was, for the message.
        state: As `read` returns it.
        recipe: The recipe now asked for; of the state's it may differ in ``epochs``, where both have the full rate.
        ours: As `settings` returns them.
        per_epoch: Steps of an epoch.

    Raises:
        ValueError: another training, or a length that the steps already made do not fit.
    """
    before, step = state["recipe"], state["step"]
    theirs = state["settings"]
    if theirs is None:  # version 0.1: only the recipe is known
        theirs, ours = asdict(replace(before, epochs=recipe.epochs)), asdict(recipe)
    if changed := [k for k in ours if theirs.get(k) != ours[k]]:
        raise ValueError(
            f"{file} is of another training ({', '.join(changed)} differ). Give another --out, or delete it."
        )
    if before.epochs == recipe.epochs:
        return state["changes"]
    totals = [round(r.epochs * per_epoch) for r in (before, recipe)]
    fits_before, fits_now = (step in full_rate(recipe, total) for total in totals)
    same = all(len({pixels_at(recipe, s, total) for total in totals}) == 1 for s in range(step))
    if not (fits_before and fits_now and same):
        shortest = next(t for t in count(step) if step in full_rate(recipe, t)) if fits_before else None
        hint = f"; from step {step} on it can be shortened to epochs {shortest / per_epoch:.7g}" if shortest else ""
        raise ValueError(
            f"{file} was begun with epochs {before.epochs:g} and is at step {step}; epochs {recipe.epochs:g} "
            f"({totals[1]} steps) do not fit the steps already made. The length of a training can change only while "
            f"its learning rate stands still{hint}. Give epochs {before.epochs:g}, or another --out."
        )
    return [*state["changes"], {"step": step, "epochs": recipe.epochs, "before": before.epochs}]


def write_log(file: Path, rows: list[dict]) -> None:
    """The log anew, without what a killed process wrote after its last state."""
    fresh = file.with_suffix(".new")
    fresh.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settle(fresh, file)


def _whole_rows(file: Path, step: int) -> list[dict]:
    """The rows of a log up to a step, each step once; a last line cut by a kill is no row."""
    rows = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else ():
        with suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            if row["step"] <= step:
                rows[row["step"]] = row
    return list(rows.values())


def history(folder: str | Path) -> dict[str, object]:
    """What a card says of a training, from the folder of its state: step, log, settings, changes of its length."""
    state = torch.load(Path(folder) / "state.pt", map_location="cpu", weights_only=True, mmap=True)
    return {k: state[k] for k in ("step", "log", "settings", "changes")}
