"""Every map, and the one table that names them."""

from .registry import METHODS, Method, bind, explain, explain_many
