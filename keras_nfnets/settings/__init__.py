"""Settings of the papers' training runs and of your own, in one short file each."""

from keras_nfnets import checks
from keras_nfnets.runs.recipes import (
    digits,
    finetune,
    nf_regnet_imagenet,
    nf_resnet50_imagenet,
    nfnet_imagenet,
)
from keras_nfnets.runs.recipes.recipe import PRECISIONS, Recipe

__all__ = ["PRECISIONS", "RECIPES", "Recipe", "find"]

RECIPES = {
    **digits.RECIPES,
    **finetune.RECIPES,
    **nfnet_imagenet.RECIPES,
    **nf_regnet_imagenet.RECIPES,
    **nf_resnet50_imagenet.RECIPES,
}


def find(name):
    """Return the `Recipe` of this name.

    Args:
        name: str.

    Returns:
        A `Recipe`.

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
