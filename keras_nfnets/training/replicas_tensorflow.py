"""Replicas of a `tf.distribute` strategy."""

import keras
import numpy as np
import tensorflow as tf

from keras_nfnets.backend import keras_internals_tensorflow as internals
from keras_nfnets.backend.per_example import BatchSlice
from keras_nfnets.training.accumulation import innermost
from keras_nfnets.training.adaptive_clip import is_finite


def _several_replicas():
    context = tf.distribute.get_replica_context()
    return context is not None and context.num_replicas_in_sync > 1


def sum_over_replicas(tensors):
    """A list of tensors (or `None`), each summed over the replicas."""
    tensors = list(tensors)
    given = [tensor for tensor in tensors if tensor is not None]
    if not given or not _several_replicas():
        return tensors
    context = tf.distribute.get_replica_context()
    summed = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, given))
    return [None if tensor is None else next(summed) for tensor in tensors]


def batch_sizes(x):
    """How many examples of a batch each replica has, `(replicas,)`; None for one.

    A NumPy array where shapes are static, as they must be on TPUs, else an int32 tensor.
    """
    if not _several_replicas():
        return None
    context = tf.distribute.get_replica_context()
    first = next(value for value in keras.tree.flatten(x) if value is not None)
    # (What runs eagerly knows its own size, which need not be that of others.)
    if first.shape[0] is not None and not tf.executing_eagerly():
        return np.full(context.num_replicas_in_sync, first.shape[0], "int32")
    size = tf.shape(first)[0]
    if isinstance(tf.distribute.get_strategy(), tf.distribute.MirroredStrategy):
        # All of them are at hand; no need to go through the strategy's reduction.
        def gather(strategy, sizes):
            return tf.stack(strategy.experimental_local_results(sizes))

        return context.merge_call(gather, args=(size,))
    here = tf.one_hot(context.replica_id_in_sync_group, context.num_replicas_in_sync)
    sizes = context.all_reduce(
        tf.distribute.ReduceOp.SUM, here * tf.cast(size, tf.float32)
    )
    return tf.cast(sizes, tf.int32)


def batch_slice(sizes):
    """The `BatchSlice` of this replica, given `batch_sizes`; None without replicas."""
    if sizes is None:
        return None
    mine = tf.distribute.get_replica_context().replica_id_in_sync_group
    before = tf.where(tf.range(sizes.shape[0]) < mine, sizes, 0)
    total = int(sizes.sum()) if isinstance(sizes, np.ndarray) else tf.reduce_sum(sizes)
    return BatchSlice(tf.reduce_sum(before), total)


def share_of_batch(sizes):
    """This replica's share of the batch, times the number of replicas.

    Keras takes each replica's mean and divides by their number, which is the mean over
    the batch only where all have as many examples: not at the end of an epoch.
    """
    if sizes is None:
        return 1.0
    mine = tf.distribute.get_replica_context().replica_id_in_sync_group
    here = tf.gather(sizes, mine)
    share = here * sizes.shape[0] / tf.maximum(tf.reduce_sum(sizes), 1)
    return tf.cast(share, tf.float32)


def mean_of_own(loss):
    if loss.shape.num_elements() == 0:  # that of no examples, where steps run eagerly
        return tf.zeros((), loss.dtype)
    # Which Keras has divided by their number.
    return loss * tf.distribute.get_strategy().num_replicas_in_sync


def update(optimizer, function, arguments, condition):
    if not _several_replicas():
        with internals.updating_in_place(innermost(optimizer)):
            if condition is None:
                function(*arguments)
            else:
                tf.cond(condition, lambda: _nothing(function(*arguments)), lambda: 0)
        return

    # Conditions must stand outside of the replicas, as in Keras's LossScaleOptimizer.
    def on_all_replicas(strategy, arguments, condition):
        def call():
            with internals.taking_sums(optimizer):
                strategy.extended.call_for_each_replica(function, args=arguments)

        if condition is None:
            call()
        else:
            condition = strategy.experimental_local_results(condition)[0]
            tf.cond(condition, lambda: _nothing(call()), lambda: 0)

    context = tf.distribute.get_replica_context()
    context.merge_call(on_all_replicas, args=(tuple(arguments), condition))


def sum_and_update(optimizer, function, gradients):
    if internals.takes_sums(optimizer) or not _several_replicas():
        function(gradients)
        return
    gradients = sum_over_replicas(gradients)
    finite = tf.reduce_all([is_finite(gradient) for gradient in gradients])
    update(optimizer, function, [gradients], finite)


def to_be_reduced(logs):
    if not internals.has_workers(tf.distribute.get_strategy()):
        return logs
    # Keras takes the mean over workers along this axis (its issue 20585).
    return {name: tf.expand_dims(value, 0) for name, value in logs.items()}


def symbolic_batch(iterator):
    def symbolic(spec):
        if isinstance(spec, tf.OptionalSpec):  # Keras's way to say None
            return None
        return keras.KerasTensor(tuple(spec.shape), spec.dtype.name)

    return keras.tree.map_structure(symbolic, internals.epoch_specs(iterator))


def has_ranks(iterator):
    specs = keras.tree.flatten(internals.epoch_specs(iterator))
    return all(
        isinstance(spec, tf.OptionalSpec)
        or (isinstance(spec, tf.TensorSpec) and spec.shape.rank is not None)
        for spec in specs
    )


def _nothing(_):
    """What both branches of a `cond` return."""
    return 0
