"""Clipping the mean of accumulated gradients."""

import typing

from keras import ops

from keras_nfnets.backend import keras_internals
from keras_nfnets.training.adaptive_clip import dense


def innermost(optimizer):
    """Return the optimizer inside of wrappers (`LossScaleOptimizer`, `AGC`)."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


class Clipped(typing.NamedTuple):
    """Clipped gradients, and the accumulator state to write before `optimizer.apply`."""

    gradients: list  # for `optimizer.apply`
    accumulated: list = ()  # values for the optimizer's accumulators
    counts: object = None  # the second result of the clipping function
    is_update: object = True  # bool tensor: whether this step updates the weights

    def set_accumulated(self, optimizer, variables):
        """Write the accumulator state, after which `gradients` can be applied."""
        for variable, value in zip(
            _accumulators(optimizer, variables), self.accumulated
        ):
            variable.assign(value)

    def apply(self, optimizer, variables):
        self.set_accumulated(optimizer, variables)
        optimizer.apply(self.gradients, variables)


def clip_mean(clip, optimizer, gradients, variables, loss_scale=1.0, finite=True):
    """Clip the gradients that an optimizer will apply, or the mean it accumulates.

    With `gradient_accumulation_steps`, a Keras optimizer sums the gradients of `steps`
    steps and applies their mean. In the step that applies it, this function empties the
    accumulators, clips the mean and passes `steps` times the result to the optimizer,
    which divides it again.

    Args:
        clip: callable from a list of gradients to a list of clipped gradients and a
            second result, for `Clipped.counts`.
        optimizer: `keras.optimizers.Optimizer` that `Clipped.apply` will be called with.
        gradients, variables: lists in the same order.
        loss_scale: float or scalar tensor. Factor of the gradients; the accumulated
            gradients do not have it.
        finite: bool or bool tensor. Whether the optimizer will use these gradients; one
            that scales the loss skips gradients that are not finite.

    Returns:
        `Clipped`.
    """
    inner = innermost(optimizer)
    steps = inner.gradient_accumulation_steps
    if not steps:
        gradients, counts = clip(gradients)
        return Clipped(gradients, [], counts)
    accumulated = [
        ops.convert_to_tensor(variable)
        for variable in _accumulators(optimizer, variables)
    ]
    calls = ops.convert_to_tensor(keras_internals.calls_of_apply(inner)) + 1
    now = ops.equal(calls % steps, 0)
    gradients = [
        None if gradient is None else dense(gradient, variable)
        for gradient, variable in zip(gradients, variables)
    ]
    means, counts = clip(
        [
            None if gradient is None else (gradient + loss_scale * before) / steps
            for gradient, before in zip(gradients, accumulated)
        ]
    )
    fed = [
        None if gradient is None else ops.where(now, steps * mean, gradient)
        for mean, gradient in zip(means, gradients)
    ]
    taken = ops.logical_and(now, finite)
    kept = [ops.where(taken, ops.zeros_like(before), before) for before in accumulated]
    return Clipped(fed, kept, counts, now)


def _accumulators(optimizer, variables):
    optimizer = innermost(optimizer)
    if not optimizer.gradient_accumulation_steps:
        return []
    if not optimizer.built:
        optimizer.build(variables)
    accumulated = keras_internals.accumulated_gradients(optimizer)
    return [
        accumulated[keras_internals.variable_index(optimizer, variable)]
        for variable in variables
    ]
