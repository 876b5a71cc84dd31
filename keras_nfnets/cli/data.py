"""`keras-nfnets data`."""

import os

import numpy as np

from keras_nfnets import data, recipes
from keras_nfnets.cli import pictures
from keras_nfnets.cli.command import Command, Failure, UsageError

_ROWS, _COLUMNS = 4, 8
# Counting the classes of a larger split would take minutes.
_MOST_COUNTED = 200_000


def run(flags, arguments):
    if len(arguments) > 1:
        raise UsageError(
            "'data' takes one folder, 'digits' or set of TensorFlow Datasets. "
            f"Received: {' '.join(arguments)}"
        )
    try:
        recipe = recipes.find(flags.recipe) if flags.recipe else None
        source = data.find(
            arguments[0] if arguments else recipe.data if recipe else "digits"
        )
        split = flags.split
        total = source.size_of(split)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    parts = {**source.splits, split: total}
    print(
        f"{source.name}: {len(source.class_names)} classes; "
        + ", ".join(f"{count:,} in {part!r}" for part, count in parts.items())
    )
    names = source.class_names
    if total > _MOST_COUNTED:
        print(f"  {', '.join(names[: flags.classes])}")
    else:
        counts = source.counts(split)
        width = max(map(len, names))
        for i in np.argsort(counts, kind="stable")[::-1][: flags.classes]:
            print(f"  {names[i].ljust(width)}  {counts[i]:>8,}")
    if len(names) > flags.classes:
        print(f"  and {len(names) - flags.classes} more")
    if flags.preview:
        _preview(flags, source, split, recipe)
    return 0


def _preview(flags, source, split, recipe):
    """Write a sheet of training images after augmentation."""
    words = (
        flags.augmentation or (recipe and recipe.augmentation) or source.augmentation
    )
    size = flags.image_size
    if size is None:
        size = recipes.image_sizes(recipe)[0] if recipe else 128
    preparation = recipes.preparation(recipe, source) if recipe else source.preparation
    try:
        batches = data.load(
            source,
            split,
            size,
            _ROWS * _COLUMNS,
            training=True,
            augmentation=words,
            preparation=preparation,
            seed=flags.seed,
        )
        images, labels = next(batches.as_numpy_iterator())
    except (ValueError, StopIteration) as error:
        raise UsageError(str(error) or f"There are no pictures in {split!r}") from error
    title = f"{source.name}, {split}, {size} x {size}: {words}"
    images = pictures.from_standardized(images, preparation)
    captions = [_caption(label, source.class_names) for label in labels]
    try:
        pictures.sheet(images, captions, _COLUMNS, flags.output, title)
    except (OSError, ValueError) as error:
        raise Failure(f"Cannot write --output={flags.output}: {error}") from error
    print(
        f"{os.fspath(flags.output)} shows {len(images)} of them as they are trained on"
    )


def _caption(label, names):
    best = np.argsort(-label, kind="stable")[:2]
    return "\n".join(
        names[i] if label[i] > 0.995 else f"{names[i]} ({label[i]:.0%})"
        for i in best
        if label[i] > 0.005
    )


COMMAND = Command(
    "data",
    "data [FOLDER | NAME] [FLAGS]",
    """\
Says what pictures there are: of a folder that has a folder of pictures for each class,
of a set of TensorFlow Datasets, or of the digits that come along. With --preview it
writes a sheet of them as a network would see them in training.

  keras-nfnets data holiday/
  keras-nfnets data holiday/ --preview --augmentation="crop flip mixup cutmix"
  keras-nfnets data holiday/ --preview --recipe=nfnet_f0_imagenet
""",
    run,
)
_flag = COMMAND.define
_flag("string", "split", "train", "The part of it.")
_flag("integer", "classes", 50, "How many classes to name.", lower_bound=1)
_flag("boolean", "preview", False, "Write a sheet of augmented pictures.")
_flag("string", "output", "preview.png", "The file for it.")
_flag(
    "string",
    "augmentation",
    None,
    f"One or more of {data.WORDS}; by default the recipe's, or what suits the data.",
)
_flag("string", "recipe", None, "Show what that recipe of 'keras-nfnets train' does.")
_flag("integer", "image_size", None, "Pixels a side.", lower_bound=8)
_flag("integer", "seed", 0, "Another one shows others.", lower_bound=0)
