"""`keras.distribution.ModelParallel`: kernels divided among eight devices (JAX)."""

import collections
import math
import re

import jax
import keras
import numpy as np
import pytest
from comparing import assert_close
from divided import LAYOUTS, compiled_network, divided, examples, most_parts
from jax.sharding import NamedSharding, PartitionSpec
from quick import quick

import keras_nfnets


def train(options, mesh_shape=None, layout=None):
    with divided(mesh_shape, layout):
        model = compiled_network(options)
        x, y = examples()
        history = model.fit(x, y, 16, epochs=2, verbose=0, shuffle=False).history
    return history, model


@pytest.fixture(scope="module")
def on_one_device():
    """Results by options, trained when they are needed."""
    results = {}

    def result(options):
        if options not in results:
            results[options] = train(options)
        return results[options]

    return result


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("mesh_shape", "layout", "options"),
    [
        ((2, 4), "alternating", "momentum"),
        pytest.param((1, 8), "outputs", "momentum", marks=SLOW),
        pytest.param((2, 4), "outputs", "momentum", marks=SLOW),
        pytest.param((8, 1), "outputs", "momentum", marks=SLOW),
        pytest.param((1, 8), "inputs", "momentum", marks=SLOW),
        pytest.param((2, 4), "alternating", "all at once", marks=SLOW),
    ],
)
def test_divided_kernels_are_trained_as_on_one_device(
    mesh_shape, layout, options, on_one_device
):
    expected, one = on_one_device(options)
    assert expected["clip_share"][-1] > 0.5
    history, model = train(options, mesh_shape, layout)
    assert most_parts(model) == mesh_shape[1]
    assert set(history) == set(expected)
    for name, values in history.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-5, err_msg=name)
    for variable, other in zip(model.variables, one.variables):
        scale = max(np.abs(other.numpy()).max(), 1e-3)  # gains and biases start at zero
        assert_close(variable.numpy() / scale, other.numpy() / scale, atol=2e-6)


def test_averages_of_large_weights_are_divided_and_begin_at_the_weights():
    with divided((1, 8), "outputs"):
        inputs = keras.Input((4096,))
        # Keras creates variables of this size on all devices at once.
        outputs = keras.layers.Dense(2048, name="predictions")(inputs)
        model = keras_nfnets.AGCModel(inputs, outputs)
        model.compile("sgd", "mse", ema_decay=0.9)
        model.build_training_state()
    kernel, _ = model.trainable_variables
    [average] = [v for v in model.optimizer.variables if v.shape == kernel.shape]
    assert average.value.sharding == kernel.value.sharding
    np.testing.assert_array_equal(average.numpy(), kernel.numpy())


def collectives(program):
    """Count the collective operations of a compiled program by name and operand's shape."""
    names = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    pattern = rf"= ([^=]*?) ({names})(?:-start)?\("
    return collections.Counter(
        (name, tuple(map(int, filter(None, shape.split(",")))))
        for shapes, name in re.findall(pattern, program.as_text())
        # Several operands may be reduced at once.
        for shape in re.findall(r"\w\[([\d,]*)\]", shapes)
    )


def training_step(layout, clip_factor):
    """Compile a training step as `fit` does."""
    with divided((2, 4), layout):
        model = compiled_network("momentum")
        model.compile(model.optimizer, model.loss, clip_factor=clip_factor)
        model.build_training_state()
        state = tuple(
            [variable.value for variable in variables]
            for variables in (
                model.trainable_variables,
                model.non_trainable_variables,
                model.optimizer.variables,
                model.metrics_variables,
            )
        )
        shardings = jax.tree.map(lambda array: array.sharding, state)
        mesh = shardings[0][0].mesh
        data = jax.device_put(examples(16), NamedSharding(mesh, PartitionSpec("batch")))
        step = jax.jit(model.train_step, out_shardings=(None, shardings))
        units = {v.shape[-1] for v in model.trainable_variables if v.name == "kernel"}
        return step.lower(state, data).compile(), max(units)


@pytest.mark.parametrize("layout", quick(LAYOUTS, "alternating"))
def test_clipping_adds_one_number_per_unit_to_what_a_step_communicates(layout):
    step, _ = training_step(layout, None)
    clipping_step, most_units = training_step(layout, 0.001)
    before, after = collectives(step), collectives(clipping_step)
    assert any(name == "all-gather" for name, _ in before)  # of activations
    added = after - before
    assert all(name == "all-reduce" for name, _ in added)
    assert all(math.prod(shape) <= most_units for _, shape in added)
    # Each device has whole units of kernels that are divided over outputs.
    assert bool(added) == (layout != "outputs")


@pytest.mark.parametrize(
    ("axes", "sums"),
    [((None, None, None, "model"), 0), ((None, None, "model", None), 1)],
)
def test_norms_of_divided_kernels_gather_nothing(axes, sums):
    mesh = jax.sharding.Mesh(np.reshape(jax.devices(), (2, 4)), ("batch", "model"))
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    layer = keras_nfnets.WSConv2D(32, 3)
    layer.build((None, 8, 8, 16))

    def clip(weights, gradient):
        with keras.StatelessScope([(layer.kernel, weights)]):
            return keras_nfnets.adaptive_clip([gradient], [layer.kernel])

    def standardize(weights, gradient):
        def kernel(weights):
            with keras.StatelessScope([(layer.kernel, weights)]):
                return layer.standardized_kernel()

        outputs, backward = jax.vjp(kernel, weights)
        return outputs, backward(gradient)

    rng = np.random.default_rng(0)
    arrays = [
        jax.device_put(rng.normal(size=(3, 3, 16, 32)).astype("float32"), sharding)
        for _ in range(2)
    ]
    for function in (clip, standardize):
        program = jax.jit(function).lower(*arrays).compile()
        found = collectives(program)
        assert all(name == "all-reduce" for name, _ in found)
        assert bool(found) == bool(sums)
        for result in jax.tree.leaves(program(*arrays)):
            assert result.sharding == sharding
