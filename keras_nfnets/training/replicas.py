"""Training on several replicas: gradients are summed once, then all replicas do the same.

Only TensorFlow has replicas that a program sees; JAX's `keras.distribution` and PyTorch's
single device need none of this, so there the functions do nothing special.
"""

import keras


def _tensorflow():  # imported where it is used: it may not be installed
    from keras_nfnets.training import replicas_tensorflow

    return replicas_tensorflow


def mean_of_own(loss):
    """The mean loss of this replica's examples, of what a Keras model computes."""
    if keras.backend.backend() != "tensorflow":
        return loss
    return _tensorflow().mean_of_own(loss)


def update(optimizer, function, arguments, condition=None):
    """Calls `function(*arguments)`, which has `optimizer` apply summed gradients.

    Args:
        optimizer: what `function` calls `apply` of. Until `function` returns, it takes
            gradients for sums over the replicas.
        function: changes variables; what it returns is lost.
        arguments: list of (lists of) tensors; on each replica its own.
        condition: a bool tensor, the same on all replicas: whether to call at all.
    """
    if keras.backend.backend() == "tensorflow":
        _tensorflow().update(optimizer, function, arguments, condition)
    elif condition is None or bool(condition):  # eager: PyTorch
        function(*arguments)


def sum_and_update(optimizer, function, gradients):
    """`update` with one argument: `gradients`, summed if that is still to be done.

    Under several replicas a sum that is not finite changes nothing: Keras's
    `LossScaleOptimizer`, which guards against that, sees the first replica only.
    """
    if keras.backend.backend() == "tensorflow":
        _tensorflow().sum_and_update(optimizer, function, gradients)
    else:
        function(gradients)


def to_be_reduced(logs):
    """The logs of a step, in the shape in which Keras reduces them over replicas."""
    if keras.backend.backend() != "tensorflow":
        return logs
    return _tensorflow().to_be_reduced(logs)


def symbolic_batch(iterator):
    """A batch of an epoch's data as `KerasTensor`s; nothing of it is read."""
    return _tensorflow().symbolic_batch(iterator)


def has_ranks(iterator):
    """Whether an epoch's data are tensors with a known number of axes."""
    return _tensorflow().has_ranks(iterator)
