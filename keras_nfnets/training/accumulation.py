"""Clipping before an optimizer that accumulates gradients: what is clipped is their mean."""

import typing

from keras import ops

from keras_nfnets.backend import keras_internals
from keras_nfnets.training.adaptive_clip import dense


def innermost(optimizer):
    """The optimizer inside of wrappers (`LossScaleOptimizer`, `AGC`)."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


class Clipped(typing.NamedTuple):
    """What to do in place of `optimizer.apply(gradients, variables)`."""

    gradients: list  # to apply
    accumulated: list = ()  # what the optimizer must have accumulated before
    counts: object = None  # that the clip returned beside the gradients
    is_update: object = True  # whether weights will change, a bool tensor

    def set_accumulated(self, optimizer, variables):
        """Sets what the optimizer has accumulated; then it may apply `gradients`."""
        for variable, value in zip(
            _accumulators(optimizer, variables), self.accumulated
        ):
            variable.assign(value)

    def apply(self, optimizer, variables):
        self.set_accumulated(optimizer, variables)
        optimizer.apply(self.gradients, variables)


def clip_mean(clip, optimizer, gradients, variables, loss_scale=1.0, finite=True):
    """Clips what an optimizer will apply, be it accumulated or not.

    Keras's optimizers add up gradients and apply the mean of `steps` of them. At that
    step we take over what was accumulated, clip the mean, and hand over `steps` times
    that, to be divided again.

    Args:
        clip: function from a list of gradients to a list of clipped ones and anything
            else.
        optimizer: what the result's `apply` is called with.
        gradients, variables: lists, in order.
        loss_scale: what the gradients, but not what was accumulated, are multiplied by.
        finite: whether the optimizer will use these gradients; an optimizer that scales
            the loss may leave them out.

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
