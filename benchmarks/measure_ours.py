"""Measurement of one network of this package or of `keras.applications`."""

import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from turns import peak_memory, serve, task

import keras_nfnets


def nesterov():
    return keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True)


def training_step(model, x, optimizer, **options):
    """Return a function that takes one training step of `model`.

    It stays valid if `model` is compiled again for another such function. A model of this
    package clips gradients.
    """
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=False, **options)
    y = np.random.default_rng(1).integers(0, model.output_shape[-1], len(x))
    model.make_train_function()
    function = model.train_function

    def step():
        model.train_function = function
        # Returns when the weights are updated, not as soon as the loss is known.
        model.train_on_batch(x, y)

    return step


def inference(model, x, compiled):
    function = tf.function(lambda x: model(x, training=False), jit_compile=compiled)
    x = tf.constant(x)
    return lambda: function(x).numpy()


def deployed(model, x, how):
    """Return a call of a folded model: `how` is "predict" or a runtime."""
    if how == "predict":
        return lambda: model.predict_on_batch(x)
    function = keras_nfnets.inference_function(model, how)
    x = tf.constant(x)
    return lambda: function(x).numpy()


def build(name, size):
    # ResNet50V2 and EfficientNetB7 exist only in `keras.applications`.
    house = keras_nfnets if hasattr(keras_nfnets, name) else keras.applications
    return getattr(house, name)(
        weights=None, input_shape=(size, size, 3), classifier_activation=None
    )


def main():
    imported, asked = peak_memory(), task()
    size = asked["size"]
    start = time.perf_counter()
    model = build(asked["network"], size)
    built = time.perf_counter() - start
    shape = asked["batch"], size, size, 3
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    if asked["kind"] == "train":
        call = training_step(model, x, nesterov())
    else:
        if asked["fold"]:
            model = keras_nfnets.fold(model)
        if "how" in asked:
            call = deployed(model, x, asked["how"])
        else:
            call = inference(model, x, asked["compiled"])
    serve(call, imported, built=built)


if __name__ == "__main__":
    sys.exit(main())
