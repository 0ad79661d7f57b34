"""Methods × metrics over a data set, in tables with intervals and provenance."""

from .measures import METRICS, Measure
from .run import evaluate
from .summary import Summary
from .variants import DEFAULT_METHODS
