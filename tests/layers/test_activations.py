import gc
import json
import weakref

import keras
import numpy as np
import pytest
from comparing import assert_close
from keras import ops

from keras_nfnets import ScaledActivation, activation_gain

# The authors' table, `nonlinearities` in nfnets/base.py.
PUBLISHED = {
    "identity": 1.0,
    "celu": 1.270926833152771,
    "elu": 1.2716004848480225,
    "gelu": 1.7015043497085571,
    "glu": 1.8484294414520264,
    "leaky_relu": 1.70590341091156,
    "log_sigmoid": 1.9193484783172607,
    "log_softmax": 1.0002083778381348,
    "relu": 1.7139588594436646,
    "relu6": 1.7131484746932983,
    "selu": 1.0008515119552612,
    "sigmoid": 4.803835391998291,
    "silu": 1.7881293296813965,
    "soft_sign": 2.338853120803833,
    "softplus": 1.9203323125839233,
    "tanh": 1.5939117670059204,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_gain_is_used(name):
    assert activation_gain(name) == PUBLISHED[name]
    assert ScaledActivation(name).gain == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_computed_gain_agrees_with_the_published_one(name):
    function = ScaledActivation(name).function
    # The authors' gains come from sampling. Only that of GLU is off by more than 0.1 %: its
    # exact value is 1 / sqrt(E[sigmoid(x)^2]) = 1.8462.
    tolerance = 1.5e-3 if name == "glu" else 1e-3
    assert activation_gain(function) == pytest.approx(PUBLISHED[name], rel=tolerance)


@pytest.mark.parametrize(
    "function, exact",
    [
        (keras.activations.relu, (2 / (1 - 1 / np.pi)) ** 0.5),
        (lambda x: x, 1.0),
        (lambda x: 3 * x + 5, 1 / 3),
        (ops.square, 2**-0.5),
        (ops.sign, 1.0),
    ],
)
def test_computed_gain_is_the_closed_form(function, exact):
    assert activation_gain(function) == pytest.approx(exact, rel=2e-5)


def test_output_of_a_scaled_activation_has_unit_variance():
    x = np.random.default_rng(0).normal(size=(400, 500)).astype("float32")
    for activation in ("relu", "gelu", "silu", "tanh", keras.activations.mish):
        y = ops.convert_to_numpy(ScaledActivation(activation)(x))
        assert y.var() == pytest.approx(1, abs=0.02)


def test_names_follow_the_authors_definitions():
    x = np.linspace(-3, 3, 7).astype("float32")
    tanh_form = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    layer = ScaledActivation("gelu")
    assert_close(layer(x) / layer.gain, tanh_form, atol=1e-6)
    layer = ScaledActivation("leaky_relu")
    assert_close(layer(x) / layer.gain, np.where(x > 0, x, 0.01 * x), atol=1e-6)


def test_a_function_is_not_confused_with_a_name():
    # Keras's gelu is the exact one; saved by name, it would be loaded as the tanh form.
    layer = ScaledActivation(keras.activations.gelu)
    config = json.loads(json.dumps(layer.get_config()))
    again = ScaledActivation.from_config(config)
    assert again.function is keras.activations.gelu
    assert again.gain == layer.gain != activation_gain("gelu")


@pytest.mark.parametrize(
    "name, other",
    [("swish", "silu"), ("linear", "identity"), ("softsign", "soft_sign")],
)
def test_keras_names_mean_the_authors_entries(name, other):
    assert activation_gain(name) == activation_gain(other)


@pytest.mark.parametrize("bad", ["rleu", None, 3, ""])
def test_unknown_activation_is_refused(bad):
    with pytest.raises(ValueError, match="Received: activation="):
        ScaledActivation(bad)


@pytest.mark.parametrize("constant", [lambda x: x * 0, lambda x: x / 0])
def test_activation_without_a_gain_is_refused(constant):
    with pytest.raises(ValueError, match="finite, positive variance"):
        activation_gain(constant)


def test_a_custom_activation_is_not_kept_alive():
    class Scale(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    activation = Scale()
    layer = ScaledActivation(activation, gain=1.5)
    x = np.ones((2, 3), "float32")
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(x, training=True)), 3 * x)
    alive = weakref.ref(activation)
    del activation, layer
    gc.collect()
    assert alive() is None
