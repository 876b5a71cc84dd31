"""`keras-nfnets data`."""

import numpy as np

from keras_nfnets import data, runs
from keras_nfnets.cli.command import Command, Failure, UsageError

# Counting the classes of a larger split would take minutes.
_MOST_COUNTED = 200_000


def run(flags, arguments):
    if len(arguments) > 1:
        raise UsageError(
            "'data' takes one folder, 'digits' or a data set of TensorFlow Datasets. "
            f"Received: {' '.join(arguments)}"
        )
    try:
        recipe = runs.find_recipe(flags.recipe) if flags.recipe else None
        source = data.find(
            arguments[0] if arguments else recipe.data if recipe else "digits"
        )
        split = flags.split
        total = source.size_of(split)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    splits = {**source.splits, split: total}
    print(
        f"{source.name}: {len(source.class_names)} classes; "
        + ", ".join(f"{count:,} in {name!r}" for name, count in splits.items())
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
        _preview(flags, source, recipe)
    return 0


def _preview(flags, source, recipe):
    """Write a sheet of training images after augmentation."""
    try:
        count = runs.preview(
            flags.output,
            source,
            flags.split,
            recipe=recipe,
            augmentation=flags.augmentation,
            image_size=flags.image_size,
            seed=flags.seed,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise Failure(f"Cannot write --output={flags.output}: {error}") from error
    print(f"{flags.output} shows {count} training images after augmentation.")


COMMAND = Command(
    "data",
    "data [FOLDER | NAME] [FLAGS]",
    """\
Lists the classes and splits of a data set: a folder with one subfolder of images per
class, a data set of TensorFlow Datasets, or the bundled digits. With --preview it draws
training images after augmentation.

  keras-nfnets data holiday/
  keras-nfnets data holiday/ --preview --augmentation="crop flip mixup cutmix"
  keras-nfnets data holiday/ --preview --recipe=nfnet_f0_imagenet
""",
    run,
)
_flag = COMMAND.define
_flag("string", "split", "train", "Split of the data set.")
_flag("integer", "classes", 50, "Number of classes to list.", lower_bound=1)
_flag("boolean", "preview", False, "Draw augmented training images.")
_flag("string", "output", "preview.png", "Image file for the preview.")
_flag(
    "string",
    "augmentation",
    None,
    f"One or more of {data.WORDS}; by default that of the recipe or of the data.",
)
_flag(
    "string",
    "recipe",
    None,
    "Recipe whose augmentation to show, see 'keras-nfnets train'.",
)
_flag("integer", "image_size", None, "Image size in pixels.", lower_bound=8)
_flag(
    "integer",
    "seed",
    0,
    "Seed of the choice of images and of the augmentation.",
    lower_bound=0,
)
