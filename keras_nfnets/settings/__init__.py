"""Settings of the papers' training runs and of your own, in one short file each."""

from keras_nfnets import checks, data
from keras_nfnets.settings import (
    digits,
    finetune,
    nf_regnet_imagenet,
    nf_resnet50_imagenet,
    nfnet_imagenet,
)
from keras_nfnets.settings.recipe import Recipe
from keras_nfnets.tables import PRECISIONS

__all__ = ["PRECISIONS", "RECIPES", "Recipe", "check_folder", "find", "for_data"]

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
            f"There is no recipe {name!r}{suggestion} The recipes are "
            f"{', '.join(RECIPES)}. Received: {name!r}"
        )
    return RECIPES[name]


def for_data(name):
    """Return the recipe by which `keras-nfnets train --data=NAME` trains.

    Args:
        name: str or path. A folder, or another name that `data.find` accepts.

    Returns:
        A `Recipe`: `"finetune"` for folders, otherwise `"digits"`.

    Example:

    >>> for_data("mnist").model
    'NFNetTiny'
    """
    return RECIPES["finetune" if data.folder_of(name) is not None else "digits"]


def check_folder(output_dir, resume, overwrite):
    """Check arguments of `runs.train` that need no Keras.

    Raises:
        ValueError: they contradict each other, or one has no effect.
    """
    if output_dir == "":
        raise ValueError(
            "`output_dir` must be a folder, which need not exist. Received: an empty name"
        )
    if resume and overwrite:
        raise ValueError(
            "`resume` continues the run in a folder and `overwrite` replaces it. Give one "
            "of them. Received: both"
        )
    if overwrite and not output_dir:
        raise ValueError(
            "`overwrite` has no effect without `output_dir`: a new folder is made. Give "
            f"the folder as `output_dir`. Received: {output_dir}"
        )
