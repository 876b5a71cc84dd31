"""`keras-nfnets data`."""

import functools
import itertools
import os
import pathlib

from keras_nfnets import data, settings
from keras_nfnets.cli.command import Command, Failure, UsageError, is_given, tell_data
from keras_nfnets.cli.quiet import import_keras
from keras_nfnets.printing import printable

# Counting the classes of a larger split would take minutes.
_MOST_COUNTED = 200_000


def run(flags, arguments):
    if len(arguments) > 1:
        raise UsageError(
            "'data' takes one folder, 'digits' or a data set of TensorFlow Datasets. "
            f"Received: {' '.join(arguments)}"
        )
    if is_given(flags, "recipe") and arguments and not flags.preview:
        raise UsageError(
            "--recipe has no effect with a data set and without --preview. "
            f"Received: {arguments[0]} --recipe={flags.recipe}"
        )
    try:
        recipe = settings.find(flags.recipe) if flags.recipe else None
    except ValueError as error:
        raise UsageError(str(error)) from error
    name = arguments[0] if arguments else recipe.data if recipe else "digits"
    tell_data(name)
    import_keras()
    try:
        source = data.find(name)
        split = flags.split
        total = source.size_of(split)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    splits = {**source.splits, split: total}
    print(
        f"{printable(source.name)}: {len(source.class_names)} classes; "
        + ", ".join(f"{count:,} in {name!r}" for name, count in splits.items())
    )
    names = [printable(name) for name in source.class_names]
    if total > _MOST_COUNTED:
        print(f"  {', '.join(names[: flags.classes])}")
    else:
        counts = source.counts(split)
        width = max(map(len, names))
        most_first = sorted(range(len(names)), key=lambda i: -counts[i])
        for i in most_first[: flags.classes]:
            print(f"  {names[i].ljust(width)}  {counts[i]:>8,}")
    if len(names) > flags.classes:
        print(f"  and {len(names) - flags.classes} more")
    if flags.preview:
        _preview(flags, source, recipe)
    return 0


def _preview(flags, source, recipe):
    """Write a sheet of training images after augmentation."""
    from keras_nfnets import runs

    output = flags.output if is_given(flags, "output") else _free(flags.output)
    try:
        count = runs.preview(
            output,
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
        raise Failure(f"Cannot write --output={output}: {error}") from error
    print(f"{printable(output)} shows {count} training images after augmentation.")


def _free(name):
    """Return a file name that is free, such as `preview-2.png` if there is another."""
    path = pathlib.Path(name)
    for number in itertools.count(2):
        if not os.path.lexists(name):
            return name
        name = f"{path.stem}-{number}{path.suffix}"


COMMAND = Command(
    "data",
    "data [FOLDER | NAME] [FLAGS]",
    """\
Lists the classes and splits of a data set, or draws its augmented images.

  keras-nfnets data digits --preview
  keras-nfnets data holiday/
  keras-nfnets data holiday/ --preview --augmentation="crop flip mixup cutmix"
  keras-nfnets data holiday/ --preview --recipe=nfnet_f0_imagenet

The data set is a folder with one subfolder of images per class, 'digits', which
is bundled (./digits is the folder of that name), or a data set of TensorFlow
Datasets. A folder without splits is divided: about a fifth of all images,
chosen by their file names, is 'test', the others are 'train'. With --preview
it draws training images after augmentation.
""",
    run,
)
_flag = COMMAND.define
_flag("string", "split", "train", "Split of the data set.")
_flag("integer", "classes", 50, "Number of classes to list.", lower_bound=1)
_flag(
    "string",
    "recipe",
    None,
    "Recipe with the data and augmentation to show; see 'keras-nfnets list --recipes'.",
)
_flag("boolean", "preview", False, "Draw augmented training images.", group="preview")
_preview_flag = functools.partial(_flag, group="preview", needs="preview")
_preview_flag("string", "output", "preview.png", "Image file for the preview.")
_preview_flag(
    "string",
    "augmentation",
    None,
    f"One or more of {data.WORDS}; by default that of the recipe or the data.",
)
_preview_flag("integer", "image_size", None, "Image size in pixels.", lower_bound=8)
_preview_flag(
    "integer",
    "seed",
    0,
    "Random seed for the choice of images and the augmentation.",
    lower_bound=0,
)
