"""Sparse gradients: `tf.IndexedSlices`, which only TensorFlow has."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_nfnets import adaptive_clip


def sparse_gradient(variable, indices):
    with tf.GradientTape() as tape:
        rows = tf.gather(variable.value, indices)
        loss = tf.reduce_sum(rows * tf.range(1.0, 1 + rows.shape[0])[:, None])
    gradient = tape.gradient(loss, variable.value)
    assert isinstance(gradient, tf.IndexedSlices)
    return gradient


@pytest.mark.parametrize("indices", [[0, 3, 5], [2, 2, 2], [6, 1, 6, 0]])
@pytest.mark.parametrize("shape", [(7, 4), (7, 1), (7,)])
def test_sparse_gradients_are_clipped_as_their_dense_form(shape, indices):
    layer = keras.layers.Embedding(7, 4)
    layer.build((None,))
    variable = (
        layer.embeddings
        if shape == (7, 4)
        else keras.Variable(np.ones(shape, "float32"))
    )
    if len(shape) == 1:
        gradient = tf.IndexedSlices(
            tf.ones(len(indices)), tf.constant(indices), tf.constant(shape)
        )
    else:
        gradient = sparse_gradient(variable, indices)
    [clipped] = adaptive_clip([gradient], [variable], clip_factor=0.05)
    [dense] = adaptive_clip(
        [tf.convert_to_tensor(gradient)], [variable], clip_factor=0.05
    )
    np.testing.assert_allclose(tf.convert_to_tensor(clipped), dense, rtol=1e-6)


def test_embedding_gradients_stay_sparse():
    layer = keras.layers.Embedding(7, 4)
    layer.build((None,))
    gradient = sparse_gradient(layer.embeddings, [1, 1, 5])
    [clipped] = adaptive_clip([gradient], [layer.embeddings])
    assert isinstance(clipped, tf.IndexedSlices)
    np.testing.assert_array_equal(clipped.indices, [1, 1, 5])


def test_rows_of_a_kernel_that_are_not_units_become_dense():
    weights = np.random.default_rng(0).normal(size=(7, 4))
    kernel = keras.Variable(np.float32(weights), name="kernel")
    gradient = sparse_gradient(kernel, [1, 2])
    [clipped] = adaptive_clip([gradient], [kernel], clip_factor=0.01)
    largest = 0.01 * np.linalg.norm(kernel.numpy(), axis=0)
    np.testing.assert_allclose(np.linalg.norm(clipped, axis=0), largest, rtol=1e-5)


def test_sparse_gradients_of_unknown_shape_are_clipped_in_a_graph():
    layer = keras.layers.Embedding(7, 4)
    layer.build((None,))

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, 4), tf.float32),
            tf.TensorSpec((None,), tf.int32),
            tf.TensorSpec((2,), tf.int32),
        ]
    )
    def clip(values, indices, shape):
        gradient = tf.IndexedSlices(values, indices, shape)
        return adaptive_clip([gradient], [layer.embeddings], clip_factor=0.05)[0]

    clipped = clip(tf.ones((2, 4)), [1, 1], [7, 4])
    row = np.linalg.norm(tf.convert_to_tensor(clipped)[1])
    largest = 0.05 * np.linalg.norm(layer.embeddings.numpy()[1])
    assert row == pytest.approx(largest, rel=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_an_embedding_model_trains(jit_compile):
    from keras_nfnets import AGCModel

    inputs = keras.Input((3,), dtype="int32")
    x = keras.layers.Flatten()(keras.layers.Embedding(20, 4)(inputs))
    model = AGCModel(inputs, keras.layers.Dense(1)(x))
    model.compile("sgd", "mse", clip_factor=0.1, jit_compile=jit_compile)
    x = np.random.default_rng(0).integers(0, 20, size=(32, 3))
    history = model.fit(x, x.mean(axis=1), epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
