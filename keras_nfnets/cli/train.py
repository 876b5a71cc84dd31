"""`keras-nfnets train`."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import sys
import tempfile

import keras
import numpy as np

from keras_nfnets import data
from keras_nfnets.cli import pictures
from keras_nfnets.cli.command import Command, UsageError, network

MODEL, ABOUT, HISTORY = "model.keras", "model.json", "history.csv"
CURVES, PREDICTIONS = "training_curves.png", "predictions.png"


def run(flags, arguments):
    if arguments:
        raise UsageError(
            "'train' takes flags only, as --epochs=20. "
            f"Received: {shlex.join(arguments)}"
        )
    constructor, variant = network(flags.model)
    name, size = constructor.__name__, flags.image_size or variant.train_size
    keras.utils.set_random_seed(flags.seed)
    try:
        dataset = data.load(flags.dataset, size, flags.batch_size, flags.seed)
    except ValueError as error:
        raise UsageError(str(error)) from error
    model = constructor(
        input_shape=(size, size, dataset.channels), classes=len(dataset.class_names)
    )
    clip_factor = flags.clip_factor if flags.agc else None
    _compile(model, flags, clip_factor, int(dataset.train.cardinality()))
    clipping = f"AGC, clip factor {clip_factor:g}" if flags.agc else "no clipping"
    title = f"{name} on {flags.dataset}, {clipping}"

    folder = _output_folder(flags, f"{flags.dataset}-{name}")
    # Everything is written here, and moved when it is whole.
    partial = pathlib.Path(tempfile.mkdtemp(prefix="partial-", dir=folder))
    print(
        f"{title}: {model.count_params():,} parameters, "
        f"{dataset.train.cardinality()} batches of {flags.batch_size} pictures, "
        f"{size} x {size} pixels, {flags.epochs} epochs"
    )
    history, stopped = _fit(model, dataset, flags.epochs, partial)
    # From here it takes seconds; a second Ctrl-C should not cost the model.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        model.save(partial / MODEL)
        about = {
            "preparation": dataset.preparation,
            "class_names": dataset.class_names,
        }
        (partial / ABOUT).write_text(json.dumps(about, indent=2), "utf-8")
        _draw(model, dataset, history, partial, title)
        written = _move(partial, folder)
    except OSError as error:
        print(f"Cannot write the results into {folder}: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        signal.signal(signal.SIGINT, handler)
    return _report(flags, history, folder, written, stopped)


class _CtrlCBetweenBatches(keras.callbacks.Callback):
    """Lets a Ctrl-C wait for the end of the batch.

    In the middle of one it may reach native code of TensorFlow, which aborts. A second
    Ctrl-C does not wait.
    """

    def on_train_begin(self, logs=None):
        self.asked = False
        self.handler = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, *_):
        self.asked = True
        signal.signal(signal.SIGINT, self.handler)

    def _stop_if_asked(self, batch, logs=None):
        if self.asked:
            raise KeyboardInterrupt

    on_train_batch_end = on_test_batch_end = _stop_if_asked

    def on_train_end(self, logs=None):
        signal.signal(signal.SIGINT, self.handler)


def _fit(model, dataset, epochs, folder):
    """Trains, and returns the history and what stopped it, None if nothing did."""
    history = keras.callbacks.History()
    callbacks = [
        history,
        keras.callbacks.CSVLogger(folder / HISTORY),
        keras.callbacks.TerminateOnNaN(),
        _CtrlCBetweenBatches(),
    ]
    stopped = None
    try:
        model.fit(
            dataset.train,
            validation_data=dataset.test,
            epochs=epochs,
            shuffle=False,  # the data set does so
            callbacks=callbacks,
        )
    except KeyboardInterrupt as error:
        stopped = error
    except BrokenPipeError as error:
        stopped = error
        sys.stdout = sys.stderr  # nobody reads the other
    return history.history, stopped


def _output_folder(flags, name):
    """Makes the folder of this run; never one in which another run's results are."""
    if flags.output_dir:
        folder = pathlib.Path(flags.output_dir).expanduser()
        there = [file for file in _DESCRIPTIONS if (folder / file).exists()]
        if there and not flags.overwrite:
            raise UsageError(
                f"{folder} holds {', '.join(there)} of another run; give another "
                "--output_dir, or --overwrite to replace them when this run is done."
            )
    else:
        runs = pathlib.Path("runs")
        taken = {path.name for path in runs.glob(f"{name}*")}
        count = next(n for n in range(1, len(taken) + 2) if f"{name}-{n}" not in taken)
        folder = runs / f"{name}-{count}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UsageError(f"Cannot write into --output_dir: {error}") from error
    return folder


def _compile(model, flags, clip_factor, steps_per_epoch):
    steps = flags.epochs * steps_per_epoch
    warmup = steps // 10
    learning_rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=flags.learning_rate, warmup_steps=warmup
    )
    model.compile(
        keras.optimizers.SGD(learning_rate, momentum=0.9, nesterov=True),
        keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        metrics=["accuracy"],
        clip_factor=clip_factor,
    )


def _draw(model, dataset, history, folder, title):
    """Draws what there is to draw."""
    if history.get("loss"):
        pictures.training_curves(history, folder / CURVES, title)
    images, labels = (
        np.concatenate(arrays)
        for arrays in zip(*dataset.test.take(8).as_numpy_iterator())
    )
    probabilities = model.predict(images, verbose=0)
    if np.isfinite(probabilities).all():
        pictures.predictions(
            images,
            labels.argmax(axis=1),
            probabilities,
            dataset.class_names,
            folder / PREDICTIONS,
            f"{title}: held-out pictures, mistakes first",
        )


def _move(partial, folder):
    """Moves this run's files into place of an earlier run's and returns their names."""
    written = []
    for name in _DESCRIPTIONS:
        file = partial / name
        if file.exists() and file.stat().st_size:  # no history before the first epoch
            os.replace(file, folder / name)
            written.append(name)
        else:
            (folder / name).unlink(missing_ok=True)
    return written


_DESCRIPTIONS = {
    MODEL: "the network, for keras.saving.load_model after import keras_nfnets",
    ABOUT: "how its pictures are prepared and what its classes are called",
    HISTORY: "loss, accuracy and share of units clipped, epoch by epoch",
    CURVES: "the same, drawn",
    PREDICTIONS: "held-out pictures and what the network says they are",
}


def _report(flags, history, folder, written, stopped):
    epochs = len(history.get("loss", ()))
    diverged = epochs and not np.isfinite(history["loss"][-1])
    print()
    if stopped:
        why = "Interrupted" if isinstance(stopped, KeyboardInterrupt) else "Unread"
        print(
            f"{why}: stopped after {epochs} of {flags.epochs} epochs. This is what there "
            "was by then."
        )
    elif diverged:
        print(
            f"The loss was not a number in epoch {epochs}: the run diverged. A smaller "
            "--learning_rate or --clip_factor would do."
        )
    if history.get("val_accuracy"):
        print(f"Accuracy on held-out pictures: {history['val_accuracy'][-1]:.2%}")
    for name in written:
        print(f"  {folder / name}  ({_DESCRIPTIONS[name]})")
    if flags.agc:
        print("Next, see what clipping does:  keras-nfnets train --noagc")
    else:
        print("Next, the same with clipping:  keras-nfnets train")
    return (
        130
        if isinstance(stopped, KeyboardInterrupt)
        else int(bool(stopped or diverged))
    )


COMMAND = Command(
    "train",
    "train [FLAGS]",
    f"""\
Trains a network on labelled pictures: SGD with Nesterov momentum, adaptive gradient
clipping (AGC), a learning rate that warms up and then falls as a cosine, label
smoothing. Without flags it learns scikit-learn's handwritten digits in half a minute.

It leaves in one folder {MODEL} (and {ABOUT}, for 'keras-nfnets predict'),
{HISTORY}, {CURVES} and {PREDICTIONS}. Ctrl-C ends a run early and
leaves what there is by then.

  keras-nfnets train
  keras-nfnets train --model=NFResNet26 --image_size=64 --epochs=5
  keras-nfnets train --dataset=cifar10 --batch_size=128 --output_dir=cifar
""",
    run,
)
_flag = COMMAND.define
_flag(
    "string",
    "dataset",
    "digits",
    "'digits' (scikit-learn's, which come along) or a classification set of TensorFlow "
    "Datasets, such as mnist or cifar10, downloaded on first use.",
)
_flag("string", "model", "NFNetTiny", "A network of 'keras-nfnets list'.")
_flag(
    "integer",
    "image_size",
    None,
    "Pixels a side to which pictures are resized; by default the network's own size.",
    lower_bound=1,
)
_flag("integer", "batch_size", 64, "Pictures a step.", lower_bound=1)
_flag("integer", "epochs", 15, "Passes over the training pictures.", lower_bound=1)
_flag("float", "learning_rate", 0.4, "Its peak.", lower_bound=0.0)
_flag("boolean", "agc", True, "Whether to clip gradients adaptively.")
_flag(
    "float",
    "clip_factor",
    0.01,
    "Largest ratio of a gradient's norm to its weights' norm, unit by unit; the paper "
    "uses 0.01 to 0.16, smaller for larger batches.",
    lower_bound=1e-9,
)
_flag(
    "integer",
    "seed",
    0,
    "Of initialization, order and regularization.",
    lower_bound=0,
    upper_bound=2**32 - 1,
)
_flag(
    "string",
    "output_dir",
    None,
    "Folder to write into; by default a new one under runs/.",
)
_flag("boolean", "overwrite", False, "Replace the run that is in --output_dir.")
