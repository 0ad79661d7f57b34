"""Methods × metrics over a data set, in tables with intervals and provenance."""

from .run import DEFAULT_METHODS, DEFAULT_PROTOCOL, Results, evaluate

__all__ = ["DEFAULT_METHODS", "DEFAULT_PROTOCOL", "Results", "evaluate"]
