"""Console output of a training run."""

import sys

import keras
import numpy as np
from tqdm import tqdm

from keras_nfnets.printing import printable
from keras_nfnets.runs import building, folder


class RunCallback(keras.callbacks.Callback):
    """Keras callback with more events of a run: base class of `Progress`.

    With several workers, only the first one calls it.

    Attributes:
        model: the `keras.Model`, while it trains.

    Example:

    >>> class PrintFolder(RunCallback):
    ...     def on_run_begin(self, run):
    ...         print(f"Results will be in {run.folder}")
    >>> from keras_nfnets import runs
    >>> callbacks = [PrintFolder()]  # for `runs.train`
    """

    def on_run_begin(self, run):
        """Called with the `Run` before anything is trained."""

    def on_head_begin(self, epochs):
        """Called before a new classifier is trained alone."""

    def on_head_end(self, accuracy, val_accuracy):
        """Called after that, with its accuracies in training and validation."""

    def on_run_end(self, run, stopped):
        """Called when all files are written.

        `stopped` is the exception that ended training early, such as
        `KeyboardInterrupt`, or None.
        """

    def track(self, batches):
        """Wrap the batch numbers of the final evaluation, as a progress bar does."""
        return batches


class Progress(RunCallback):
    """Callback that prints the plan of a run, its epochs and its results.

    During an epoch it shows a progress bar if the standard error stream is a terminal.

    Attributes:
        model: the `keras.Model`, while it trains.

    Example:

    >>> from keras_nfnets import runs
    >>> runs.Progress().on_head_end(accuracy=0.8, val_accuracy=0.75)
      accuracy 80.0%, on validation images 75.0%; now training the complete network.
    """

    def write(self, text, file=None):
        """Print lines of text, by default on the standard output."""
        print(text, file=file, flush=True)

    def on_run_begin(self, run):
        self._run = run
        self._header = self._size = None
        if run.recipe.report:
            self.write("\n".join(_describe_data(run)))

    def on_head_begin(self, epochs):
        self.write(f"Training the new classifier alone, {epochs} epochs ...")

    def on_head_end(self, accuracy, val_accuracy):
        self.write(
            f"  accuracy {accuracy:.1%}, on validation images {val_accuracy:.1%}; "
            "now training the complete network."
        )

    def on_train_begin(self, logs=None):
        self.write(self._run.plan)

    def on_epoch_begin(self, epoch, logs=None):
        periods = building.periods(self._run.recipe)
        size = next(p.image_size for p in periods if epoch < p.epochs)
        if len(periods) > 1 and size != self._size:
            self.write(f"Images of {size} x {size} pixels")
            self._size = size
        self._bar = tqdm(
            total=self._run.steps_per_epoch,
            desc=f"Epoch {epoch + 1}/{self._run.recipe.epochs}",
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
        number = f"Epoch {epoch + 1}/{self._run.recipe.epochs}".ljust(12)
        header = "  ".join([" " * len(number), *columns])
        if header != self._header:
            self.write(header)
            self._header = header
        values = (value.rjust(len(name)) for name, value in columns.items())
        self.write("  ".join([number, *values]))

    def track(self, batches):
        return tqdm(batches, "evaluating", unit=" batches", leave=False, disable=None)

    def on_run_end(self, run, stopped):
        # Nobody may be reading the standard output any more.
        file = sys.stderr if isinstance(stopped, BrokenPipeError) else sys.stdout
        self.write("\n".join(["", *_results(run, stopped)]), file)


def _describe_data(run):
    """Return lines: the number of images per class, hints about imbalance and weights."""
    source, recipe = run.source, run.recipe
    train, test = (source.counts(s) for s in (recipe.train_split, recipe.test_split))
    names = [printable(name) for name in source.class_names]
    width = max(map(len, names))
    lines = [
        f"  {name.ljust(width)}  {a:>6,}  {b:>6,}"
        for name, a, b in zip(names, train, test)
    ]
    lines.insert(
        0,
        f"{sum(train):,} training images and {sum(test):,} validation images of "
        f"{len(names)} classes:",
    )
    if is_unbalanced(train):
        most, least = np.argmax(train), np.argmin(train)
        lines.append(
            f"Unbalanced: {names[most]} has {train[most]:,} images, "
            f"{names[least]} has {train[least]:,}. Look at the accuracy of "
            "each class, not only at the overall accuracy."
        )
    if recipe.weights is None:
        lines.append(
            "Training from scratch. With few images, `weights=imagenet` does better, for "
            "a network with published weights, such as `model=NFNetL0`."
        )
    return lines


def is_unbalanced(counts):
    """Whether the largest class has more than three times as many images as the smallest."""
    return max(counts) > 3 * min(counts)


def _columns(logs):
    """Format the logs of an epoch as `{heading: value}`."""
    columns = {
        "  loss": f"{logs['loss']:.3f}",
        "accuracy": f"{logs['accuracy']:.1%}",
        "val acc.": f"{logs['val_accuracy']:.1%}",
    }
    if "val_ema_accuracy" in logs:
        columns["averaged"] = f"{logs['val_ema_accuracy']:.1%}"
    if "clip_share" in logs:
        stages = [
            name.removeprefix("clip_share_")
            for name in logs
            if name.startswith("clip_share_")
        ]
        columns["clipped"] = f"{logs['clip_share']:.0%}"
        short = [stage.replace("stage", "").rjust(3) for stage in stages]
        shares = [f"{100 * logs[f'clip_share_{stage}']:3.0f}" for stage in stages]
        columns[f"({' '.join(short)})"] = f"({' '.join(shares)})"
    columns["  rate"] = f"{logs['learning_rate']:.3g}"
    columns["images/s"] = f"{logs['images_per_second']:,.0f}"
    if logs.get("skipped"):
        columns["skipped"] = f"{np.rint(logs['skipped']):.0f}"
    return columns


def _results(run, stopped):
    """Return the lines that describe the end of a run."""
    history, epochs = run.history, run.epochs
    lines = []
    if isinstance(stopped, FloatingPointError):
        lines.append(f"The run diverged in epoch {epochs + 1}. {stopped}")
    elif stopped:
        why = (
            "Interrupted"
            if isinstance(stopped, KeyboardInterrupt)
            else "The output was closed"
        )
        lines.append(
            f"{why}: stopped after {epochs} of {run.recipe.epochs} epochs. The results so "
            "far are below; `resume` continues the run."
        )
    for name, kind in (
        ("val_accuracy", ""),
        ("val_ema_accuracy", ", averaged weights"),
    ):
        if not history.get(name):
            continue
        values, best = history[name], ""
        value = values[-1]
        if run.best_epoch is not None and not kind:
            value = values[run.best_epoch]
            best = f" (epoch {run.best_epoch + 1}, the best of {epochs})"
        lines.append(f"Accuracy on validation images{kind}: {value:.2%}{best}")
    if run.source.left_out:
        names = [printable(name) for name in run.source.left_out]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        lines.append(
            f"{len(names)} images were left out (see the warnings above): "
            f"{', '.join(names[:5])}{more}"
        )
    return lines + [
        f"  {printable(path)}  ({folder.DESCRIPTIONS[name]})"
        for name, path in run.paths.items()
    ]
