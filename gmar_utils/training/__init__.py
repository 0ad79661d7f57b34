"""Train or fine-tune a classifier to explain."""

from .loop import RECIPES, Recipe, train

__all__ = ["RECIPES", "Recipe", "train"]
