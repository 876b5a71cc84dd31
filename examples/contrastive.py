"""Contrastive learning, where batch norm leaks the answer to the network.

    python examples/contrastive.py

The network sees noisy strips of the left and of the right of 32 digits, and must find the
right strip that belongs to each left strip (InfoNCE). Batch norm computes its statistics
over groups of a few adjacent strips, as it does when each device holds so few. They reveal
which strips belong together, so the network seems to learn the task in training but does
not. The example measures on the test set: the accuracy of the task in training mode and in
inference mode, and that of a linear classifier of the digits that sees the features.
"""

import sys

import comparison
import keras
import numpy as np
from comparison import BATCH_NORM, NORMALIZER_FREE
from keras import layers, ops
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import keras_nfnets
from keras_nfnets.experiments import fitting

PAIRS, TEMPERATURE = 32, 0.2


class BatchNormInGroups(layers.BatchNormalization):
    """Batch norm over groups of `group` adjacent examples in training."""

    def __init__(self, group, **kwargs):
        super().__init__(**kwargs)
        self.group = group

    def call(self, x, training=None, mask=None):
        if not training:
            return super().call(x, training=False)
        groups = ops.reshape(x, (-1, self.group, *x.shape[1:]))
        axes = list(range(1, len(groups.shape) - 1))
        mean, variance = ops.moments(groups, axes, keepdims=True)
        for kept, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            new = ops.mean(ops.reshape(new, (-1, x.shape[-1])), axis=0)
            kept.assign(self.momentum * kept + (1 - self.momentum) * new)
        groups = (groups - mean) / ops.sqrt(variance + self.epsilon)
        return self.gamma * ops.reshape(groups, ops.shape(x)) + self.beta


class Strips(comparison.Batches):
    """Batches of strips `(64, 28, 10, 1)`: left, right, left, right, ... of 32 digits."""

    def __init__(self, digits, seed):
        super().__init__([digits], PAIRS, seed)

    def __getitem__(self, i):
        [digits] = super().__getitem__(i)
        x = strips(digits)
        x = x + self.generator.normal(0, 0.3, x.shape)
        return x.astype("float32"), np.zeros(len(x), "float32")


def strips(digits):
    pairs = np.stack([digits[:, :, :10], digits[:, :, -10:]], axis=1)
    return pairs.reshape(-1, 28, 10, 1)


def encoder(group, momentum):
    x = inputs = keras.Input((28, 10, 1))
    for width in (16, 32, 64):
        x = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(x)
        x = BatchNormInGroups(group, momentum=momentum)(x)
        x = layers.Activation("relu")(x)
    x = layers.Flatten(name="features")(x)
    x = layers.Dense(128, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(32, name="predictions")(x))


def similarities(z):
    """Compute cosine similarities `(32, 32)` of left and right strips / temperature."""
    z = z / ops.sqrt(ops.sum(ops.square(z), axis=-1, keepdims=True) + 1e-6)
    return ops.matmul(z[::2], ops.transpose(z[1::2])) / TEMPERATURE


def info_nce(_, z):
    return keras.losses.sparse_categorical_crossentropy(
        ops.arange(PAIRS), similarities(z), from_logits=True
    )


def task_accuracy(model, digits, training):
    """Return the share of left strips whose most similar right strip is correct."""
    batches = Strips(digits, 0)
    right = []
    for i in range(len(batches)):
        z = model(batches[i][0], training=training)
        found = ops.convert_to_numpy(ops.argmax(similarities(z), axis=-1))
        right.append(found == np.arange(PAIRS))
    return round(float(np.mean(right)), 4)


def probe_accuracy(model, learn, test):
    """Return the accuracy of a linear classifier on the features of both strips."""
    body = keras.Model(model.inputs, model.get_layer("features").output)
    (x, y), (test_x, test_y) = (
        (body.predict(strips(digits), verbose=0).reshape(len(digits), -1), labels)
        for digits, labels in (learn, test)
    )
    classifier = make_pipeline(StandardScaler(), RidgeClassifier(alpha=100))
    return round(float(classifier.fit(x, y).score(test_x, test_y)), 4)


def main(arguments=None):
    chosen = comparison.options(
        __doc__,
        arguments,
        epochs=8,
        examples=3500,
        groups=[4, 8, 16, 64],
        rates=[0.1, 0.4, 1.6],
    )
    if any(2 * PAIRS % group for group in chosen.groups):
        sys.exit(f"--groups must divide {2 * PAIRS}. Received: {chosen.groups}")
    x, y = comparison.digits()
    learn = x[: chosen.examples], y[: chosen.examples]
    validation, test = x[3500:4000], (x[4000:], y[4000:])

    def run(case, rate, seed):
        batches = Strips(learn[0], seed)
        momentum = fitting.momentum(len(batches) * chosen.epochs)
        model = encoder(case["group"], momentum)
        if case["network"] == NORMALIZER_FREE:
            model = keras_nfnets.normalizer_free(model, batches[0][0])
        comparison.fit(model, batches, info_nce, rate, 2 * PAIRS, chosen.epochs)
        measured = {
            "validation": task_accuracy(model, validation, training=False),
            "inference": task_accuracy(model, test[0], training=False),
            "probe": probe_accuracy(model, learn, test),
        }
        # Last, because training mode changes the running statistics.
        return {**measured, "training": task_accuracy(model, test[0], training=True)}

    cases = [{"network": BATCH_NORM, "group": group} for group in chosen.groups]
    cases.append({"network": NORMALIZER_FREE, "group": 2 * PAIRS})
    rows = comparison.run_all(run, cases, chosen)
    measures = {
        "training": "task, training mode",
        "inference": "task, inference mode",
        "probe": "linear classifier on the features",
    }
    comparison.show(rows, "group", measures, chosen)


if __name__ == "__main__":
    main()
