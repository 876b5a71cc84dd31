"""What watches over training."""

import time

import keras
from keras import ops

# Loss scaling may have to halve its scale a few times at the beginning.
_MOST_SKIPPED_IN_A_ROW = 10


class StopAfterSkippedSteps(keras.callbacks.Callback):
    """Ends training with an explanation after ten steps in a row that were left out.

    `AGCModel.fit` adds it to models compiled with `skip_nonfinite`.

    Raises:
        FloatingPointError: when a batch ends. The weights are those before these steps.
    """

    def on_epoch_begin(self, epoch, logs=None):
        self._seen = 0  # in this epoch

    def on_train_batch_end(self, batch, logs=None):
        skipped = int(logs["skipped"])
        if skipped == self._seen:
            return
        self._seen = skipped
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        count = self.model.skipped.in_a_row()
        if count < _MOST_SKIPPED_IN_A_ROW:
            return
        culprits = self.model.skipped.culprits()
        shown = ", ".join(culprits[:5])
        more = f" and {len(culprits) - 5} more" if len(culprits) > 5 else ""
        share = logs.get("clip_share")
        clipped = "" if share is None else f"; {float(share):.0%} of units clipped"
        raise FloatingPointError(
            f"The last {count} steps were left out, because gradients were not finite: "
            f"those of {shown}{more}. The learning rate is "
            f"{current_learning_rate(self.model):.3g}{clipped}. The weights are "
            "as they were before. Look for such numbers in the data; if there are none, "
            "a smaller learning rate or clip factor may do."
        )


def current_learning_rate(model):
    """The learning rate of the next step, a float."""
    return float(ops.convert_to_numpy(model.optimizer.learning_rate))
