"""Convolution with scaled weight standardization."""

import math

import keras
from keras import ops

from keras_nfnets import checks, lean
from keras_nfnets.layers.fast_convolution import convolve


def _precise(x):
    # Also where a kernel is kept in half precision.
    return ops.cast(x, keras.backend.result_type(x.dtype, "float32"))


def _moments(kernel):
    """Mean and variance of each filter, `(2, filters)`, in float32 or better."""
    rows = ops.reshape(_precise(kernel), (-1, kernel.shape[-1]))
    mean = lean.sum_of_rows(lambda x: x, rows) / rows.shape[0]
    variance = lean.sum_of_rows(lambda x: ops.square(x - mean), rows) / rows.shape[0]
    return ops.stack([mean, variance])


def _standardize(kernel, moments, gain, scale, variance_eps, eps):
    """The formula of `WSConv2D`, in the precision of `moments`."""
    scale, variance_eps, eps = (
        ops.cast(number, moments.dtype) for number in (scale, variance_eps, eps)
    )
    mean, variance = moments[0], moments[1]
    variance = (variance + variance_eps) * math.prod(kernel.shape[:-1])
    gain = scale * _precise(gain)
    return (_precise(kernel) - mean) * (gain * ops.rsqrt(ops.maximum(variance, eps)))


def _standardize_gradient(arguments, constants, upstream):
    """The gradients of kernel and gain, in fewer passes than the derived ones.

    With `c` the centered kernel, `r` the reciprocal square root, `u` the gradient of
    the result and sums and means over a filter: the gain's is `scale * r * sum(u * c)`,
    the kernel's `scale * gain * r * (u - mean(u) - r**2 * sum(u * c) * c)`, of which
    the last term is missing where `eps` bounds the variance. It is all of the kernel's:
    none goes through its moments.
    """
    kernel, moments, gain, scale, variance_eps, eps = arguments
    dtype = upstream.dtype
    scale, variance_eps, eps = (ops.cast(x, dtype) for x in (scale, variance_eps, eps))
    gain_dtype, kernel_dtype = gain.dtype, kernel.dtype
    kernel, gain = ops.cast(kernel, dtype), ops.cast(gain, dtype)
    fan_in = math.prod(kernel.shape[:-1])
    mean, variance = moments[0], moments[1]
    variance = (variance + variance_eps) * fan_in
    r = ops.rsqrt(ops.maximum(variance, eps))
    rows = [ops.reshape(x, (fan_in, -1)) for x in (kernel, upstream)]
    upstream_mean = lean.sum_of_rows(lambda k, u: u, *rows) / fan_in
    product = lean.sum_of_rows(lambda k, u: (k - mean) * u, *rows)
    through_variance = ops.where(variance > eps, product * r * r, 0.0)
    kernel_gradient = (scale * gain * r) * (
        upstream - upstream_mean - through_variance * (kernel - mean)
    )
    return [
        ops.cast(kernel_gradient, kernel_dtype),
        None,
        ops.cast(scale * r * product, gain_dtype),
    ]


@keras.saving.register_keras_serializable("keras_nfnets")
class WSConv2D(keras.layers.Conv2D):
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

    With their defaults the last two are the authors'; timm's networks use the gain of
    their activation and 1e-5, with an `eps` of zero. Defaults that differ from Conv2D's: `kernel_initializer` is fan-in scaled normal,
    as the authors' (standardization makes its scale irrelevant). `use_bias=False`
    is refused.

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
        data_format=None,
        dilation_rate=(1, 1),
        groups=1,
        activation=None,
        use_bias=True,
        kernel_initializer=None,
        *args,
        gain_initializer="ones",
        eps=1e-4,
        scale=1.0,
        variance_eps=0.0,
        **kwargs,
    ):
        if not use_bias:
            raise ValueError(
                "WSConv2D always has a bias: nothing after it would add one. "
                "Received: use_bias=False"
            )
        if not isinstance(padding, str):
            raise ValueError(f"`padding` must be a name. Received: padding={padding!r}")
        if kernel_initializer is None:
            kernel_initializer = keras.initializers.VarianceScaling(
                1.0, mode="fan_in", distribution="untruncated_normal"
            )
        super().__init__(
            filters,
            kernel_size,
            strides,
            # For odd kernels they give outputs of one size.
            "same" if padding == "symmetric" else padding,
            data_format,
            dilation_rate,
            groups,
            activation,
            use_bias,
            kernel_initializer,
            *args,
            **kwargs,
        )
        self.gain_initializer = keras.initializers.get(gain_initializer)
        self.eps = checks.number("eps", eps)
        self.scale = checks.number("scale", scale, exclusive=True)
        self.variance_eps = checks.number("variance_eps", variance_eps)
        self.symmetric = padding == "symmetric"
        if self.symmetric and not all(size % 2 for size in self.kernel_size):
            raise ValueError(
                '`padding="symmetric"` is for kernels of odd sizes. '
                f"Received: kernel_size={kernel_size}"
            )

    def add_weight(self, *args, **kwargs):
        # Never cast on reading: standardization wants the variables' own precision.
        return super().add_weight(*args, **{**kwargs, "autocast": False})

    def build(self, input_shape):
        # Conv2D would enable LoRA, and lock the layer, before the gain is there.
        lora_rank, self.lora_rank = self.lora_rank, None
        super().build(input_shape)
        self.gain = self.add_weight(
            name="gain",
            shape=(self.filters,),
            initializer=self.gain_initializer,
            dtype=self.variable_dtype,
        )
        if lora_rank:
            self.enable_lora(lora_rank, lora_alpha=self.lora_alpha)

    def standardized_kernel(self):
        """The kernel as the convolution uses it, in the compute dtype."""
        return ops.cast(self.precise_kernel(), self.compute_dtype)

    def precise_kernel(self, training=False):
        """`standardized_kernel` before it is cast: float32 or better."""
        kernel = ops.convert_to_tensor(self.kernel)
        gain = ops.convert_to_tensor(self.gain)
        settings = self.scale, self.variance_eps, self.eps
        if not training:
            return _standardize(kernel, _moments(kernel), gain, *settings)
        return lean.fused(
            _standardize,
            kernel,
            lean.kept(lean.fused, _moments, kernel),
            gain,
            *settings,
            gradient=_standardize_gradient,
        )

    def convolution_op(self, inputs, kernel):
        # Without strides the two paddings are the same.
        padded = self.symmetric and max(self.strides) > 1
        if padded:
            none, spatial = [(0, 0)], self.symmetric_padding()
            last = self.data_format == "channels_last"
            padding = none + (spatial + none if last else none + spatial)
            inputs = ops.pad(inputs, padding)

        def convolution(inputs, kernel):
            return ops.conv(
                inputs,
                kernel,
                strides=list(self.strides),
                padding="valid" if padded else self.padding,
                dilation_rate=self.dilation_rate,
                data_format=self.data_format,
            )

        return convolve(
            convolution, inputs, kernel, self.strides, self.groups, self.data_format
        )

    def symmetric_padding(self):
        """Pixels that `padding="symmetric"` adds: before and after, up and across."""
        return [
            (dilation * (size // 2),) * 2
            for dilation, size in zip(self.dilation_rate, self.kernel_size)
        ]

    def call(self, inputs, training=False):
        kernel = ops.cast(self.precise_kernel(training), self.compute_dtype)
        outputs = self.convolution_op(inputs, kernel)
        bias = ops.cast(ops.convert_to_tensor(self.bias), outputs.dtype)
        outputs = lean.add_bias(outputs, bias, self.data_format)
        return outputs if self.activation is None else self.activation(outputs)

    # Conv2D saves its kernel and bias by hand; the gain goes after them.

    def save_own_variables(self, store):
        super().save_own_variables(store)
        if self.built:
            store["2"] = self.gain

    def load_own_variables(self, store):
        super().load_own_variables(store)
        self.gain.assign(store["2"])

    def count_flops(self, positions):
        """Multiply-adds for `positions` output pixels of one picture (the bias left out)."""
        return positions * math.prod(self.kernel.shape)

    def get_config(self):
        gain_initializer = keras.initializers.serialize(self.gain_initializer)
        return {
            **super().get_config(),
            "gain_initializer": gain_initializer,
            "eps": self.eps,
            "scale": self.scale,
            "variance_eps": self.variance_eps,
            "padding": "symmetric" if self.symmetric else self.padding,
        }
