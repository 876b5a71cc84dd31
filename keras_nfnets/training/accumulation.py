"""Clipping the mean of accumulated gradients."""

import typing

from keras import ops

from keras_nfnets.backend import keras_internals
from keras_nfnets.training.adaptive_clip import dense, is_overwritten
from keras_nfnets.training.inner_optimizers import accumulation_steps, optimizer_of


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
    steps = accumulation_steps(optimizer)
    if steps == 1:
        gradients, counts = clip(gradients)
        return Clipped(gradients, [], counts)
    accumulated = [
        ops.convert_to_tensor(variable)
        for variable in _accumulators(optimizer, variables)
    ]
    first = optimizer_of(optimizer, variables[0])
    calls = ops.convert_to_tensor(keras_internals.calls_of_apply(first)) + 1
    now = ops.equal(calls % steps, 0)
    gradients, means = list(gradients), list(gradients)
    summed = [
        i
        for i, variable in enumerate(variables)
        # Keras itself accumulates values that are not gradients.
        if gradients[i] is not None and not is_overwritten(variable)
    ]
    for i in summed:
        gradients[i] = dense(gradients[i], variables[i])
        means[i] = (gradients[i] + loss_scale * accumulated[i]) / steps
    means, counts = clip(means)
    for i in summed:
        gradients[i] = ops.where(now, steps * means[i], gradients[i])
    taken = ops.logical_and(now, finite)
    kept = [
        before
        if is_overwritten(variable)
        else ops.where(taken, ops.zeros_like(before), before)
        for before, variable in zip(accumulated, variables)
    ]
    return Clipped(gradients, kept, counts, now)


def _accumulators(optimizer, variables):
    if not optimizer.built:
        optimizer.build(variables)
    if accumulation_steps(optimizer) == 1:
        return []
    return [
        keras_internals.accumulated_gradient(optimizer_of(optimizer, v), v)
        for v in variables
    ]
