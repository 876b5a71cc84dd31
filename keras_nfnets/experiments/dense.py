"""Training of dense predictors with batch norm, with frozen batch norm, and without."""

import functools
import json
import typing

import keras
import numpy as np
from keras import ops

from keras_nfnets import models
from keras_nfnets.backend.keras_internals import layers_of
from keras_nfnets.experiments import fitting, pasted, plots
from keras_nfnets.experiments.experiment import Finding
from keras_nfnets.experiments.fitting import MAIN, SWEEP
from keras_nfnets.experiments.results import (
    distinct,
    median,
    percent,
    select,
    with_spread,
)
from keras_nfnets.training import AGCModel

BATCH_NORM = "batch norm"
FROZEN = "frozen batch norm"
NORMALIZER_FREE = "normalizer-free"
VERSIONS = (BATCH_NORM, FROZEN, NORMALIZER_FREE)

# Number of training images that are the first to pass through a new model: `normalizer_free`
# measures its constants on them, and frozen batch norm its statistics.
_CALIBRATION_IMAGES = 64
# Number of images whose gradients are compared.
_COMPARED = 8


class Task(typing.NamedTuple):
    """A kind of model, and how it is trained and tested.

    Attributes:
        body: callable `(settings, encoder)` that returns a batch-normalized model from
            images to features. `encoder` is a `keras.Model` with `pyramid_outputs`.
        predictor: callable `(settings, body)` that adds layers without normalization and
            returns a `Predictor`.
        loss: callable without arguments that returns what `compile` needs.
        exclude: str. The layers of predictions, which AGC leaves alone.
    """

    body: typing.Callable
    predictor: typing.Callable
    loss: typing.Callable
    exclude: str


class Predictor(typing.NamedTuple):
    """A model with its targets and its score.

    Attributes:
        model: `keras.Model` from images to predictions.
        targets: callable from `pasted.Scenes` to `(y,)` or `(y, sample weights)` for `fit`.
            Those of an image do not depend on the other images.
        score: callable `(predictions, scenes)` that returns a float in [0, 1].
    """

    model: keras.Model
    targets: typing.Callable
    score: typing.Callable


def measure(task):
    """Build the `measure` of an experiment for a `Task`, for cells of `plan`."""

    def measure_cell(settings, cell):
        return _measured(task, settings, cell)

    return measure_cell


def _measured(task, settings, cell):
    seed, version, tuning = cell["seed"], cell["network"], cell["part"] == SWEEP
    batch_size = settings["sweep_batch_size"] if tuning else cell["batch_size"]
    encoder, encoder_accuracy = pretrained(settings, version, seed)
    learned = pasted.scenes(settings, "train", settings["examples"], seed)
    keras.utils.set_random_seed(seed)
    steps = len(learned.images) // batch_size
    model, predictor = build(task, settings, version, encoder, learned.images, steps)
    batches = (learned.images, *predictor.targets(learned))
    row = {"encoder_accuracy": encoder_accuracy}
    if not tuning and batch_size == max(settings["batch_sizes"]):
        few = keras.tree.map_structure(lambda a: a[:_COMPARED], batches)
        row["gradient_difference"] = gradient_difference(model, task.loss(), *few)
    row["diverged"] = _fit(
        settings,
        model,
        task.loss(),
        batches,
        batch_size,
        cell["learning_rate"],
        clipping(settings, version, task.exclude),
    )
    split = "validation" if tuning else "test"
    unseen = pasted.scenes(settings, split, settings["test_examples"], 0)
    predictions = model.predict(unseen.images, batch_size=50, verbose=0)
    predictions = keras.tree.map_structure(np.nan_to_num, predictions)
    row[settings["score"]] = round(predictor.score(predictions, unseen), 5)
    return row


def pretrained(settings, version, seed):
    """Train an encoder as a classifier of single characters.

    Args:
        settings: dict.
        version: str. One of `VERSIONS`. Batch norm and frozen batch norm have the same
            encoder.
        seed: int.

    Returns:
        A `keras.Model` with `pyramid_outputs`, and the classifier's accuracy on test
        images.
    """
    family = fitting.BATCH_NORM if version != NORMALIZER_FREE else fitting.CLIPPED
    weights, accuracy = _pretrained(json.dumps(settings), family, seed)
    classifier = _classifier(settings, family)
    classifier.set_weights(weights)
    return as_encoder(classifier), accuracy


def as_encoder(network):
    """Return the feature maps of a network as an image encoder of KerasHub."""
    outputs = network.pyramid_outputs
    encoder = keras.Model(network.input, list(outputs.values())[-1], name="encoder")
    encoder.pyramid_outputs = outputs
    return encoder


@functools.lru_cache(maxsize=16)
def _pretrained(settings, family, seed):
    """Return the weights and the test accuracy of a classifier.

    Several cells start from the same encoder.
    """
    settings = json.loads(settings)
    data = pasted.single(settings, "train", settings["encoder_examples"], seed)
    batch_size = settings["encoder_batch_size"]
    settings = {**settings, "epochs": settings["encoder_epochs"]}
    steps = settings["epochs"] * len(data[0]) // batch_size
    version = NORMALIZER_FREE if family == fitting.CLIPPED else BATCH_NORM
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def classifier_trained_at(learning_rate):
        keras.utils.set_random_seed(seed)
        model = _classifier(settings, family, steps)
        options = clipping(settings, version, "predictions")
        _fit(settings, model, loss, data, batch_size, learning_rate, options)
        return model

    def accuracy(model, split):
        x, y = pasted.single(settings, split, settings["test_examples"], 0)
        return float((model.predict(x, verbose=0).argmax(axis=-1) == y).mean())

    best = max(
        map(classifier_trained_at, settings["encoder_learning_rates"]),
        key=lambda model: accuracy(model, "validation"),
    )
    return best.get_weights(), round(accuracy(best, "test"), 5)


def _classifier(settings, family, steps=1000):
    return fitting.build(settings, family, (None, None, 3), settings["classes"], steps)


def build(task, settings, version, encoder, x, steps):
    """Build a version of a model.

    Args:
        task: `Task`.
        settings: dict.
        version: str. One of `VERSIONS`.
        encoder: `keras.Model` with `pyramid_outputs`.
        x: array. Training images.
        steps: int. Number of training steps. The running statistics of batch norm are
            means over a tenth of them, at most 100 batches.

    Returns:
        An `AGCModel` from images to predictions, and a `Predictor` that shares its layers.
    """
    x = x[:_CALIBRATION_IMAGES]
    body = task.body(settings, encoder)
    if version == NORMALIZER_FREE:
        # Skip gains that start at zero would hardly grow in so few steps.
        body = models.normalizer_free(
            body, x, alpha=settings["alpha"], skip_gain_initializer="ones"
        )
    if version == FROZEN:
        _measure_statistics(body, encoder, x)
    for layer in _batch_norms(body):
        layer.momentum = fitting.momentum(steps)
    predictor = task.predictor(settings, body)
    inputs = keras.Input(x.shape[1:])
    called = _AsInInference(predictor.model) if version == FROZEN else predictor.model
    return AGCModel(inputs, called(inputs)), predictor


class _AsInInference(keras.layers.Layer):
    """Model that computes the same in training as in inference.

    Its batch norms use their running statistics, and never change them; scales and offsets
    are trained. (A layer whose `trainable` is False would keep these too.)
    """

    def __init__(self, model):
        super().__init__()
        self._model = model

    def call(self, x):
        return self._model(x, training=False)


def _measure_statistics(body, encoder, x):
    """Set the statistics of the batch norms that are not the encoder's to those of `x`."""
    encoder.trainable = False  # keeps the encoder's statistics
    for layer in _batch_norms(body):
        layer.momentum = 0.0
    body(x, training=True)
    encoder.trainable = True


def _batch_norms(model):
    return [
        layer
        for layer in layers_of(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


def clipping(settings, version, exclude):
    """Return the AGC arguments of `compile` for a version."""
    if version != NORMALIZER_FREE:
        return {"clip_factor": None}
    names = ("clip_factor", "agc_eps")
    return {**{name: settings[name] for name in names}, "agc_exclude": exclude}


def _fit(settings, model, loss, data, batch_size, learning_rate, clipping):
    """Train a model, and return whether the run diverged."""
    steps = len(data[0]) // batch_size
    model.compile(
        fitting.optimizer(settings, learning_rate, batch_size, steps), loss, **clipping
    )
    divergence = fitting.StopWhenDiverged()
    model.fit(
        **dict(zip(("x", "y", "sample_weight"), data)),
        batch_size=batch_size,
        epochs=settings["epochs"],
        shuffle=False,
        verbose=0,
        callbacks=[divergence],
    )
    return divergence.diverged or not all(
        bool(ops.all(ops.isfinite(weight))) for weight in model.weights
    )


def gradient_difference(model, loss, *data):
    """Compare the gradient of a batch with the mean of the gradients of its examples.

    Args:
        model: `AGCModel`. Its weights are the same afterwards, but it is compiled anew.
        loss: see `compile`.
        *data: arrays or structures of arrays. Images, targets and perhaps sample weights
            of one batch, as for `train_on_batch`.

    Returns:
        The largest absolute difference of the two gradients in training mode, divided by
        the largest absolute value of the gradient of the batch.
    """
    model.compile(_Recorder(), loss, clip_factor=None)
    before = model.get_weights()

    def gradient(batch):
        chosen = keras.tree.map_structure(lambda a: a[batch], data)
        model.train_on_batch(*chosen)
        found = [
            ops.convert_to_numpy(v).astype("float64") for v in model.trainable_variables
        ]
        model.set_weights(before)
        return found

    count = len(data[0])
    together = gradient(slice(count))
    single = [gradient(slice(i, i + 1)) for i in range(count)]
    differences = [
        np.abs(whole - np.mean(parts, axis=0)).max()
        for whole, *parts in zip(together, *single, strict=True)
    ]
    return float(f"{max(differences) / max(np.abs(g).max() for g in together):.3g}")


class _Recorder(keras.optimizers.Optimizer):
    """Optimizer that replaces each variable with its gradient."""

    def __init__(self):
        super().__init__(learning_rate=1.0, name="recorder")

    def update_step(self, gradient, variable, learning_rate):
        self.assign(variable, gradient)


plan = fitting.plan_with_sweep(fitting.cells_by_batch_size(VERSIONS), VERSIONS)

# Names of the scores.
_NAMES = {"mean_iou": "Mean IoU", "average_precision": "mAP at an IoU of 0.5"}


def draw(figure, rows, settings):
    """Plot the score of each version over the batch size."""
    score = settings["score"]
    main = select(rows, part=MAIN)
    axes = figure.subplots()
    for version in distinct(main, "network"):
        plots.line(axes, select(main, network=version), "batch_size", score, version)
    axes.set(xlabel="batch size (learning rate proportional to it)")
    plots.accuracy_axis(axes, distinct(main, "batch_size"), f"{_NAMES[score]} (%)")


# Rounding errors of gradients in float32 are smaller, effects of batch norm larger.
_ROUNDING = 1e-4


def conclude(rows, settings):
    """Compare the versions at each batch size, and their gradients."""
    main = select(rows, part=MAIN)
    sizes = sorted(distinct(main, "batch_size"))

    def score(version, size):
        of_size = select(main, network=version, batch_size=size)
        return median(of_size, settings["score"])

    findings = []
    for size in sizes:
        scores = {version: score(version, size) for version in VERSIONS}
        shown = ", ".join(f"{version} {percent(v)}" for version, v in scores.items())
        lead = scores[NORMALIZER_FREE] - max(scores[BATCH_NORM], scores[FROZEN])
        # At the largest size it is enough to be as good.
        least = -plots.NEAR / 2 if size == sizes[-1] else 0
        name = _NAMES[settings["score"]]
        findings.append(Finding(f"{name} at batches of {size}: {shown}.", lead > least))
    changes = {v: score(v, sizes[0]) - score(v, sizes[-1]) for v in VERSIONS}
    shown = ", ".join(f"{v} {100 * change:+.1f}" for v, change in changes.items())
    findings.append(
        Finding(
            f"Changes in points from batches of {sizes[-1]} to {sizes[0]}: {shown}.",
            changes[NORMALIZER_FREE] > changes[BATCH_NORM] + plots.NEAR,
        )
    )
    return [*findings, _gradients(main), *_observed(main)]


def _gradients(main):
    most = {
        version: max(
            row["gradient_difference"]
            for row in select(main, network=version)
            if "gradient_difference" in row
        )
        for version in VERSIONS
    }
    shown = ", ".join(f"{version} {value:.2g}" for version, value in most.items())
    return Finding(
        f"Largest difference between the gradient of {_COMPARED} images and the mean of "
        f"their {_COMPARED} gradients, relative to the largest value: {shown}.",
        most[NORMALIZER_FREE] < _ROUNDING < most[BATCH_NORM],
    )


def _observed(main):
    shown = ", ".join(
        f"{version} "
        + with_spread(select(main, network=version), "encoder_accuracy", percent)
        for version in (BATCH_NORM, NORMALIZER_FREE)
    )
    yield Finding(f"Accuracy of the encoders as classifiers: {shown}.", None)
    for version in VERSIONS:
        runs = select(main, network=version)
        if diverged := sum(row["diverged"] for row in runs):
            text = f"{diverged} of {len(runs)} runs with {version} diverged."
            yield Finding(text, False if version == NORMALIZER_FREE else None)


tables = fitting.accuracy_tables("network", "batch_size", "Score on test images")

# What the pages of both experiments say.
HOW = """Crops of photographs get up to three stamps in random colors, sizes and places, squares with
a handwritten digit, so that masks and boxes are known exactly; training, validation and
test images share neither photographs nor digits. The encoders are a pre-activation ResNet
with batch norm and an NF-ResNet of the same shape, trained in the same way as classifiers
of single stamps, the NF-ResNet with AGC and each with the learning rate, of two, that is
better on validation images. Batch norm computes its statistics from the batch; its
running statistics are means over a tenth of the run. Frozen batch norm starts from the same
encoder and never changes the statistics: in the encoder they are those of the classifier,
in the other layers those of 64 training images before the first step; scales and offsets
are trained. `normalizer_free` converts the other layers for the NF-ResNet, and the model is
trained with AGC. All versions see the same images in the same order, once. The learning
rate of each is tuned in the same way at the largest batch size, and scaled linearly from
there. Gradients are compared before the first step, in training mode."""
BEYOND = """Models of a few blocks, small images, and a few hundred to a thousand steps: scores are far
from those of long training, and differences between the encoders count. `--scale full`
trains a network of the depth of a ResNet-50 on larger images of the same kind."""

SMALL = {
    "side": 48,
    "objects": 3,
    "classes": 3,
    "examples": 1600,
    "test_examples": 200,
    "depths": [1, 1, 1],
    "width": 1,
    "encoder_examples": 6000,
    "encoder_epochs": 6,
    "encoder_batch_size": 32,
    "encoder_learning_rates": [0.2, 0.4],
    "epochs": 1,
    "weight_decay": None,
    "seeds": 3,
    "sweep_batch_size": 8,
    "sweep_seeds": 1,
    "sweep_within": 0.01,
    "batch_sizes": [1, 2, 8],
    # As in `any_network_training`.
    "alpha": 1.0,
    "clip_factor": 0.16,
    "agc_eps": 0.1,
}
FULL = {
    **SMALL,
    "side": 256,
    "classes": 10,
    "examples": 50000,
    "test_examples": 2000,
    "depths": [3, 4, 6],
    "width": 4,
    "encoder_examples": 100000,
    "encoder_epochs": 10,
    "weight_decay": 5e-5,
}
