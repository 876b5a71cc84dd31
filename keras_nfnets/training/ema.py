"""Exponential moving averages of weights."""

import contextlib

import keras
from keras import ops

from keras_nfnets.backend import keras_internals
from keras_nfnets.training.adaptive_clip import is_overwritten
from keras_nfnets.training.inner_optimizers import innermost


class MovingAverages:
    """Moving averages of weights, stored and saved with the state of an optimizer.

    After step `t` (from 0) an average becomes

        d * average + (1 - d) * weights    with    d = min(decay, (1 + t) / (10 + t))

    Before the first step it equals the weights.

    Args:
        optimizer: `keras.optimizers.Optimizer`.
        variables: list of the weights to average. The scales of float8 training are left out.
        decay: float.

    Reference: `tf1_ema` in the authors' utils.py.
    """

    def __init__(self, optimizer, variables, decay):
        self.decay = decay
        self.variables = averaged_variables(variables)
        self.averages = [_copy_in(optimizer, variable) for variable in self.variables]

    def update(self, step, changed):
        """Update the averages after step `step` if `changed`, a bool tensor."""
        step = ops.cast(step, "float32")
        decay = ops.minimum(self.decay, (1 + step) / (10 + step))
        decay = ops.where(changed, decay, 1.0)
        for average, variable in zip(self.averages, self.variables):
            keep = ops.cast(decay, average.dtype)
            average.assign(keep * average + (1 - keep) * variable)

    def restart(self):
        """Set the averages to the weights."""
        for average, variable in zip(self.averages, self.variables):
            average.assign(ops.copy(variable))

    @contextlib.contextmanager
    def loading(self):
        """Context in which weights are loaded, and averages if the file has them.

        Averages that are not loaded begin at the new weights.
        """
        before = [ops.copy(average) for average in self.averages]
        marked = self.averages[0]
        marked.assign(before[0] * float("nan"))
        try:
            yield
        except BaseException:
            for average, value in zip(self.averages, before):
                average.assign(value)
            raise
        if bool(ops.all(ops.isnan(marked))):
            self.restart()

    @contextlib.contextmanager
    def swapped_in(self):
        """Context in which the variables have the values of their averages."""
        values = [ops.copy(variable) for variable in self.variables]
        for variable, average in zip(self.variables, self.averages):
            variable.assign(ops.copy(average))  # JAX may reuse the memory of either
        try:
            yield
        finally:
            for variable, value in zip(self.variables, values):
                variable.assign(value)


def averages_in(optimizer, variables, decay):
    """Return the `MovingAverages` in an optimizer, which are created only once.

    A model may be compiled again with the same optimizer.

    Args:
        optimizer, variables: see `MovingAverages`.
        decay: float or None. None deletes existing averages.
    """
    optimizer = innermost(optimizer)
    found = vars(optimizer).get("moving_averages")
    variables = averaged_variables(variables)
    # By identity, because comparing variables compares their values.
    is_same = found and [*map(id, found.variables)] == [*map(id, variables)]
    if found and (decay is None or not is_same):
        keras_internals.delete_variables(optimizer, found.averages)
        found = None
    if not found and decay is not None and variables:
        found = MovingAverages(optimizer, variables, decay)
    optimizer.moving_averages = found
    if found:
        found.decay = decay
    return found


def averaged_variables(variables):
    """Return those of a model's trainable variables that are averaged: no float8 scales."""
    return [variable for variable in variables if not is_overwritten(variable)]


def _copy_in(optimizer, variable):
    """Add a copy of a variable to the state of an optimizer.

    Its name is another than that of Keras's own averages (`use_ema`).
    """

    def value(shape, dtype):
        return ops.cast(ops.copy(variable), dtype)

    # With a distribution, JAX compiles the initializers of large variables; values that
    # several processes have cannot be in a program.
    is_on_jax = keras.backend.backend() == "jax"
    copy = optimizer.add_variable_from_reference(
        variable, "moving_average", initializer="zeros" if is_on_jax else value
    )
    if is_on_jax:
        copy.assign(ops.copy(variable))
    return copy
