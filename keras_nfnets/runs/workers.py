"""Batches in shards, and a common first epoch, for several workers."""

from keras_nfnets import data, training
from keras_nfnets.runs import building


def steps_per_epoch(recipe, source, strategy):
    """Return the number of steps per epoch.

    Raises:
        ValueError: a batch cannot be divided among the workers.
    """
    examples = source.size_of(recipe.train_split)
    # With one process, the strategy divides batches among its replicas.
    shards = strategy.num_replicas_in_sync if training.has_workers(strategy) else 1
    steps = data.steps_per_epoch(examples, recipe.batch_size, shards)
    if not steps or recipe.batch_size % shards:
        raise ValueError(
            "`batch_size` must be a multiple of the number of devices of all workers, "
            f"{shards}, and there must be at least as many training images. "
            f"Received: batch_size={recipe.batch_size}, {examples} training images"
        )
    return steps


def batches(recipe, source, epoch, strategy):
    """Load all training batches from an epoch on; each of several workers reads its shards."""
    import tensorflow as tf

    def load(shard=(0, 1)):
        return building.load(
            recipe,
            source,
            recipe.train_split,
            training=True,
            from_epoch=epoch,
            shard=shard,
        )

    if not training.has_workers(strategy):
        return load()

    def of_worker(context):
        count = context.num_replicas_in_sync
        here = count // context.num_input_pipelines
        first = context.input_pipeline_id * here
        shards = [load((first + i, count)) for i in range(here)]
        return tf.data.Dataset.choose_from_datasets(
            shards, tf.data.Dataset.range(here).repeat()
        )

    return strategy.distribute_datasets_from_function(of_worker)


def check_same_epoch(epoch, strategy):
    """Raise a ValueError unless all workers have completed `epoch` epochs."""
    import tensorflow as tf

    def add():
        context = tf.distribute.get_replica_context()
        value = tf.constant(float(epoch))
        return context.all_reduce(tf.distribute.ReduceOp.SUM, value)

    [total, *_] = strategy.experimental_local_results(strategy.run(add))
    if float(total) != epoch * strategy.num_replicas_in_sync:
        raise ValueError(
            "The workers do not start at the same epoch: `output_dir` must be a folder "
            "that all of them share, and all must have `resume`. Received: a worker with "
            f"{epoch} completed epochs, and others with more or fewer"
        )
