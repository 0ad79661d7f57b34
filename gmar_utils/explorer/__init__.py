"""Sliders over a live map: with a kernel, and without one in the static page."""

from .packing import METHODS_SHOWN, NORMS, pack, state_map
from .widget import PRESETS, SHOW, VARIANTS, explore

__all__ = ["METHODS_SHOWN", "NORMS", "PRESETS", "SHOW", "VARIANTS", "explore", "pack", "state_map"]
