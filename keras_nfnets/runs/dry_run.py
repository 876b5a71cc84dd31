"""The plan of a run, and two training steps of a small version of it."""

import dataclasses
import time

import keras

from keras_nfnets import data
from keras_nfnets.runs import building

_IMAGES, _SIZE, _STEPS = 4, 64, 2


def plan(recipe):
    """Describe a run without starting it: data, augmentation, steps, memory, ...

    Nothing is downloaded, so the number of images of a TensorFlow Datasets set is
    unknown before its first use.

    Args:
        recipe: `Recipe`.

    Returns:
        dict `{name: description}`, strings.

    Raises:
        ValueError: the data set, network or weights do not exist.

    Example:

    >>> from keras_nfnets import runs
    >>> plan(runs.find_recipe("digits"))["steps"]
    '23 of 64 images per epoch, 15 epochs: 345'
    """
    source, recipe = _source_of(recipe)
    _, test_size = building.image_sizes(recipe)
    examples = source.size_of(recipe.train_split) if source.splits else None
    rows = {"run": recipe.about}
    images = "all images" if examples is None else f"{examples:,} images"
    rows["data"] = (
        f"{images} of {recipe.data} ({recipe.train_split}), "
        f"{len(source.class_names)} classes; evaluated on {recipe.test_split}"
    )
    rows["sizes"] = (
        f"{building.training_size(recipe)} in training, "
        f"{test_size} x {test_size} in evaluation"
    )
    words = recipe.augmentation or source.augmentation
    preparation = building.preparation(recipe, source)
    rows["evaluation"] = preparation["crop_mode"]
    rows["interpolation"] = preparation["interpolation"]
    rows["augmentation"] = words
    for name, value in _describe_augmentation(data.Augmentation.parse(words)).items():
        rows[f"  {name}"] = value
    if examples is not None:
        steps = data.steps_per_epoch(examples, recipe.batch_size)
        rows["steps"] = (
            f"{steps:,} of {recipe.batch_size} images per epoch, {recipe.epochs} epochs: "
            f"{steps * recipe.epochs:,}"
        )
        rows["learning rate"] = _describe_schedule(recipe, steps)
    rows["optimizer"] = _describe_optimizer(recipe)
    parameters, state, saved = building.memory_estimate(recipe, source)
    rows["network"] = f"{recipe.model}, {parameters:,} parameters" + (
        f", from {recipe.weights}" if recipe.weights else ""
    )
    rows["memory"] = (
        f"about {_bytes(state + saved)} on one device: {_bytes(state)} for weights, "
        f"gradients and optimizer, {_bytes(saved)} for the backward pass. Several "
        f"devices divide the latter; with 8: {_bytes(state + saved / 8)} each"
    )
    return rows


def _source_of(recipe):
    """Return the data set, not downloaded, and the recipe with its validation split."""
    source = data.find(recipe.data, download=False)
    if source.splits:  # otherwise they are unknown until the data set is downloaded
        recipe = building.with_parts(recipe, source)
    return source, recipe


def _bytes(number):
    small = number < 2**30
    return f"{number / 2**20:,.0f} MB" if small else f"{number / 2**30:,.1f} GB"


def _describe_augmentation(augmentation):
    rows = {}
    if augmentation.crop:
        rows["crop"] = f"{augmentation.crop:.0%} to 100% of the area"
    if augmentation.flip:
        rows["flip"] = "half of the images, left to right"
    both = augmentation.mixup and augmentation.cutmix
    share = "half of each batch" if both else "all images"
    if augmentation.mixup:
        rows["mixup"] = f"{share}, alpha {augmentation.mixup:g}"
    if augmentation.cutmix:
        rows["cutmix"] = share
    if augmentation.rand_augment:
        layers, magnitude = augmentation.rand_augment
        rows["randaugment"] = f"{layers} operations of magnitude {magnitude}"
    return rows


def _describe_schedule(recipe, steps):
    schedule = building.schedule(recipe, steps)
    peak, end = (
        float(schedule(step)) for step in (schedule.warmup_steps, steps * recipe.epochs)
    )
    return (
        f"0 to {peak:g} in {schedule.warmup_steps:,} steps "
        f"({recipe.learning_rate:g} for a batch of 256), then a cosine to {end:g}"
    )


def _describe_optimizer(recipe):
    words = [f"SGD, Nesterov momentum {recipe.momentum:g}"]
    if recipe.weight_decay:
        words.append(f"weight decay {recipe.weight_decay:g}")
    words.append(f"AGC {recipe.clip_factor:g}" if recipe.clip_factor else "no clipping")
    words.append(f"label smoothing {recipe.label_smoothing:g}")
    if recipe.sam_rho:
        words.append(f"SAM {recipe.sam_rho:g} (two passes per step)")
    if recipe.ema_decay:
        words.append(f"averaged weights {recipe.ema_decay:g}")
    words.append(recipe.precision)
    return ", ".join(words)


def try_steps(recipe):
    """Train two steps of a small version of a run on noise, to find errors in its settings.

    Args:
        recipe: `Recipe`.

    Returns:
        str. What was done, and the resulting loss.

    Raises:
        ValueError: the data set, network or weights do not exist.

    Example:

    >>> from keras_nfnets import runs
    >>> try_steps(runs.find_recipe("digits"))[:29]
    '2 steps with noise (4 images '
    """
    source, recipe = _source_of(recipe)
    small = dataclasses.replace(
        recipe,
        batch_size=_IMAGES,
        image_size=_SIZE,
        first_image_size=None,
        test_image_size=None,
        weights=None,  # they would be downloaded
        train_split="train",
        precision="float32",
    )
    noise = data.random_pictures(
        source.name, _SIZE, source.class_names, source.channels, _IMAGES * _STEPS
    )
    noise.preparation = source.preparation
    keras.utils.set_random_seed(recipe.seed)
    model = building.create_model(small, noise)
    building.compile_model(small, model, steps_per_epoch=_STEPS * 1000)
    # Compiling the largest networks takes minutes.
    model.run_eagerly = True
    started = time.perf_counter()
    history = model.fit(
        building.load(small, noise, "train", training=True, from_epoch=0),
        steps_per_epoch=_STEPS,
        verbose=0,
        shuffle=False,
    ).history
    seconds = time.perf_counter() - started
    return (
        f"{_STEPS} steps with noise ({_IMAGES} images of {_SIZE} x {_SIZE} pixels per "
        f"step, float32, not compiled) took {seconds:.0f} s: "
        f"loss {history['loss'][-1]:.2f}, {int(history['skipped'][-1])} steps with "
        "values that are not finite."
    )
