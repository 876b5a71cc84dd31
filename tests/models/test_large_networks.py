"""Tests that take gigabytes and minutes: run with `pytest -m slow`."""

import keras
import numpy as np
import pytest

import keras_nfnets
from keras_nfnets.models.costs import variants

pytestmark = [pytest.mark.slow, pytest.mark.own_process]


@pytest.mark.parametrize("name", variants())
def test_every_network_runs_and_keeps_its_signal(name):
    model = getattr(keras_nfnets, name)(include_top=False)
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")
    features = keras.ops.convert_to_numpy(model(images))
    assert features.shape == (1, 2, 2, model.output_shape[-1])
    # Average pooling on the shortcuts lowers the variance of noise by up to four at each
    # of three strides. Without the published gains it would be far below.
    assert 1e-4 < features.var() < 100


@pytest.mark.parametrize("jit_compile", [False, True])
def test_f0_trains_on_its_own_size(jit_compile):
    model = keras_nfnets.NFNetF0(input_shape=(192, 192, 3), classes=10)
    optimizer = keras_nfnets.SGDAGC(0.1)
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=jit_compile)
    images = np.random.default_rng(0).normal(size=(4, 192, 192, 3)).astype("float32")
    losses = [model.train_on_batch(images, np.arange(4)) for _ in range(4)]
    assert losses[-1] < losses[0]
