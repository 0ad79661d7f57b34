"""Which explanation of this model may be shown? One page from the reader's own photos."""

from .card import TrustCard
from .making import trust

__all__ = ["TrustCard", "trust"]
