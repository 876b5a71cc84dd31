"""Elementwise functions that take the place of normalization in transformers."""

import keras
from keras import ops

from keras_nfnets import checks

# tanh(2) is 0.96, erf(2) is 0.995.
_SATURATED = 2.0


class _Dynamic(keras.layers.Layer):
    """Base class: `gamma * function(alpha * x) + beta`, with a gamma and beta per channel."""

    function = None  # elementwise, with values between -1 and 1

    def __init__(self, initial_alpha=0.5, axis=-1, **kwargs):
        super().__init__(**kwargs)
        self.initial_alpha = checks.number(
            "initial_alpha", initial_alpha, exclusive=True
        )
        if not isinstance(axis, int):
            raise ValueError(
                f"`axis` must be an integer, the axis of channels. Received: {axis!r}"
            )
        self.axis = axis
        self.supports_masking = True

    def build(self, input_shape):
        rank = len(input_shape)
        if not -rank <= self.axis < rank or input_shape[self.axis] is None:
            raise ValueError(
                f"The axis of channels of {self.name!r} must have a known size. Received: "
                f"axis={self.axis} of inputs of shape {tuple(input_shape)}"
            )
        channels = (input_shape[self.axis],)
        self.alpha = self.add_weight(
            name="alpha",
            shape=(),
            initializer=keras.initializers.Constant(self.initial_alpha),
        )
        self.gamma = self.add_weight(name="gamma", shape=channels, initializer="ones")
        self.beta = self.add_weight(name="beta", shape=channels, initializer="zeros")

    def call(self, inputs):
        shape = [1] * len(inputs.shape)
        shape[self.axis] = -1
        gamma, beta = (ops.reshape(x, shape) for x in (self.gamma, self.beta))
        return gamma * self.function(self.scaled(inputs)) + beta

    def scaled(self, inputs):
        """Return the inputs of `function`."""
        return self.alpha * inputs

    def saturated_share(self, inputs):
        """Return the share of the inputs of `function` beyond -2 and 2, a scalar tensor."""
        beyond = ops.abs(self.scaled(inputs)) > _SATURATED
        return ops.mean(ops.cast(beyond, "float32"))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "initial_alpha": self.initial_alpha,
            "axis": self.axis,
        }


@keras.saving.register_keras_serializable("keras_nfnets")
class DynamicTanh(_Dynamic):
    """Dynamic tanh (DyT): `gamma * tanh(alpha * x) + beta`.

    It takes the place of layer normalization in transformers. `alpha` is a learned scalar,
    `gamma` and `beta` have one value per channel. Unlike normalization, the output at a
    position depends on the input at that position and channel only.

    Args:
        initial_alpha: float. Value of `alpha` at the start. Inputs of large variance need a
            smaller one, see `keras_nfnets.normalizer_free`.
        axis: int. Axis of the channels.
        **kwargs: see `keras.layers.Layer`.

    Input and output: float tensors of the same shape.

    Raises:
        ValueError: `initial_alpha` is not positive and finite, or `axis` is not an axis of
            known size.

    Example:

    >>> x = keras.random.normal((2, 16, 64))
    >>> y = DynamicTanh()(x)
    >>> np.allclose(y, np.tanh(0.5 * np.array(x)), atol=1e-6)
    True

    Reference: Zhu et al. (2025), arXiv 2503.10622, section 4.
    """

    function = staticmethod(ops.tanh)


@keras.saving.register_keras_serializable("keras_nfnets")
class DynamicErf(_Dynamic):
    """Dynamic erf (Derf): `gamma * erf(alpha * x + shift) + beta`.

    It takes the place of layer normalization in transformers. `alpha` and `shift` are
    learned scalars, `gamma` and `beta` have one value per channel. The shift starts at
    zero.

    Args:
        initial_alpha: float. Value of `alpha` at the start. Inputs of large variance need a
            smaller one, see `keras_nfnets.normalizer_free`.
        axis: int. Axis of the channels.
        **kwargs: see `keras.layers.Layer`.

    Input and output: float tensors of the same shape.

    Raises:
        ValueError: `initial_alpha` is not positive and finite, or `axis` is not an axis of
            known size.

    Example:

    >>> x = keras.random.normal((2, 16, 64))
    >>> layer = DynamicErf()
    >>> layer(x).shape == x.shape
    True
    >>> [weight.name for weight in layer.weights]
    ['alpha', 'gamma', 'beta', 'shift']

    Reference: Chen et al. (2025), arXiv 2512.10938.
    """

    function = staticmethod(ops.erf)

    def build(self, input_shape):
        super().build(input_shape)
        self.shift = self.add_weight(name="shift", shape=(), initializer="zeros")

    def scaled(self, inputs):
        return super().scaled(inputs) + self.shift
