"""Comparison of tensors of any backend, those that require gradients included."""

import numpy as np
from keras import ops


def assert_close(actual, expected, rtol=1e-7, atol=0.0):
    """`np.testing.assert_allclose` for tensors and arrays."""
    actual, expected = ops.convert_to_numpy(actual), ops.convert_to_numpy(expected)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)
