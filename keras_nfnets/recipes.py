"""Recipes of training runs, and functions that create their data, network and optimizer.

`keras_nfnets.runs` trains by a recipe.
"""

from keras_nfnets.runs.building import (
    compile_model,
    create_model,
    image_sizes,
    load,
    memory_estimate,
    preparation,
    schedule,
    train_head,
    with_parts,
)
from keras_nfnets.settings import PRECISIONS, RECIPES, Recipe, find

__all__ = [
    "PRECISIONS",
    "RECIPES",
    "Recipe",
    "compile_model",
    "create_model",
    "find",
    "image_sizes",
    "load",
    "memory_estimate",
    "preparation",
    "schedule",
    "train_head",
    "with_parts",
]
