"""What is known of a model before it runs: the module behind its wrappers, its blocks; and what its output holds."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """The module that runs: behind `torch.compile` (a compiled graph hands out no attention gradients), behind torch's
    DataParallel, DistributedDataParallel and AveragedModel, and timm's own behind transformers' TimmWrapper."""
    inner = getattr(model, "_orig_mod", None) or getattr(model, "timm_model", None)
    if inner is None and type(model).__module__.startswith("torch."):
        inner = getattr(model, "module", None)
    return unwrap(inner) if isinstance(inner, nn.Module) else model


def uncompiled(model: nn.Module) -> nn.Module:
    """The module itself behind `torch.compile`; it holds the configuration."""
    return getattr(model, "_orig_mod", model)


def model_type(model: nn.Module) -> str:
    """The `config.model_type` of a transformers model, else "" (timm's and other plain modules)."""
    return getattr(getattr(model, "config", None), "model_type", "")


def vision_config(model: nn.Module) -> object | None:
    """The configuration of a transformers model's image side, or None."""
    config = getattr(uncompiled(model), "config", None)
    return getattr(config, "vision_config", config)


def problem_type(model: nn.Module) -> str | None:
    """What transformers' configuration says of the head ("regression" …), through whatever is wrapped around it."""
    found = (getattr(getattr(m, "config", None), "problem_type", None) for m in model.modules())
    return next((kind for kind in found if kind), None)


def logits_of(output: object) -> torch.Tensor:
    """The logits (B, K) in a model's output.

    Args:
        output: the tensor itself; an object with `.logits`; a mapping with "logits"; or a tuple or list whose only
            two-dimensional tensor they are.

    Raises:
        ValueError: anything else, such as (features, logits), where nothing says which is which.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if isinstance(logits, tuple | list):
        found = [o for o in logits if isinstance(o, torch.Tensor) and o.ndim == 2 and o.is_floating_point()]
        if len(found) > 1:
            shapes = ", ".join(str(tuple(o.shape)) for o in found)
            raise ValueError(
                f"The model returns {len(found)} tensors of two dimensions, {shapes}, and nothing says which of them "
                'are the logits. Return the logits alone, or {"logits": logits, …}.'
            )
        logits = found[0] if found else None
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or not logits.is_floating_point():
        shape = f" with logits of shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else ""
        raise ValueError(
            'The model\'s output must be logits of shape (B, K), have .logits or a key "logits"; got '
            f"{type(output).__name__}{shape}. Load the model with its classification head "
            "(AutoModelForImageClassification)."
        )
    return logits


def blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of the image tower, first to last, whatever their names. ValueError for a model without any list."""
    found = find_blocks(model)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no list of blocks (an nn.ModuleList or nn.Sequential of modules that have "
            "parts). Put its blocks into one."
        )
    return found


def parts(model: nn.Module, without: Iterable[nn.Module] = ()) -> dict[nn.Module, nn.Module | None]:
    """{module: what holds it}, the model first: `modules` in a fraction of its time."""
    holders, queue, left_out = {model: None}, [model], set(without)
    for module in queue:  # grows while it runs
        for part in module._modules.values():
            if part is not None and part not in holders and part not in left_out:
                holders[part] = module
                queue.append(part)
    return holders


def find_blocks(model: nn.Module, holders: dict | None = None) -> list[nn.Module]:
    """As `blocks`, [] without any: of the lists of modules that have parts, the one nearest to a convolution (the patch
    embedding), so that a text tower is passed over; of several as near, the largest. holders: the model's `parts`."""
    holders = holders or parts(model)

    def above(module):
        return [] if module is None else [module, *above(holders[module])]

    stem = {m for c in holders if isinstance(c, nn.Conv2d) for m in above(c)}
    lists = [m for m in holders if isinstance(m, (nn.ModuleList, nn.Sequential)) and all(b._modules for b in m)]
    lists = [m for m in lists if len(m)]
    # a list that holds the convolution is its stem, or the whole model
    lists = [m for m in lists if m not in stem] or lists
    if len(lists) < 2:
        return [block for found in lists for block in found]
    sizes = {m: sum(w.numel() for w in m.parameters()) for m in lists}
    large = [m for m in lists if sizes[m] >= max(sizes.values()) / 10]
    return list(max(large, key=lambda m: (sum(a in stem for a in above(m)), sizes[m])))


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises tokens: torch's own, and those that other libraries call …Norm…."""
    return isinstance(module, nn.LayerNorm | nn.RMSNorm) or ("Norm" in type(module).__name__ and not module._modules)
