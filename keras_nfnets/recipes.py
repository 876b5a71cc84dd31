"""Recipes of training runs, and what builds data, network and optimizer from one.

`keras_nfnets.runs` carries them out.
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
