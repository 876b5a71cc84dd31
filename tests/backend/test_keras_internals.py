"""Keras's internals are as `backend/keras_internals.py` expects them."""

import contextlib

import keras
import numpy as np
import pytest

from keras_nfnets.backend import keras_internals


@contextlib.contextmanager
def expected(function):
    """Fails with a sentence that names Keras's version, whatever goes wrong."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 (of whatever type)
        pytest.fail(
            f"Keras {keras.__version__} has other internals than "
            f"keras_internals.{function.__name__} expects: {error!r}. Adapt it, or "
            "exclude this version in setup.cfg."
        )


class Outer(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = keras.layers.Dense(2, name="inner")

    def call(self, x):
        return self.inner(x)


def small_model():
    inputs = keras.Input((3,), name="inputs")
    x = Outer(name="outer")(inputs)
    return keras.Model(inputs, keras.layers.Dense(1, name="last")(x), name="model")


def test_layers_inside_of_layers_are_listed():
    with expected(keras_internals.layers_of):
        names = [layer.name for layer in keras_internals.layers_of(small_model())]
        assert names == ["model", "inputs", "outer", "inner", "last"]
        outer = small_model().get_layer("outer")
        [inner] = keras_internals.layers_of(outer, include_self=False, recursive=False)
        assert inner.name == "inner"


def test_a_tensor_knows_the_call_that_gives_it():
    with expected(keras_internals.node_of):
        model = small_model()
        layer = model.get_layer("last")
        again = layer(model.get_layer("outer").output)
        for tensor in (model.output, again):
            assert keras_internals.operation_of(tensor) is layer
            node = keras_internals.node_of(tensor)
            assert node.operation is layer
            assert list(node.outputs) == [tensor]
            assert node.arguments.args == (model.get_layer("outer").output,)
            assert node.arguments.kwargs == {}
            assert list(node.input_tensors) == list(node.arguments.args)


def test_a_subclassed_model_knows_the_shapes_it_was_built_with():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    with expected(keras_internals.built_shapes):
        model = Subclassed()
        model(np.zeros((4, 3)))
        shape = keras_internals.built_shapes(model)
        if isinstance(shape, dict):
            [shape] = shape.values()
        assert tuple(shape) == (4, 3)


def test_an_optimizer_knows_its_variables():
    with expected(keras_internals.optimized_variables):
        variables = [keras.Variable(np.zeros(n), name=f"v{n}") for n in (2, 3)]
        optimizer = keras.optimizers.SGD()
        optimizer.build(variables)
        found = keras_internals.optimized_variables(optimizer)
        assert [v.path for v in found] == [v.path for v in variables]
        for i, variable in enumerate(variables):
            assert keras_internals.variable_index(optimizer, variable) == i


def test_accumulated_gradients_and_calls_are_counted():
    with expected(keras_internals.accumulated_gradients):
        variable = keras.Variable(np.zeros(2, "float32"))
        optimizer = keras.optimizers.SGD(gradient_accumulation_steps=3)
        for calls in (1, 2):
            optimizer.apply([keras.ops.ones(2)], [variable])
            assert int(keras_internals.calls_of_apply(optimizer)) == calls
            [sums] = keras_internals.accumulated_gradients(optimizer)
            assert keras.ops.convert_to_numpy(sums).tolist() == [calls, calls]
        assert int(optimizer.iterations) == 0


def test_excluded_variables_have_no_weight_decay():
    with expected(keras_internals.has_weight_decay):
        optimizer = keras.optimizers.SGD(weight_decay=0.1)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        kernel, bias = (keras.Variable(np.zeros(2), name=n) for n in ("kernel", "bias"))
        assert keras_internals.has_weight_decay(optimizer, kernel)
        assert not keras_internals.has_weight_decay(optimizer, bias)


def test_the_state_of_a_step_can_be_written_into_the_model():
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            keras_internals.synchronize(self.model)
            [kernel, _] = self.model.get_weights()
            seen.append(float(kernel[0, 0]))

    with expected(keras_internals.synchronize):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(
            np.ones((4, 1)), 5 * np.ones((4, 1)), 1, verbose=0, callbacks=[Watch()]
        )
        assert len(set(seen)) == 4  # each step has changed it
