"""Train or fine-tune a classifier to explain."""

from .checkpoint import accuracy, measure, save, starting_point
from .loop import train
from .recipe import RECIPES, Recipe, pictures
