"""Fused elementwise operations and rematerialization for TensorFlow on CPUs.

Between convolutions, a network only reads and writes memory. XLA (JAX's compiler, and
TensorFlow's on accelerators) fuses such operations, and PyTorch has kernels for the usual
activations; TensorFlow on a CPU runs each operation on its own and saves its inputs for
the backward pass. There these functions fuse and rematerialize, in graphs only: eager code
is never compiled. Everywhere else they just call the function.

A training step of NFNet-F0 (batch 8, 192 x 192, AGC and Nesterov momentum, two cores)
takes 2.0 s and at most 4.2 GB without them, 1.8 s and 2.7 GB with them; 0.7 GB of either
is TensorFlow itself.
"""

import contextlib
import contextvars
import functools
import math
import operator
import sys

import keras
from keras import ops

from keras_nfnets.backend.device import has_only_cpus

# Number of elements below which a tensor is not worth a compiled function: a small network
# would need twice as long for its first step and gain nothing in later ones.
LARGE = 2**18


def _is_needed():
    # TensorFlow's packages for macOS have no XLA for the CPU.
    if keras.backend.backend() != "tensorflow" or sys.platform == "darwin":
        return False
    import tensorflow as tf

    return not tf.executing_eagerly() and has_only_cpus()


def _is_large(x):
    # An unknown size is that of a batch, or of images of any size, and each size would be
    # compiled anew.
    sizes = [8 if size is None else size for size in getattr(x, "shape", ())]
    return math.prod(sizes) >= LARGE


@contextlib.contextmanager
def _set(variable, value):
    """Context in which a `ContextVar` has this value."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


# Fusion.

_is_fusing = contextvars.ContextVar("is_fusing", default=False)


def fused(function, *arguments, gradient=None):
    """Call an elementwise function in one pass, saving only `arguments` for its gradient.

    Args:
        function: callable of tensors without side effects. Pass the same object for calls
            that compute the same: each object is compiled once per shape.
        *arguments: tensors, or floats, which are constants.
        gradient: callable `(arguments, constants, upstream)` that returns the gradients of
            the tensors in `arguments`. `constants` is a list of bools, True for arguments
            that are floats; `upstream` is the gradient of the result. By default the
            gradient is derived automatically.

    Returns:
        `function(*arguments)`.
    """
    if not (_is_needed() and any(map(_is_large, arguments))):
        return function(*arguments)
    return _fused(function, gradient)(*arguments)


@functools.cache
def _fused(function, gradient):
    import tensorflow as tf

    forward = _compiled(function)
    backward = _compiled(gradient or functools.partial(_derivative, function))

    def call(*arguments):
        # Python numbers would be compiled in, and each value compiled anew.
        constants = tuple(isinstance(argument, float) for argument in arguments)
        tensors = [
            tf.constant(argument, "float64") if is_constant else argument
            for argument, is_constant in zip(arguments, constants)
        ]

        @tf.custom_gradient
        def with_gradient(*arguments):
            def gradients(upstream):
                found = iter(backward(arguments, constants, upstream))
                return [
                    None if is_constant else next(found) for is_constant in constants
                ]

            return forward(*arguments), gradients

        return with_gradient(*tensors)

    return call


def _compiled(function):
    import tensorflow as tf

    def traced(*arguments):
        with _set(_is_fusing, True):
            return function(*arguments)

    return tf.function(traced, jit_compile=True, autograph=False)


def _derivative(function, arguments, constants, upstream):
    import tensorflow as tf

    sources = [x for x, is_constant in zip(arguments, constants) if not is_constant]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        outputs = function(*arguments)
    return tape.gradient(outputs, sources, upstream)


def sum_of_rows(function, *arrays):
    """Compute `sum(function(*arrays), axis=-2)` inside a `fused` function or its gradient.

    XLA's own sum over all axes but the last takes up to four times as long: 4.8 ms instead
    of 1.2 for the norms that `adaptive_clip` takes of a 3 x 3 x 512 x 512 kernel.

    Args:
        function: elementwise callable; it is called with some of the rows of each array.
        *arrays: tensors `(..., rows, columns)`.

    Returns:
        A tensor `(..., columns)`.
    """
    rows = arrays[0].shape[-2]
    if not _is_fusing.get() or rows is None:
        return ops.sum(function(*arrays), axis=-2)
    # The sum of slabs of rows takes one pass and vectorizes.
    slabs = max(count for count in range(1, 9) if rows % count == 0)
    parts = map(function, *(ops.split(array, slabs, axis=-2) for array in arrays))
    return ops.sum(functools.reduce(operator.add, parts), axis=-2)


def sum_per_unit(function, *arrays):
    """Compute `sum(function(*arrays))` over all axes but the last, by `sum_of_rows`.

    Elsewhere the arrays keep their axes: to merge axes of which one is divided among
    devices, XLA would gather the whole array on each of them.

    Args:
        function: elementwise callable, see `sum_of_rows`.
        *arrays: tensors `(..., units)`.

    Returns:
        A tensor `(units,)`.
    """
    if not _is_fusing.get():
        axes = tuple(range(len(arrays[0].shape) - 1))
        return ops.sum(function(*arrays), axis=axes)
    rows = (ops.reshape(array, (-1, array.shape[-1])) for array in arrays)
    return sum_of_rows(function, *rows)


def add_bias(x, bias, data_format):
    """Add a bias to each channel.

    Args:
        x: tensor `(batch, ..., channels)`, or `(batch, channels, ...)`.
        bias: tensor `(channels,)`.
        data_format: `"channels_last"` or `"channels_first"`.

    Returns:
        A tensor of the shape of `x`.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # Its gradient takes half the time of that of an addition.
        layout = "NHWC" if data_format == "channels_last" else "NCHW"
        return tf.nn.bias_add(x, bias, layout)
    if data_format == "channels_first":
        bias = ops.reshape(bias, (-1, *[1] * (len(x.shape) - 2)))
    return x + bias


# Rematerialization.

# Results of `saved`: a list during the forward pass, an iterator during recomputation.
_memory = contextvars.ContextVar("memory", default=None)


def saved(function, *arguments):
    """Call a function whose small result a `rematerialized` function saves.

    Args:
        function: callable without side effects.
        *arguments: its arguments.

    Returns:
        `function(*arguments)`; during recomputation the tensor of the forward pass.
    """
    memory = _memory.get()
    if memory is None:
        return function(*arguments)
    if isinstance(memory, list):
        memory.append(function(*arguments))
        return memory[-1]
    return next(memory)


def rematerialized(function, inputs):
    """Call a function whose gradient recomputes it and saves only `inputs`.

    Use it for functions whose intermediate results are cheap to compute. Operations that
    only lead to the final result, such as a last convolution, are not recomputed, nor are
    the results of `saved`.

    Args:
        function: callable of a tensor without side effects; it may read variables.
        inputs: tensor.

    Returns:
        `function(inputs)`.
    """
    if not (_is_needed() and _is_large(inputs)):
        return function(inputs)
    import tensorflow as tf

    @tf.custom_gradient
    def with_gradient(inputs):
        memory = []

        def gradient(upstream, variables=()):
            # Recompute only when the upstream gradient is available: otherwise TensorFlow
            # would recompute at once and keep the results in memory.
            with tf.control_dependencies([upstream]), tf.GradientTape() as tape:
                again = tf.identity(inputs)
                tape.watch(again)
                with _set(_memory, iter(memory)):
                    outputs = function(again)
            variables = list(variables)
            gradients = tape.gradient(outputs, [again, *variables], upstream)
            return gradients[0], gradients[1:]

        with _set(_memory, memory):
            return function(inputs), gradient

    return with_gradient(inputs)


class Chain:
    """Layers applied one after the other, `rematerialized` in training.

    Args:
        *layers: built layers. All but the last should be cheap to compute.
    """

    def __init__(self, *layers):
        self.layers = layers

    def __call__(self, inputs, training=False):
        def apply(x):
            for layer in self.layers:
                x = layer(x, training=training)
            return x

        return rematerialized(apply, inputs) if training else apply(inputs)
