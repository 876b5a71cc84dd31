"""Callbacks that monitor training."""

import time

import keras
from keras import ops

from keras_nfnets.backend import keras_internals
from keras_nfnets.training.inner_optimizers import updating_optimizers

# Loss scaling may have to halve its scale a few times at the beginning.
_MAX_CONSECUTIVE_SKIPS = 10


class CheckTrainStep(keras.callbacks.Callback):
    """Callback that calls `check_train_step` of an `AGCModel` after the first step."""

    def on_train_batch_end(self, batch, logs=None):
        self.model.check_train_step()


class StopAfterSkippedSteps(keras.callbacks.Callback):
    """Callback that ends training with an explanation after ten skipped steps in a row.

    `AGCModel.fit` adds it if the model was compiled with `skip_nonfinite`.

    Raises:
        FloatingPointError: at the end of a batch. The weights are those before the
            skipped steps.
    """

    def on_epoch_begin(self, epoch, logs=None):
        self._seen = 0  # number of steps skipped in this epoch

    def on_train_batch_end(self, batch, logs=None):
        skipped = int(logs["skipped"])
        if skipped == self._seen:
            return
        self._seen = skipped
        keras_internals.synchronize(self.model)
        count = self.model.skipped.in_a_row()
        if count < _MAX_CONSECUTIVE_SKIPS:
            return
        culprits = self.model.skipped.culprits()
        shown = ", ".join(culprits[:5])
        more = f" and {len(culprits) - 5} more" if len(culprits) > 5 else ""
        share = logs.get("clip_share")
        rates = current_learning_rates(self.model).values()
        clipped = "" if share is None else f"; {float(share):.0%} of units clipped"
        raise FloatingPointError(
            f"The last {count} steps were skipped, because gradients were not finite: "
            f"those of {shown}{more}. The learning rate is "
            f"{', '.join(f'{rate:.3g}' for rate in rates)}{clipped}. The weights are those "
            "before these steps. Look for values that are not finite in the data; if "
            "there are none, try a smaller learning rate or clip factor."
        )


class TrainingLog(keras.callbacks.Callback):
    """Callback that adds learning rate, throughput and clip shares to the logs of epochs.

    It adds `learning_rate` at the end of the epoch (of each optimizer in a
    `MultiOptimizer`, as `learning_rate_<name>`), `images_per_second` (of all
    replicas; the first epoch includes compilation), and for an `AGCModel` the fraction of
    clipped units in each stage: `clip_share_stem`, `clip_share_stage1`, ... (in a network
    without such names, in each layer). Put it before
    callbacks that write logs, such as `keras.callbacks.TensorBoard`.

    Args:
        images_per_epoch: int. Number of examples per epoch.

    Example:

    >>> model = keras_nfnets.NFNetTiny(input_shape=(8, 8, 1), classes=2)
    >>> model.compile("sgd", "sparse_categorical_crossentropy")
    >>> history = model.fit(np.ones((4, 8, 8, 1)), np.ones(4), verbose=0,
    ...                     callbacks=[TrainingLog(images_per_epoch=4)]).history
    >>> [name for name in history if "stage1" in name or "rate" in name]
    ['clip_share_stage1', 'learning_rate']
    """

    def __init__(self, images_per_epoch):
        super().__init__()
        self.images_per_epoch = images_per_epoch

    def on_epoch_begin(self, epoch, logs=None):
        self._started = time.perf_counter()
        self._seconds = 0.0

    def on_train_batch_end(self, batch, logs=None):
        # Excludes validation, which runs before `on_epoch_end`.
        self._seconds = time.perf_counter() - self._started

    def on_epoch_end(self, epoch, logs=None):
        if "clip_share" in logs:
            logs.update(self.model.clip_shares)
        logs.update(current_learning_rates(self.model))
        logs["images_per_second"] = self.images_per_epoch / max(self._seconds, 1e-9)


def current_learning_rates(model):
    """Return the learning rates of the next step.

    Returns:
        A dict `{"learning_rate": float}`; for a `MultiOptimizer`, with one entry
        `"learning_rate_..."` for each of its optimizers, by their names.
    """
    optimizers = updating_optimizers(model.optimizer)
    rates = [float(ops.convert_to_numpy(o.learning_rate)) for o in optimizers]
    if len(optimizers) == 1:
        return {"learning_rate": rates[0]}
    return {f"learning_rate_{o.name}": rate for o, rate in zip(optimizers, rates)}
