"""Channel attention: a weight for every channel of every picture."""

import keras
from keras import ops

from keras_nfnets import checks


@keras.saving.register_keras_serializable("keras_nfnets")
class SqueezeExcite(keras.layers.Layer):
    """Squeeze-and-excitation that keeps the signal's scale: `2 * sigmoid(fc(x)) * x`.

    The gate is computed from the mean over height and width through two dense layers
    with a ReLU between them. At initialization it is about one half, hence the two.

    Args:
        se_ratio: width of the hidden layer as a share of the channels; the width is
            rounded down, and at least one.
        data_format: `"channels_last"` or `"channels_first"`; by default Keras's.
        **kwargs: of `keras.layers.Layer`.

    Input and output: float tensors `(batch, height, width, channels)`, or with the
    channels second. The mean is taken in float32 or better.

    Raises:
        ValueError: `se_ratio` is not positive, or the input is not of rank 4.

    Example:

    >>> tuple(SqueezeExcite(se_ratio=0.25)(keras.random.normal((2, 7, 7, 64))).shape)
    (2, 7, 7, 64)

    Reference: Hu, Shen, Sun (2018), arXiv 1709.01507; the factor two: arXiv
    2102.06171, appendix A.
    """

    def __init__(self, se_ratio=0.5, data_format=None, **kwargs):
        super().__init__(**kwargs)
        self.se_ratio = checks.number("se_ratio", se_ratio, exclusive=True)
        self.data_format = checks.data_format(data_format)

    def build(self, input_shape):
        if len(input_shape) != 4:
            raise ValueError(
                "SqueezeExcite expects pictures, a tensor of rank 4. Received: "
                f"input_shape={tuple(input_shape)}"
            )
        channels = input_shape[3 if self.data_format == "channels_last" else 1]
        hidden = max(1, int(channels * self.se_ratio))
        self.fc0 = keras.layers.Dense(
            hidden, activation="relu", dtype=self.dtype_policy, name="fc0"
        )
        self.fc1 = keras.layers.Dense(
            channels, activation="sigmoid", dtype=self.dtype_policy, name="fc1"
        )
        self.fc0.build((None, channels))
        self.fc1.build((None, hidden))

    def call(self, inputs):
        channels_last = self.data_format == "channels_last"
        spatial = (1, 2) if channels_last else (2, 3)
        precise = keras.backend.result_type(inputs.dtype, "float32")
        squeezed = ops.mean(ops.cast(inputs, precise), axis=spatial)
        gate = self.fc1(self.fc0(ops.cast(squeezed, inputs.dtype)))
        return inputs * (2 * ops.expand_dims(gate, spatial))

    def count_flops(self):
        """Multiply-adds of the two dense layers for one picture."""
        return (
            self.fc0.kernel.shape[0] * self.fc0.units + self.fc0.units * self.fc1.units
        )

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "se_ratio": self.se_ratio,
            "data_format": self.data_format,
        }
