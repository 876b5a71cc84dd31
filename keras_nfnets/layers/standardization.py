"""Scaled weight standardization for any layer with a kernel."""

import inspect
import math
import typing

import keras
from keras import ops

from keras_nfnets import checks
from keras_nfnets.backend import fusion, keras_internals


def _precise(x):
    # A kernel may be stored in half precision.
    return ops.cast(x, keras.backend.result_type(x.dtype, "float32"))


def _moments(weights, center):
    """Compute the mean to subtract from each unit, and the mean square around it.

    Args:
        weights: tensor `(..., units)`.
        center: float. One, or zero to replace the means by zero.

    Returns:
        A tensor `(2, units)`, float32 or better.
    """
    weights, count = _precise(weights), _weights_per_unit(weights)
    mean = fusion.sum_per_unit(lambda x: x, weights) / count
    mean = mean * ops.cast(center, mean.dtype)
    variance = fusion.sum_per_unit(lambda x: ops.square(x - mean), weights) / count
    return ops.stack([mean, variance])


def _weights_per_unit(weights):
    return math.prod(weights.shape[:-1])


def _standardize(weights, moments, gain, center, fan_in, scale, variance_eps, eps):
    """Compute the formula of `WeightStandardized` in the precision of `moments`.

    Only the gradient uses `center`; here `moments` already accounts for it.
    """
    fan_in, scale, variance_eps, eps = (
        ops.cast(number, moments.dtype) for number in (fan_in, scale, variance_eps, eps)
    )
    mean, variance = moments[0], moments[1]
    variance = (variance + variance_eps) * fan_in
    gain = scale * _precise(gain)
    return (_precise(weights) - mean) * (gain * ops.rsqrt(ops.maximum(variance, eps)))


def _standardize_gradient(arguments, constants, upstream):
    """Compute the gradients of weights and gain in fewer passes than automatic gradients.

    Let `c` be the centered weights, `r` the reciprocal square root, `u` the gradient of
    the result and `n` the number of weights per unit, with sums and means over a unit. The
    gradient of the gain is `scale * r * sum(u * c)`. The gradient of the weights is
    `scale * gain * r * (u - center * mean(u) - fan_in / n * r**2 * sum(u * c) * c)`,
    without the last term if the variance is at its lower bound `eps`. It includes the
    dependence of the moments on the weights, so the gradient of `moments` is None.
    """
    weights, moments, gain, *numbers = arguments
    dtype = upstream.dtype
    center, fan_in, scale, variance_eps, eps = (ops.cast(x, dtype) for x in numbers)
    gain_dtype, weights_dtype = gain.dtype, weights.dtype
    weights, gain = ops.cast(weights, dtype), ops.cast(gain, dtype)
    count = _weights_per_unit(weights)
    mean, variance = moments[0], moments[1]
    variance = (variance + variance_eps) * fan_in
    r = ops.rsqrt(ops.maximum(variance, eps))
    upstream_sum = fusion.sum_per_unit(lambda k, u: u, weights, upstream)
    upstream_mean = upstream_sum / count * center
    product = fusion.sum_per_unit(lambda k, u: (k - mean) * u, weights, upstream)
    through_variance = ops.where(
        variance > eps, product * r * r * (fan_in / count), 0.0
    )
    weights_gradient = (scale * gain * r) * (
        upstream - upstream_mean - through_variance * (weights - mean)
    )
    return [
        ops.cast(weights_gradient, weights_dtype),
        None,
        ops.cast(scale * r * product, gain_dtype),
    ]


class Kernel(typing.NamedTuple):
    """Description of one kernel of a Keras layer.

    Attributes:
        name: str. Name of the weight and of the layer's attribute.
        gain: str. Name of its gain.
        initializer: str. Name of the layer's argument for its initializer.
        output_axes: tuple of ints. Axes that index the output units. The others index the
            weights of a unit, for standardization and for clipping.
    """

    name: str = "kernel"
    gain: str = "gain"
    initializer: str = "kernel_initializer"
    output_axes: tuple = (-1,)

    @property
    def is_depthwise(self):
        """Whether each unit has a single input channel."""
        return self.output_axes == (-2, -1)

    @property
    def is_transposed(self):
        """Whether the kernel is that of a transposed convolution."""
        return self.output_axes == (-2,)

    def units(self, shape):
        """Return the number of output units of a kernel of this shape."""
        return math.prod(shape[axis] for axis in self.output_axes)

    def norm_axes(self, rank):
        """Return the axes that index the weights of one unit, for a kernel of this rank."""
        outputs = [axis % rank for axis in self.output_axes]
        return tuple(axis for axis in range(rank) if axis not in outputs)

    def units_last(self, weights, ops=ops):
        """Return a kernel with a single axis of units, the last.

        Args:
            weights: tensor; or array, with `ops=np`.
            ops: `keras.ops` or `numpy`.
        """
        if self.is_transposed:
            return ops.swapaxes(weights, -1, -2)
        if self.is_depthwise:
            return ops.reshape(weights, (*weights.shape[:-2], -1))
        return weights

    def as_matrix(self, weights, ops=ops):
        """Reshape a kernel to `(weights per unit, units)`; arguments of `units_last`."""
        return ops.reshape(
            self.units_last(weights, ops), (-1, self.units(weights.shape))
        )

    def from_units_last(self, weights, shape, ops=ops):
        """Return the result of `units_last` or `as_matrix` as a kernel of this shape."""
        if not self.is_transposed:
            return ops.reshape(weights, shape)
        *before, outputs, inputs = shape
        return ops.swapaxes(ops.reshape(weights, (*before, inputs, outputs)), -1, -2)


class WeightStandardized:
    """Mixin that standardizes the weights of each unit of a Keras layer.

    It is the base class of all layers with standardized kernels and comes before the
    Keras layer in the list of bases. The layer replaces the weights `w` of each unit by

        scale * gain * (w - mean(w)) / sqrt(max((var(w) + variance_eps) * fan_in, eps))

    where `fan_in` is the number of weights that contribute to an output value, and
    always adds a bias. Mean and variance are computed in float32 even under
    `mixed_bfloat16` and `mixed_float16`; only the result is cast.

    Zero mean is a strong restriction for units of few weights: a depthwise filter of
    nine weights can then neither blur nor pass its input. `center=False` keeps the mean:
    in the formula `mean(w)` is then zero and `var(w)` is the mean square. The mean of the
    inputs then reaches the outputs, and each step that changes `mean(w)` would shift
    them. To prevent this, `input_mean` times the sum of the standardized weights is
    subtracted from the bias. The layer can represent the same functions with and without
    `input_mean`, but learns faster with it.

    Args:
        *args, **kwargs: those of the Keras layer.
        gain_initializer: initializer of the gain, one value per unit.
        eps: float. Lower bound of `(var(w) + variance_eps) * fan_in`.
        scale: float. Constant factor.
        variance_eps: float. Added to the variance.
        center: bool. Whether the mean of a unit's weights is subtracted.
        input_mean: float. With `center=False`, the approximate mean of the inputs, such
            as the outputs of an activation.

    Input and output: those of the Keras layer.

    Raises:
        ValueError: `use_bias=False`, a value is out of range, or, when the layer is
            built, each unit has a single weight.

    Example:

    >>> layer = keras_nfnets.WSDense(4)
    >>> y = layer(keras.ops.ones((1, 9)))
    >>> isinstance(layer, WeightStandardized), tuple(layer.standardized_kernel().shape)
    (True, (9, 4))

    Reference: Brock et al. (2021), arXiv 2102.06171, section 2, equation 1.
    """

    # In the order in which the layer creates and applies them.
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
                kwargs[kernel.initializer] = None  # `add_weight` chooses it
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
                # For some kernels Keras's initializers assume another fan-in.
                deviation = self._fan_in(kernel, kwargs["shape"]) ** -0.5
                initializer = keras.initializers.RandomNormal(stddev=deviation)
                kwargs["initializer"] = initializer
        # No autocast: standardization needs the full precision of the variables.
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
                    f"A unit of {type(self).__name__} needs at least two weights to "
                    "standardize: a single one would become a constant. Use more inputs "
                    "or a larger kernel. Received: inputs of shape "
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
        """Return a kernel before standardization: the variable, or with LoRA a tensor."""
        return keras_internals.kernel_of(self, kernel.name)

    def _fan_in(self, kernel, shape):
        """Return the number of weights that contribute to an output value."""
        return math.prod(shape) / kernel.units(shape)

    def standardized_kernel(self, name=None):
        """Return a kernel as the layer applies it, in the compute dtype.

        Args:
            name: str. Name of the kernel; by default the layer's first.
        """
        return ops.cast(self.precise_kernel(name=name), self.compute_dtype)

    def precise_kernel(self, training=False, name=None):
        """Return `standardized_kernel` before the cast, in float32 or better."""
        names = [kernel.name for kernel in self.KERNELS]
        checks.one_of("name", name, (None, *names))
        kernel = self.KERNELS[0 if name is None else names.index(name)]
        weights = ops.convert_to_tensor(self._weights(kernel))
        gain = ops.convert_to_tensor(getattr(self, kernel.gain))
        shape = tuple(weights.shape)
        weights = kernel.units_last(weights)
        center = float(self.center or kernel is not self.KERNELS[0])
        constants = (
            center,
            self._fan_in(kernel, shape),
            self.scale if kernel is self.KERNELS[-1] else 1.0,
            self.variance_eps,
            self.eps,
        )
        if training:
            moments = fusion.saved(fusion.fused, _moments, weights, center)
            weights = fusion.fused(
                _standardize,
                weights,
                moments,
                gain,
                *constants,
                gradient=_standardize_gradient,
            )
        else:
            moments = _moments(weights, center)
            weights = _standardize(weights, moments, gain, *constants)
        return kernel.from_units_last(weights, shape)

    def precise_bias(self, *kernels):
        """Return the bias minus the response of the kernels to a constant `input_mean`.

        Args:
            *kernels: results of `precise_kernel`, in the order of `KERNELS`.
        """
        bias = ops.convert_to_tensor(self.bias)
        if self.center or not self.input_mean:
            return bias
        first, *others = map(Kernel.as_matrix, self.KERNELS, kernels)
        # An output value of a transposed convolution depends on only part of the weights.
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
        """Apply the kernels to the inputs, without bias and activation.

        Args:
            inputs: tensor.
            *kernels: tensors in the order of `KERNELS`, in the compute dtype.
        """
        raise NotImplementedError

    # Some Keras layers save their kernel and bias explicitly; the gains follow these.

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
        """Return the class of the Keras layer whose kernels this class standardizes."""
        return next(c for c in cls.__mro__ if not issubclass(c, WeightStandardized))

    def keras_config(self):
        """Return the config of the corresponding layer of class `keras_class`."""
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
