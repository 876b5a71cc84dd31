"""Sharpness-aware minimization (SAM): gradients at the worst nearby point."""

import contextlib

from keras import ops

from keras_nfnets.training.adaptive_clip import dense, is_overwritten


def perturbed(values, gradients, variables, rho):
    """Compute `values + rho * g / |g|`, with the norm over all gradients together.

    Args:
        values: list of tensors, the weights.
        gradients: list of tensors of the same shapes, or `None` (no change). A common
            factor, as in loss scaling, does not change the result.
        variables: list of the corresponding variables.
        rho: float. Length of the step.

    Reference: Foret et al. (2021), arXiv 2010.01412, equation 2 with p = 2.
    """
    gradients = [
        None if g is None or is_overwritten(v) else ops.cast(dense(g, v), v.dtype)
        for g, v in zip(gradients, variables)
    ]
    given = [ops.cast(g, "float32") for g in gradients if g is not None]
    norm = ops.sqrt(sum((ops.sum(ops.square(g)) for g in given), ops.zeros(())))
    scale = ops.where(norm > 0, rho / ops.maximum(norm, 1e-37), 0.0)
    return [
        value if g is None else value + g * ops.cast(scale, g.dtype)
        for value, g in zip(values, gradients)
    ]


def gradients_of_sam(first, at_worst, variables):
    """Return the gradients at the worst point, but the first ones of float8 scales.

    Args:
        first: list of gradients at the weights.
        at_worst: list of gradients at the `perturbed` weights.
        variables: list of the corresponding variables.
    """
    return [
        before if is_overwritten(variable) else gradient
        for before, gradient, variable in zip(first, at_worst, variables)
    ]


@contextlib.contextmanager
def perturbed_variables(variables, gradients, rho):
    """Context in which the variables are `perturbed`; then their values are restored."""
    before = [ops.copy(variable) for variable in variables]
    worst = perturbed(before, gradients, variables, rho)
    try:
        for variable, value in zip(variables, worst):
            variable.assign(value)
        yield
    finally:
        for variable, value in zip(variables, before):
            variable.assign(value)
