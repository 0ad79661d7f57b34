"""Attention-based explanations of Vision Transformers: rollout, GMAR, LeGrad and what they are compared with."""

import importlib.util

__version__ = "0.2.0"
from .capture import Trace, probability, trace
from .methods import METHODS, Method, explain, explain_many
from .model import Explanation, Vit, load_model

__all__ = [
    "METHODS",
    "Explanation",
    "Method",
    "Trace",
    "TrustCard",
    "Vit",
    "evaluate",
    "explain",
    "explain_many",
    "load_model",
    "probability",
    "trace",
    "trust",
]
_LATER = {"evaluate": "evaluation", "trust": "trustcard", "TrustCard": "trustcard"}


def __getattr__(name: str) -> object:
    """What needs pandas, scipy, datasets or matplotlib is imported at first use, not by `import gmar_utils`."""
    if name in _LATER:
        return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
    if importlib.util.find_spec(f".{name}", __name__):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
