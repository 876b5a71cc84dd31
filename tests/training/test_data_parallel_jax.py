"""`keras.distribution.DataParallel` on eight devices trains as on one device (JAX)."""

import contextlib

import keras
import numpy as np
import pytest
from divided import OPTIONS

import keras_nfnets
from keras_nfnets import AGC, SGDAGC

WAYS = {
    "model": OPTIONS["momentum"],
    "wrapper": lambda: {"optimizer": AGC(keras.optimizers.SGD(0.1, momentum=0.9))},
    "optimizer": lambda: {"optimizer": SGDAGC(0.1)},
    "all at once": OPTIONS["all at once"],
}


@contextlib.contextmanager
def data_parallel(devices):
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(
            devices=keras.distribution.list_devices()[:devices]
        )
    )
    try:
        yield
    finally:
        keras.distribution.set_distribution(None)


def network():
    return keras_nfnets.NFNet(
        (1,),
        (16,),
        group_size=8,
        classes=10,
        classifier_activation=None,
        drop_rate=0.2,
        stochastic_depth_rate=0.2,
    )


def small_model():
    inputs = keras.Input((8, 8, 3))
    x = keras_nfnets.WSConv2D(8, 3, activation="relu")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras_nfnets.AGCModel(inputs, keras.layers.Dense(10, name="predictions")(x))


def train(devices, way):
    random = np.random.default_rng(0)
    x = random.normal(size=(32, 8, 8, 3)).astype("float32")
    y = random.integers(0, 10, 32)
    with data_parallel(devices):
        keras.utils.set_random_seed(0)
        model = network() if way == "all at once" else small_model()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(loss=loss, metrics=["accuracy"], clip_factor=0.01, **WAYS[way]())
        history = model.fit(
            x, y, 16, epochs=2, verbose=0, shuffle=False, validation_data=(x, y)
        ).history
        prediction = model.predict(x, batch_size=16, verbose=0)
    shardings = {v.value.sharding.num_devices for v in model.trainable_variables}
    assert shardings == {devices}
    return history, model, prediction


@pytest.mark.parametrize("way", WAYS)
def test_eight_devices_train_as_one(way):
    history, model, prediction = train(8, way)
    expected, one, expected_prediction = train(1, way)
    assert set(history) == set(expected)
    for name in history:
        np.testing.assert_allclose(history[name], expected[name], 2e-5, err_msg=name)
    for v, w in zip(model.trainable_variables, one.trainable_variables):
        v, w = v.numpy(), w.numpy()
        scale = max(np.abs(w).max(), 1e-3)  # gains and biases start at zero
        np.testing.assert_allclose(v, w, rtol=0, atol=2e-5 * scale)
    np.testing.assert_allclose(prediction, expected_prediction, rtol=1e-4, atol=1e-4)
