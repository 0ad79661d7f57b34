"""Which methods are compared: the default set, its pairs, and methods as labels, names, options or functions."""

import inspect
from functools import partial

import numpy as np
import torch
from datasets.fingerprint import Hasher

from ..methods import METHODS, weighting
from ..methods.registry import bind

NORMS = {"paper": (None, "l1", "l2"), "report": ("l1", "l2"), "output-first": ("l1", "l2", "bth")}  # of GMAR's variants
# label: (method, options). `rollout` is GMAR at uniform weights for "output-first", `rollout-report` for "report".
DEFAULT_METHODS = {
    "grad-cam": ("grad-cam", {}),
    "rollout": ("rollout", {}),
    "rollout-report": ("rollout", {"variant": "report"}),
    **{f"gmar-{n or 'none'}-{v}": ("gmar", {"norm": n, "variant": v}) for v, norms in NORMS.items() for n in norms},
    "libra": ("libra", {}),
    "libra-input": ("libra", {"layers": "input"}),
    "libra-upper": ("libra", {"layers": "upper"}),
    **{name: (name, {}) for name in ("legrad", "chefer", "attnlrp", "cdam", "attention", "random", "center")},
}


def bound_methods(methods: object, seed: int = 0) -> dict[str, partial]:
    """{label: f(trace) → (B, N) token scores} from what `evaluate` takes as `methods`.

    Args:
        methods: None (`DEFAULT_METHODS`) | a list of labels of it and names of METHODS | {label: name, (name, options),
            or a function of a trace, such as a functools.partial}.
        seed: random maps are drawn with it.

    Raises:
        ValueError: for a name that does not exist, anything else that is no method, or no method at all.
        TypeError: for an option that a method does not take.
    """
    methods = DEFAULT_METHODS if methods is None else methods
    if not isinstance(methods, dict):
        methods = {m: m for m in ([methods] if isinstance(methods, str) else methods)}
    if not methods:
        raise ValueError(f"There is no method to evaluate; choose from {', '.join([*DEFAULT_METHODS, *METHODS])}.")
    found = {}
    for label, method in methods.items():
        given = DEFAULT_METHODS.get(method, method) if isinstance(method, str) else method
        is_pair = isinstance(given, tuple | list) and len(given) == 2 and isinstance(given[1], dict)
        name, options = given if is_pair else (given, {})
        try:
            found[str(label)] = bind(name, **({"seed": seed} if name == "random" else {}) | options)
        except (TypeError, ValueError) as error:
            raise type(error)(f"method {label!r}: {error}") from None
    return found


def twins(methods: dict[str, partial]) -> dict[str, str]:
    """{label: label of the same method at uniform head weights}, for the bound methods that have such a twin.

    Rollout is GMAR at uniform weights, so it is the twin of the variant with its order.
    """
    full, found = {}, {}
    for label, f in methods.items():
        if f.func in (weighting.rollout, weighting.gmar):
            full[label] = {"norm": None} | {k: p.default for k, p in inspect.signature(f).parameters.items()}
    for label, options in full.items():
        same = [k for k, other in full.items() if other == options | {"norm": None}]
        if same and options["norm"] is not None:
            found[label] = same[0]
    return found


def described(value: object) -> object:
    """Anything that settings hold, as JSON that is the same in every process and differs where the thing does."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(k): described(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [described(v) for v in value]
    if isinstance(value, set | frozenset):
        return described(sorted(value, key=str))
    if isinstance(value, partial):
        return described({"function": value.func, "arguments": [value.args, value.keywords]})
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return f"array {Hasher.hash(torch.as_tensor(value).detach().cpu().float().numpy())}"
    if inspect.iscode(value):
        return described([value.co_code.hex(), value.co_consts, value.co_names])
    if inspect.isfunction(value) or inspect.ismethod(value):
        kept = {
            k: v for k, v in inspect.getclosurevars(value).nonlocals.items() if v is not value
        }  # it may call itself
        about = described([value.__code__, kept, value.__defaults__, value.__kwdefaults__])
        return {"function": f"{value.__module__}.{value.__qualname__}", "code": Hasher.hash(about)}
    return f"{type(value).__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"
