"""Scaled weight standardization, of any layer with a kernel."""

import inspect
import math
import typing

import keras
from keras import ops

from keras_nfnets import checks
from keras_nfnets.backend import fusion, keras_internals


def _precise(x):
    # Also where a kernel is kept in half precision.
    return ops.cast(x, keras.backend.result_type(x.dtype, "float32"))


def _moments(rows, center):
    """What is taken from each column, its mean times `center` (one or zero), and the
    variance about that; `(2, columns)`, in float32 or better."""
    rows = _precise(rows)
    mean = fusion.sum_of_rows(lambda x: x, rows) / rows.shape[0]
    mean = mean * ops.cast(center, mean.dtype)
    variance = fusion.sum_of_rows(lambda x: ops.square(x - mean), rows) / rows.shape[0]
    return ops.stack([mean, variance])


def _standardize(rows, moments, gain, center, fan_in, scale, variance_eps, eps):
    """The formula of `WeightStandardized`, in the precision of `moments`.

    (Only the gradient wants `center`: what is done with it is in `moments`.)
    """
    fan_in, scale, variance_eps, eps = (
        ops.cast(number, moments.dtype) for number in (fan_in, scale, variance_eps, eps)
    )
    mean, variance = moments[0], moments[1]
    variance = (variance + variance_eps) * fan_in
    gain = scale * _precise(gain)
    return (_precise(rows) - mean) * (gain * ops.rsqrt(ops.maximum(variance, eps)))


def _standardize_gradient(arguments, constants, upstream):
    """The gradients of rows and gain, in fewer passes than the derived ones.

    With `c` the centered rows, `r` the reciprocal square root, `u` the gradient of the
    result, `n` the number of rows and sums and means over a column: the gain's is
    `scale * r * sum(u * c)`, the rows' is `scale * gain * r * (u - center * mean(u) -
    fan_in / n * r**2 * sum(u * c) * c)`, of which the last term is missing where `eps`
    bounds the variance. It is all of the rows': none goes through their moments.
    """
    rows, moments, gain, *numbers = arguments
    dtype = upstream.dtype
    center, fan_in, scale, variance_eps, eps = (ops.cast(x, dtype) for x in numbers)
    gain_dtype, rows_dtype = gain.dtype, rows.dtype
    rows, gain = ops.cast(rows, dtype), ops.cast(gain, dtype)
    count = rows.shape[0]
    mean, variance = moments[0], moments[1]
    variance = (variance + variance_eps) * fan_in
    r = ops.rsqrt(ops.maximum(variance, eps))
    upstream_mean = fusion.sum_of_rows(lambda k, u: u, rows, upstream) / count * center
    product = fusion.sum_of_rows(lambda k, u: (k - mean) * u, rows, upstream)
    through_variance = ops.where(
        variance > eps, product * r * r * (fan_in / count), 0.0
    )
    rows_gradient = (scale * gain * r) * (
        upstream - upstream_mean - through_variance * (rows - mean)
    )
    return [
        ops.cast(rows_gradient, rows_dtype),
        None,
        ops.cast(scale * r * product, gain_dtype),
    ]


class Kernel(typing.NamedTuple):
    """Description of one kernel of a Keras layer.

    Attributes:
        name: str. Name of the weight and of the layer's attribute.
        gain: str. Name of its gain.
        initializer: str. Name of the layer's argument for its initializer.
        output_axes: tuple of negative ints. Axes that index the output units.
    """

    name: str = "kernel"
    gain: str = "gain"
    initializer: str = "kernel_initializer"
    output_axes: tuple = (-1,)

    @property
    def is_depthwise(self):
        """Whether each unit has a single input channel."""
        return self.output_axes == (-2, -1)

    def units(self, shape):
        """Return the number of output units of a kernel of this shape."""
        return math.prod(shape[axis] for axis in self.output_axes)

    def as_matrix(self, weights, ops=ops):
        """Reshape a kernel to `(weights per unit, units)`.

        Args:
            weights: tensor; or array, with `ops=np`.
            ops: `keras.ops` or `numpy`.
        """
        units = self.units(weights.shape)
        if self._is_transposed:
            weights = ops.swapaxes(weights, -1, -2)
        return ops.reshape(weights, (-1, units))

    def from_matrix(self, matrix, shape, ops=ops):
        """Reshape the result of `as_matrix` back to a kernel of this shape."""
        if not self._is_transposed:
            return ops.reshape(matrix, shape)
        *before, outputs, inputs = shape
        return ops.swapaxes(ops.reshape(matrix, (*before, inputs, outputs)), -1, -2)

    @property
    def _is_transposed(self):
        return self.output_axes == (-2,)


class WeightStandardized:
    """A layer whose units have weights of zero mean and unit variance, times a gain.

    What the layers with standardized kernels share; it stands as a base class before a
    layer of Keras. The weights `w` of each unit are used as

        scale * gain * (w - mean(w)) / sqrt(max((var(w) + variance_eps) * fan_in, eps))

    where `fan_in` is how many of them make a number of the output, and a bias is always
    added. Mean and variance are taken in float32 even under `mixed_bfloat16` and
    `mixed_float16`; only the result is cast.

    Of few weights the mean is much of what they can do: nine of a depthwise filter
    without it cannot blur, nor pass a channel on. With `center=False` they keep it:
    `mean(w)` is zero in the formula, and `var(w)` the mean square. Then the mean of what
    a unit sees goes on too, and each step that changes `mean(w)` would shift all that
    the unit gives: `input_mean`, times the sum of the weights as they are used, is taken
    away from the bias. The layer can compute the same as without, and learns it faster.

    Args:
        *args, **kwargs: of the layer of Keras.
        gain_initializer: of the gain, one number a unit.
        eps: lower bound of `var(w) * fan_in`.
        scale: constant factor.
        variance_eps: added to the variance.
        center: whether the mean of a unit's weights is taken away.
        input_mean: with `center=False`, about the mean of the numbers that the layer
            sees, as after an activation.

    Input and output: those of the layer of Keras.

    Raises:
        ValueError: `use_bias=False`, numbers out of range, or, when it is built, units
            of one weight each.

    Example:

    >>> layer = keras_nfnets.WSDense(4)
    >>> y = layer(keras.ops.ones((1, 9)))
    >>> isinstance(layer, WeightStandardized), tuple(layer.standardized_kernel().shape)
    (True, (9, 4))

    Reference: Brock et al. (2021), arXiv 2102.06171, section 2, equation 1.
    """

    # In the order in which the layer makes and applies them.
    KERNELS = (Kernel(),)

    def __init__(
        self,
        *args,
        gain_initializer="ones",
        eps=1e-4,
        scale=1.0,
        variance_eps=0.0,
        center=True,
        input_mean=0.0,
        **kwargs,
    ):
        keras_init = super().__init__
        given = inspect.signature(keras_init).bind(*args, **kwargs).arguments
        for kernel in self.KERNELS:
            if kernel.initializer not in given:
                kwargs[kernel.initializer] = None  # ours, see `add_weight`
        keras_init(*args, **kwargs)
        if not self.use_bias:
            raise ValueError(
                f"{type(self).__name__} always has a bias: nothing after it would add "
                "one. Received: use_bias=False"
            )
        self.gain_initializer = keras.initializers.get(gain_initializer)
        self.eps = checks.number("eps", eps)
        self.scale = checks.number("scale", scale, exclusive=True)
        self.variance_eps = checks.number("variance_eps", variance_eps)
        self.center = bool(center)
        self.input_mean = checks.number("input_mean", input_mean, minimum=-math.inf)

    def add_weight(self, *args, **kwargs):
        for kernel in self.KERNELS:
            if kwargs.get("name") == kernel.name and kwargs["initializer"] is None:
                # Keras's own take other numbers for the fan-in of some kernels.
                deviation = self._fan_in(kernel, kwargs["shape"]) ** -0.5
                initializer = keras.initializers.RandomNormal(stddev=deviation)
                kwargs["initializer"] = initializer
        # Never cast on reading: standardization wants the variables' own precision.
        return super().add_weight(*args, **{**kwargs, "autocast": False})

    def build(self, input_shape):
        with keras_internals.lora_after(self):
            super().build(input_shape)
            self._build_gains(input_shape)

    def _build_gains(self, input_shape):
        for kernel in self.KERNELS:
            shape = tuple(getattr(self, kernel.name).shape)
            outputs = kernel.units(shape)
            if math.prod(shape) == outputs:
                raise ValueError(
                    f"{type(self).__name__} standardizes the weights of a unit, and of "
                    "a single one nothing is left. Received: inputs of shape "
                    f"{tuple(input_shape)} for a kernel of shape {shape}"
                )
            gain = self.add_weight(
                name=kernel.gain,
                shape=(outputs,),
                initializer=self.gain_initializer,
                dtype=self.variable_dtype,
            )
            setattr(self, kernel.gain, gain)

    def _weights(self, kernel):
        """A kernel before it is standardized: the variable, or with LoRA a tensor."""
        return keras_internals.kernel_of(self, kernel.name)

    def _fan_in(self, kernel, shape):
        """How many weights make a number of the output."""
        return math.prod(shape) / kernel.units(shape)

    def standardized_kernel(self, name=None):
        """A kernel as the layer uses it, in the compute dtype.

        Args:
            name: of the kernel, for layers of several; by default the first.
        """
        return ops.cast(self.precise_kernel(name=name), self.compute_dtype)

    def precise_kernel(self, training=False, name=None):
        """`standardized_kernel` before it is cast: float32 or better."""
        names = [kernel.name for kernel in self.KERNELS]
        checks.one_of("name", name, (None, *names))
        kernel = self.KERNELS[0 if name is None else names.index(name)]
        weights = ops.convert_to_tensor(self._weights(kernel))
        gain = ops.convert_to_tensor(getattr(self, kernel.gain))
        shape = tuple(weights.shape)
        rows = kernel.as_matrix(weights)
        center = float(self.center or kernel is not self.KERNELS[0])
        constants = (
            center,
            self._fan_in(kernel, shape),
            self.scale if kernel is self.KERNELS[-1] else 1.0,
            self.variance_eps,
            self.eps,
        )
        if training:
            moments = fusion.saved(fusion.fused, _moments, rows, center)
            rows = fusion.fused(
                _standardize,
                rows,
                moments,
                gain,
                *constants,
                gradient=_standardize_gradient,
            )
        else:
            rows = _standardize(rows, _moments(rows, center), gain, *constants)
        return kernel.from_matrix(rows, shape)

    def precise_bias(self, *kernels):
        """What the layer adds: the bias, less what its kernels make of `input_mean`.

        Args:
            *kernels: those of `precise_kernel`, in the order of `KERNELS`.
        """
        bias = ops.convert_to_tensor(self.bias)
        if self.center or not self.input_mean:
            return bias
        first, *others = map(Kernel.as_matrix, self.KERNELS, kernels)
        # (Of a transposed convolution's weights a number of the output sees some.)
        fan_in = self._fan_in(self.KERNELS[0], tuple(kernels[0].shape))
        mean = self.input_mean * fan_in * ops.mean(first, axis=0)
        for rows in others:
            mean = ops.sum(ops.expand_dims(mean, 1) * rows, axis=0)
        return ops.cast(bias, mean.dtype) - mean

    def call(self, inputs, training=False):
        kernels = [self.precise_kernel(training, k.name) for k in self.KERNELS]
        bias = self.precise_bias(*kernels)
        kernels = [ops.cast(kernel, self.compute_dtype) for kernel in kernels]
        outputs = self.apply_kernels(inputs, *kernels)
        bias = ops.cast(bias, outputs.dtype)
        data_format = getattr(self, "data_format", "channels_last")
        outputs = fusion.add_bias(outputs, bias, data_format)
        return outputs if self.activation is None else self.activation(outputs)

    def apply_kernels(self, inputs, *kernels):
        """What the layer does with its inputs, but for bias and activation.

        Args:
            inputs: a tensor.
            *kernels: those of `KERNELS` in their order, in the compute dtype.
        """
        raise NotImplementedError

    # Some layers of Keras save their kernel and bias by hand; gains go after these.

    def save_own_variables(self, store):
        if self.built:
            kernels = [self._weights(kernel) for kernel in self.KERNELS]
            for i, variable in enumerate([*kernels, self.bias, *self._gains()]):
                store[str(i)] = variable

    def load_own_variables(self, store):
        super().load_own_variables(store)
        if not self.built:
            return
        for i, gain in enumerate(self._gains(), start=len(self.KERNELS) + 1):
            gain.assign(store[str(i)])

    def _gains(self):
        return [getattr(self, kernel.gain) for kernel in self.KERNELS]

    @classmethod
    def keras_class(cls):
        """The class of the Keras layer whose kernels this one standardizes."""
        return next(c for c in cls.__mro__ if not issubclass(c, WeightStandardized))

    def keras_config(self):
        """The config of the layer of `keras_class` that is otherwise the same."""
        return super().get_config()

    def get_config(self):
        gain_initializer = keras.initializers.serialize(self.gain_initializer)
        return {
            **self.keras_config(),
            "gain_initializer": gain_initializer,
            "eps": self.eps,
            "scale": self.scale,
            "variance_eps": self.variance_eps,
            "center": self.center,
            "input_mean": self.input_mean,
        }
