"""`lean` on TensorFlow."""

import contextlib
import functools

import tensorflow as tf

from keras_nfnets.lean import is_compiling, memory


@contextlib.contextmanager
def _set(variable, value):
    """Within it `variable`, a `ContextVar`, has that value."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def fused(function, gradient):
    forward = _compiled(function)
    backward = _compiled(gradient or functools.partial(_derivative, function))

    def call(*arguments):
        # As tensors: a Python number would be compiled in, and each of them anew.
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
    def traced(*arguments):
        with _set(is_compiling, True):
            return function(*arguments)

    return tf.function(traced, jit_compile=True, autograph=False)


def _derivative(function, arguments, constants, upstream):
    sources = [x for x, is_constant in zip(arguments, constants) if not is_constant]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        outputs = function(*arguments)
    return tape.gradient(outputs, sources, upstream)


def recomputed(function, inputs):
    @tf.custom_gradient
    def with_gradient(inputs):
        found = []

        def gradient(upstream, variables=()):
            # Not before there is a gradient: all would be kept again.
            with tf.control_dependencies([upstream]), tf.GradientTape() as tape:
                again = tf.identity(inputs)
                tape.watch(again)
                with _set(memory, iter(found)):
                    outputs = function(again)
            variables = list(variables)
            gradients = tape.gradient(outputs, [again, *variables], upstream)
            return gradients[0], gradients[1:]

        with _set(memory, found):
            return function(inputs), gradient

    return with_gradient(inputs)
