"""The tables of book/results: made, read and drawn."""
