"""Normalizer-free residual block."""

import functools

import keras
from keras import ops

from keras_nfnets import checks
from keras_nfnets.backend import fusion, keras_internals
from keras_nfnets.layers.activations import (
    ScaledActivation,
    activation_gain,
    serialize_activation,
    with_deserialized_activation,
)
from keras_nfnets.layers.attention import EfficientChannelAttention, SqueezeExcite
from keras_nfnets.layers.conventions import convention as convention_of
from keras_nfnets.layers.convolution import WSConv2D
from keras_nfnets.layers.stochastic_depth import StochasticDepth


@keras.saving.register_keras_serializable("keras_nfnets")
class NFBlock(keras.layers.Layer):
    """Normalizer-free pre-activation bottleneck block.

    With `f` the chain of convolutions below, it computes

        x = scaled_activation(inputs) * beta
        outputs = shortcut + alpha * skip_gain * f(x)

    where `f` consists of 1x1, 3x3 (strided), [3x3,] and 1x1 convolutions with scaled
    activations between them, then attention and stochastic depth. `shortcut` is
    `inputs`, or, if the shape changes, `x` after average pooling and a 1x1 convolution
    (or after a strided 1x1 convolution).

    Args:
        filters: int. Number of output channels.
        bottleneck_filters: int. Number of channels of the 3x3 convolutions; by default
            half of `filters`.
        strides: int. Strides of the first 3x3 convolution.
        group_size: int or None. Channels per group of the 3x3 convolutions; None for no
            groups.
        extra_conv: bool. Whether there is a second 3x3 convolution.
        alpha: float. Scale of the residual branch.
        beta: float. Scale of the block's input: the reciprocal of its expected standard
            deviation.
        activation: str or callable. See `ScaledActivation`.
        attention: str or None. `"se"` (squeeze-and-excitation), `"eca"` (efficient
            channel attention) or None.
        attention_on: str. `"output"`, after the last convolution, or `"bottleneck"`,
            before the activation that precedes the last convolution.
        se_ratio: float. See `SqueezeExcite`.
        avg_pool_shortcut: bool. Whether a strided shortcut pools before its projection.
        skip_gain_initializer: initializer of the learned scalar gain of the residual
            branch. With the default, `"zeros"`, a block starts as its shortcut.
        convention: str. The implementation to follow in details, `"authors"` or
            `"timm"`. In timm's networks (except its dm_nfnet), convolutions include the
            gain of the activations, strided convolutions pad symmetrically, the
            statistics have another epsilon, widths of squeeze-and-excitation are
            multiples of 8, and the gain of the last convolution starts at zero in place
            of a learned scalar gain.
        stochastic_depth_rate: float. See `StochasticDepth`.
        dilation_rate: int. Dilation of the 3x3 convolutions; of the second one only, if
            `first_dilation_rate` is given.
        first_dilation_rate: int. Dilation of the first 3x3 convolution; by default
            `dilation_rate`. If they differ, the block stands for a strided one, and has
            its shortcut: pooled (not strided) and projected.
        rematerialize: bool. Whether training saves only the block's input, and computes
            the rest of the block again for the gradient (gradient checkpointing): less
            memory for activations, more time.
        data_format: str. `"channels_last"` or `"channels_first"`; by default that of
            the Keras configuration.
        **kwargs: see `keras.layers.Layer`.

    Input: float tensor `(batch, height, width, channels)`, or
    `(batch, channels, height, width)` with `data_format="channels_first"`, of any size.
    Output: float tensor with `filters` channels, height and width divided by `strides`
    and rounded up.

    Raises:
        ValueError: the group size does not divide the bottleneck width, `attention` is
            unknown, the first 3x3 convolution would be strided and dilated, or a layer
            of the block rejects an argument.

    Example:

    >>> x = keras.random.normal((2, 15, 15, 64))
    >>> tuple(NFBlock(128, strides=2, group_size=16, beta=0.98)(x).shape)
    (2, 8, 8, 128)

    Reference: Brock et al. (2021), arXiv 2102.06171, figure 3 and appendix A;
    `NFBlock` and `NFResBlock` of the authors' code, `NormFreeBlock` of timm.
    """

    def __init__(
        self,
        filters,
        bottleneck_filters=None,
        strides=1,
        group_size=128,
        extra_conv=True,
        alpha=0.2,
        beta=1.0,
        activation="gelu",
        attention="se",
        attention_on="output",
        se_ratio=0.5,
        avg_pool_shortcut=True,
        skip_gain_initializer="zeros",
        stochastic_depth_rate=0.0,
        convention="authors",
        dilation_rate=1,
        first_dilation_rate=None,
        rematerialize=False,
        data_format=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = checks.integer("filters", filters)
        if bottleneck_filters is None:
            bottleneck_filters = self.filters // 2
        self.bottleneck_filters = checks.integer(
            "bottleneck_filters", bottleneck_filters
        )
        self.strides = checks.integer("strides", strides)
        if group_size is not None:
            group_size = checks.integer("group_size", group_size)
        self.group_size = group_size
        self.extra_conv = extra_conv
        self.alpha = checks.number("alpha", alpha, exclusive=True)
        self.beta = checks.number("beta", beta, exclusive=True)
        self.activation = activation
        self.attention = checks.one_of("attention", attention, ("se", "eca", None))
        self.attention_on = checks.one_of(
            "attention_on", attention_on, ("output", "bottleneck")
        )
        self.se_ratio = checks.number("se_ratio", se_ratio, below=1e3, exclusive=True)
        self.avg_pool_shortcut = avg_pool_shortcut
        self.skip_gain_initializer = keras.initializers.get(skip_gain_initializer)
        self.stochastic_depth_rate = stochastic_depth_rate
        self.convention = convention
        self.details = convention_of(convention)
        self.dilation_rate = checks.integer("dilation_rate", dilation_rate)
        if first_dilation_rate is None:
            first_dilation_rate = self.dilation_rate
        self.first_dilation_rate = checks.integer(
            "first_dilation_rate", first_dilation_rate
        )
        if self.strides > 1 and self.first_dilation_rate > 1:
            raise ValueError(
                "The first 3x3 convolution of a block is either strided or dilated: of "
                "`strides` and `first_dilation_rate` (by default `dilation_rate`), one "
                f"must be 1. Received: strides={self.strides}, "
                f"dilation_rate={self.dilation_rate}, "
                f"first_dilation_rate={self.first_dilation_rate}"
            )
        self.rematerialize = checks.flag("rematerialize", rematerialize)
        self.data_format = checks.data_format(data_format)
        self._create_layers()

    def _create_layers(self):
        """Create all layers except those of the shortcut, which depend on the input."""
        width, groups = self.bottleneck_filters, self._groups()
        self.gain = activation_gain(self.activation)
        self.input_activation = self._activation("input_activation", self.beta)
        self.conv0 = self._convolution("conv0", width, 1)
        self.activation0 = self._activation("activation0")
        grouped = functools.partial(self._convolution, kernel_size=3, groups=groups)
        self.conv1 = grouped(
            "conv1",
            width,
            strides=self.strides,
            dilation_rate=self.first_dilation_rate,
        )
        if self.extra_conv:
            self.activation1 = self._activation("activation1")
            self.conv1b = grouped("conv1b", width, dilation_rate=self.dilation_rate)
        self.activation2 = self._activation("activation2")
        self.conv2 = self._convolution(
            "conv2",
            self.filters,
            1,
            gain_initializer="ones" if self.details.skip_gain else "zeros",
        )
        self.attention_layer = self._attention()
        self.stochastic_depth = StochasticDepth(
            self.stochastic_depth_rate, dtype=self.dtype_policy, name="stochastic_depth"
        )

    def _groups(self):
        """Return the number of groups of the 3x3 convolutions."""
        width, size = self.bottleneck_filters, self.group_size
        if size is None:
            return 1
        if width % size:
            raise ValueError(
                f"`group_size` must divide the width of the 3x3 convolutions, {width}. "
                "Possible group sizes: "
                f"{[n for n in range(1, width + 1) if width % n == 0]}. "
                f"Received: group_size={size}, filters={self.filters}"
            )
        return width // size

    def _activation(self, name, factor=1.0):
        gain, _ = self.details.gains(self.gain)
        return ScaledActivation(
            self.activation, gain=gain * factor, dtype=self.dtype_policy, name=name
        )

    def _convolution(self, name, filters, kernel_size, strides=1, **options):
        return WSConv2D(
            filters,
            kernel_size,
            strides=strides,
            data_format=self.data_format,
            dtype=self.dtype_policy,
            name=name,
            **options,
            **self.details.convolution_options(self.gain),
        )

    def _attention(self):
        common = {"data_format": self.data_format, "dtype": self.dtype_policy}
        if self.attention == "se":
            multiple = self.details.width_multiple
            divisor = None if multiple == 1 else multiple
            return SqueezeExcite(
                self.se_ratio, divisor=divisor, name="squeeze_excite", **common
            )
        if self.attention == "eca":
            return EfficientChannelAttention(name="channel_attention", **common)
        return None

    def build(self, input_shape):
        channels = input_shape[-1 if self.data_format == "channels_last" else 1]
        checks.integer("channels of the input", channels)
        self.shortcut_pools, self.shortcut_conv = [], None
        # Without strides, a dilated block that stands for a strided one still pools.
        dilated = self.first_dilation_rate != self.dilation_rate
        if self.strides > 1 or dilated or channels != self.filters:
            pooled = self.avg_pool_shortcut and (self.strides > 1 or dilated)
            if pooled:
                self.shortcut_pools = self._pools(dilated)
                for layer in self.shortcut_pools:
                    layer.build(input_shape)
            self.shortcut_conv = self._convolution(
                "shortcut_conv", self.filters, 1, 1 if pooled else self.strides
            )
            self.shortcut_conv.build(input_shape)
        shape = input_shape
        for layer in [self.input_activation, *self.branch()]:
            layer.build(shape)
            shape = _shape_after(layer, shape)
        self.stochastic_depth.build(shape)
        # Training recomputes the activation before each convolution instead of saving
        # its output. In transition blocks two convolutions use the output of
        # `input_activation`, so that one is saved.
        self._activated_conv0 = fusion.Chain(self.input_activation, self.conv0)
        self._projected_conv0 = fusion.Chain(self.conv0)
        self._projection = fusion.Chain(self.shortcut_conv)
        self._activated_conv1 = fusion.Chain(self.activation0, self.conv1)
        if self.extra_conv:
            self._activated_conv1b = fusion.Chain(self.activation1, self.conv1b)
        self._activated_conv2 = fusion.Chain(self.activation2, self.conv2)
        self.skip_gain = None
        if self.details.skip_gain:
            self.skip_gain = self.add_weight(
                name="skip_gain", shape=(), initializer=self.skip_gain_initializer
            )
        keras_internals.freeze_inside(self)

    def _pools(self, dilated):
        """Create the layers that pool a shortcut."""
        options = {"data_format": self.data_format, "dtype": self.dtype_policy}
        if not dilated:
            pool = keras.layers.AveragePooling2D(
                self.strides, padding="same", name="shortcut_pool", **options
            )
            return [pool]
        # As in timm, averages include zeros after the last row and column.
        return [
            keras.layers.ZeroPadding2D(
                ((0, 1), (0, 1)), name="shortcut_padding", **options
            ),
            keras.layers.AveragePooling2D(
                2, strides=self.strides, name="shortcut_pool", **options
            ),
        ]

    def branch(self):
        """List the layers of the residual branch after `input_activation`, in order."""
        layers = [self.conv0, self.activation0, self.conv1]
        if self.extra_conv:
            layers += [self.activation1, self.conv1b]
        layers += [self.activation2, self.conv2]
        if self.attention_layer is not None:
            end = -2 if self.attention_on == "bottleneck" else len(layers)
            layers.insert(end, self.attention_layer)
        return layers

    def _convolved_and_shortcut(self, inputs, training=False):
        """Compute the residual branch up to its last convolution, and the shortcut."""
        if self.shortcut_conv is None:
            shortcut = inputs
            out = self._activated_conv0(inputs, training)
        else:
            activated = shortcut = self.input_activation(inputs)
            for layer in self.shortcut_pools:
                shortcut = layer(shortcut)
            shortcut = self._projection(shortcut, training)
            out = self._projected_conv0(activated, training)
        out = self._activated_conv1(out, training)
        if self.extra_conv:
            out = self._activated_conv1b(out, training)
        if self.attention_layer is not None and not self._attention_is_last:
            out = self.attention_layer(out)
        out = self._activated_conv2(out, training)
        return out, shortcut

    @property
    def _attention_is_last(self):
        return self.attention_layer is not None and self.attention_on == "output"

    def residual(self, inputs):
        """Compute the residual branch without stochastic depth, skip gain and alpha.

        The authors report the variance of this signal as `res_avg_var`.
        """
        out, _ = self._convolved_and_shortcut(inputs)
        return self.attention_layer(out) if self._attention_is_last else out

    def call(self, inputs, training=False):
        arguments = [inputs]
        if training and self.stochastic_depth.rate:
            # Drawn here, because rematerialization would draw other values.
            arguments.append(self.stochastic_depth.factors(inputs))

        def outputs(inputs, kept=None):
            return self._outputs(inputs, kept, training)

        if training and self.rematerialize:
            outputs = keras.remat(outputs)
        return outputs(*arguments)

    def _outputs(self, inputs, kept, training):
        """Compute the block.

        `kept` is 0 or 1 for each example, of shape `(batch, 1, 1, 1)`, or None for 1.
        """
        out, shortcut = self._convolved_and_shortcut(inputs, training)
        # Multiply the factors first: they are small tensors, and `out` is large.
        scale = ops.cast(self.alpha, out.dtype)
        if self.skip_gain is not None:
            # Keras does not autocast variables during rematerialization.
            scale = scale * ops.cast(self.skip_gain, out.dtype)
        if kept is not None:
            scale = scale * kept
        if self._attention_is_last:
            scale = scale * self.attention_layer.factors(out)
        return _scaled_sum(out, scale, shortcut, training)

    def compute_output_shape(self, input_shape):
        for layer in self.branch():
            input_shape = _shape_after(layer, input_shape)
        return input_shape

    def count_flops(self, input_positions, output_positions):
        """Return the multiply-adds for one image, given its pixels before and after."""
        flops = self.conv0.count_flops(input_positions)
        later = [*self.branch()[1:], self.shortcut_conv]
        for layer in later:
            if isinstance(layer, WSConv2D):
                flops += layer.count_flops(output_positions)
        if self.attention_layer is not None:
            flops += self.attention_layer.count_flops()
        return flops

    def count_activations(self, input_positions, output_positions):
        """Count the output values of the convolutions and the block for one image."""
        later = [*self.branch()[1:], self.shortcut_conv]
        filters = sum(layer.filters for layer in later if isinstance(layer, WSConv2D))
        after = (filters + self.filters) * output_positions
        return self.conv0.filters * input_positions + after

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "bottleneck_filters": self.bottleneck_filters,
            "strides": self.strides,
            "group_size": self.group_size,
            "extra_conv": self.extra_conv,
            "alpha": self.alpha,
            "beta": self.beta,
            "activation": serialize_activation(self.activation),
            "attention": self.attention,
            "attention_on": self.attention_on,
            "se_ratio": self.se_ratio,
            "avg_pool_shortcut": self.avg_pool_shortcut,
            "skip_gain_initializer": keras.initializers.serialize(
                self.skip_gain_initializer
            ),
            "stochastic_depth_rate": self.stochastic_depth_rate,
            "convention": self.convention,
            "dilation_rate": self.dilation_rate,
            "first_dilation_rate": self.first_dilation_rate,
            "rematerialize": self.rematerialize,
            "data_format": self.data_format,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**with_deserialized_activation(config))


def _scaled_sum(residual, scale, shortcut, training):
    if training:
        arguments = residual, scale, shortcut
        return fusion.fused(_sum, *arguments, gradient=_sum_gradient)
    return _sum(residual, scale, shortcut)


def _sum(residual, scale, shortcut):
    return residual * scale + shortcut


def _sum_gradient(arguments, constants, upstream):
    """Compute the gradients of `_sum` without storing `residual * upstream`."""
    residual, scale, _ = arguments
    ones = (1,) * (len(residual.shape) - len(scale.shape)) + tuple(scale.shape)
    summed = [axis for axis, size in enumerate(ones) if size == 1]
    if {1, 2} <= set(summed):
        batch, height, width, columns = ops.shape(residual)
        rows = (batch, height * width, columns)
        precise = keras.backend.result_type(residual.dtype, "float32")
        pixels = [ops.cast(ops.reshape(x, rows), precise) for x in (residual, upstream)]
        product = fusion.sum_of_rows(lambda x, y: x * y, *pixels)[:, None, None]
    else:  # channels-first factors
        product = residual * upstream
    product = ops.sum(product, axis=summed, keepdims=True)
    product = ops.cast(ops.reshape(product, ops.shape(scale)), scale.dtype)
    return [upstream * scale, product, upstream]


def _shape_after(layer, shape):
    # An activation may change the shape (GLU does), so `ScaledActivation` cannot infer it.
    # The activations of a block do not change it.
    if isinstance(layer, ScaledActivation):
        return shape
    return layer.compute_output_shape(shape)
