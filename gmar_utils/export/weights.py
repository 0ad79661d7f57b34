"""The numbers of a ViT, DeiT or DINOv2 classifier, brought to one common form; other models are refused in words."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..capture import Trace
from ..capture.layout import blocks, model_type, problem_type

FAMILIES = ("vit", "deit", "dinov2", "dinov2_with_registers")


@dataclass(frozen=True)
class Linear:
    """x ↦ x Wᵀ + b, as PyTorch stores it."""

    weight: np.ndarray  # (out, in)
    bias: np.ndarray  # (out,)


@dataclass(frozen=True)
class Norm:
    scale: np.ndarray  # (D,)
    shift: np.ndarray  # (D,)
    eps: float


@dataclass(frozen=True)
class Block:
    """x ← x + out(attention(norm1(x))), then x ← x + down(gelu(up(norm2(x)))).

    1/√d is part of the query's rows of `qkv` and a layer scale part of `out` and `down`: the same function, with fewer
    steps in both directions."""

    norm1: Norm
    qkv: Linear
    out: Linear
    norm2: Norm
    up: Linear
    down: Linear


@dataclass(frozen=True)
class Weights:
    patches: np.ndarray  # (D, channels, p, p), without its bias
    stride: tuple[int, int]
    table: np.ndarray  # (N, D): what the tokens are for a picture of zeros: prefix tokens, positions, patch bias
    blocks: list[Block]
    heads: int
    norm: Norm
    pooling: np.ndarray  # (k, N): k weighted means over the tokens are what the classifier reads
    classifier: Linear  # (K, k·D)
    readout: np.ndarray  # (N,) v₀
    prefix_tokens: int
    grid: tuple[int, int]


def check_family(model: nn.Module) -> None:
    """ValueError, saying why, for a model that the graph does not describe."""
    if model_type(model) not in FAMILIES:
        raise ValueError(
            f"export writes ViT, DeiT and DINOv2 classifiers of transformers (model_type {', '.join(FAMILIES)}); this "
            f"is {type(model).__name__} (model_type {model_type(model) or 'none'}). "
            "Any other model can be explained in Python: gmar explain."
        )
    if model.config.hidden_act != "gelu":
        raise ValueError(f"export knows the exact GELU only; this model has hidden_act={model.config.hidden_act!r}.")
    if problem_type(model) == "regression":
        raise ValueError("export writes classifiers; this model has a regression head (problem_type='regression').")


def read_weights(model: nn.Module, seen: Trace) -> Weights:
    """The weights of a classifier that passed `check_family`, for pictures of the size and layout of one that was seen.

    Raises ValueError for a gated MLP, an adapter, or a head that is not linear."""
    config, prefix = model.config, seen.prefix_tokens
    with torch.inference_mode():
        table = _tokens_of_nothing(model, seen.pixel_values)
        (patch,) = _modules(model.base_model.embeddings, nn.Conv2d, 1)
        pooling, classifier = _head(model, len(table), prefix)
        return Weights(
            _array(patch.weight),
            patch.stride,
            _array(table),
            [_block(b, config) for b in blocks(model)],
            config.num_attention_heads,
            _norm(model.base_model.layernorm),
            pooling,
            classifier,
            _array(seen.readout[0]),
            prefix,
            seen.grid,
        )


def _tokens_of_nothing(model, pixel_values):
    """The embedding of a picture of zeros: it holds the position table, cut or interpolated by the model's own code."""
    seen = []
    hook = model.base_model.embeddings.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    try:
        model(torch.zeros_like(pixel_values))
    finally:
        hook.remove()
    return seen[0]


def _block(block, config):
    query, key, value, out, up, down = map(_linear, _modules(block, nn.Linear, 6))
    norm1, norm2 = map(_norm, _modules(block, nn.LayerNorm, 2))
    if len(up.weight) != down.weight.shape[1]:  # some releases keep both halves of a gate in one matrix
        raise ValueError("A gated MLP (SwiGLU) is not in export's graph. Explain the model in Python: gmar explain.")
    scaling = (len(query.bias) // config.num_attention_heads) ** -0.5
    qkv = Linear(
        np.concatenate([scaling * query.weight, key.weight, value.weight]),
        np.concatenate([scaling * query.bias, key.bias, value.bias]),
    )
    scales = [_array(m.lambda1) for m in block.modules() if isinstance(getattr(m, "lambda1", None), nn.Parameter)]
    if scales:
        out, down = (Linear(s[:, None] * m.weight, s * m.bias) for s, m in zip(scales, (out, down), strict=True))
    return Block(norm1, qkv, out, norm2, up, down)


def _head(model, tokens, prefix):
    """What the classifier reads, as weighted means over the tokens (k, N), and one linear layer for all of them."""
    first, second, patch_mean = np.eye(tokens, dtype=np.float32)[:2].tolist() + [
        [0.0] * prefix + [1 / (tokens - prefix)] * (tokens - prefix)
    ]
    if hasattr(model, "distillation_classifier"):
        pooling, parts = [first, second], [model.cls_classifier, model.distillation_classifier]
        share = 0.5
    else:
        pooling, parts, share = [first], [model.classifier], 1.0
        if model_type(model).startswith("dinov2"):
            pooling.append(patch_mean)
    for part in parts:
        if type(part) is not nn.Linear:
            raise ValueError(f"export needs a linear classification head; this model has {type(part).__name__}.")
    parts = [_linear(p) for p in parts]
    return np.array(pooling, dtype=np.float32), Linear(
        share * np.concatenate([p.weight for p in parts], 1), share * sum(p.bias for p in parts)
    )


def _modules(module, kind, count):
    """The modules of one kind, in the order in which the model declares them."""
    found = [m for m in module.modules() if isinstance(m, kind)]
    if len(found) != count or any(type(m) is not kind for m in found):
        raise ValueError(
            f"export expected {count} {kind.__name__} in {type(module).__name__} and found "
            f"{[type(m).__name__ for m in found]}: a gated MLP (SwiGLU) or an adapter is not in its graph. "
            "Merge adapters first (PEFT: merge_and_unload)."
        )
    return found


def _linear(module):
    weight = _array(module.weight)
    return Linear(weight, np.zeros(len(weight), np.float32) if module.bias is None else _array(module.bias))


def _norm(module):
    return Norm(_array(module.weight), _array(module.bias), module.eps)


def _array(tensor):
    return tensor.detach().float().cpu().numpy().copy()
