"""Optimizers inside of others: `AGC`, `LossScaleOptimizer` and `MultiOptimizer`."""

import keras

from keras_nfnets.backend import keras_internals

# Keras has it since 3.15. Nothing is an instance of an empty tuple of classes.
_MULTI_OPTIMIZER = getattr(keras.optimizers, "MultiOptimizer", ())


def innermost(optimizer):
    """Return the optimizer inside of wrappers (`LossScaleOptimizer`, `AGC`)."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def updating_optimizers(optimizer):
    """List the optimizers that update variables: those that contain no other.

    Args:
        optimizer: `keras.optimizers.Optimizer`. Only after it is built is it known which
            optimizers of a `MultiOptimizer` there are and update any variable.
    """
    return [o for o in all_optimizers(optimizer) if not _inside(o)]


def all_optimizers(optimizer):
    """List an optimizer and all optimizers inside of it, outer ones first."""
    result = [optimizer]
    for inner in _inside(optimizer):
        result += all_optimizers(inner)
    return result


def _inside(optimizer):
    if isinstance(optimizer, _MULTI_OPTIMIZER):
        # A default may be left without variables.
        return [o for o in optimizer.optimizers if o.built or not optimizer.built]
    inner = getattr(optimizer, "inner_optimizer", None)
    return [] if inner is None else [inner]


def optimizer_of(optimizer, variable):
    """Return the optimizer inside of a built `optimizer` that updates `variable`."""
    return next(
        inner
        for inner in updating_optimizers(optimizer)
        if keras_internals.optimizes(inner, variable)
    )


def accumulation_steps(optimizer):
    """Return the number of gradients that are accumulated per update, 1 or more.

    Raises:
        ValueError: the optimizers of a `MultiOptimizer` differ in it.
    """
    steps = {
        inner.gradient_accumulation_steps or 1
        for inner in updating_optimizers(optimizer)
    }
    if len(steps) > 1:
        raise ValueError(
            "Clipping needs one number of accumulated gradients for all optimizers of a "
            "MultiOptimizer. Received: gradient_accumulation_steps of "
            f"{', '.join(map(str, sorted(steps)))}"
        )
    return steps.pop()


def number_of_updates(optimizer):
    """Return the number of updates so far, an integer variable or tensor.

    The `iterations` of a `MultiOptimizer` count accumulated gradients too.
    """
    built = [inner for inner in updating_optimizers(optimizer) if inner.built]
    return (built or [optimizer])[0].iterations
