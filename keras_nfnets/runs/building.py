"""Data, network and optimizer of a recipe's training run."""

import dataclasses

import keras
import numpy as np

from keras_nfnets import data, pretrained, training
from keras_nfnets.data.preparation import combined
from keras_nfnets.models.costs import count_activations

# Largest evaluation batch. Larger ones are not faster and take more memory.
_LARGEST_TEST_BATCH = 256


def image_sizes(recipe):
    """Return the image sizes in training and in evaluation.

    Args:
        recipe: `Recipe`.

    Returns:
        A pair of ints: pixels per side. Where the recipe has none, they are those of its
        network.

    Raises:
        ValueError: there is no network of the recipe's name.

    Example:

    >>> from keras_nfnets import recipes
    >>> recipes.image_sizes(recipes.find("nfnet_f0_imagenet"))
    (192, 256)
    """
    network = pretrained.find_network(recipe.model)
    size = recipe.image_size or network.constructor.train_size
    return size, recipe.test_image_size or size


def periods(recipe):
    """Return the periods of a run, see `training.growing_image_sizes`.

    Raises:
        ValueError: `first_image_size` is larger than the image size, or there is only one
            epoch.
    """
    size, _ = image_sizes(recipe)
    first = size if recipe.first_image_size is None else recipe.first_image_size
    if first > size:
        raise ValueError(
            f"`first_image_size` must be at most the image size in training, {size}. "
            f"Received: first_image_size={first}"
        )
    if first < size and recipe.epochs < 2:
        raise ValueError(
            "Images need at least two epochs to grow. Received: epochs=1, "
            f"first_image_size={first}, image_size={size}"
        )
    return training.growing_image_sizes(first, size, recipe.epochs)


def training_size(recipe):
    """Describe the size of the training images, such as `"from 128 x 128 to 224 x 224"`."""
    sizes = [f"{period.image_size} x {period.image_size}" for period in periods(recipe)]
    return f"from {sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else sizes[0]


def with_parts(recipe, source):
    """Return a recipe with the name that a data set has for the evaluation split.

    That split is the recipe's `test_split`. If the recipe says `"test"` or `"validation"`
    and the data set has only the other one of these, it is that one.

    Args:
        recipe: `Recipe`.
        source: `data.Source`.

    Returns:
        A `Recipe`.

    Raises:
        ValueError: the data set lacks the training split or the evaluation split.

    Example:

    >>> from keras_nfnets import data, recipes
    >>> recipe = recipes.find("digits").changed(["test_split=validation"])
    >>> recipes.with_parts(recipe, data.find("digits")).test_split
    'test'
    """
    source.size_of(recipe.train_split)
    usual = ("test", "validation")
    names = [recipe.test_split, *(usual if recipe.test_split in usual else ())]
    for name in names:
        try:
            source.size_of(name)
        except ValueError:
            continue
        return dataclasses.replace(recipe, test_split=name)
    raise ValueError(
        f"A data set must have a split {' or '.join(dict.fromkeys(names))} for evaluation. "
        f"Received: {source.name!r} with splits {list(source.splits)}"
    )


def preparation(recipe, source):
    """Return the keyword arguments of `data.prepare` for evaluation.

    Args:
        recipe: `Recipe`.
        source: `data.Source`.

    Returns:
        A dict. If the recipe starts from published weights, images are normalized as in
        the training of these.

    Raises:
        ValueError: the weights of the recipe do not exist.

    Example:

    >>> from keras_nfnets import data, recipes
    >>> recipe = recipes.find("digits")
    >>> recipes.preparation(recipe, data.find("digits"))["size"]
    32
    """
    _, size = image_sizes(recipe)
    changes = {}
    checkpoint = _checkpoint(recipe)
    if checkpoint is not None:
        # Normalize images as in the pretraining of the network.
        changes = {"mean": checkpoint.mean, "deviation": checkpoint.deviation}
    for name in ("crop_mode", "interpolation"):
        if getattr(recipe, name) is not None:
            changes[name] = getattr(recipe, name)
    return combined(source, size, changes)


def _checkpoint(recipe):
    """Return the published checkpoint that the recipe starts from, or None."""
    if recipe.weights is None:
        return None
    architecture = pretrained.find_network(recipe.model).architecture
    return pretrained.find(recipe.weights, architecture).checkpoint


def load(recipe, source, split, *, training=False, **options):
    """Load a split in batches: `data.load` with the settings of a recipe.

    Args:
        recipe: `Recipe`.
        source: `data.Source`.
        split: str. Name of a split of the data set.
        training: bool. Whether to shuffle and augment the images, as for training.
            Otherwise a batch has at most 256 images.
        **options: other arguments of `data.load`, such as `from_epoch`.

    Returns:
        A `tf.data.Dataset` of `(images, labels)`, see `data.load`.

    Raises:
        ValueError: there is no such split, or an option is out of range.

    Example:

    >>> from keras_nfnets import data, recipes
    >>> recipe, source = recipes.find("digits"), data.find("digits")
    >>> images, labels = next(iter(recipes.load(recipe, source, "test")))
    >>> tuple(images.shape), tuple(labels.shape)
    ((64, 32, 32, 1), (64, 10))
    """
    size, test_size = image_sizes(recipe)
    batch_size = recipe.batch_size
    return data.load(
        source,
        split,
        size if training else test_size,
        batch_size if training else min(batch_size, _LARGEST_TEST_BATCH),
        training=training,
        augmentation=recipe.augmentation,
        preparation=preparation(recipe, source),
        seed=recipe.seed,
        **options,
    )


def create_model(recipe, source):
    """Create the network of a recipe for the classes of a data set.

    Args:
        recipe: `Recipe`.
        source: `data.Source`.

    Returns:
        An `AGCModel` that is not compiled. Its input has the image size of the recipe, or
        any size if images grow in training or have another size in evaluation.

    Raises:
        ValueError: there is no such network, or there are no such weights.
        OSError: the weights cannot be fetched.

    Example:

    >>> from keras_nfnets import data, recipes
    >>> model = recipes.create_model(recipes.find("digits"), data.find("digits"))
    >>> model.input_shape, model.output_shape
    ((None, 32, 32, 1), (None, 10))
    """
    _, test_size = image_sizes(recipe)
    sizes = {test_size, *(period.image_size for period in periods(recipe))}
    sides = (test_size if len(sizes) == 1 else None,) * 2
    rates = {
        name: getattr(recipe, name)
        for name in ("drop_rate", "stochastic_depth_rate")
        if getattr(recipe, name) is not None
    }
    return pretrained.find_network(recipe.model).build(
        weights=recipe.weights,
        input_shape=(*sides, source.channels),
        classes=len(source.class_names),
        **rates,
    )


def schedule(recipe, steps_per_epoch):
    """Return the learning rate schedule of a recipe, see `training.warmup_cosine`.

    Args:
        recipe: `Recipe`.
        steps_per_epoch: int. Number of steps per epoch, see `data.steps_per_epoch`.

    Returns:
        A `keras.optimizers.schedules.LearningRateSchedule` of the number of steps.

    Raises:
        ValueError: an argument or a setting is out of range.

    Example:

    >>> from keras_nfnets import recipes
    >>> rate = recipes.schedule(recipes.find("digits"), steps_per_epoch=23)
    >>> float(rate(0))
    0.0
    """
    return training.warmup_cosine(
        recipe.learning_rate,
        recipe.batch_size,
        steps_per_epoch=steps_per_epoch,
        epochs=recipe.epochs,
        warmup_epochs=recipe.warmup_epochs,
        final_learning_rate=recipe.final_learning_rate,
    )


def compile_model(recipe, model, steps_per_epoch):
    """Compile a model with the optimizer, schedule, loss and clipping of a recipe.

    Args:
        recipe: `Recipe`.
        model: `AGCModel`, such as of `create_model`.
        steps_per_epoch: int. Number of steps per epoch, see `data.steps_per_epoch`.

    Raises:
        ValueError: an argument or a setting is out of range.

    Example:

    >>> from keras_nfnets import data, recipes
    >>> recipe, source = recipes.find("digits"), data.find("digits")
    >>> steps = data.steps_per_epoch(source.size_of("train"), recipe.batch_size)
    >>> model = recipes.create_model(recipe, source)
    >>> recipes.compile_model(recipe, model, steps)
    >>> model.training_settings["clip_factor"] == recipe.clip_factor
    True
    """
    rate = schedule(recipe, steps_per_epoch)
    if recipe.weight_decay is None:
        optimizer = keras.optimizers.SGD(
            rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0
        )
    else:
        optimizer = training.SGDAGC(
            rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            clip_factor=recipe.clip_factor,
        )
    model.compile(
        optimizer,
        keras.losses.CategoricalCrossentropy(label_smoothing=recipe.label_smoothing),
        metrics=["accuracy"],
        clip_factor=recipe.clip_factor,
        sam_rho=recipe.sam_rho,
        ema_decay=recipe.ema_decay,
        skip_nonfinite=True,
    )


def train_head(recipe, model, source):
    """Train only the classifier, on features that are computed once.

    The rest of the network is frozen and runs in inference mode. The classifier is trained
    by Adam for the recipe's `head_epochs`.

    Args:
        recipe: `Recipe`.
        model: model of `create_model`, whose classifier is trained in place.
        source: `data.Source`.

    Returns:
        A pair of floats: the accuracies on the training split and on the evaluation split.

    Raises:
        ValueError: the data set lacks one of these splits.

    Example:

    >>> from keras_nfnets import data, recipes
    >>> recipe = recipes.find("digits").changed(["head_epochs=1"])
    >>> source = data.find("digits")
    >>> model = recipes.create_model(recipe, source)
    >>> train_accuracy, test_accuracy = recipes.train_head(recipe, model, source)
    """
    head = model.get_layer("predictions")
    body = keras.Model(model.input, model.get_layer("avg_pool").output)
    arrays = []
    for split in (recipe.train_split, recipe.test_split):
        # One pass over the images yields both features and labels.
        batches = load(recipe, source, split).as_numpy_iterator()
        pairs = [(body.predict_on_batch(images), labels) for images, labels in batches]
        arrays.append([np.concatenate(batches) for batches in zip(*pairs)])
    (x, y), (x_test, y_test) = arrays
    classifier = keras.Sequential([keras.Input(x.shape[1:]), head])
    classifier.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.CategoricalCrossentropy(label_smoothing=recipe.label_smoothing),
        metrics=["accuracy"],
    )
    history = classifier.fit(
        x,
        y,
        batch_size=recipe.batch_size,
        epochs=recipe.head_epochs,
        validation_data=(x_test, y_test),
        verbose=0,
    ).history
    return history["accuracy"][-1], history["val_accuracy"][-1]


def memory_estimate(recipe, source):
    """Estimate the memory of a training step.

    Args:
        recipe: `Recipe`.
        source: `data.Source`.

    Returns:
        `(parameters, state, saved)`: the number of parameters; the bytes per replica of
        weights, gradients, momentum and further copies of these; and the bytes saved
        for the backward pass of a batch, over all replicas.

    Raises:
        ValueError: there is no network of the recipe's name.

    Example:

    >>> from keras_nfnets import data, recipes
    >>> recipe, source = recipes.find("digits"), data.find("digits")
    >>> parameters, state, saved = recipes.memory_estimate(recipe, source)
    >>> parameters, state
    (159534, 1914408)
    """
    size, _ = image_sizes(recipe)
    with pretrained.without_memory():
        # The counts do not depend on the weights.
        changes = {"first_image_size": None, "test_image_size": size}
        model = create_model(
            dataclasses.replace(recipe, weights=None, **changes), source
        )
        parameters = model.count_params()
        saved = count_activations(model)
    copies = 3 + (recipe.ema_decay is not None) + bool(recipe.sam_rho)
    width = 2 if "16" in recipe.precision else 4
    return parameters, 4 * copies * parameters, recipe.batch_size * width * saved
