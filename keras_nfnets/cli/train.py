"""`keras-nfnets train`."""

import csv
import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import sys
import tempfile
import textwrap
import warnings

import keras
import numpy as np

from keras_nfnets import data, files, recipes, training
from keras_nfnets.cli import dry_run, held_out, pictures, report, run_folder
from keras_nfnets.cli.command import Command, UsageError, explained, find_network
from keras_nfnets.cli.epoch_lines import EpochLines
from keras_nfnets.cli.run_folder import (
    ABOUT,
    AVERAGED,
    CHECKPOINTS,
    CURVES,
    HISTORY,
    MODEL,
    PREDICTIONS,
    REPORT,
    TENSORBOARD,
)


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
    # Keras warns if a test set has fewer images than files, as some may be left out.
    warnings.filterwarnings("ignore", "Your input ran out of data")
    recipe = _recipe(flags)
    if flags.dry_run:
        return dry_run.run(recipe)
    try:
        # TensorFlow requires that a strategy is created before anything else.
        strategy = training.strategy(flags.strategy)
        keras.utils.set_random_seed(recipe.seed)
        source = data.find(recipe.data)
        recipe = recipes.with_parts(recipe, source)
        _check_output(flags, recipe)
        keras.config.set_dtype_policy(recipe.precision)
        replicas = strategy.num_replicas_in_sync
        steps_per_epoch = _steps_per_epoch(recipe, source, strategy)
        with strategy.scope():
            model = recipes.create_model(recipe, source)
            recipes.compile_model(recipe, model, steps_per_epoch)
        test_batches = recipes.load(recipe, source, recipe.test_split)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    clipping = (
        f"AGC, clip factor {recipe.clip_factor:g}"
        if recipe.clip_factor
        else "no clipping"
    )
    title = f"{recipe.model} on {_short(recipe.data)}, {clipping}"

    folder = run_folder.make(flags, f"{_short(recipe.data)}-{recipe.model}", strategy)
    settings = dataclasses.asdict(recipe)
    chief = training.is_chief(strategy)
    checkpoints = training.Checkpoints(folder / CHECKPOINTS, settings, write=chief)
    done = _resume(checkpoints, model, strategy) if flags.resume else 0
    if training.has_workers(strategy):
        _check_that_all_begin_at(done, strategy)
    size, _ = recipes.image_sizes(recipe)
    plan = (
        f"{title}: {model.count_params():,} parameters, {steps_per_epoch} batches of "
        f"{recipe.batch_size} pictures, {size} x {size} pixels, {recipe.epochs} epochs"
        + (f", on {replicas} replicas" if replicas > 1 else "")
        + (f", resumed after epoch {done}" if done else "")
    )
    if chief and flags.resume and not done:
        print(f"There is nothing to resume in {folder}: it starts from the beginning.")
    if chief and recipe.report:
        _say_what_there_is(recipe, source)
    alone = not training.has_workers(strategy)
    if recipe.head_epochs and recipe.weights and not done and alone:
        _train_head(recipe, model, source)
    examples = source.size_of(recipe.train_split)
    callbacks = [training.TrainingLog(examples)]
    best = folder / run_folder.BEST
    epochs = recipe.epochs
    if recipe.patience:
        keep_best = _KeepBest(best, checkpoints.history, recipe.patience, chief)
        callbacks.append(keep_best)
        if keep_best.is_over:
            epochs = done  # the run was killed just before its end
    callbacks += [checkpoints, _CtrlCBetweenBatches()]
    if chief:
        callbacks.append(EpochLines(plan, recipe.epochs, steps_per_epoch))
        if flags.tensorboard:
            log = folder / TENSORBOARD
            callbacks.append(keras.callbacks.TensorBoard(log, write_graph=False))
    try:
        with explained(source):
            stopped = _fit(
                model,
                _batches(recipe, source, done, strategy),
                test_batches,
                done,
                epochs,
                steps_per_epoch,
                callbacks,
            )
    except OSError as error:
        print(
            f"Cannot write into {folder}: {error}. What was there by the last epoch is "
            "kept; with more room, --resume goes on from there.",
            file=sys.stderr,
        )
        return 1
    except _LostWorker:
        return _start_again()
    if not chief:
        return _status(stopped)

    # The rest takes seconds; a second Ctrl-C must not lose the model.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Files are written here, and moved when they are complete.
    partial = pathlib.Path(tempfile.mkdtemp(prefix=run_folder.PARTIAL, dir=folder))
    try:
        if recipe.patience and best.exists():
            model.load_weights(best)
        _write(model, recipe, source, checkpoints.history, partial, title, folder)
        written = run_folder.move(partial, folder)
        if not stopped:  # a stopped run can be resumed
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    except OSError as error:
        print(f"Cannot write the results into {folder}: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        signal.signal(signal.SIGINT, handler)
    _report(flags, recipe, source, checkpoints.history, folder, written, stopped)
    return _status(stopped)


def _recipe(flags):
    """Return the recipe that the flags ask for."""
    values = {
        name: getattr(flags, name)
        for name in (
            *("data", "weights", "image_size", "batch_size", "epochs"),
            *("learning_rate", "clip_factor", "ema_decay", "precision", "seed"),
        )
        if getattr(flags, name) is not None
    }
    if flags.image_size:
        values["test_image_size"] = None
    if flags.agc is False:
        values["clip_factor"] = None
    if flags.model:
        values["model"] = find_network(flags.model).name
    folder = data.folder_of(flags.data) if flags.data else None
    if folder is not None:
        # An absolute path, so that a run can be used and resumed from other folders.
        values["data"] = str(folder.resolve())
    name = flags.recipe or ("finetune" if folder is not None else "digits")
    try:
        return dataclasses.replace(recipes.find(name), **values).changed(flags.set)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _check_output(flags, recipe):
    """Raise a ValueError if the results would be in the data folder, as a class."""
    folder = data.folder_of(recipe.data)
    out = pathlib.Path(flags.output_dir or "runs").expanduser().resolve()
    if folder is not None and out.is_relative_to(folder.resolve()):
        raise ValueError(
            f"The results would be in the folder of pictures, {folder}, and so be taken "
            "for a class of them. Give another --output_dir, or start elsewhere."
        )


def _short(name):
    """Return the name of a data set or a folder for file names and titles."""
    folder = data.folder_of(name)
    return re.sub(r"[^\w.-]+", "_", folder.resolve().name if folder else name)


def _shards(strategy):
    """Return the number of shards in which a batch is read.

    With one process it is 1: the strategy divides batches among its replicas.
    """
    return strategy.num_replicas_in_sync if training.has_workers(strategy) else 1


def _steps_per_epoch(recipe, source, strategy):
    examples = source.size_of(recipe.train_split)
    shards = _shards(strategy)
    steps = data.steps_per_epoch(examples, recipe.batch_size, shards)
    if not steps or recipe.batch_size % shards:
        raise ValueError(
            f"{recipe.batch_size} pictures a step, and {examples} in all, cannot be "
            f"divided among {shards} workers and their devices"
        )
    return steps


def _batches(recipe, source, done, strategy):
    """Load all batches from an epoch on; with several workers each reads its shards."""
    import tensorflow as tf

    def load(shard=(0, 1)):
        split = recipe.train_split
        return recipes.load(
            recipe, source, split, training=True, from_epoch=done, shard=shard
        )

    if not training.has_workers(strategy):
        return load()

    def of_worker(context):
        here = context.num_replicas_in_sync // context.num_input_pipelines
        first = context.input_pipeline_id * here
        count = context.num_replicas_in_sync
        shards = [load((first + i, count)) for i in range(here)]
        return tf.data.Dataset.choose_from_datasets(
            shards, tf.data.Dataset.range(here).repeat()
        )

    return strategy.distribute_datasets_from_function(of_worker)


def _say_what_there_is(recipe, source):
    """Print the number of images per class, and hints about imbalance and weights."""
    train, test = (source.counts(s) for s in (recipe.train_split, recipe.test_split))
    print(
        f"{sum(train):,} pictures to train on and {sum(test):,} held out, of "
        f"{len(source.class_names)} classes:"
    )
    width = max(map(len, source.class_names))
    for name, a, b in zip(source.class_names, train, test):
        print(f"  {name.ljust(width)}  {a:>6,}  {b:>6,}")
    if max(train) > 3 * min(train):
        most, least = np.argmax(train), np.argmin(train)
        print(
            f"Unbalanced: {source.class_names[most]} has {max(train):,} pictures, "
            f"{source.class_names[least]} {min(train):,}. Look at the accuracy of each "
            "class, not only at that of all."
        )
    if recipe.weights is None:
        print(
            "From scratch. With few pictures, --weights=imagenet does better (for the "
            "networks of 'keras-nfnets list --weights', such as --model=NFNetL0)."
        )


def _train_head(recipe, model, source):
    print(
        f"First the new classifier alone, {recipe.head_epochs} epochs ...", flush=True
    )
    with explained(source):
        accuracy, held_out_accuracy = recipes.train_head(recipe, model, source)
    print(
        f"  accuracy {accuracy:.1%}, on held-out pictures {held_out_accuracy:.1%}; "
        "now all of the network."
    )


class _KeepBest(keras.callbacks.Callback):
    """Callback that keeps the weights of the best epoch, and stops training early.

    Keras's callbacks neither break ties nor know the epochs before a run was resumed. Put
    it before `Checkpoints`: a run that is killed between the two repeats the epoch.
    """

    def __init__(self, path, history, patience, write):
        super().__init__()
        names = ("val_accuracy", "val_loss")
        self._history = {name: list(history.get(name, ())) for name in names}
        self._path, self._patience, self._write = path, patience, write

    @property
    def is_over(self):
        done = len(self._history["val_accuracy"])
        return done > 0 and (
            done - 1 - run_folder.best_epoch(self._history) >= self._patience
        )

    def on_epoch_end(self, epoch, logs=None):
        for name, values in self._history.items():
            values.append(logs[name])
        is_best = run_folder.best_epoch(self._history) == epoch
        if is_best and self._write:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with files.written(self._path) as partial:
                self.model.save_weights(partial)
        self.model.stop_training = self.is_over


class _CtrlCBetweenBatches(keras.callbacks.Callback):
    """Callback that delays a Ctrl-C until the end of the batch.

    Within a batch it may reach native code of TensorFlow, which then aborts. A second
    Ctrl-C is not delayed.
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
    """Raise a `UsageError` unless all workers have completed `done` epochs."""
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
    """Another worker no longer responds."""


def _fit(model, batches, test_batches, done, epochs, steps_per_epoch, callbacks):
    """Train, and return the error that stopped training, or None."""
    import tensorflow as tf

    try:
        model.fit(
            batches,
            validation_data=test_batches,
            initial_epoch=done,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            shuffle=False,  # the data set shuffles
            callbacks=callbacks,
            verbose=0,
        )
    except BrokenPipeError as error:
        sys.stdout = sys.stderr  # nobody reads the standard output any more
        return error
    except (KeyboardInterrupt, FloatingPointError) as error:
        return error
    except tf.errors.OpError as error:
        if isinstance(error, tf.errors.ResourceExhaustedError):  # out of memory
            raise
        if training.has_workers(model.distribute_strategy):
            raise _LostWorker from error
        raise
    return None


def _resume(checkpoints, model, strategy):
    """Restore the last checkpoint, and return the number of completed epochs."""
    try:
        with strategy.scope():
            return checkpoints.restore(model)[0]
    except ValueError as error:
        raise UsageError(f"Cannot resume: {error}") from error


def _start_again():
    """Replace this process by one that resumes, after another worker was lost."""
    print(
        "Another worker was lost. This one waits for it to be started again, with "
        "--resume, and goes on from the last checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    os.execv(sys.executable, [*sys.orig_argv, "--resume"])


def _status(stopped):
    """Return the exit status of a run that this error stopped, or None."""
    return 130 if isinstance(stopped, KeyboardInterrupt) else int(stopped is not None)


def _write(model, recipe, source, history, partial, title, folder):
    """Write all files of a run into `partial`, to be moved to `folder` afterwards."""
    about = {
        "preparation": recipes.preparation(recipe, source),
        "class_names": source.class_names,
        "data": recipe.data,
        "split": recipe.test_split,
        "label_smoothing": recipe.label_smoothing,
    }
    run_folder.save_model(model, partial / MODEL, about)
    (partial / ABOUT).write_text(json.dumps(about, indent=2), "utf-8")
    if any(name.startswith("val_ema_") for name in history):
        with model.averaged_weights():
            run_folder.save_model(model, partial / AVERAGED, about)
    if history:
        with open(partial / HISTORY, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", *history])
            writer.writerows(
                [epoch, *row] for epoch, row in enumerate(zip(*history.values()))
            )
    try:
        _draw(model, recipe, source, history, partial, title)
        _write_page(model, recipe, source, history, partial, title, folder)
    except Exception as error:  # noqa: BLE001 (a failed drawing must not lose the model)
        print(f"Not all could be drawn: {error!r}", file=sys.stderr)


def _write_page(model, recipe, source, history, partial, title, folder):
    if recipe.report and (partial / CURVES).exists():
        # `predict` would wait for other workers.
        results = held_out.results_of(
            model, source, recipe.test_split, recipes.preparation(recipe, source)
        )
        page = report.page(
            title, recipe, source, history, results, partial / CURVES, folder / MODEL
        )
        (partial / REPORT).write_text(page, "utf-8")


def _draw(model, recipe, source, history, folder, title):
    """Draw the training curves, and test images with their predictions."""
    if history.get("loss"):
        pictures.training_curves(history, folder / CURVES, title)
    batches = recipes.load(recipe, source, recipe.test_split).take(8)
    images, labels = (
        np.concatenate(arrays) for arrays in zip(*batches.as_numpy_iterator())
    )
    # `predict` would wait for other workers.
    parts = np.array_split(images, -(-len(images) // 64))
    probabilities = np.concatenate([np.asarray(model(part)) for part in parts])
    probabilities = probabilities.astype("float32")
    if np.isfinite(probabilities).all():
        pictures.predictions(
            images,
            labels.argmax(axis=1),
            probabilities,
            source.class_names,
            folder / PREDICTIONS,
            f"{title}: held-out pictures, mistakes first",
        )


def _report(flags, recipe, source, history, folder, written, stopped):
    epochs = len(history.get("loss", ()))
    print()
    if isinstance(stopped, FloatingPointError):
        print(f"The run diverged in epoch {epochs + 1}. {stopped}")
    elif stopped:
        why = "Interrupted" if isinstance(stopped, KeyboardInterrupt) else "Unread"
        print(
            f"{why}: stopped after {epochs} of {recipe.epochs} epochs. This is what there "
            "was by then; --resume goes on."
        )
    for name, what in (
        ("val_accuracy", ""),
        ("val_ema_accuracy", ", averaged weights"),
    ):
        if not history.get(name):
            continue
        values, best = history[name], ""
        value = values[-1]
        if recipe.patience and not what:
            number = run_folder.best_epoch(history)
            value, best = values[number], f" (epoch {number + 1}, the best of {epochs})"
        print(f"Accuracy on held-out pictures{what}: {value:.2%}{best}")
    if source.left_out:
        names = [str(name) for name in source.left_out]
        print(
            f"{len(names)} pictures were left out, as said above: "
            + ", ".join(names[:5])
            + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        )
    for name in written:
        print(f"  {folder / name}  ({run_folder.DESCRIPTIONS[name]})")
    if stopped and not isinstance(stopped, FloatingPointError):
        return  # the next step is printed above
    if recipe.report:
        model = shlex.quote(str(folder / MODEL))
        print(f"Next, use it:  keras-nfnets predict {model} PICTURE...")
    elif recipe.clip_factor:
        print("Next, see what clipping does:  keras-nfnets train --noagc")
    else:
        print("Next, the same with clipping:  keras-nfnets train")


_RECIPES = textwrap.fill(", ".join(recipes.RECIPES), 84)

COMMAND = Command(
    "train",
    "train [FLAGS]",
    f"""\
Trains a network on labelled pictures: SGD with Nesterov momentum, adaptive gradient
clipping (AGC), a learning rate that warms up and then falls as a cosine, label
smoothing. Without flags it learns scikit-learn's handwritten digits in half a minute.

With --data=FOLDER, a folder that has a folder of pictures for each class, it learns
these: a fifth is held out, training ends when these are not told better any more, the
best network is kept, and {REPORT} shows what came out.

--recipe names a whole run, such as those of the papers; --set changes any of its
settings, and the other flags do so for some. --dry-run prints the plan of a run, and
takes two steps of it with noise. The recipes are
  {
        '''
  '''.join(recipes.RECIPES)
    }

It leaves in one folder {MODEL} (and {ABOUT}, for 'keras-nfnets predict'),
{HISTORY}, {CURVES} and {PREDICTIONS}. Ctrl-C ends a run early and
leaves what there is by then. A run that was stopped or killed goes on, with --resume
and else the same flags, after its last whole epoch, and ends as it would have.

--strategy says on what devices. On several machines, give each the environment
variable TF_CONFIG, which lists them, and start the same command with one --output_dir
on all; the first writes. If one is lost, the others notice within a minute, and wait
ten for it to be started again with --resume.

  keras-nfnets train
  keras-nfnets train --data=holiday/ --model=NFNetL0 --weights=imagenet
  keras-nfnets train --dataset=cifar10 --batch_size=512 --strategy=mirrored
  keras-nfnets train --recipe=nfnet_f0_imagenet --set=epochs=90 --dry-run
""",
    run,
    other_names={"dataset": "data"},
)
_flag = COMMAND.define
_flag(
    "string",
    "recipe",
    None,
    "A whole run by name; 'digits', or 'finetune' for folders.",
)
_flag(
    "multi_string",
    "set",
    [],
    "key=value, any setting of the recipe",
)
_flag("boolean", "dry_run", False, "Print the plan, and take two steps with noise.")
_flag(
    "string",
    "data",
    None,
    "A folder of class folders, 'digits' (scikit-learn's, which come along) or a "
    "classification set of TensorFlow Datasets, such as mnist or cifar10, downloaded "
    "on first use.",
)
_flag(
    "string", "model", None, "A network of 'keras-nfnets list', or timm's name of it."
)
_flag(
    "string",
    "weights",
    None,
    "What to begin with: imagenet, a checkpoint of 'keras-nfnets list --weights', or a "
    "weight file.",
)
_flag(
    "integer",
    "image_size",
    None,
    "Pixels a side to which pictures are resized; by default the network's own size.",
    lower_bound=1,
)
_flag("integer", "batch_size", None, "Pictures a step.", lower_bound=1)
_flag("integer", "epochs", None, "Passes over the training pictures.", lower_bound=1)
_flag(
    "float",
    "learning_rate",
    None,
    "Its peak for a batch of 256 pictures; it is scaled with --batch_size.",
    lower_bound=0.0,
)
_flag("boolean", "agc", None, "Whether to clip gradients adaptively.")
_flag(
    "float",
    "clip_factor",
    None,
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
    None,
    "Keras's dtype policy; float16 comes with loss scaling.",
    enum_values=recipes.PRECISIONS,
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
    None,
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
