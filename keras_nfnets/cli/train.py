"""`keras-nfnets train`."""

import csv
import importlib.util
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

from keras_nfnets import data, training
from keras_nfnets.cli import pictures
from keras_nfnets.cli.command import Command, UsageError, network
from keras_nfnets.cli.epoch_lines import EpochLines

MODEL, AVERAGED, ABOUT, HISTORY = (
    "model.keras",
    "averaged.keras",
    "model.json",
    "history.csv",
)
CURVES, PREDICTIONS = "training_curves.png", "predictions.png"
CHECKPOINTS, TENSORBOARD, _PARTIAL = "checkpoints", "tensorboard", "partial-"

# Flags that may differ between a run and its resumption.
_NOT_OF_THE_RUN = ("output_dir", "overwrite", "resume", "strategy", "tensorboard")


def run(flags, arguments):
    if arguments:
        raise UsageError(
            "'train' takes flags only, as --epochs=20. "
            f"Received: {shlex.join(arguments)}"
        )
    if flags.tensorboard and not importlib.util.find_spec("tensorboard"):
        raise UsageError(
            "--tensorboard needs TensorBoard: pip install keras_nfnets[tensorboard]"
        )
    constructor, variant = network(flags.model)
    name, size = constructor.__name__, flags.image_size or variant.train_size
    try:
        # First of all, as TensorFlow wants it.
        strategy = training.strategy(flags.strategy)
        keras.utils.set_random_seed(flags.seed)
        dataset = data.load(flags.dataset, size, flags.batch_size, flags.seed)
    except ValueError as error:
        raise UsageError(str(error)) from error
    keras.config.set_dtype_policy(flags.precision)
    clip_factor = flags.clip_factor if flags.agc else None
    steps_per_epoch = int(dataset.train.cardinality())
    with strategy.scope():
        model = constructor(
            input_shape=(size, size, dataset.channels), classes=len(dataset.class_names)
        )
        _compile(model, flags, clip_factor, steps_per_epoch)
    clipping = f"AGC, clip factor {clip_factor:g}" if flags.agc else "no clipping"
    title = f"{name} on {flags.dataset}, {clipping}"

    folder = _output_folder(flags, f"{flags.dataset}-{name}", strategy)
    settings = {
        flag: value
        for flag, value in flags.flag_values_dict().items()
        if flag not in _NOT_OF_THE_RUN
    }
    chief = training.is_chief(strategy)
    checkpoints = training.Checkpoints(folder / CHECKPOINTS, settings, write=chief)
    done = _resume(checkpoints, model, strategy) if flags.resume else 0
    if training.has_workers(strategy):
        _check_that_all_begin_at(done, strategy)
    replicas = strategy.num_replicas_in_sync
    plan = (
        f"{title}: {model.count_params():,} parameters, {steps_per_epoch} batches of "
        f"{flags.batch_size} pictures, {size} x {size} pixels, {flags.epochs} epochs"
        + (f", on {replicas} replicas" if replicas > 1 else "")
        + (f", resumed after epoch {done}" if done else "")
    )
    callbacks = [training.TrainingLog(dataset.examples), checkpoints]
    callbacks.append(_CtrlCBetweenBatches())
    if chief:
        callbacks.append(EpochLines(plan, flags.epochs, steps_per_epoch))
        if flags.tensorboard:
            log = folder / TENSORBOARD
            callbacks.append(keras.callbacks.TensorBoard(log, write_graph=False))
    try:
        stopped = _fit(model, dataset, done, flags.epochs, steps_per_epoch, callbacks)
    except OSError as error:
        print(
            f"Cannot write into {folder}: {error}. What was there by the last epoch is "
            "kept; with more room, --resume goes on from there.",
            file=sys.stderr,
        )
        return 1
    except _LostWorker:
        return _start_again(flags)
    if not chief:
        return _status(stopped)

    # From here it takes seconds; a second Ctrl-C should not cost the model.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Everything is written here, and moved when it is whole.
    partial = pathlib.Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=folder))
    try:
        _write(model, dataset, checkpoints.history, partial, title)
        written = _move(partial, folder)
        if not stopped:  # else it can be resumed
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    except OSError as error:
        print(f"Cannot write the results into {folder}: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        signal.signal(signal.SIGINT, handler)
    _report(flags, checkpoints.history, folder, written, stopped)
    return _status(stopped)


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


def _check_that_all_begin_at(done, strategy):
    """Raises a UsageError unless all workers have as many epochs behind them."""
    import tensorflow as tf

    def add():
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.constant(float(done)))

    [total, *_] = strategy.experimental_local_results(strategy.run(add))
    if float(total) != done * strategy.num_replicas_in_sync:
        raise UsageError(
            "The workers do not begin at one epoch: --output_dir must be a folder that "
            f"all of them see, and --resume be given to all. This one has {done} epochs "
            "behind it."
        )


class _LostWorker(Exception):
    """Another worker does not answer any more."""


def _fit(model, dataset, done, epochs, steps_per_epoch, callbacks):
    """Trains, and returns the error that stopped it, None if nothing did."""
    import tensorflow as tf

    try:
        model.fit(
            dataset.epochs_from(done),
            validation_data=dataset.test,
            initial_epoch=done,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            shuffle=False,  # the data set does so
            callbacks=callbacks,
            verbose=0,
        )
    except BrokenPipeError as error:
        sys.stdout = sys.stderr  # nobody reads the other
        return error
    except (KeyboardInterrupt, FloatingPointError) as error:
        return error
    except tf.errors.OpError as error:
        if isinstance(error, tf.errors.ResourceExhaustedError):  # memory
            raise
        if training.has_workers(model.distribute_strategy):
            raise _LostWorker from error
        raise
    return None


def _resume(checkpoints, model, strategy):
    """Gives the model the state of the last checkpoint; returns the epochs done."""
    try:
        with strategy.scope():
            return checkpoints.restore(model)[0]
    except ValueError as error:
        raise UsageError(f"Cannot resume: {error}") from error


def _start_again(flags):
    """Replaces this process by one that resumes, after another worker was lost."""
    print(
        "Another worker was lost. This one waits for it to be started again, with "
        "--resume, and goes on from the last checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    values = {**flags.flag_values_dict(), "resume": True}
    given = [f"--{name}={v}" for name, v in values.items() if v is not None]
    command = [sys.executable, "-m", "keras_nfnets", "train", *given]
    os.execv(sys.executable, command)


def _status(stopped):
    """The exit status of a run that this error stopped."""
    return 130 if isinstance(stopped, KeyboardInterrupt) else int(stopped is not None)


def _output_folder(flags, name, strategy):
    """Makes the folder of this run; never one in which another run's results are."""
    runs = pathlib.Path("runs")
    writes = training.is_chief(strategy)
    if training.has_workers(strategy) and not flags.output_dir:
        raise UsageError(
            "Several workers need one --output_dir, in a file system that all of them see"
        )
    if flags.output_dir:
        folder = pathlib.Path(flags.output_dir).expanduser()
        there = [f for f in (*_DESCRIPTIONS, CHECKPOINTS) if (folder / f).exists()]
        if there and writes and not flags.overwrite and not flags.resume:
            raise UsageError(
                f"{folder} holds {', '.join(there)} of another run; give another "
                "--output_dir, or --overwrite to replace them when this run is done"
                + (", or --resume to go on with it." if CHECKPOINTS in there else ".")
            )
    elif flags.resume:
        unfinished = [path.parent for path in runs.glob(f"{name}-*/{CHECKPOINTS}")]
        if not unfinished:
            raise UsageError(f"There is no unfinished run {runs / name}-N to resume")
        folder = max(unfinished, key=lambda path: path.stat().st_mtime)
    else:
        taken = {path.name for path in runs.glob(f"{name}*")}
        count = next(n for n in range(1, len(taken) + 2) if f"{name}-{n}" not in taken)
        folder = runs / f"{name}-{count}"
    if writes:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UsageError(f"Cannot write into --output_dir: {error}") from error
    if (
        flags.resume
        and (folder / MODEL).exists()
        and not (folder / CHECKPOINTS).exists()
    ):
        raise UsageError(f"The run in {folder} is finished; there is nothing to resume")
    if writes and (flags.resume or flags.overwrite):
        left_over = [*folder.glob(f"{_PARTIAL}*")]
        if not flags.resume:
            left_over += [folder / CHECKPOINTS, folder / TENSORBOARD]
        for old in left_over:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def _compile(model, flags, clip_factor, steps_per_epoch):
    schedule = training.warmup_cosine(
        flags.learning_rate,
        flags.batch_size,
        steps_per_epoch=steps_per_epoch,
        epochs=flags.epochs,
    )
    model.compile(
        keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True),
        keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        metrics=["accuracy"],
        clip_factor=clip_factor,
        ema_decay=flags.ema_decay,
        skip_nonfinite=True,
    )


def _write(model, dataset, history, folder, title):
    """Writes all that a run leaves."""
    model.save(folder / MODEL)
    about = {
        "preparation": dataset.preparation,
        "class_names": dataset.class_names,
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=2), "utf-8")
    if any(name.startswith("val_ema_") for name in history):
        with model.averaged_weights():
            model.save(folder / AVERAGED)
    if history:
        with open(folder / HISTORY, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", *history])
            writer.writerows(
                [epoch, *row] for epoch, row in enumerate(zip(*history.values()))
            )
    _draw(model, dataset, history, folder, title)


def _draw(model, dataset, history, folder, title):
    """Draws what there is to draw."""
    if history.get("loss"):
        pictures.training_curves(history, folder / CURVES, title)
    images, labels = (
        np.concatenate(arrays)
        for arrays in zip(*dataset.test.take(8).as_numpy_iterator())
    )
    # (`predict` would wait for other workers.)
    probabilities = np.concatenate(
        [np.asarray(model(part)) for part in np.array_split(images, 8)]
    ).astype("float32")
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
    AVERAGED: "the same with averaged weights",
    ABOUT: "how its pictures are prepared and what its classes are called",
    HISTORY: "loss, accuracy, learning rate and more, epoch by epoch",
    CURVES: "the same, drawn",
    PREDICTIONS: "held-out pictures and what the network says they are",
}


def _report(flags, history, folder, written, stopped):
    epochs = len(history.get("loss", ()))
    print()
    if isinstance(stopped, FloatingPointError):
        print(f"The run diverged in epoch {epochs + 1}. {stopped}")
    elif stopped:
        why = "Interrupted" if isinstance(stopped, KeyboardInterrupt) else "Unread"
        print(
            f"{why}: stopped after {epochs} of {flags.epochs} epochs. This is what there "
            "was by then; --resume goes on."
        )
    for name, what in (
        ("val_accuracy", ""),
        ("val_ema_accuracy", ", averaged weights"),
    ):
        if history.get(name):
            print(f"Accuracy on held-out pictures{what}: {history[name][-1]:.2%}")
    for name in written:
        print(f"  {folder / name}  ({_DESCRIPTIONS[name]})")
    if flags.agc:
        print("Next, see what clipping does:  keras-nfnets train --noagc")
    else:
        print("Next, the same with clipping:  keras-nfnets train")


COMMAND = Command(
    "train",
    "train [FLAGS]",
    f"""\
Trains a network on labelled pictures: SGD with Nesterov momentum, adaptive gradient
clipping (AGC), a learning rate that warms up and then falls as a cosine, label
smoothing. Without flags it learns scikit-learn's handwritten digits in half a minute.

It leaves in one folder {MODEL} (and {ABOUT}, for 'keras-nfnets predict'),
{HISTORY}, {CURVES} and {PREDICTIONS}. Ctrl-C ends a run early and
leaves what there is by then. A run that was stopped or killed goes on, with --resume
and else the same flags, after its last whole epoch, and ends as it would have.

--strategy says on what devices. On several machines, give each the environment
variable TF_CONFIG, which lists them, and start the same command with one --output_dir
on all; the first writes. If one is lost, the others notice within a minute, and wait
ten for it to be started again with --resume.

  keras-nfnets train
  keras-nfnets train --model=NFResNet26 --image_size=64 --epochs=5
  keras-nfnets train --dataset=cifar10 --batch_size=512 --strategy=mirrored
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
_flag(
    "float",
    "learning_rate",
    1.6,
    "Its peak for a batch of 256 pictures; it is scaled with --batch_size.",
    lower_bound=0.0,
)
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
    "float",
    "ema_decay",
    None,
    "Average the weights with this decay, such as 0.99 (the paper's 0.99999 is for long "
    f"runs), evaluate the averages too and leave them as {AVERAGED}.",
    lower_bound=1e-9,
    upper_bound=1 - 1e-9,
)
_flag(
    "enum",
    "precision",
    "float32",
    "Keras's dtype policy; float16 comes with loss scaling.",
    enum_values=["float32", "mixed_bfloat16", "mixed_float16"],
)
_flag(
    "enum",
    "strategy",
    "auto",
    "auto (what there is), none (one device), mirrored (all GPUs of this machine), "
    "multi_worker (machines that TF_CONFIG lists) or tpu (that TPU_NAME names).",
    enum_values=training.STRATEGIES,
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
_flag("boolean", "resume", False, "Go on with a run that was stopped or killed.")
_flag(
    "boolean",
    "tensorboard",
    False,
    f"Log for TensorBoard too, into {TENSORBOARD} in the run's folder.",
)
