"""Sliders over a live map: with a kernel, and without one in the static page."""

from .widget import explore, pack, state_map

__all__ = ["explore", "pack", "state_map"]
