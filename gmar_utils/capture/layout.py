"""What a map needs to know of a model's layout: blocks, patch grid, classifier input; one small table by type."""

import torch
from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """The module itself behind `torch.compile` (a compiled graph hands out no attention gradients), and timm's own
    behind transformers' TimmWrapper."""
    model = uncompiled(model)
    return getattr(model, "timm_model", model)


def uncompiled(model: nn.Module) -> nn.Module:
    """The module itself behind `torch.compile`; it holds the configuration."""
    return getattr(model, "_orig_mod", model)


def model_type(model: nn.Module) -> str:
    """The `config.model_type` of a transformers model, else "" (timm's and other plain modules)."""
    return getattr(getattr(model, "config", None), "model_type", "")


def vision_config(model: nn.Module):
    """The configuration of a transformers model's image side, or None."""
    config = getattr(uncompiled(model), "config", None)
    return getattr(config, "vision_config", config)


def in_table(model: nn.Module) -> bool:
    """Whether it is known, and tested, which tokens the classifier of this type of model reads."""
    return model_type(model) in _HEADS


def logits_of(output) -> torch.Tensor:
    """The logits (B, K) in a model's output: the tensor itself, its `.logits`, or the first of a tuple."""
    if isinstance(output, tuple):
        output = output[0]
    logits = getattr(output, "logits", output)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise ValueError(
            f"The model's output must be logits of shape (B, K) or have .logits; got {type(output).__name__}"
            + (f" with logits of shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else "")
            + ". Load the model with its classification head (AutoModelForImageClassification)."
        )
    return logits


def patch_grid(model: nn.Module, pixel_values: torch.Tensor, tokens: int, prefix_tokens=None, grid=None):
    """Prefix tokens P and patch grid (R, C) of `tokens` = P + R·C tokens, from the patch embedding's stride.

    Either can be given; ValueError when they do not fit the number of tokens."""
    if grid is None:
        patch = next((m for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride == m.kernel_size), None)
        if patch is None:
            raise ValueError(
                f"{type(model).__name__} has no patch embedding (a Conv2d whose stride is its kernel size), so the "
                "patch grid is not known. Pass grid=(rows, columns) and prefix_tokens=."
            )
        grid = (pixel_values.shape[-2] // patch.stride[0], pixel_values.shape[-1] // patch.stride[1])
    rows, columns = grid
    prefix = tokens - rows * columns if prefix_tokens is None else prefix_tokens
    if prefix < 0 or prefix + rows * columns != tokens:
        raise ValueError(
            f"The model attends over {tokens} tokens, but {prefix} prefix tokens and a {rows}×{columns} patch grid "
            f"make {prefix + rows * columns}. Pass prefix_tokens= and grid=(rows, columns) that fit."
        )
    return prefix, (rows, columns)


def readout(model: nn.Module, tokens: int, prefix_tokens: int, device=None) -> torch.Tensor:
    """v₀ (N,): the weight with which the classifier reads each token; sums to 1 (METHODS.md, notation)."""
    kind = model_type(model)
    pools_patches = (
        prefix_tokens == 0
        or kind in ("siglip", "clip", "metaclip_2")
        or (kind in ("beit", "data2vec-vision") and model.config.use_mean_pooling)
        or getattr(model, "global_pool", "") == "avg"  # timm
    )
    v = torch.zeros(tokens, device=device)
    if pools_patches:
        v[prefix_tokens:] = 1 / (tokens - prefix_tokens)
    elif model._modules.get("distillation_classifier") or model._modules.get("head_dist"):
        v[:2] = 0.5
    else:
        v[0] = 1
    return v


def blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks: the list of L modules of one class that hold a LayerNorm, whatever its name."""
    count = getattr(vision_config(model), "num_hidden_layers", None) or len(getattr(model, "blocks", ()))
    for modules in model.modules():
        alike = isinstance(modules, nn.ModuleList | nn.Sequential) and len({type(m) for m in modules}) == 1
        if alike and len(modules) == count and any(isinstance(m, nn.LayerNorm) for m in modules[0].modules()):
            return list(modules)
    raise ValueError(
        f"{type(model).__name__} has no list of transformer blocks with a LayerNorm, which LeGrad and Grad-CAM read. "
        "Use a method that needs attention only, such as gmar."
    )


def first_norm(block: nn.Module) -> nn.LayerNorm:
    """The LayerNorm in front of the block's attention."""
    return next(m for m in block.modules() if isinstance(m, nn.LayerNorm))


def classify(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Logits (B, K) when the model's own final norm, pooling and head read a block's output `tokens` (B, N, D)."""
    kind = model_type(model)
    if in_table(model):
        return _HEADS[kind](model, _final_norm(model, kind)(tokens))
    if hasattr(model, "forward_head") and hasattr(model, "norm"):  # timm
        return model.forward_head(model.norm(tokens))
    raise ValueError(
        f"How {kind or type(model).__name__} reads its last tokens is not in the table of gmar_utils.capture.layout "
        f"(known: {', '.join(_HEADS)}, timm). LeGrad needs it; use a method such as gmar, or add a line there."
    )


def _final_norm(model, kind):
    if kind in ("clip", "metaclip_2"):  # their heads read the last block's output as it is
        return nn.Identity()
    return model.vision_model.post_layernorm if kind == "siglip" else model.base_model.layernorm


def _deit(model, x):
    if not hasattr(model, "distillation_classifier"):
        return _cls(model, x)
    return (model.cls_classifier(x[:, 0]) + model.distillation_classifier(x[:, 1])) / 2


def _dinov2(model, x):
    prefix = 1 + getattr(model.config, "num_register_tokens", 0)
    return model.classifier(torch.cat([x[:, 0], x[:, prefix:].mean(1)], dim=1))


def _cls(model, x):
    return model.classifier(x[:, 0])


def _patch_mean(model, x):
    return model.classifier(x[:, 1:].mean(1))


def _mean(model, x):
    return model.classifier(x.mean(1))


def _pooler(model, x):
    return model.classifier(model.base_model.pooler(x))


_HEADS = {  # x: the tokens after the final norm
    "vit": _cls,
    "vit_msn": _cls,
    "deit": _deit,
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2,
    "beit": _pooler,
    "data2vec-vision": _pooler,
    "clip": _patch_mean,
    "metaclip_2": _patch_mean,
    "siglip": _mean,
    "ijepa": _mean,
}
