"""Channel attention: a factor for each channel of each image."""

import math

import keras
from keras import ops

from keras_nfnets import checks
from keras_nfnets.backend import keras_internals


class _ChannelAttention(keras.layers.Layer):
    """Base class of channel attention: `2 * gate(mean of x over height and width) * x`.

    At initialization a gate is about one half, so the factor 2 preserves the scale of
    the signal (arXiv 2102.06171, appendix A).
    """

    def __init__(self, data_format=None, **kwargs):
        super().__init__(**kwargs)
        self.data_format = checks.data_format(data_format)

    def build(self, input_shape):
        if len(input_shape) != 4:
            raise ValueError(
                f"{type(self).__name__} expects images, a tensor of rank 4. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        channels = input_shape[3 if self.data_format == "channels_last" else 1]
        self.build_gate(checks.integer("channels of the input", channels))
        keras_internals.freeze_inside(self)

    def call(self, inputs):
        return inputs * self.factors(inputs)

    def factors(self, inputs):
        """Compute the factors that `call` applies: one per channel of each image."""
        channels_last = self.data_format == "channels_last"
        spatial = (1, 2) if channels_last else (2, 3)
        precise = keras.backend.result_type(inputs.dtype, "float32")
        squeezed = ops.mean(ops.cast(inputs, precise), axis=spatial)
        gate = self.gate(ops.cast(squeezed, inputs.dtype))
        return 2 * ops.expand_dims(gate, spatial)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "data_format": self.data_format}


@keras.saving.register_keras_serializable("keras_nfnets")
class SqueezeExcite(_ChannelAttention):
    """Squeeze-and-excitation that preserves the signal's scale: `2 * sigmoid(fc(x)) * x`.

    Two dense layers with a ReLU between them compute the gate from the mean over height
    and width.

    Args:
        se_ratio: float. Width of the hidden layer as a fraction of the channels. The
            width is rounded down and is at least one.
        data_format: str. `"channels_last"` or `"channels_first"`; by default that of
            the Keras configuration.
        divisor: int or None. If given, the width is instead rounded to the nearest
            multiple of `divisor`, and is at least `divisor`.
        **kwargs: see `keras.layers.Layer`.

    Input and output: float tensors `(batch, height, width, channels)`, or
    `(batch, channels, height, width)` with `data_format="channels_first"`. The mean is
    computed in float32 or better.

    Raises:
        ValueError: `se_ratio` is not positive, `divisor` is not a positive integer, or
            the rank of the input is not 4.

    Example:

    >>> tuple(SqueezeExcite(se_ratio=0.25)(keras.random.normal((2, 7, 7, 64))).shape)
    (2, 7, 7, 64)

    Reference: Hu, Shen, Sun (2018), arXiv 1709.01507.
    """

    def __init__(self, se_ratio=0.5, data_format=None, divisor=None, **kwargs):
        super().__init__(data_format, **kwargs)
        self.se_ratio = checks.number("se_ratio", se_ratio, below=1e3, exclusive=True)
        self.divisor = None if divisor is None else checks.integer("divisor", divisor)

    def build_gate(self, channels):
        hidden = channels * self.se_ratio
        if self.divisor is None:
            hidden = max(1, int(hidden))
        else:
            hidden = max(1, int(hidden / self.divisor + 0.5)) * self.divisor
        self.fc0 = keras.layers.Dense(
            hidden, activation="relu", dtype=self.dtype_policy, name="fc0"
        )
        self.fc1 = keras.layers.Dense(
            channels, activation="sigmoid", dtype=self.dtype_policy, name="fc1"
        )
        self.fc0.build((None, channels))
        self.fc1.build((None, hidden))

    def gate(self, squeezed):
        return self.fc1(self.fc0(squeezed))

    def count_flops(self):
        """Return the multiply-adds of the two dense layers for one image."""
        return sum(math.prod(layer.kernel.shape) for layer in (self.fc0, self.fc1))

    def get_config(self):
        return {
            **super().get_config(),
            "se_ratio": self.se_ratio,
            "divisor": self.divisor,
        }


@keras.saving.register_keras_serializable("keras_nfnets")
class EfficientChannelAttention(_ChannelAttention):
    """Efficient channel attention (ECA) that preserves the signal's scale.

    It is like `SqueezeExcite`, but the gate is a convolution over the channels,
    without bias and followed by a sigmoid.

    Args:
        kernel_size: int, odd. Number of neighboring channels that determine a gate. By
            default it grows with the logarithm of the number of channels, as in the
            paper.
        data_format: str. `"channels_last"` or `"channels_first"`; by default that of
            the Keras configuration.
        **kwargs: see `keras.layers.Layer`.

    Input and output: float tensors `(batch, height, width, channels)`, or
    `(batch, channels, height, width)` with `data_format="channels_first"`. The mean is
    computed in float32 or better.

    Raises:
        ValueError: `kernel_size` is not an odd, positive integer, or the rank of the
            input is not 4.

    Example:

    >>> tuple(EfficientChannelAttention()(keras.random.normal((2, 7, 7, 64))).shape)
    (2, 7, 7, 64)

    Reference: Wang et al. (2020), arXiv 1910.03151, equation 12.
    """

    def __init__(self, kernel_size=None, data_format=None, **kwargs):
        super().__init__(data_format, **kwargs)
        if kernel_size is not None:
            kernel_size = checks.integer("kernel_size", kernel_size)
            if kernel_size % 2 == 0:
                raise ValueError(
                    f"`kernel_size` must be odd. Received: kernel_size={kernel_size}"
                )
        self.kernel_size = kernel_size

    def build_gate(self, channels):
        size = self.kernel_size
        if size is None:
            size = max(3, int((math.log2(channels) + 1) / 2) | 1)
        self.conv = keras.layers.Conv1D(
            1,
            size,
            padding="same",
            use_bias=False,
            activation="sigmoid",
            data_format="channels_last",
            dtype=self.dtype_policy,
            name="conv",
        )
        self.conv.build((None, channels, 1))
        self.channels = channels

    def gate(self, squeezed):
        return ops.squeeze(self.conv(ops.expand_dims(squeezed, -1)), -1)

    def count_flops(self):
        """Return the multiply-adds of the convolution for one image."""
        return self.channels * self.conv.kernel_size[0]

    def get_config(self):
        return {**super().get_config(), "kernel_size": self.kernel_size}
