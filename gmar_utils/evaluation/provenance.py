"""What made a result: commit, versions, device, the checkpoint's hash; nothing of this machine's folders."""

import hashlib
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from .. import __version__
from ..checkpoint import located
from ..model import Vit


def made_by(**extra: object) -> dict:
    """What made a result: command, date, commit, versions, device; `extra` adds model, data, seed, wall time and so on.

    Paths are cut to their last part: a results file says nothing about the machine's folders.
    """
    program = Path(sys.argv[0]).name.replace("__main__.py", "gmar")
    packages = ("torch", "transformers", "numpy", "scipy", "scikit-learn", "scikit-image", "accelerate", "datasets")
    return {
        "command": " ".join([program, *map(shown, sys.argv[1:])]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no", "--", *_CODE)),
        "gmar_utils": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "device": describe_device(),
    } | extra


def describe_device(device: torch.device | str = "cpu") -> str:
    """The GPU's name, or the CPU's with the number of threads."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return f"{found[1] if found else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def weights_sha256(vit: Vit) -> str:
    """SHA-256 of the checkpoint's model.safetensors; of the weights themselves for a model made in memory."""
    file = Path(located(vit.name)) / "model.safetensors"
    if not file.is_file() and vit.name.count("/") == 1:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(vit.name, "model.safetensors")
        file = Path(cached) if isinstance(cached, str) else file
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else state_sha256(vit.model)


def state_sha256(model: torch.nn.Module) -> str:
    """SHA-256 of the weights as they are in memory, which may have been changed since they were loaded."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def shown(text: str) -> str:
    """A path, or --option=path, without the folders of this machine."""
    return re.sub(r"(^|=)/\S*/", r"\1", text)


# Tables are what a run makes, not what made it: the one before must not count as a change of the code.
_CODE = (":(top)", ":(top,exclude)book/results/*.csv", ":(top,exclude)book/results/*.json")


def _git(*arguments):
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():  # an installed package may lie inside somebody else's repository
        return None
    run = subprocess.run(["git", *arguments], cwd=checkout, capture_output=True, text=True, check=False)
    return run.stdout.strip() if run.returncode == 0 else None
