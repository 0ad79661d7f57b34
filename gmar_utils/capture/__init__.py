"""One forward and one backward pass, seen through its attention; nothing is left behind in the model."""

from .target import probability
from .tracing import Trace, trace
