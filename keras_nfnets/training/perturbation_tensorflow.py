"""Perturbation of weights in the compiled steps of TensorFlow."""

import contextlib

import tensorflow as tf

from keras_nfnets.training.sam import perturbed


class Perturbation:
    """SAM's perturbation of weights, which can be undone when a step has failed.

    After an operation fails, nothing else in a compiled step runs. Therefore the weights
    are copied into variables, from which Python can restore them.

    Args:
        variables: list of `keras.Variable`. The weights.
    """

    def __init__(self, variables):
        self._variables = variables
        with tf.init_scope():
            self._copies = [_variable(tf.zeros(v.shape, v.dtype)) for v in variables]
            self._is_applied = _variable(False)

    @contextlib.contextmanager
    def applied(self, gradients, rho):
        """Context in which the variables are `perturbed`; then they are restored."""
        for variable, copy in zip(self._variables, self._copies):
            copy.assign(variable.value)
        before = [copy.read_value() for copy in self._copies]
        # In a graph, only operations on the same variable are ordered.
        with tf.control_dependencies(before):
            self._is_applied.assign(True)
        with tf.control_dependencies([self._is_applied.read_value()]):
            self._assign(perturbed(before, gradients, self._variables, rho))
        try:
            yield
        finally:
            self._undo()

    def restore(self):
        """Restore the variables if a step has failed in the context."""
        if self._is_applied.numpy():
            self._undo()

    def _undo(self):
        self._assign([copy.read_value() for copy in self._copies])
        with tf.control_dependencies([tf.identity(v.value) for v in self._variables]):
            self._is_applied.assign(False)

    def _assign(self, values):
        for variable, value in zip(self._variables, values):
            variable.assign(value)


def _variable(value):
    """Create a variable that each replica assigns on its own."""
    return tf.Variable(
        value,
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )
