"""Convolutions with scaled weight standardization."""

import math

import keras
from keras import ops

from keras_nfnets.backend.convolution import convolve
from keras_nfnets.layers.standardization import Kernel, WeightStandardized


class _WSConvolution(WeightStandardized):
    """Mixin for `keras.layers.Conv1D`, `Conv2D` and `Conv3D`."""

    def apply_kernels(self, inputs, kernel):
        padding = self._own_padding()
        if padding is not None:
            none = [(0, 0)]
            last = self.data_format == "channels_last"
            around = none + (padding + none if last else none + padding)
            inputs = ops.pad(inputs, around)

        def convolution(inputs, kernel):
            return ops.conv(
                inputs,
                kernel,
                strides=list(self.strides),
                padding=self.padding if padding is None else "valid",
                dilation_rate=self.dilation_rate,
                data_format=self.data_format,
            )

        return convolve(
            convolution, inputs, kernel, self.strides, self.groups, self.data_format
        )

    def _own_padding(self):
        """Return `(before, after)` for each spatial axis, or None if Keras pads."""
        return


@keras.saving.register_keras_serializable("keras_nfnets")
class WSConv1D(_WSConvolution, keras.layers.Conv1D):
    """1-D convolution with scaled weight standardization.

    This is the counterpart of `WSConv2D` for sequences. Takes every argument of
    `keras.layers.Conv1D` (including `padding="causal"`) except `use_bias=False`, and
    `gain_initializer`, `eps`, `scale`, `variance_eps`, `center` and `input_mean` of
    `WSConv2D`.

    Input: `(batch, steps, channels)`, or `(batch, channels, steps)` with
    `data_format="channels_first"`. Output: that of Conv1D.

    Raises:
        ValueError: see `WSConv2D`.

    Example:

    >>> x = keras.random.normal((2, 100, 8))
    >>> tuple(WSConv1D(16, 5, strides=2, padding="causal")(x).shape)
    (2, 50, 16)

    Reference: Brock et al. (2021), arXiv 2102.06171, section 2, equation 1.
    """

    def _own_padding(self):
        if self.padding != "causal":
            return None
        return [(self.dilation_rate[0] * (self.kernel_size[0] - 1), 0)]


@keras.saving.register_keras_serializable("keras_nfnets")
class WSConv2D(_WSConvolution, keras.layers.Conv2D):
    """2-D convolution with scaled weight standardization.

    The layer replaces each filter `w` (one output channel of the kernel) by

        scale * gain * (w - mean(w)) / sqrt(max((var(w) + variance_eps) * fan_in, eps))

    and always adds a bias. Mean and variance are computed in float32 even under
    `mixed_bfloat16` and `mixed_float16`; only the result is cast.

    Takes every argument of `keras.layers.Conv2D` except `use_bias=False`, and

    Args:
        padding: str. One of Conv2D's, or `"symmetric"`: PyTorch's usual padding, equal
            on both sides, for odd kernel sizes. Output sizes are those of `"same"`,
            which may pad strided convolutions more on one side.
        eps: float. Lower bound of `(var(w) + variance_eps) * fan_in`.
        gain_initializer: initializer of the gain `(filters,)`.
        scale: float. Constant factor, such as the gain of the preceding activation if
            that does not apply it.
        variance_eps: float. Added to the variance.
        center: bool. Whether the mean of each filter is subtracted.
        input_mean: float. With `center=False`, the approximate mean of the inputs, such
            as the outputs of an activation. `input_mean` times the sum of the
            standardized filter is subtracted from the bias, so that the mean of the
            outputs does not change with the mean of the filter.

    The defaults of `eps`, `scale` and `variance_eps` are the authors'. In timm's
    networks `scale` is the gain of the activation, `variance_eps` 1e-5 and `eps` zero.
    The default `kernel_initializer` is normal with variance `1 / fan_in`, as in the
    authors' code (standardization makes its scale irrelevant).

    Input: `(batch, height, width, channels)`, or `(batch, channels, height, width)`
    with `data_format="channels_first"`, of any height and width, also odd ones.
    Output: that of Conv2D.

    Raises:
        ValueError: `use_bias=False`, a negative `eps`, symmetric padding with an even
            kernel size, or an argument that Conv2D rejects (a number of channels that
            is not divisible by the groups, ...).

    Example:

    >>> x = keras.random.normal((2, 33, 33, 64))
    >>> tuple(WSConv2D(128, 3, strides=2, padding="same", groups=4)(x).shape)
    (2, 17, 17, 128)

    Reference: Brock et al. (2021), arXiv 2102.06171, section 2, equation 1.
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides=(1, 1),
        padding="valid",
        *args,
        **kwargs,
    ):
        if not isinstance(padding, str):
            raise ValueError(
                '`padding` must be "valid", "same" or "symmetric". '
                f"Received: padding={padding!r}"
            )
        symmetric = padding == "symmetric"
        # For odd kernels both paddings give the same output size.
        keras_padding = "same" if symmetric else padding
        super().__init__(filters, kernel_size, strides, keras_padding, *args, **kwargs)
        self.symmetric = symmetric
        if self.symmetric and not all(size % 2 for size in self.kernel_size):
            raise ValueError(
                '`padding="symmetric"` needs odd kernel sizes. '
                f"Received: kernel_size={kernel_size}"
            )

    def _own_padding(self):
        # Without strides both paddings are equal.
        if self.symmetric and max(self.strides) > 1:
            return self.symmetric_padding()
        return None

    def symmetric_padding(self):
        """Return the pixels that `padding="symmetric"` adds: `(before, after)` per axis."""
        return [
            (dilation * (size // 2),) * 2
            for dilation, size in zip(self.dilation_rate, self.kernel_size)
        ]

    def count_flops(self, positions):
        """Return the multiply-adds for `positions` output pixels, without the bias."""
        return positions * math.prod(self.kernel.shape)

    def get_config(self):
        padding = "symmetric" if self.symmetric else self.padding
        return {**super().get_config(), "padding": padding}


@keras.saving.register_keras_serializable("keras_nfnets")
class WSConv3D(_WSConvolution, keras.layers.Conv3D):
    """3-D convolution with scaled weight standardization.

    This is the counterpart of `WSConv2D` for volumes and videos. Takes every argument of
    `keras.layers.Conv3D` except `use_bias=False`, and `gain_initializer`, `eps`,
    `scale`, `variance_eps`, `center` and `input_mean` of `WSConv2D`.

    Input: `(batch, depth, height, width, channels)`, or
    `(batch, channels, depth, height, width)` with `data_format="channels_first"`.
    Output: that of Conv3D.

    Raises:
        ValueError: see `WSConv2D`.

    Example:

    >>> x = keras.random.normal((1, 8, 8, 8, 2))
    >>> tuple(WSConv3D(4, 3, padding="same")(x).shape)
    (1, 8, 8, 8, 4)

    Reference: Brock et al. (2021), arXiv 2102.06171, section 2, equation 1.
    """


@keras.saving.register_keras_serializable("keras_nfnets")
class WSDepthwiseConv2D(WeightStandardized, keras.layers.DepthwiseConv2D):
    """Depthwise convolution with scaled weight standardization.

    A filter consists of the weights of one output channel, that is of one input channel
    and one multiplier. `fan_in` is the kernel's height times its width. A zero-mean
    depthwise filter cannot blur or pass its input. Networks learn faster with
    `center=False`, and after an activation also with its `input_mean` (0.7 after
    `ScaledActivation("relu")`, 0.4 after "silu"). Everything else is as in `WSConv2D`.

    Takes every argument of `keras.layers.DepthwiseConv2D` except `use_bias=False`, and
    `gain_initializer`, `eps`, `scale`, `variance_eps`, `center` and `input_mean` of
    `WSConv2D`.

    Input: `(batch, height, width, channels)`, or `(batch, channels, height, width)`
    with `data_format="channels_first"`. Output: that of DepthwiseConv2D.

    Raises:
        ValueError: see `WSConv2D`; or the kernel has one pixel, so that subtracting the
            mean of a filter leaves zero.

    Example:

    >>> x = keras.random.normal((2, 32, 32, 8))
    >>> tuple(WSDepthwiseConv2D(3, depth_multiplier=2)(x).shape)
    (2, 30, 30, 16)

    Reference: Brock et al. (2021), arXiv 2102.06171, section 2, equation 1.
    """

    KERNELS = (Kernel(initializer="depthwise_initializer", output_axes=(-2, -1)),)

    def apply_kernels(self, inputs, kernel):
        return ops.depthwise_conv(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )


@keras.saving.register_keras_serializable("keras_nfnets")
class WSSeparableConv2D(WeightStandardized, keras.layers.SeparableConv2D):
    """Separable convolution with scaled weight standardization of both kernels.

    The depthwise convolution is that of `WSDepthwiseConv2D`, the pointwise convolution a
    1x1 `WSConv2D`. Each has a gain (`depthwise_gain`, `pointwise_gain`); one bias is added
    after both.

    Takes every argument of `keras.layers.SeparableConv2D` except `use_bias=False`, and
    `gain_initializer`, `eps` and `variance_eps` of `WSConv2D` for both kernels. `scale`
    applies to the pointwise kernel, `center` and `input_mean` to the depthwise kernel.

    Input: `(batch, height, width, channels)`, or `(batch, channels, height, width)`
    with `data_format="channels_first"`. Output: that of SeparableConv2D.

    Raises:
        ValueError: see `WSConv2D`; or the depthwise kernel has one pixel or the
            pointwise kernel one input channel, so that subtracting the mean of a filter
            leaves zero.

    Example:

    >>> x = keras.random.normal((2, 32, 32, 8))
    >>> tuple(WSSeparableConv2D(16, 3, padding="same")(x).shape)
    (2, 32, 32, 16)

    Reference: Brock et al. (2021), arXiv 2102.06171, section 2, equation 1.
    """

    KERNELS = (
        Kernel(
            *("depthwise_kernel", "depthwise_gain", "depthwise_initializer"), (-2, -1)
        ),
        Kernel("pointwise_kernel", "pointwise_gain", "pointwise_initializer"),
    )

    def apply_kernels(self, inputs, depthwise_kernel, pointwise_kernel):
        return ops.separable_conv(
            inputs,
            depthwise_kernel,
            pointwise_kernel,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )


@keras.saving.register_keras_serializable("keras_nfnets")
class WSConv2DTranspose(WeightStandardized, keras.layers.Conv2DTranspose):
    """Transposed convolution with scaled weight standardization.

    A filter consists of the weights of one output channel (indexed by the second-to-last
    axis of the kernel). With strides, an output value is computed from only part of
    these, so `fan_in` is height times width times input channels, divided by the product
    of the strides. Everything else is as in `WSConv2D`.

    Takes every argument of `keras.layers.Conv2DTranspose` except `use_bias=False`, and
    `gain_initializer`, `eps`, `scale`, `variance_eps`, `center` and `input_mean` of
    `WSConv2D`.

    Input: `(batch, height, width, channels)`, or `(batch, channels, height, width)`
    with `data_format="channels_first"`. Output: that of Conv2DTranspose.

    Raises:
        ValueError: see `WSConv2D`.

    Example:

    >>> x = keras.random.normal((2, 16, 16, 8))
    >>> tuple(WSConv2DTranspose(4, 2, strides=2)(x).shape)
    (2, 32, 32, 4)

    Reference: Brock et al. (2021), arXiv 2102.06171, section 2, equation 1.
    """

    KERNELS = (Kernel(output_axes=(-2,)),)

    def _fan_in(self, kernel, shape):
        return super()._fan_in(kernel, shape) / math.prod(self.strides)

    def apply_kernels(self, inputs, kernel):
        return ops.conv_transpose(
            inputs,
            kernel,
            strides=list(self.strides),
            padding=self.padding,
            output_padding=self.output_padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
