"""Learned scale of a residual branch."""

import keras
from keras import ops

from keras_nfnets import checks


@keras.saving.register_keras_serializable("keras_nfnets")
class SkipGain(keras.layers.Layer):
    """Residual branch times `alpha` and a learned scalar gain: `alpha * gain * x`.

    `NFBlock` scales its branch in this way; this layer does so in other residual blocks.
    With the default initializer, `"zeros"`, a block starts as its shortcut.

    Args:
        alpha: float. Standard deviation of the scaled branch at a gain of one, given a
            branch of unit variance.
        initializer: initializer of the gain.
        **kwargs: see `keras.layers.Layer`.

    Input and output: float tensors of the same shape.

    Raises:
        ValueError: `alpha` is not positive and finite.

    Example:

    >>> x = keras.random.normal((2, 8, 8, 16))
    >>> branch = keras_nfnets.WSConv2D(16, 3, padding="same")(x)
    >>> y = keras.layers.Add()([x, SkipGain()(branch)])

    Reference: Brock et al. (2021), arXiv 2102.06171, section 2; De, Smith (2020),
    arXiv 2002.10444 (SkipInit).
    """

    def __init__(self, alpha=0.2, initializer="zeros", **kwargs):
        super().__init__(**kwargs)
        self.alpha = checks.number("alpha", alpha, exclusive=True)
        self.initializer = keras.initializers.get(initializer)
        self.supports_masking = True

    def build(self, input_shape):
        self.skip_gain = self.add_weight(
            name="skip_gain", shape=(), initializer=self.initializer
        )

    def call(self, inputs):
        return inputs * (ops.cast(self.alpha, inputs.dtype) * self.skip_gain)

    def get_config(self):
        initializer = keras.initializers.serialize(self.initializer)
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "initializer": initializer,
        }
