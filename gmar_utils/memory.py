"""Whether a picture's attention fits in memory, asked before the first forward pass."""

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from .capture.layout import unwrap, vision_config

# Of a container: allowed, used.
_LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def available(device: torch.device) -> int:
    """Bytes that this process can still have on `device`: of a GPU, or of the machine, container and ulimit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil  # accelerate brings it

    limits = [psutil.virtual_memory().available]
    for names in _LIMITS:
        with suppress(OSError, ValueError):  # no such limit
            allowed, used = (int(Path("/sys/fs/cgroup", name).read_text()) for name in names)
            limits.append(allowed - used)
    process = psutil.Process()
    if hasattr(process, "rlimit") and (ceiling := process.rlimit(psutil.RLIMIT_AS)[0]) != psutil.RLIM_INFINITY:
        limits.append(ceiling - process.memory_info().vms)
    return max(0, min(limits))


def attention_bytes(model: nn.Module, shape: Sequence[int]) -> int | None:
    """4·B·L·H·N², what the attention of pixel values of `shape` (B, channels, height, width) takes in float32.

    None for a model that does not say its layers, heads and patch size."""
    config, inner = vision_config(model), unwrap(model)
    try:
        if hasattr(config, "num_attention_heads"):
            patch, layers, heads = config.patch_size, config.num_hidden_layers, config.num_attention_heads
        else:  # timm
            patch, layers, heads = inner.patch_embed.patch_size, len(inner.blocks), inner.blocks[0].attn.num_heads
        rows, columns = (patch, patch) if isinstance(patch, int) else patch
        return 4 * shape[0] * layers * int(heads) * (shape[-2] // rows * (shape[-1] // columns)) ** 2
    except (AttributeError, TypeError):  # it has no such thing, or a list of them, one for each stage
        return None


def check_fits(model: nn.Module, shape: Sequence[int], device: torch.device) -> None:
    """MemoryError when the attention of pixel values of `shape`, or they themselves, exceed what is available."""
    needed, free = max(attention_bytes(model, shape) or 0, 4 * math.prod(shape)), available(device)
    if needed > free:
        raise MemoryError(
            f"At {shape[-2]}×{shape[-1]} pixels the attention of {shape[0]} picture{'s' * (shape[0] > 1)} takes at "
            f"least {needed / 1e9:.3g} GB; {free / 1e9:.3g} GB are available. Use a smaller image size."
        )
