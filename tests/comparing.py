"""Comparison of tensors of any backend, including those that require gradients."""

import numpy as np
from keras import ops


def assert_close(actual, expected, rtol=1e-7, atol=0.0):
    """Assert that tensors or arrays are close, as `np.testing.assert_allclose` does."""
    actual, expected = ops.convert_to_numpy(actual), ops.convert_to_numpy(expected)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def snapshot(model):
    return [np.array(w) for w in model.get_weights()]


def assert_unchanged(model, before):
    for a, b in zip(model.get_weights(), before):
        np.testing.assert_array_equal(a, b)
