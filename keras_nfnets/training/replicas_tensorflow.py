"""Training on the replicas of a `tf.distribute` strategy."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from keras_nfnets.backend import keras_internals_tensorflow as internals
from keras_nfnets.backend.per_example import BatchSlice
from keras_nfnets.training.adaptive_clip import is_finite, is_overwritten
from keras_nfnets.training.inner_optimizers import all_optimizers, updating_optimizers


def _several_replicas():
    context = tf.distribute.get_replica_context()
    return context is not None and context.num_replicas_in_sync > 1


def sum_over_replicas(gradients, variables):
    """Sum each gradient of a list, which may contain `None`, over the replicas.

    "Gradients" that are new values (the scales of float8 training) are not summed: all
    replicas take the largest, as Keras does for those of accumulated steps.
    """
    gradients = list(gradients)
    if not _several_replicas():
        return gradients
    context = tf.distribute.get_replica_context()
    given = [i for i, gradient in enumerate(gradients) if gradient is not None]
    summed = [i for i in given if not is_overwritten(variables[i])]
    if summed:
        sums = context.all_reduce(
            tf.distribute.ReduceOp.SUM, [gradients[i] for i in summed]
        )
        for i, total in zip(summed, sums):
            gradients[i] = total
    for i in sorted(set(given) - set(summed)):
        values = context.all_gather(gradients[i][None], axis=0)
        gradients[i] = tf.reduce_max(values, axis=0)
    return gradients


def batch_sizes(x):
    """Return the number of examples of each replica, `(replicas,)`; None for one replica.

    The result is a NumPy array if shapes are static, as they must be on TPUs, else an
    int32 tensor.
    """
    if not _several_replicas():
        return None
    context = tf.distribute.get_replica_context()
    first = next(value for value in keras.tree.flatten(x) if value is not None)
    # In eager mode a replica's static size need not be that of the others.
    if first.shape[0] is not None and not tf.executing_eagerly():
        return np.full(context.num_replicas_in_sync, first.shape[0], "int32")
    size = tf.shape(first)[0]
    if isinstance(tf.distribute.get_strategy(), tf.distribute.MirroredStrategy):
        # All replicas are in this process, so the sizes need no all-reduce.
        def gather(strategy, sizes):
            return tf.stack(strategy.experimental_local_results(sizes))

        return context.merge_call(gather, args=(size,))
    here = tf.one_hot(context.replica_id_in_sync_group, context.num_replicas_in_sync)
    sizes = context.all_reduce(
        tf.distribute.ReduceOp.SUM, here * tf.cast(size, tf.float32)
    )
    return tf.cast(sizes, tf.int32)


def batch_slice(sizes):
    """Return the `BatchSlice` of this replica, given `batch_sizes`; None for None."""
    if sizes is None:
        return None
    mine = tf.distribute.get_replica_context().replica_id_in_sync_group
    before = tf.where(tf.range(sizes.shape[0]) < mine, sizes, 0)
    total = int(sizes.sum()) if isinstance(sizes, np.ndarray) else tf.reduce_sum(sizes)
    return BatchSlice(tf.reduce_sum(before), total)


def loss_weight(sizes):
    """Compute the loss weight of this replica: `n_local * n_replicas / n_total`.

    Keras averages the loss over a replica's examples and divides it by the number of
    replicas. This gives the mean over the batch only if all replicas have equally many
    examples, which may not be so at the end of an epoch.
    """
    if sizes is None:
        return 1.0
    mine = tf.distribute.get_replica_context().replica_id_in_sync_group
    here = tf.gather(sizes, mine)
    share = here * sizes.shape[0] / tf.maximum(tf.reduce_sum(sizes), 1)
    return tf.cast(share, tf.float32)


def mean_over_own_examples(loss):
    if loss.shape.num_elements() == 0:  # no examples, which happens in eager steps
        return tf.zeros((), loss.dtype)
    # Keras has divided the loss by the number of replicas.
    return loss * tf.distribute.get_strategy().num_replicas_in_sync


def update(optimizer, function, arguments, condition):
    if not _several_replicas():
        with contextlib.ExitStack() as stack:
            for inner in updating_optimizers(optimizer):
                stack.enter_context(internals.updating_in_place(inner))
            if condition is None:
                function(*arguments)
            else:
                tf.cond(condition, lambda: _nothing(function(*arguments)), lambda: 0)
        return

    # `cond` must be outside of the replicas, as in the LossScaleOptimizer of Keras.
    def on_all_replicas(strategy, arguments, condition):
        def call():
            with internals.taking_sums(all_optimizers(optimizer)):
                strategy.extended.call_for_each_replica(function, args=arguments)

        if condition is None:
            call()
        else:
            condition = strategy.experimental_local_results(condition)[0]
            tf.cond(condition, lambda: _nothing(call()), lambda: 0)

    context = tf.distribute.get_replica_context()
    context.merge_call(on_all_replicas, args=(tuple(arguments), condition))


def sum_and_update(optimizer, function, gradients, variables):
    if internals.takes_sums(optimizer) or not _several_replicas():
        function(gradients)
        return
    gradients = sum_over_replicas(gradients, variables)
    finite = tf.reduce_all([is_finite(gradient) for gradient in gradients])
    update(optimizer, function, [gradients], finite)


def assigns_means(variable):
    return _several_replicas() and variable.aggregation == "mean"


def to_be_reduced(logs):
    if not internals.has_workers(tf.distribute.get_strategy()):
        return logs
    # Keras averages over workers along this axis (Keras issue 20585).
    return {name: tf.expand_dims(value, 0) for name, value in logs.items()}


def symbolic_batch(iterator):
    def symbolic(spec):
        if isinstance(spec, tf.OptionalSpec):  # how Keras passes None
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
    """Return 0, the result of both branches of a `cond`."""
    return 0
