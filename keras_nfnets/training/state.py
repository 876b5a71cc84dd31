"""State of a training step other than trainable weights and the optimizer's."""

import keras
from keras import ops

from keras_nfnets.training import replicas


class State:
    """Values of variables, to be restored.

    Args:
        variables: list of `keras.Variable`: statistics of layers, metrics.
    """

    def __init__(self, variables):
        # On several replicas TensorFlow assigns the mean over the replicas, which exists
        # for floats only. (Layers cannot change other weights there either.)
        self._variables = [
            v for v in variables if _is_float(v) or not replicas.assigns_means(v)
        ]
        self._values = [ops.copy(variable) for variable in self._variables]

    def restore(self, unless=False):
        """Give the variables their values, unless `unless`, a bool (tensor), is True."""
        for variable, value in zip(self._variables, self._values):
            if unless is not False:
                value = ops.where(unless, ops.convert_to_tensor(variable), value)
            variable.assign(value)


def _is_float(variable):
    return "float" in keras.backend.standardize_dtype(variable.dtype)
