"""Training on several replicas: gradients are summed once, then all make the same update.

Only TensorFlow exposes replicas to the program. `keras.distribution` on JAX and the single
device of PyTorch need no such treatment, so there the functions do nothing special.
"""

import keras


def _tensorflow():  # imported only here, as TensorFlow may not be installed
    from keras_nfnets.training import replicas_tensorflow

    return replicas_tensorflow


def mean_over_own_examples(loss):
    """Return the mean loss of this replica's examples, given the loss of a Keras model."""
    if keras.backend.backend() != "tensorflow":
        return loss
    return _tensorflow().mean_over_own_examples(loss)


def update(optimizer, function, arguments, condition=None):
    """Call `function(*arguments)`, in which `optimizer` applies summed gradients.

    Args:
        optimizer: `keras.optimizers.Optimizer` whose `apply` is called by `function`.
            Until `function` returns, it does not sum gradients over replicas again.
        function: callable that changes variables; its result is ignored.
        arguments: list of (lists of) tensors; each replica passes its own.
        condition: bool tensor, equal on all replicas, or None. Whether to call the
            function.
    """
    if keras.backend.backend() == "tensorflow":
        _tensorflow().update(optimizer, function, arguments, condition)
    elif condition is None or bool(condition):  # eager: PyTorch
        function(*arguments)


def sum_and_update(optimizer, function, gradients, variables):
    """Call `update` with `gradients`, summed over replicas unless they already are.

    `variables` are those of the gradients.

    On several replicas a sum that is not finite changes nothing: the
    `LossScaleOptimizer` of Keras, which guards against that, checks only the first
    replica.
    """
    if keras.backend.backend() == "tensorflow":
        _tensorflow().sum_and_update(optimizer, function, gradients, variables)
    else:
        function(gradients)


def assigns_means(variable):
    """Whether assignment to a variable assigns the mean over several replicas."""
    if keras.backend.backend() != "tensorflow":
        return False
    return _tensorflow().assigns_means(variable)


def to_be_reduced(logs):
    """Return the logs of a step in the shape in which Keras reduces them."""
    if keras.backend.backend() != "tensorflow":
        return logs
    return _tensorflow().to_be_reduced(logs)


def symbolic_batch(iterator):
    """Return a batch of an epoch's data as `KerasTensor`s, without reading any."""
    return _tensorflow().symbolic_batch(iterator)


def perturbation(variables):
    """Return SAM's `Perturbation` of variables, which replicas make together."""
    from keras_nfnets.training.perturbation_tensorflow import Perturbation

    return Perturbation(variables)


def has_ranks(iterator):
    """Whether an epoch's data are tensors of known rank."""
    return _tensorflow().has_ranks(iterator)
