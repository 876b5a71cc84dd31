"""Sheet of augmented training images."""

import numpy as np

from keras_nfnets import data, settings
from keras_nfnets.runs import building, figures

_ROWS, _COLUMNS = 4, 8


def preview(
    path,
    dataset,
    split="train",
    *,
    recipe=None,
    augmentation=None,
    image_size=None,
    seed=0,
):
    """Draw training images after augmentation, with their labels.

    Args:
        path: path of the image file to write.
        dataset: what `data.find` accepts.
        split: str. Name of the split.
        recipe: `Recipe` or None. Whose augmentation, preprocessing and image size to use;
            None for the augmentation and preprocessing of `settings.for_data`.
        augmentation: str or None. See `data.Augmentation`; None for that of the recipe
            or of the data.
        image_size: int or None. In pixels; None for that of the recipe, or 128.
        seed: int. Seed of the choice of images and of the augmentation.

    Returns:
        int. Number of images drawn.

    Raises:
        ValueError: the data set or split does not exist, or an argument is invalid.
        OSError: the file cannot be written.

    Example:

    >>> preview("digits.png", "digits", augmentation="crop", image_size=32)
    32
    """
    source = data.find(dataset)
    if image_size is None:
        image_size = building.image_sizes(recipe)[0] if recipe else 128
    recipe = recipe or settings.for_data(source.name)
    words = augmentation or recipe.augmentation or source.augmentation
    preparation = building.preparation(recipe, source)
    batches = data.load(
        source,
        split,
        image_size,
        _ROWS * _COLUMNS,
        training=True,
        augmentation=words,
        preparation=preparation,
        seed=seed,
    )
    batch = next(batches.as_numpy_iterator(), None)
    if batch is None:
        raise ValueError(
            f"There are no images in split {split!r} of {source.name} that can be read. "
            f"Repair the images, or choose another split. Received: split={split!r}"
        )
    images, labels = batch
    title = f"{source.name}, {split}, {image_size} x {image_size}: {words}"
    images = figures.from_standardized(images, preparation)
    captions = [_caption(label, source.class_names) for label in labels]
    figures.sheet(images, captions, _COLUMNS, path, title)
    return len(images)


def _caption(label, names):
    best = np.argsort(-label, kind="stable")[:2]
    return "\n".join(
        name if label[i] > 0.995 else f"{name} ({label[i]:.0%})"
        for i in best
        for name in [figures.shortened(names[i], 24)]
        if label[i] > 0.005
    )
