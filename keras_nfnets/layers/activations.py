"""Activations that preserve the unit variance of a standard normal input."""

import functools

import keras
import numpy as np
from keras import ops

from keras_nfnets import checks
from keras_nfnets.backend import fusion


def _gelu(x):
    # The authors' GELU is the tanh approximation; Keras defaults to the exact form.
    return keras.activations.gelu(x, approximate=True)


def _leaky_relu(x):
    # The authors' slope is 0.01; Keras defaults to 0.2.
    return keras.activations.leaky_relu(x, negative_slope=0.01)


# name -> (function, gain): the constants of the table `nonlinearities` in the authors'
# nfnets/base.py, which timm uses too. The authors estimated them from samples, so they
# differ from the exact values of `activation_gain` in the fourth digit.
_PUBLISHED = {
    "identity": (keras.activations.linear, 1.0),
    "celu": (keras.activations.celu, 1.270926833152771),
    "elu": (keras.activations.elu, 1.2716004848480225),
    "gelu": (_gelu, 1.7015043497085571),
    # timm uses the exact form with the gain of the tanh form.
    "gelu_exact": (keras.activations.gelu, 1.7015043497085571),
    "glu": (keras.activations.glu, 1.8484294414520264),
    "leaky_relu": (_leaky_relu, 1.70590341091156),
    "log_sigmoid": (keras.activations.log_sigmoid, 1.9193484783172607),
    "log_softmax": (keras.activations.log_softmax, 1.0002083778381348),
    "relu": (keras.activations.relu, 1.7139588594436646),
    "relu6": (keras.activations.relu6, 1.7131484746932983),
    "selu": (keras.activations.selu, 1.0008515119552612),
    "sigmoid": (keras.activations.sigmoid, 4.803835391998291),
    "silu": (keras.activations.silu, 1.7881293296813965),
    "soft_sign": (keras.activations.softsign, 2.338853120803833),
    "softplus": (keras.activations.softplus, 1.9203323125839233),
    "tanh": (keras.activations.tanh, 1.5939117670059204),
}

# Keras names of entries of the table above.
_ALIASES = {"linear": "identity", "swish": "silu", "softsign": "soft_sign"}


def _published(activation):
    """Return the published (function, gain) of a name, or None."""
    if not isinstance(activation, str):
        return None
    return _PUBLISHED.get(_ALIASES.get(activation, activation))


def published_name(function):
    """Return the authors' name of an activation.

    Args:
        function: callable.

    Returns:
        A str that `ScaledActivation` accepts, or the function itself if it has no name.

    Example:

    >>> published_name(keras.activations.silu)
    'silu'

    Reference: `nonlinearities` in the authors' base.py.
    """
    for name, (published, _) in _PUBLISHED.items():
        if published is function:
            return name
    return function


def _resolve(activation):
    """Return the function of an activation given by name or as a callable."""
    if published := _published(activation):
        return published[0]
    if callable(activation):
        return activation
    try:
        function = keras.activations.get(activation)
    except ValueError:
        function = None
    if function is None or activation is None:
        raise ValueError(
            "`activation` must be a callable, the name of a Keras activation or one "
            f"of {sorted(_PUBLISHED)}. Received: activation={activation!r}"
        )
    return function


def activation_gain(activation):
    """Return the factor that gives an activation unit variance on standard normal input.

    The papers define this gain as `1 / sqrt(Var[f(x)])` for `x ~ N(0, 1)`. A name in the
    authors' table (`"relu"`, `"gelu"`, `"silu"`, ...) has their published constant. For
    any other activation the gain is computed: `f` is applied to four million quantiles
    of the normal distribution, in rows of 256 channels, which includes functions across
    channels (GLU, softmax). For elementwise functions the result is exact to about six
    digits; the published constants, estimated from samples, agree to three.

    Args:
        activation: str, or callable from a float tensor to a float tensor.

    Returns:
        A Python float.

    Raises:
        ValueError: the name is unknown, or the variance of the output is not finite and
            positive, so that no factor can make it one.

    Example:

    >>> round(activation_gain("relu"), 4)
    1.714
    >>> round(activation_gain(keras.activations.relu), 4)  # sqrt(2 / (1 - 1 / pi))
    1.7129

    Reference: Brock, De, Smith (2021), arXiv 2101.08692, section 4.1, appendix D.
    """
    if published := _published(activation):
        return published[1]
    outputs = _resolve(activation)(ops.convert_to_tensor(_standard_normal()))
    with np.errstate(invalid="ignore"):  # infinite outputs raise an error below
        variance = float(np.var(ops.convert_to_numpy(outputs), dtype="float64"))
    if not (np.isfinite(variance) and variance > 0):
        raise ValueError(
            "An activation has a gain only if its output on standard normal input has "
            f"a finite, positive variance. Received: activation={activation!r} with "
            f"variance {variance}"
        )
    return variance**-0.5


def serialize_activation(activation):
    """Serialize an activation for a layer's config; a name remains a name.

    Keras would serialize a function as its name, but `"gelu"` is the tanh form here and
    the exact form in Keras.
    """
    if isinstance(activation, str):
        return activation
    return keras.saving.serialize_keras_object(activation)


def with_deserialized_activation(config):
    """Return a layer's config with its serialized activation deserialized."""
    activation = config.get("activation")
    if isinstance(activation, dict):
        activation = keras.saving.deserialize_keras_object(activation)
        return {**config, "activation": activation}
    return config


def _standard_normal(rows=2**14, channels=256):
    """Return evenly spaced quantiles of N(0, 1), float32 of shape (rows, channels).

    The channels are independent: each is shuffled separately.
    """
    x = np.linspace(-8, 8, 100_001)
    density = np.exp(-(x**2) / 2)
    # The integral up to x includes only half of the cell at x.
    cumulative = np.cumsum(density) - density / 2
    probabilities = (np.arange(rows * channels) + 0.5) / (rows * channels)
    quantiles = np.interp(probabilities, cumulative / cumulative[-1], x)
    shuffle = np.random.default_rng(1).permuted
    return shuffle(quantiles.reshape(rows, channels), axis=0).astype("float32")


def _scaled(function, inputs, gain):
    """Compute `gain * function(inputs)`."""
    outputs = function(inputs)
    return outputs * ops.cast(gain, outputs.dtype)


@functools.cache
def _scaled_by_name(name):
    """Return `_scaled` for an activation, the same object for the same name.

    `fusion.fused` compiles each object once. Activations that are not names are not cached,
    because the cache would keep custom functions and layers alive.
    """
    return functools.partial(_scaled, _resolve(name))


@keras.saving.register_keras_serializable("keras_nfnets")
class ScaledActivation(keras.layers.Layer):
    """Activation times the gain that restores unit variance: `gain * f(x)`.

    Names follow the authors' table, where `"gelu"` is the tanh approximation (the exact
    form is `"gelu_exact"`) and `"leaky_relu"` has slope 0.01. Pass the function
    (`keras.activations.leaky_relu`) for the definition of Keras.

    Args:
        activation: str or callable.
        gain: float. By default `activation_gain(activation)`.
        **kwargs: see `keras.layers.Layer`.

    Input and output: float tensors of the same shape (unless the function changes the
    shape, as GLU does).

    Raises:
        ValueError: see `activation_gain`; or `gain` is not finite and positive.

    Example:

    >>> x = keras.random.normal((8, 16, 16, 64))
    >>> y = ScaledActivation("relu")(x)
    >>> y.shape == x.shape
    True

    Reference: Brock, De, Smith (2021), arXiv 2101.08692, section 4.1; `nonlinearities`
    in the authors' base.py.
    """

    def __init__(self, activation, gain=None, **kwargs):
        super().__init__(**kwargs)
        self.activation = activation
        self.function = _resolve(activation)
        if gain is None:
            gain = activation_gain(activation)
        self.gain = checks.number("gain", gain, exclusive=True)
        self.supports_masking = True

    def call(self, inputs, training=False):
        # Custom functions are not fused: they may read variables or draw random numbers.
        if training and isinstance(self.activation, str):
            return fusion.fused(_scaled_by_name(self.activation), inputs, self.gain)
        if self.gain == 1.0:
            return self.function(inputs)
        return _scaled(self.function, inputs, self.gain)

    def get_config(self):
        return {
            **super().get_config(),
            "activation": serialize_activation(self.activation),
            "gain": self.gain,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**with_deserialized_activation(config))
