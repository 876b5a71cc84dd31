"""Console output of training: a progress bar during an epoch, a line after it."""

import keras
import numpy as np
from tqdm import tqdm


class EpochLines(keras.callbacks.Callback):
    """Callback that prints the plan of a run and a table of its epochs."""

    def __init__(self, plan, epochs, steps):
        super().__init__()
        self.plan, self.epochs, self.steps = plan, epochs, steps

    def on_train_begin(self, logs=None):
        print(self.plan, flush=True)
        self._header = None

    def on_epoch_begin(self, epoch, logs=None):
        self._bar = tqdm(
            total=self.steps,
            desc=f"Epoch {epoch + 1}/{self.epochs}",
            unit=" batches",
            leave=False,
            disable=None,  # unless the output is a terminal
        )

    def on_train_batch_end(self, batch, logs=None):
        # With `steps_per_execution`, several batches end at once.
        self._bar.update(batch + 1 - self._bar.n)
        self._bar.set_postfix(loss=f"{float(logs['loss']):.3f}", refresh=False)

    def on_epoch_end(self, epoch, logs=None):
        self._bar.close()
        columns = _columns(logs)
        number = f"Epoch {epoch + 1}/{self.epochs}".ljust(12)
        header = "  ".join([" " * len(number), *columns])
        if header != self._header:
            print(header)
            self._header = header
        values = (value.rjust(len(name)) for name, value in columns.items())
        print("  ".join([number, *values]), flush=True)


def _columns(logs):
    """Format the logs of an epoch as `{heading: value}`."""
    columns = {
        "  loss": f"{logs['loss']:.3f}",
        "accuracy": f"{logs['accuracy']:.1%}",
        "held out": f"{logs['val_accuracy']:.1%}",
    }
    if "val_ema_accuracy" in logs:
        columns["averaged"] = f"{logs['val_ema_accuracy']:.1%}"
    if "clip_share" in logs:
        parts = [
            name.removeprefix("clip_share_")
            for name in logs
            if name.startswith("clip_share_")
        ]
        columns["clipped"] = f"{logs['clip_share']:.0%}"
        short = [part.replace("stage", "").rjust(3) for part in parts]
        shares = [f"{100 * logs[f'clip_share_{part}']:3.0f}" for part in parts]
        columns[f"({' '.join(short)})"] = f"({' '.join(shares)})"
    columns["  rate"] = f"{logs['learning_rate']:.3g}"
    columns["images/s"] = f"{logs['images_per_second']:,.0f}"
    if logs.get("skipped"):
        columns["skipped"] = f"{np.rint(logs['skipped']):.0f}"
    return columns
