"""A training run: from a recipe to a trained model in a folder."""

import contextlib
import csv
import dataclasses
import json
import pathlib
import re
import tempfile
import warnings

import keras
import numpy as np
from absl import logging

from keras_nfnets import data, files, settings, training
from keras_nfnets.backend.dtype_policy import dtype_policy_is
from keras_nfnets.backend.graph import activation_of_outputs
from keras_nfnets.printing import printable
from keras_nfnets.runs import (
    building,
    evaluation,
    figures,
    folder,
    html_report,
    workers,
)
from keras_nfnets.runs.classifier import to_probabilities
from keras_nfnets.runs.errors import LostWorkerError, RunError, explained
from keras_nfnets.runs.interrupts import InterruptBetweenBatches, ignored
from keras_nfnets.runs.progress import RunCallback
from keras_nfnets.runs.saved_model import save_model, save_weights


@dataclasses.dataclass
class Run:
    """A training run and its results.

    Attributes:
        recipe: `Recipe`. Its settings, with the data set's name of the validation split.
        source: `data.Source`. Its data.
        folder: `pathlib.Path`. Where its files are.
        model: the network, an `AGCModel`. After training it has the weights of the best
            epoch if the recipe has a `patience`, otherwise those of the last epoch.
        steps_per_epoch: int.
        replicas: int. Number of devices that share a batch.
        resumed_after: int. Number of epochs that were trained before it was resumed.
        history: dict `{name: [value, ...]}` of losses, metrics, learning rate, ... with
            one value per epoch, including the epochs before it was resumed.
        best_epoch: int or None. Index of the epoch whose weights the model has been given
            at the end; None if it has those of the last epoch.
        paths: dict `{name: pathlib.Path}` of its files, such as `"model.keras"`; empty
            until they are written.

    Example:

    >>> from keras_nfnets import runs
    >>> recipe, source = runs.find_recipe("digits"), data.find("digits")
    >>> run = runs.Run(recipe, source, pathlib.Path("runs/mine"), None, 22, 1)
    >>> run.title, run.epochs
    ('NFNetTiny on digits, AGC, clip factor 0.01', 0)
    """

    recipe: settings.Recipe
    source: data.Source
    folder: pathlib.Path
    model: keras.Model
    steps_per_epoch: int
    replicas: int
    resumed_after: int = 0
    history: dict = dataclasses.field(default_factory=dict)
    best_epoch: int | None = None
    paths: dict = dataclasses.field(default_factory=dict)

    @property
    def epochs(self):
        """Number of epochs that are completed."""
        return len(self.history.get("loss", ()))

    @property
    def validation(self):
        """Validation results of the model, a dict with `"accuracy"`, `"loss"`, ...

        It is empty before the first epoch is completed.
        """
        if not self.epochs:
            return {}
        kept = -1 if self.best_epoch is None else self.best_epoch
        return {
            name.removeprefix("val_"): values[kept]
            for name, values in self.history.items()
            if name.startswith("val_") and not name.startswith("val_ema_")
        }

    @property
    def preparation(self):
        """Preprocessing of the validation images, see `data.prepare`."""
        return building.preparation(self.recipe, self.source)

    @property
    def title(self):
        """Network, data and clipping, in one line."""
        factor = self.recipe.clip_factor
        clipping = f"AGC, clip factor {factor:g}" if factor else "no clipping"
        return f"{self.recipe.model} on {_short(self.recipe.data)}, {clipping}"

    @property
    def plan(self):
        """Sizes of the network, the data and the run, in one line."""
        return (
            f"{self.title}: {self.model.count_params():,} parameters, "
            f"{self.steps_per_epoch} batches of {self.recipe.batch_size} images, "
            f"{building.training_size(self.recipe)} pixels, {self.recipe.epochs} epochs"
            + (f", on {self.replicas} replicas" if self.replicas > 1 else "")
            + (
                f", resumed after epoch {self.resumed_after}"
                if self.resumed_after
                else ""
            )
        )


def train(
    recipe,
    output_dir=None,
    *,
    strategy="auto",
    resume=False,
    overwrite=False,
    tensorboard=False,
    callbacks=(),
):
    """Train a recipe and write the model and its history into a folder.

    The folder gets `model.keras` with preprocessing and class names, for
    `load_classifier`; `history.csv`; plots; with `recipe.report` a `report.html`; and
    with `recipe.ema_decay` an `averaged.keras`. During training it has checkpoints, from
    which a run that was stopped or killed can be resumed, with the same result.

    Ctrl-C ends training at the end of the batch; the files are written as they would be
    at the end, then `KeyboardInterrupt` is raised. Global random seeds are set to
    `recipe.seed`.

    Args:
        recipe: a `Recipe`, or the name of one, see `find_recipe`.
        output_dir: str, path or None. The folder, which is created; None for a new one
            under `runs/`, or with `resume` for that of the last unfinished run.
        strategy: str, see `training.strategy`, or a `tf.distribute.Strategy`. Create
            the latter before any other use of TensorFlow.
        resume: bool. Whether to continue the run in the folder after its last completed
            epoch. Without a checkpoint there, the run starts from the beginning.
        overwrite: bool. Whether to replace the results in the folder.
        tensorboard: bool. Whether to write logs for TensorBoard into the folder.
        callbacks: list of `keras.callbacks.Callback`, such as `Progress()`, which prints
            what happens.

    Returns:
        A `Run`. With several workers, only that of the first has `paths`.

    Raises:
        ValueError: a setting cannot be used, the data set or network does not exist, the
            folder has results of another run, or there is nothing to resume.
        RunError: the folder cannot be written to, or more than half of the images cannot
            be read. Checkpoints are kept.
        LostWorkerError: another worker no longer responds. Resume on all workers.
        KeyboardInterrupt, FloatingPointError: training was interrupted, or it diverged.
            The files are written.

    Example:

    >>> from keras_nfnets import runs
    >>> recipe = runs.find_recipe("digits").changed(
    ...     ["epochs=1", "image_size=8", "batch_size=512"])
    >>> run = runs.train(recipe, "runs/example")
    >>> run.epochs, sorted(run.paths)[:2]
    (1, ['history.csv', 'model.json'])
    """
    if isinstance(recipe, str):
        recipe = settings.find(recipe)
    settings.check_folder(output_dir, resume, overwrite)
    if isinstance(strategy, str):
        # TensorFlow requires that a strategy is created before anything else.
        strategy = training.strategy(strategy)
    chief = training.is_chief(strategy)
    with dtype_policy_is(recipe.precision), contextlib.ExitStack() as claim:
        run = _prepare(recipe, output_dir, strategy, resume, overwrite, claim)
        checkpoints = training.Checkpoints(
            run.folder / folder.CHECKPOINTS, _identity(run), write=chief
        )
        if resume:
            _resume(run, checkpoints, strategy)
        if training.has_workers(strategy):
            workers.check_same_epoch(run.resumed_after, strategy)
        if not chief:
            callbacks = [c for c in callbacks if not isinstance(c, RunCallback)]
        listeners = [c for c in callbacks if isinstance(c, RunCallback)]
        for listener in listeners:
            listener.on_run_begin(run)
        if not training.has_workers(strategy):
            _train_head(run, listeners)
        if tensorboard and chief:
            log = run.folder / folder.TENSORBOARD
            callbacks = [
                *callbacks,
                keras.callbacks.TensorBoard(log, write_graph=False),
            ]
        stopped = _fit(run, strategy, checkpoints, callbacks)
        if chief:
            _write_all(run, stopped, listeners)
    for listener in listeners:
        listener.on_run_end(run, stopped)
    if stopped:
        raise stopped
    return run


def _prepare(recipe, output_dir, strategy, resume, overwrite, claim):
    """Return the `Run` to be trained, with a compiled model and a folder of its own.

    The folder is claimed until the end of `claim`, a `contextlib.ExitStack`.
    """
    keras.utils.set_random_seed(recipe.seed)
    source = data.find(recipe.data)
    recipe = building.with_parts(recipe, source)
    images = data.folder_of(recipe.data)
    if images is not None:
        # An absolute path, so that a run can be used and resumed from other folders.
        recipe = dataclasses.replace(recipe, data=str(images.resolve()))
        _check_not_in_data(output_dir, images)
    if training.has_workers(strategy) and not output_dir:
        raise ValueError(
            "Several workers need one `output_dir`, in a file system that all of them "
            f"share. Received: output_dir={output_dir!r}"
        )
    path = folder.choose(
        f"{_short(recipe.data)}-{recipe.model}", output_dir, resume=resume
    )
    if training.is_chief(strategy):
        claim.enter_context(folder.claimed(path, resume=resume, overwrite=overwrite))
    steps_per_epoch = workers.steps_per_epoch(recipe, source, strategy)
    with strategy.scope():
        model = building.create_model(recipe, source)
        building.compile_model(recipe, model, steps_per_epoch)
    replicas = strategy.num_replicas_in_sync
    return Run(recipe, source, path, model, steps_per_epoch, replicas)


def _check_not_in_data(output_dir, images):
    """Raise a ValueError if the results would be in the folder of images, as a class."""
    out = pathlib.Path(output_dir or "runs").expanduser().resolve()
    if out.is_relative_to(images.resolve()):
        raise ValueError(
            f"The results would be in the folder of images, {images}, and would be "
            "treated as a class. Choose another `output_dir`, or start in another folder. "
            f"Received: {out}"
        )
    if output_dir and images.resolve().is_relative_to(out):
        raise ValueError(
            f"The folder of images, {images}, is in the folder of the results, whose files a run "
            f"may replace. Choose another `output_dir`. Received: {output_dir}"
        )


def _short(name):
    """Return the name of a data set or a folder for file names and titles."""
    path = data.folder_of(name)
    return re.sub(r"[^\w.-]+", "_", path.resolve().name if path else name)


def _identity(run):
    """Return the settings that a checkpoint of the run has, with what identifies the data."""
    return {
        # Data may be moved.
        **{k: v for k, v in dataclasses.asdict(run.recipe).items() if k != "data"},
        "class_names": list(run.source.class_names),
        "numbers_of_images": run.source.splits,
        "images": run.source.digest(),
    }


def _resume(run, checkpoints, strategy):
    """Restore the last checkpoint, if there is one."""
    saved = checkpoints.saved_settings() or {}
    if saved and "images" not in saved:
        # Of version 0.1.0 before its release, which did not antialias.
        interpolation = run.source.preparation["interpolation"]
        run.recipe = dataclasses.replace(
            run.recipe, interpolation=interpolation.removeprefix("antialiased_")
        )
        checkpoints.settings = dataclasses.asdict(run.recipe)
        del checkpoints.settings["interpolation"]
    elif saved:
        _check_same_data(saved, checkpoints.settings)
    try:
        with strategy.scope():
            run.resumed_after, run.history = checkpoints.restore(run.model)
    except ValueError as error:
        raise ValueError(f"Cannot resume: {error}") from error
    checkpoints.settings = _identity(run)
    if not run.resumed_after and checkpoints.write:
        logging.warning(
            "There is no checkpoint in %s: the run starts from the beginning.",
            printable(run.folder),
        )


def _check_same_data(saved, now):
    """Raise a ValueError that says what has changed in the data of a checkpoint."""
    if saved["images"] == now["images"]:
        return
    before, after = saved["class_names"], now["class_names"]
    if before != after:
        missing = [name for name in before if name not in after]
        new = [name for name in after if name not in before]
        changes = [f"without {', '.join(missing)}"] if missing else []
        changes += [f"with {', '.join(new)}"] if new else []
        what = f"the classes differ, {' and '.join(changes) or 'in another order'}"
    elif saved["numbers_of_images"] != now["numbers_of_images"]:
        what = (
            f"the splits had {saved['numbers_of_images']} images, and have "
            f"{now['numbers_of_images']}"
        )
    else:
        what = "some images were renamed, replaced or moved to another class"
    raise ValueError(
        f"Cannot resume: the data have changed since the run was interrupted: {what}. "
        "Restore them, or start a new run in another folder."
    )


def _train_head(run, listeners):
    """Train a new classifier alone, if the recipe has that and it is not done yet."""
    recipe = run.recipe
    if not (recipe.head_epochs and recipe.weights) or run.resumed_after:
        return
    for listener in listeners:
        listener.on_head_begin(recipe.head_epochs)
    with explained(run.source):
        accuracies = building.train_head(recipe, run.model, run.source)
    for listener in listeners:
        listener.on_head_end(*accuracies)


def _fit(run, strategy, checkpoints, callbacks):
    """Train, and return the exception that ended training early, or None."""
    import tensorflow as tf

    recipe = run.recipe
    periods = [p for p in building.periods(recipe) if p.epochs > run.resumed_after]
    # If the run was killed after its last epoch, nothing is left to do.
    periods = periods or building.periods(recipe)[-1:]
    first = [training.TrainingLog(run.source.size_of(recipe.train_split))]
    if recipe.patience:
        keep_best = KeepBest(
            run.folder / folder.BEST,
            checkpoints.history,
            recipe.patience,
            checkpoints.write,
        )
        first.append(keep_best)
        if keep_best.is_over:
            # The run was killed just before its end.
            periods = [periods[0]._replace(epochs=run.resumed_after)]
    try:
        with (
            explained(run.source),
            warnings.catch_warnings(),
            InterruptBetweenBatches() as interrupt,
        ):
            # Keras warns if a split has fewer images than files: some were left out.
            warnings.filterwarnings("ignore", "Your input ran out of data")
            listeners = _AcrossPeriods(
                [*first, checkpoints, interrupt, *callbacks], recipe.epochs
            )
            for period in periods:
                start = max(period.initial_epoch, run.resumed_after)
                of_period = dataclasses.replace(recipe, image_size=period.image_size)
                # Compiled for each size: for unknown sizes, steps would be slower.
                run.model.train_function = None
                run.model.fit(
                    workers.batches(of_period, run.source, start, strategy),
                    validation_data=building.load(
                        recipe, run.source, recipe.test_split
                    ),
                    initial_epoch=start,
                    epochs=period.epochs,
                    steps_per_epoch=run.steps_per_epoch,
                    shuffle=False,  # the data set shuffles
                    callbacks=[listeners],
                    verbose=0,
                )
                if run.model.stop_training:
                    break
            listeners.end()
    except (KeyboardInterrupt, FloatingPointError, BrokenPipeError) as error:
        return error
    except tf.errors.OpError as error:
        out_of_memory = isinstance(error, tf.errors.ResourceExhaustedError)
        if training.has_workers(strategy) and not out_of_memory:
            raise LostWorkerError(
                "Another worker no longer responds. Start all workers again with `resume`."
            ) from error
        raise
    except OSError as error:
        raise RunError(
            f"Cannot write into {run.folder}: {error}. Checkpoints are kept; when "
            "there is room, `resume` continues from the last one, if there is one."
        ) from error
    finally:
        run.history = checkpoints.history
    return None


class _AcrossPeriods(keras.callbacks.CallbackList):
    """Callbacks that see the calls of `fit` for several image sizes as one training.

    Many callbacks start anew in `on_train_begin`: they would forget earlier epochs.
    """

    def __init__(self, callbacks, epochs):
        super().__init__(callbacks)
        self._epochs, self._has_begun, self._logs = epochs, False, None

    def set_params(self, params):
        super().set_params(params and {**params, "epochs": self._epochs})

    def on_train_begin(self, logs=None):
        if not self._has_begun:
            self._has_begun = True
            super().on_train_begin(logs)

    def on_train_end(self, logs=None):
        self._logs = logs

    def end(self):
        super().on_train_end(self._logs)


class KeepBest(keras.callbacks.Callback):
    """Callback that keeps the weights of the best epoch, and stops training early.

    Keras callbacks neither break ties nor know the epochs before a run was resumed. Put
    it before `Checkpoints`: a run that is killed between the two repeats the epoch.

    Args:
        path: `pathlib.Path` of the weights.
        history: dict `{name: [value, ...]}` of the epochs before.
        patience: int. Number of epochs without a better one after which training stops.
        write: bool. Whether to write the weights: only one of several workers does.
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
            done - 1 - folder.best_epoch(self._history) >= self._patience
        )

    def on_epoch_end(self, epoch, logs=None):
        for name, values in self._history.items():
            values.append(logs[name])
        is_best = folder.best_epoch(self._history) == epoch
        if is_best and self._write:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            save_weights(self.model, self._path)
        self.model.stop_training = self.is_over


def _write_all(run, stopped, listeners):
    """Write the files of a run, all together: those of an earlier run stay until then."""
    # This takes seconds; a second Ctrl-C must not lose the model.
    with ignored():
        try:
            with tempfile.TemporaryDirectory(
                prefix=files.PARTIAL, dir=run.folder, ignore_cleanup_errors=True
            ) as partial:
                partial = pathlib.Path(partial)
                if run.recipe.patience and run.epochs:
                    _restore_best(run)
                _write_model(run, partial)
                _write_pictures(run, partial, listeners)
                run.paths = folder.replace(run.folder, partial)
            folder.remove_earlier(run.folder)
            if not stopped:  # a stopped run can be resumed
                folder.remove_files(run.folder, folder.CHECKPOINTS)
        except OSError as error:
            raise RunError(
                f"Cannot write the results into {run.folder}: {error}. Checkpoints are "
                "kept; when there is room, `resume` continues from the last one, if there "
                "is one."
            ) from error


def _restore_best(run):
    """Restore the weights of the best epoch, or warn if they are lost."""
    path, last = run.folder / folder.BEST, run.model.get_weights()
    try:
        if not path.is_file():
            raise FileNotFoundError("there is no such file")
        run.model.load_weights(path)
        run.best_epoch = folder.best_epoch(run.history)
    except Exception as error:  # noqa: BLE001 (of whatever type)
        run.model.set_weights(last)
        logging.warning(
            "The weights of the best epoch cannot be read, so the model has those of the "
            "last epoch: %s: %s",
            printable(path),
            printable(error),
        )


def _write_model(run, partial):
    metadata = {
        "preparation": run.preparation,
        "class_names": run.source.class_names,
        "data": run.recipe.data,
        "images": run.source.digest(),
        "split": run.recipe.test_split,
        "label_smoothing": run.recipe.label_smoothing,
    }
    save_model(run.model, partial / folder.MODEL, metadata)
    (partial / folder.METADATA).write_text(json.dumps(metadata, indent=2), "utf-8")
    if any(name.startswith("val_ema_") for name in run.history):
        with run.model.averaged_weights():
            save_model(run.model, partial / folder.AVERAGED, metadata)
    if run.history:
        with open(partial / folder.HISTORY, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", *run.history])
            writer.writerows(
                [epoch, *row] for epoch, row in enumerate(zip(*run.history.values()))
            )


def _write_pictures(run, partial, listeners):
    """Draw the plots and write the report; without them if that fails."""
    try:
        if run.epochs:
            figures.training_curves(run.history, partial / folder.CURVES, run.title)
        _draw_predictions(run, partial / folder.PREDICTIONS)
        if run.recipe.report and run.epochs:
            track = listeners[-1].track if listeners else iter
            report(run, partial / folder.REPORT, progress=track)
    except Exception as error:  # noqa: BLE001 (a failed drawing must not lose the model)
        logging.warning(
            "Not all plots could be drawn: %s: %s",
            type(error).__name__,
            printable(error),
        )


def _draw_predictions(run, path):
    """Draw validation images with their predicted classes."""
    batches = building.load(run.recipe, run.source, run.recipe.test_split).take(8)
    images, labels = (
        np.concatenate(arrays) for arrays in zip(*batches.as_numpy_iterator())
    )
    # `predict` would wait for other workers.
    parts = np.array_split(images, -(-len(images) // 64))
    probabilities = np.concatenate([np.asarray(run.model(part)) for part in parts])
    probabilities = probabilities.astype("float32")
    if np.isfinite(probabilities).all():
        figures.predictions(
            images,
            labels.argmax(axis=1),
            probabilities,
            run.source.class_names,
            path,
            f"{run.title}: validation images, mistakes first",
        )


def report(run, path=None, progress=iter):
    """Write a report of a run: one self-contained HTML file.

    It shows the training curves, the accuracy of each class, the confusion matrix and
    the images with the highest losses, on the validation split.

    Args:
        run: `Run` of which at least one epoch is completed.
        path: str, path or None. None for `report.html` in the folder of the run.
        progress: callable that wraps the iterable of batch numbers, such as `tqdm.tqdm`.

    Returns:
        `pathlib.Path` of the file.

    Raises:
        ValueError: no epoch is completed.
        OSError: the file cannot be written.

    Example:

    >>> from keras_nfnets import runs
    >>> recipe = runs.find_recipe("digits").changed(
    ...     ["epochs=1", "image_size=8", "batch_size=512"])
    >>> report(runs.train(recipe, "runs/reported")).name
    'report.html'
    """
    if not run.epochs:
        raise ValueError(
            "A report needs a run with at least one completed epoch. "
            f"Received: the run in {run.folder}, with none"
        )
    path = pathlib.Path(path or run.folder / folder.REPORT)
    activation = activation_of_outputs(run.model)
    results = evaluation.predict_split(
        # `predict_on_batch` would wait for other workers.
        lambda images: to_probabilities(run.model(images), activation),
        run.source,
        run.recipe.test_split,
        run.preparation,
        progress=progress,
    )
    with files.written(path) as partial:
        partial.write_text(html_report.page(run, results), "utf-8")
    return path
