"""Attention-based explanations of Vision Transformers: rollout, GMAR, LeGrad and what they are compared with."""

__version__ = "0.1.0"
from .capture import Trace, probability, trace
from .explain import METHODS, Method, explain, explain_many
from .models import Vit, load_model

__all__ = ["METHODS", "Method", "Trace", "Vit", "explain", "explain_many", "load_model", "probability", "trace"]
