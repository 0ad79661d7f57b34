"""A model held still while it is looked at: one thread at a time, and everything put back afterwards."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .layout import find_blocks

_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_NEW_LOCK, _EAGER = threading.Lock(), threading.RLock()


@contextmanager
def settled(model: nn.Module) -> Iterator[None]:
    """Eval mode, PyTorch's own attention and frozen parameters (a backward pass computes no weight gradients) inside
    this context, and no compiled part. Everything is put back afterwards, also after an error.

    Other threads that settle the model, or another wrapper around the same blocks, wait."""
    with _lock(model), ExitStack() as stack:
        modules, configs, compiled = [model], [], False
        for module in modules:  # grows while it runs: `model.modules()` in a fraction of its time
            if module is None:  # an optional part that this model lacks
                continue
            if module._modules:
                modules += module._modules.values()
            if module.training:
                stack.callback(setattr, module, "training", True)
                module.training = False
            for parameter in module._parameters.values():
                if parameter is not None and parameter.requires_grad:
                    stack.callback(parameter.requires_grad_, True)
                    parameter.requires_grad_(False)
            if getattr(getattr(module, "config", None), "_attn_implementation", None) not in (None, "sdpa"):
                configs.append((module, module.config._attn_implementation))
            compiled |= module._compiled_call_impl is not None or hasattr(module, "_torchdynamo_orig_callable")
        for module, before in reversed(configs):  # put back from the outside in: a model's choice is its parts' too
            stack.callback(setattr, module.config, "_attn_implementation", before)
        for module, _ in configs:
            with suppress(ValueError, AttributeError):  # no such choice: the recorder says that there is nothing to see
                module.set_attn_implementation("sdpa")
        if compiled:  # the stance is the process's, not the model's
            stack.enter_context(_EAGER)
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _lock(model):
    """One lock a model; all wrappers around the same blocks share it."""
    key = next(iter(find_blocks(model)), model)
    with _NEW_LOCK:
        return _LOCKS.setdefault(key, threading.RLock())
