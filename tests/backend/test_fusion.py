"""Fusion and rematerialization change no output and no gradient (TensorFlow)."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from quick import quick

from keras_nfnets import (
    NFBlock,
    ScaledActivation,
    WSConv2D,
    WSConv2DTranspose,
    WSDense,
    WSSeparableConv2D,
)
from keras_nfnets.backend import fusion


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch):
    monkeypatch.setattr(fusion, "LARGE", 1)


def in_graph(function, *arguments):
    """Run `function` in a TensorFlow graph; return its results and the graph."""
    compiled = tf.function(function, autograph=False)
    concrete = compiled.get_concrete_function(*arguments)
    return [np.array(x) for x in tf.nest.flatten(compiled(*arguments))], concrete.graph


def loss_and_gradients(layer, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_mean(tf.sin(layer(x, training=True)))
    return [loss, *tape.gradient(loss, [x, *layer.trainable_variables])]


def calls(graph):
    """Count the operations of a graph that are functions compiled by XLA."""
    return sum(
        "_XlaMustCompile" in op.node_def.attr and op.get_attr("_XlaMustCompile")
        for op in graph.get_operations()
        if op.type in ("StatefulPartitionedCall", "PartitionedCall")
    )


def with_large_gains(layer):
    for variable in layer.trainable_variables:
        if variable.ndim < 2:
            variable.assign(np.random.default_rng(0).normal(0.5, 0.5, variable.shape))
    return layer


LAYERS = {
    "activation": lambda: ScaledActivation("gelu"),
    "convolution": lambda: WSConv2D(24, 3),
    "timm's convolution": lambda: WSConv2D(24, 3, eps=0.0, variance_eps=1e-5, scale=2),
    "eps bounds the variance": lambda: WSConv2D(
        24, 3, eps=3.0, kernel_initializer=keras.initializers.RandomNormal(stddev=0.16)
    ),
    "groups": lambda: WSConv2D(24, 3, groups=3, strides=2, padding="same"),
    "transposed": lambda: WSConv2DTranspose(24, 4, strides=2),
    "separable": lambda: WSSeparableConv2D(24, 3),
    "not centered": lambda: WSSeparableConv2D(24, 3, center=False, input_mean=0.7),
    "dense": lambda: WSDense(24),
    "block": lambda: NFBlock(12, group_size=3, beta=0.7),
    "transition": lambda: NFBlock(24, strides=2, group_size=6, attention="eca"),
    "bottleneck": lambda: NFBlock(
        12, group_size=3, attention_on="bottleneck", activation="relu"
    ),
}


@pytest.mark.parametrize(
    "name",
    quick(
        LAYERS,
        *("activation", "convolution", "eps bounds the variance", "transposed"),
        *("not centered", "block", "bottleneck"),
    ),
)
def test_same_outputs_and_gradients(name, monkeypatch):
    x = tf.constant(np.random.default_rng(0).normal(size=(2, 9, 8, 12)), tf.float32)
    layer = LAYERS[name]()
    layer.build(x.shape)
    with_large_gains(layer)
    actual, graph = in_graph(lambda x: loss_and_gradients(layer, x), x)
    assert calls(graph) >= 2
    monkeypatch.setattr(fusion, "_is_needed", lambda: False)  # as on an accelerator
    expected, graph = in_graph(lambda x: loss_and_gradients(layer, x), x)
    assert calls(graph) == 0
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())


def test_gradient_of_a_gradient():
    """A gradient penalty needs second derivatives."""
    layer = WSConv2D(3, 1)
    x = tf.constant(np.random.default_rng(0).normal(size=(1, 2, 2, 4)), tf.float32)
    layer.build(x.shape)

    def penalty():
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = ScaledActivation("tanh")(layer(x, training=True), training=True)
        return tf.reduce_sum(tape.gradient(y, x) ** 2)

    def gradient():
        with tf.GradientTape() as tape:
            value = penalty()
        return tape.gradient(value, layer.kernel.value)

    [in_a_graph], _ = in_graph(gradient)
    np.testing.assert_allclose(in_a_graph, gradient(), rtol=1e-4, atol=1e-5)


def test_inference_and_eager_training_compile_nothing():
    """Each new image size would need another compilation."""
    layer = NFBlock(8, group_size=4)
    x = tf.ones((1, 5, 5, 8))
    _, graph = in_graph(lambda x: layer(x, training=False), x)
    assert calls(graph) == 0
    assert not fusion._is_needed()


def test_small_networks_compile_nothing(monkeypatch):
    monkeypatch.undo()
    layer = NFBlock(8, group_size=4)

    def graph_of(*shape):
        function = tf.function(lambda x: layer(x, training=True), autograph=False)
        return function.get_concrete_function(tf.TensorSpec(shape)).graph

    assert calls(graph_of(None, 64, 64, 8)) > 0
    for shape in ((64, 16, 16, 8), (None, 32, 32, 8), (None, None, None, 8)):
        assert calls(graph_of(*shape)) == 0


def test_a_custom_function_is_not_fused():
    """It may have variables, and a compiled function would lose their gradients."""
    prelu = keras.layers.PReLU(shared_axes=[1, 2])
    prelu.build((None, 4, 4, 3))
    layer = ScaledActivation(prelu, gain=2.0)

    def gradient(x):
        with tf.GradientTape() as tape:
            y = layer(x, training=True)
        return tape.gradient(y, prelu.alpha.value)

    [found], _ = in_graph(gradient, -tf.ones((1, 4, 4, 3)))
    np.testing.assert_allclose(found, np.full((1, 1, 3), -32.0))
