"""Private and undocumented names of Keras and TensorFlow that only TensorFlow has.

See `keras_internals.py`.
"""

import contextlib
import functools
import types

import keras
import tensorflow as tf
from keras.src.backend.tensorflow import nn

from keras_nfnets.backend.convolution import convolve_groups
from keras_nfnets.backend.keras_internals import replacing, variable_index

# Data.


def epoch_specs(iterator):
    """Return the specs of the batches of Keras's iterator over an epoch.

    Reading a batch instead would shuffle the data once more.

    Args:
        iterator: Keras's `EpochIterator` on TensorFlow.

    Returns:
        A structure of `tf.TypeSpec`s, of one replica; `tf.OptionalSpec` is Keras's way to
        pass None.
    """
    return keras.tree.map_structure(
        lambda spec: getattr(spec, "_value_specs", [spec])[0],
        iterator._distributed_dataset.element_spec,
    )


def has_workers(strategy):
    """Whether a `tf.distribute` strategy runs on several machines, given by TF_CONFIG."""
    return (
        isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        and strategy.extended._in_multi_worker_mode()
    )


# Convolutions.


@contextlib.contextmanager
def plain_convolutions():
    """Context in which Keras traces all convolutions as operations that every device has.

    Keras 3.9 to 3.15 calls a function compiled by XLA for each grouped convolution, and
    for those in three dimensions with channels first. Other runtimes cannot read it. The
    operations without XLA lack these cases, and on CPUs all that have channels first.
    """

    with replacing(nn, "conv", _plain_convolution):
        yield


def _plain_convolution(original):
    @functools.wraps(original)
    def conv(
        inputs,
        kernel,
        strides=1,
        padding="valid",
        data_format=None,
        dilation_rate=1,
    ):
        def one(inputs, kernel):
            return original(
                inputs, kernel, strides, padding, "channels_last", dilation_rate
            )

        data_format = data_format or keras.config.image_data_format()
        if data_format == "channels_first":
            inputs = keras.ops.moveaxis(inputs, 1, -1)
        groups = inputs.shape[-1] // kernel.shape[-2]
        if groups == 1:
            outputs = one(inputs, kernel)
        else:
            outputs = convolve_groups(one, inputs, kernel, groups, axis=-1)
        if data_format == "channels_first":
            outputs = keras.ops.moveaxis(outputs, -1, 1)
        return outputs

    return conv


# Optimizers.

# Optimizer methods that Keras overrides on TensorFlow: its versions all-reduce gradients, or
# leave the replica in the middle of a `cond`, which TensorFlow forbids. The versions of the
# base class do neither: each replica updates its own copy of the variables.
_PER_REPLICA = (
    "_apply_weight_decay",
    "_backend_increment_gradient_accumulators",
    "_backend_update_step",
    "_overwrite_model_variables_with_average_value",
)


def takes_sums(optimizer):
    """Whether an optimizer is used inside of `taking_sums`."""
    return _PER_REPLICA[0] in vars(optimizer)


@contextlib.contextmanager
def taking_sums(optimizers):
    """Context in which optimizers do not all-reduce gradients.

    Args:
        optimizers: list of `keras.optimizers.Optimizer`s, called in the context of a
            replica with gradients that are summed over replicas.
    """
    changed = [optimizer for optimizer in optimizers if not takes_sums(optimizer)]
    for optimizer in changed:
        for name in _PER_REPLICA:
            base = next(c for c in reversed(type(optimizer).__mro__) if name in vars(c))
            vars(optimizer)[name] = types.MethodType(vars(base)[name], optimizer)
    try:
        yield
    finally:
        for optimizer in changed:
            for name in _PER_REPLICA:
                del vars(optimizer)[name]


@contextlib.contextmanager
def updating_in_place(optimizer):
    """Context in which an optimizer's updates use as little memory as possible.

    An update starts when its gradient is available, and SGD's momentum is updated in place.
    TensorFlow runs an operation as soon as it can: it would compute 0.9 times the momentum
    of all variables at the beginning of a step and keep the results until the end.

    Args:
        optimizer: `keras.optimizers.Optimizer` that wraps no other.
    """
    update_step = optimizer.update_step
    if type(optimizer) is keras.optimizers.SGD and optimizer.momentum:
        update_step = functools.partial(_momentum_step, optimizer)

    def update(gradient, *args, **kwargs):
        ready = getattr(gradient, "values", gradient)  # of a sparse one
        with tf.control_dependencies([ready]):
            return update_step(gradient, *args, **kwargs)

    vars(optimizer)["update_step"] = update
    try:
        yield
    finally:
        del vars(optimizer)["update_step"]


def _momentum_step(sgd, gradient, variable, learning_rate):
    """Apply `SGD.update_step` with momentum in place.

    Keras's version has nine operations, each of which writes a tensor of the variable's size: 6 %
    of a training step of ECANFNetL0 (batch 16, 128 x 128).
    """
    if isinstance(gradient, tf.IndexedSlices):
        keras.optimizers.SGD.update_step(sgd, gradient, variable, learning_rate)
        return
    velocity = sgd.momentums[variable_index(sgd, variable)].value
    tf.raw_ops.ResourceApplyKerasMomentum(
        var=variable.handle,
        accum=velocity.handle,
        lr=tf.cast(learning_rate, variable.dtype),
        grad=tf.cast(gradient, variable.dtype),
        momentum=tf.cast(sgd.momentum, variable.dtype),
        use_nesterov=sgd.nesterov,
    )
