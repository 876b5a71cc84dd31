"""Convolutions with scaled weight standardization."""

import math

import keras
from keras import ops

from keras_nfnets.backend.convolution import convolve
from keras_nfnets.layers.standardization import Kernel, WeightStandardized


class _WSConvolution(WeightStandardized):
    """Stands before `keras.layers.Conv1D`, `Conv2D` or `Conv3D`."""

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
        """What to pad each axis with where it is not for Keras to do: before, after."""
        return


@keras.saving.register_keras_serializable("keras_nfnets")
class WSConv1D(_WSConvolution, keras.layers.Conv1D):
    """1-D convolution whose filters have zero mean and unit variance, times a gain.

    See `WSConv2D`, of which this is the counterpart for sequences. Takes every argument
    of `keras.layers.Conv1D` (`padding="causal"` too) but `use_bias=False`, and
    `gain_initializer`, `eps`, `scale`, `variance_eps`, `center` and `input_mean` as
    `WSConv2D` does.

    Input: `(batch, steps, channels)`, or `(batch, channels, steps)` with
    `data_format="channels_first"`. Output: as Conv1D's.

    Raises:
        ValueError: as `WSConv2D`.

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
    """2-D convolution whose filters have zero mean and unit variance, times a gain.

    Each filter `w` (one output channel of the kernel) is used as

        scale * gain * (w - mean(w)) / sqrt(max((var(w) + variance_eps) * fan_in, eps))

    and a bias is always added. Mean and variance are taken in float32 even under
    `mixed_bfloat16` and `mixed_float16`; only the result is cast.

    Takes every argument of `keras.layers.Conv2D` that makes sense here, and

    Args:
        padding: besides Conv2D's, `"symmetric"`: PyTorch's usual padding, the same on
            both sides, for kernels of odd sizes. Output sizes are those of `"same"`,
            which pads strided convolutions on one side more.
        eps: lower bound of `var(w) * fan_in`.
        gain_initializer: initializer of the gain, one number a filter.
        scale: constant factor, such as the gain of the activation before it where the
            activation itself has none.
        variance_eps: added to the variance.
        center: whether the mean of a filter is taken away.
        input_mean: with `center=False`, about the mean of what the layer sees, as after
            an activation: by how much more the bias is lowered the larger the mean of
            a filter grows, so that the mean of what it gives stays.

    With their defaults `scale` and `variance_eps` are the authors'; timm's networks use
    the gain of their activation and 1e-5, with an `eps` of zero. Where no
    `kernel_initializer` is given it is normal with a variance of one over the fan-in, as
    the authors' (standardization makes its scale irrelevant). `use_bias=False` is
    refused.

    Input: `(batch, height, width, channels)`, or `(batch, channels, height, width)`
    with `data_format="channels_first"`; any height and width, odd ones included.
    Output: as Conv2D's.

    Raises:
        ValueError: `use_bias=False`, a negative `eps`, symmetric padding of an even
            kernel, or whatever Conv2D refuses
            (channels that the groups do not divide, ...).

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
            raise ValueError(f"`padding` must be a name. Received: padding={padding!r}")
        symmetric = padding == "symmetric"
        # For odd kernels both give outputs of one size.
        keras_padding = "same" if symmetric else padding
        super().__init__(filters, kernel_size, strides, keras_padding, *args, **kwargs)
        self.symmetric = symmetric
        if self.symmetric and not all(size % 2 for size in self.kernel_size):
            raise ValueError(
                '`padding="symmetric"` is for kernels of odd sizes. '
                f"Received: kernel_size={kernel_size}"
            )

    def _own_padding(self):
        # Without strides the two paddings are the same.
        if self.symmetric and max(self.strides) > 1:
            return self.symmetric_padding()
        return None

    def symmetric_padding(self):
        """Pixels that `padding="symmetric"` adds: before and after, up and across."""
        return [
            (dilation * (size // 2),) * 2
            for dilation, size in zip(self.dilation_rate, self.kernel_size)
        ]

    def count_flops(self, positions):
        """Multiply-adds for `positions` output pixels of one picture (the bias left out)."""
        return positions * math.prod(self.kernel.shape)

    def get_config(self):
        padding = "symmetric" if self.symmetric else self.padding
        return {**super().get_config(), "padding": padding}


@keras.saving.register_keras_serializable("keras_nfnets")
class WSConv3D(_WSConvolution, keras.layers.Conv3D):
    """3-D convolution whose filters have zero mean and unit variance, times a gain.

    See `WSConv2D`, of which this is the counterpart for volumes and films. Takes every
    argument of `keras.layers.Conv3D` but `use_bias=False`, and `gain_initializer`,
    `eps`, `scale`, `variance_eps`, `center` and `input_mean` as `WSConv2D` does.

    Input: `(batch, depth, height, width, channels)`, or with channels second with
    `data_format="channels_first"`. Output: as Conv3D's.

    Raises:
        ValueError: as `WSConv2D`.

    Example:

    >>> x = keras.random.normal((1, 8, 8, 8, 2))
    >>> tuple(WSConv3D(4, 3, padding="same")(x).shape)
    (1, 8, 8, 8, 4)

    Reference: Brock et al. (2021), arXiv 2102.06171, section 2, equation 1.
    """


@keras.saving.register_keras_serializable("keras_nfnets")
class WSDepthwiseConv2D(WeightStandardized, keras.layers.DepthwiseConv2D):
    """Depthwise convolution whose filters have zero mean and unit variance, times a gain.

    A filter is what one output channel is computed from: the numbers of one channel
    and one multiplier, with `fan_in` the kernel's height times its width. Without their
    mean so few numbers can neither blur nor pass on what they see: networks learn
    faster with `center=False`, and after activations with their `input_mean` too (0.7
    after `ScaledActivation("relu")`, 0.4 after "silu"). Otherwise as `WSConv2D`.

    Takes every argument of `keras.layers.DepthwiseConv2D` but `use_bias=False`, and
    `gain_initializer`, `eps`, `scale`, `variance_eps`, `center` and `input_mean` as
    `WSConv2D` does.

    Input: `(batch, height, width, channels)`, or `(batch, channels, height, width)`
    with `data_format="channels_first"`. Output: as DepthwiseConv2D's.

    Raises:
        ValueError: as `WSConv2D`, or a kernel of one pixel, of whose only number a
            filter's mean leaves nothing.

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
    """A depthwise and a pointwise convolution, both with standardized filters.

    The first is that of `WSDepthwiseConv2D`, the second a `WSConv2D` of single pixels;
    each has a gain (`depthwise_gain`, `pointwise_gain`), and the bias comes after both.

    Takes every argument of `keras.layers.SeparableConv2D` but `use_bias=False`, and
    `gain_initializer`, `eps` and `variance_eps` as `WSConv2D` does, for both kernels.
    `scale` goes to the second, `center` and `input_mean` to the first.

    Input: `(batch, height, width, channels)`, or `(batch, channels, height, width)`
    with `data_format="channels_first"`. Output: as SeparableConv2D's.

    Raises:
        ValueError: as `WSConv2D`, or a kernel of one pixel, or of one channel, of whose
            only number a filter's mean leaves nothing.

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
    """Transposed convolution whose filters have zero mean and unit variance, times a gain.

    A filter is all that one output channel is computed from (the last axis but one of
    the kernel numbers these). With strides a number of the output is made of a part of
    it, so `fan_in` is height times width times input channels, divided by the strides.
    Otherwise as `WSConv2D`.

    Takes every argument of `keras.layers.Conv2DTranspose` but `use_bias=False`, and
    `gain_initializer`, `eps`, `scale`, `variance_eps`, `center` and `input_mean` as
    `WSConv2D` does.

    Input: `(batch, height, width, channels)`, or `(batch, channels, height, width)`
    with `data_format="channels_first"`. Output: as Conv2DTranspose's.

    Raises:
        ValueError: as `WSConv2D`.

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
