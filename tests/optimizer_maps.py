"""Optimizers that update different variables by different optimizers."""

import keras
import pytest


def multi_optimizer(default, others=None):
    """Return a `MultiOptimizer`; skip the test where Keras has none, before 3.15.

    Args:
        default: optimizer of the variables that no pattern matches; or, without `others`,
            a function from a variable to its optimizer.
        others: dict from patterns of paths to optimizers.
    """
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip(f"Keras {keras.__version__} has no MultiOptimizer")
    if others is None:
        return keras.optimizers.MultiOptimizer(default)
    optimizers = keras.optimizers.OptimizerMap(default, others)
    return keras.optimizers.MultiOptimizer(optimizers)
