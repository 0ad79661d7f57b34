"""A model held still while it is looked at: one thread at a time, and everything put back afterwards."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .layout import find_blocks, parts

_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_NEW_LOCK, _EAGER = threading.Lock(), threading.RLock()


class once:
    """A property that is computed at its first use and kept.

    `functools.cached_property` will not do: until Python 3.12 it holds one lock for all instances while it computes. A
    thread that waits for a model there, and one that has the model and reads the property, would wait for each other.
    """

    def __init__(self, compute):
        self.compute, self.__name__, self.__doc__ = compute, compute.__name__, compute.__doc__

    def __get__(self, instance, owner=None):
        if instance is None:
            return self
        found = instance.__dict__[self.__name__] = self.compute(instance)
        return found


@contextmanager
def settled(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Eval mode, PyTorch's own attention and frozen parameters (a backward pass computes no weight gradients) inside
    this context, and no compiled part. Everything is put back afterwards, also after an error.

    Other threads that settle the model, or another wrapper around the same blocks, wait.

    Yields:
        The model's blocks, as `find_blocks`.
    """
    modules = parts(model)
    blocks, kinds = find_blocks(model, modules), {type(m) for m in modules}
    if any(issubclass(kind, torch.jit.ScriptModule) for kind in kinds):
        raise ValueError(
            f"{type(model).__name__} is scripted or traced (torch.jit): its attention is out of reach. "
            "Pass the module that it was made from."
        )
    with _lock(blocks[0] if blocks else model), ExitStack() as stack:
        weights = [p for m in modules for p in m._parameters.values() if p is not None and p.requires_grad]
        changes = [(m, "training") for m in modules if m.training] + [(p, "requires_grad") for p in weights]
        for thing, flag in changes:
            stack.callback(setattr, thing, flag, True)
            setattr(thing, flag, False)
        _choose_attention(modules, stack)
        if any(m._compiled_call_impl for m in modules) or any(k.__name__ == "OptimizedModule" for k in kinds):
            stack.enter_context(_EAGER)  # the stance is the process's, not the model's
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield blocks


def _choose_attention(modules, stack):
    """PyTorch's own attention in every transformers model among the modules."""
    chosen = [(m, getattr(m.__dict__.get("config"), "_attn_implementation", None)) for m in reversed(modules)]
    others = {id(m.config): (m, before) for m, before in chosen if before not in (None, "sdpa")}.values()
    for module, before in others:  # put back from the outside in: a model's choice is its parts' too
        stack.callback(setattr, module.config, "_attn_implementation", before)
    for module, _ in reversed(others):
        with suppress(ValueError, AttributeError):  # no such choice: the recorder says that there is nothing to see
            module.set_attn_implementation("sdpa")


def _lock(key):
    """One lock a model; all wrappers around the same blocks share it."""
    with _NEW_LOCK:
        return _LOCKS.setdefault(key, threading.RLock())
