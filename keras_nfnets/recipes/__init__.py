"""Recipes of the papers' training runs and of your own, in one short file each."""

from keras_nfnets import checks
from keras_nfnets.recipes import (
    digits,
    finetune,
    nf_regnet_imagenet,
    nf_resnet50_imagenet,
    nfnet_imagenet,
)
from keras_nfnets.recipes.building import (
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
from keras_nfnets.recipes.recipe import PRECISIONS, Recipe

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

RECIPES = {
    **digits.RECIPES,
    **finetune.RECIPES,
    **nfnet_imagenet.RECIPES,
    **nf_regnet_imagenet.RECIPES,
    **nf_resnet50_imagenet.RECIPES,
}


def find(name):
    """Return the `Recipe` of this name.

    Raises:
        ValueError: there is no such recipe.

    Example:

    >>> find("nfnet_f0_imagenet").augmentation
    'crop flip mixup_0.2 cutmix randaugment_4x5'
    """
    if name not in RECIPES:
        suggestion = checks.perhaps(name, RECIPES) or "."
        raise ValueError(
            f"There is no recipe {name!r}{suggestion} There are {', '.join(RECIPES)}."
        )
    return RECIPES[name]
