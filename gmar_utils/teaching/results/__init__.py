"""The tables of book/results: made, read and drawn."""

from pathlib import Path

RESULTS = Path(__file__).parents[3] / "book/results"  # of a copy of the project; the installed package holds no tables
