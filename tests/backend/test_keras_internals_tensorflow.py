"""Keras has the internals that `backend/keras_internals_tensorflow.py` expects."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from internals import expected

from keras_nfnets.backend import keras_internals_tensorflow as internals


def two_replicas():
    # Not by collective operations: those of a process must all have the same devices.
    return tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()
    )


@pytest.mark.parametrize("replicas", [1, 2])
def test_specs_of_an_epoch_are_known_without_reading(replicas):
    strategy = two_replicas() if replicas == 2 else tf.distribute.get_strategy()
    seen, found = [], []

    class Watched(keras.Sequential):
        def _maybe_symbolic_build(self, iterator=None, data_batch=None):
            found.append(internals.epoch_specs(iterator))
            super()._maybe_symbolic_build(iterator, data_batch)

    def note(i):
        seen.append(i)
        return np.float32(i)

    data = tf.data.Dataset.range(8).map(
        lambda i: tf.numpy_function(note, [i], "float32")
    )
    data = data.map(lambda x: (tf.ensure_shape(x, ())[None], tf.ones(1))).batch(4)
    with expected(internals.epoch_specs):
        with strategy.scope():
            model = Watched([keras.Input((1,)), keras.layers.Dense(1)])
            model.compile("sgd", "mse")
        model.fit(data, verbose=0)
        x, y, *_ = keras.tree.flatten(found[0])
        assert tuple(x.shape)[1:] == tuple(y.shape)[1:] == (1,)
        assert x.dtype == "float32"


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_no_convolution_is_compiled(rank, data_format):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *[7] * rank, 4)).astype("float32")
    x = x if data_format == "channels_last" else np.moveaxis(x, -1, 1)
    kernel = rng.normal(size=(*[3] * rank, 2, 6)).astype("float32")

    def convolve(x):
        return keras.ops.conv(x, kernel, 2, "same", data_format)

    with expected(internals.plain_convolutions):
        with internals.plain_convolutions():
            function = tf.function(convolve).get_concrete_function(x)
        types = {node.type for node in function.graph.get_operations()}
        assert any(name.startswith("Conv") for name in types)
        assert not any("PartitionedCall" in name for name in types)
        compiled = tf.function(convolve, jit_compile=True)(x)
        np.testing.assert_allclose(function(tf.constant(x)), compiled, atol=1e-5)


def test_one_process_has_no_workers():
    with expected(internals.has_workers):
        # (Several processes have: see test_strategies.py.)
        for strategy in (tf.distribute.get_strategy(), two_replicas()):
            assert not internals.has_workers(strategy)


@pytest.mark.parametrize("wraps", [False, True])
def test_sums_are_not_summed_again(wraps):
    strategy = two_replicas()
    with expected(internals.taking_sums):
        with strategy.scope():
            variable = keras.Variable(np.zeros(2, "float32"))
            optimizer = inner = keras.optimizers.SGD(1.0)
            if wraps:
                optimizer = keras.optimizers.LossScaleOptimizer(
                    inner, initial_scale=1.0
                )
            optimizer.build([variable])

        @tf.function
        def step():
            def on_a_replica():
                inner.apply([tf.ones(2)], [variable])

            strategy.extended.call_for_each_replica(on_a_replica)

        with internals.taking_sums({optimizer, inner}):
            assert internals.takes_sums(optimizer) and internals.takes_sums(inner)
            step()
        assert not internals.takes_sums(optimizer) and not internals.takes_sums(inner)
        np.testing.assert_array_equal(
            variable.numpy(), [-1, -1]
        )  # not -2, the sum of two


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_momentum_in_place_is_that_of_keras(nesterov, sparse):
    gradient = tf.ones((3, 2))
    if sparse:
        gradient = tf.IndexedSlices(tf.ones((1, 2)), tf.constant([1]), (3, 2))

    def two_steps(context):
        variable = keras.Variable(np.arange(6, dtype="float32").reshape(3, 2))
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=nesterov)
        optimizer.build([variable])
        step = tf.function(lambda: optimizer.apply([gradient], [variable]))
        with context(optimizer):
            step()
            step()
        return variable.numpy(), optimizer.momentums[0].numpy()

    expected_values = two_steps(contextlib.nullcontext)
    with expected(internals.updating_in_place):
        for a, b in zip(two_steps(internals.updating_in_place), expected_values):
            np.testing.assert_allclose(a, b, rtol=1e-6)
