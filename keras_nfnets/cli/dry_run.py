"""`keras-nfnets train --dry-run`: the plan of a run, and two training steps."""

import dataclasses
import time

import keras

from keras_nfnets import data, recipes
from keras_nfnets.cli.command import UsageError

_PICTURES, _SIDE, _STEPS = 4, 64, 2


def run(recipe):
    """Print the plan of a recipe, train two steps on noise, and return the exit status."""
    try:
        source = data.find(recipe.data, download=False)
        if source.splits:  # else they are unknown until the data set is downloaded
            recipe = recipes.with_parts(recipe, source)
        _print_plan(recipe, source)
        seconds, logs = _two_steps(recipe, source)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    print(
        f"\n{_STEPS} steps with noise ({_PICTURES} pictures of {_SIDE} x {_SIDE} pixels a "
        f"step, float32, not compiled) took {seconds:.0f} s: loss {logs['loss']:.2f}, "
        f"{int(logs['skipped'])} steps with numbers that are not finite.\n"
        "This run can be started."
    )
    return 0


def _print_plan(recipe, source):
    size, test_size = recipes.image_sizes(recipe)
    examples = source.size_of(recipe.train_split) if source.splits else None
    rows = {"run": recipe.about}
    pictures = "as many as there are" if examples is None else f"{examples:,}"
    rows["pictures"] = (
        f"{pictures} of {recipe.data} ({recipe.train_split}), "
        f"{len(source.class_names)} classes; evaluated on {recipe.test_split}"
    )
    rows["sizes"] = f"{size} x {size} to train, {test_size} x {test_size} to evaluate"
    words = recipe.augmentation or source.augmentation
    rows["evaluation"] = recipes.preparation(recipe, source)["crop_mode"]
    rows["augmentation"] = words
    for name, value in _described(data.Augmentation.parse(words)).items():
        rows[f"  {name}"] = value
    if examples is not None:
        steps = data.steps_per_epoch(examples, recipe.batch_size)
        total = steps * recipe.epochs
        rows["steps"] = (
            f"{steps:,} of {recipe.batch_size} pictures an epoch, {recipe.epochs} epochs: "
            f"{total:,}"
        )
        rows["learning rate"] = _described_schedule(recipe, steps)
    rows["optimizer"] = _described_optimizer(recipe)
    parameters, state, kept = recipes.memory_estimate(recipe, source)
    rows["network"] = f"{recipe.model}, {parameters:,} parameters" + (
        f", from {recipe.weights}" if recipe.weights else ""
    )
    rows["memory"] = (
        f"about {_bytes(state + kept)} on one device: {_bytes(state)} for weights, "
        f"gradients and optimizer, {_bytes(kept)} for the backward pass. On more "
        f"devices the latter is divided; with 8: {_bytes(state + kept / 8)} each"
    )
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name.ljust(width)}  {value}")


def _bytes(number):
    small = number < 2**30
    return f"{number / 2**20:,.0f} MB" if small else f"{number / 2**30:,.1f} GB"


def _described(augmentation):
    rows = {}
    if augmentation.crop:
        rows["crop"] = f"{augmentation.crop:.0%} to 100% of the area, bicubic"
    if augmentation.flip:
        rows["flip"] = "half of them, left to right"
    both = augmentation.mixup and augmentation.cutmix
    share = "half of each batch" if both else "all"
    if augmentation.mixup:
        rows["mixup"] = f"{share}, alpha {augmentation.mixup:g}"
    if augmentation.cutmix:
        rows["cutmix"] = share
    if augmentation.rand_augment:
        layers, magnitude = augmentation.rand_augment
        rows["randaugment"] = f"{layers} operations of magnitude {magnitude}"
    return rows


def _described_schedule(recipe, steps):
    schedule = recipes.schedule(recipe, steps)
    rate = [
        float(schedule(step)) for step in (schedule.warmup_steps, steps * recipe.epochs)
    ]
    return (
        f"0 to {rate[0]:g} in {schedule.warmup_steps:,} steps "
        f"({recipe.learning_rate:g} for a batch of 256), then a cosine to {rate[1]:g}"
    )


def _described_optimizer(recipe):
    words = [f"SGD, Nesterov momentum {recipe.momentum:g}"]
    if recipe.weight_decay:
        words.append(f"weight decay {recipe.weight_decay:g}")
    words.append(f"AGC {recipe.clip_factor:g}" if recipe.clip_factor else "no clipping")
    words.append(f"label smoothing {recipe.label_smoothing:g}")
    if recipe.sam_rho:
        words.append(f"SAM {recipe.sam_rho:g} (two passes a step)")
    if recipe.ema_decay:
        words.append(f"averaged weights {recipe.ema_decay:g}")
    words.append(recipe.precision)
    return ", ".join(words)


def _two_steps(recipe, source):
    """Train two steps of a small version of the run; return the seconds and the logs."""
    small = dataclasses.replace(
        recipe,
        batch_size=_PICTURES,
        image_size=_SIDE,
        test_image_size=None,
        weights=None,  # they would be downloaded
        train_split="train",
        precision="float32",
    )
    noise = data.random_pictures(
        source.name, _SIDE, source.class_names, source.channels, _PICTURES * _STEPS
    )
    noise.preparation = source.preparation
    keras.utils.set_random_seed(recipe.seed)
    model = recipes.create_model(small, noise)
    recipes.compile_model(small, model, steps_per_epoch=_STEPS * 1000)
    # Compiling the largest networks takes minutes.
    model.run_eagerly = True
    started = time.perf_counter()
    history = model.fit(
        recipes.load(small, noise, "train", training=True, from_epoch=0),
        steps_per_epoch=_STEPS,
        verbose=0,
        shuffle=False,
    ).history
    return time.perf_counter() - started, {k: v[-1] for k, v in history.items()}
