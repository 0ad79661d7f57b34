"""Every map, and the one table that names them."""

from .registry import METHODS, Method, explain, explain_many

__all__ = ["METHODS", "Method", "explain", "explain_many"]
