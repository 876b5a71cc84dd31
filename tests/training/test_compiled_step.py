"""Training step compiled by XLA as for accelerators (TensorFlow)."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from comparing import assert_close

import keras_nfnets
from keras_nfnets import layers
from keras_nfnets.backend.per_example import BatchSlice, inputs_are


@pytest.fixture(scope="module")
def compiled():
    """Training step of an NFNet with all options of `compile`, and a batch for it.

    (Its stem has one convolution in place of four.)
    """
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = keras_nfnets.WSConv2D(16, 3, strides=2, name="stem_conv")(inputs)
    x = keras_nfnets.NFBlock(32, strides=2, group_size=8, stochastic_depth_rate=0.1)(x)
    x = keras_nfnets.ScaledActivation("gelu")(x)
    x = layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(x))
    x = keras.layers.Dense(10, activation="softmax", name="predictions")(x)
    model = keras_nfnets.AGCModel(inputs, x)
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=2e-5),
        keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        metrics=["accuracy"],
        sam_rho=0.05,
        ema_decay=0.99999,
        skip_nonfinite=True,
    )
    model.build_training_state()

    @tf.function(jit_compile=True, autograph=False)  # as `fit` does
    def step(x, y):
        return model.train_step((x, y))

    x, y = tf.random.normal((4, 8, 8, 3)), tf.one_hot([0, 1, 2, 3], 10)
    model.test_step((x, y))  # creates the metrics, or the step would be traced twice
    return step, (x, y)


@pytest.fixture(scope="module")
def hlo(compiled):
    step, batch = compiled
    return step.experimental_get_compiler_ir(*batch)(stage="hlo")


@pytest.mark.slow  # as `fit` uses XLA by default, other tests run such steps
def test_the_step_runs(compiled):
    step, batch = compiled
    assert all(np.isfinite(value) for value in step(*batch).values())


def test_nothing_in_the_step_calls_the_host(compiled, hlo):
    step, batch = compiled
    graph = step.get_concrete_function(*batch).graph.as_graph_def()
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    operations = {node.op for node in nodes}
    assert "Conv2D" in operations
    host = "PyFunc|Print|Py|Host|Outfeed|Infeed|Summary|Iterator|Assert|Where$|Unique"
    assert not [name for name in operations if re.search(host, name)]
    assert "convolution(" in hlo
    for call in ("custom-call", "infeed", "outfeed", "send(", "recv(", "callback"):
        assert call not in hlo


def test_all_shapes_are_static(hlo):
    # XLA writes f32[<=8,3] for a size that is known only at run time.
    assert "<=" not in hlo
    assert "dynamic-" not in re.sub("dynamic-(update-)?slice", "", hlo)


@pytest.mark.parametrize("layer", ["StochasticDepth", "Dropout"])
def test_random_numbers_of_one_replica_compile(layer):
    def drawn(examples, place):
        dropping = getattr(layers, layer)(0.5, seed=1)

        @tf.function(jit_compile=True)
        def call(offset):
            with inputs_are(place and BatchSlice(offset, 12)):
                return dropping(tf.ones((examples, 3)), training=True)

        return call(tf.constant(place or 0))

    whole = drawn(12, None)
    for first in (4, 8):
        assert_close(drawn(4, first), whole[first : first + 4])
