"""The folder of a training run: its name and its files."""

import contextlib
import itertools
import os
import pathlib
import re
import tempfile

from keras_nfnets import files

MODEL, AVERAGED, METADATA, HISTORY = (
    "model.keras",
    "averaged.keras",
    "model.json",
    "history.csv",
)
CURVES, PREDICTIONS, REPORT = (
    "training_curves.png",
    "predictions.png",
    "report.html",
)
CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"
BEST = f"{CHECKPOINTS}/best.weights.h5"
# Checkpoints of the run whose results are being replaced.
_EARLIER = ".earlier-checkpoints"
# What a run writes into these folders. A user's own files there are left alone.
_CHECKPOINT_FILES = re.compile(r"epoch-\d{6,}\.npz|best\.weights\.h5")
_TENSORBOARD_FILES = "*/events.out.tfevents.*"

DESCRIPTIONS = {
    REPORT: "report of the results, for a browser",
    MODEL: "the model, for keras_nfnets.runs.load_classifier",
    AVERAGED: "the model at the end, with averaged weights",
    METADATA: "preprocessing and class names",
    HISTORY: "loss, accuracy, learning rate and more per epoch",
    CURVES: "plots of the history",
    PREDICTIONS: "validation images and their predicted classes",
}


def choose(name, output_dir=None, *, resume=False):
    """Return the path of the folder of a run; a new one under `runs/` is created.

    Args:
        name: str. Beginning of the folder's name under `runs/` if there is no
            `output_dir`.
        output_dir: str, path or None. None for a new folder, or with `resume` for that
            of the unfinished run that was changed last.
        resume: bool. Whether to continue a run.

    Raises:
        ValueError: there is nothing to resume, or nothing can be written.
    """
    if output_dir:
        return pathlib.Path(output_dir).expanduser()
    return _last_unfinished(name) if resume else _new(name)


def _last_unfinished(name):
    runs = pathlib.Path("runs")
    unfinished = [
        path.parent
        for path in runs.glob(f"*/{CHECKPOINTS}")
        if re.fullmatch(rf"{re.escape(name)}-\d+", path.parent.name)
    ]
    if not unfinished:
        raise ValueError(f"There is no unfinished run {runs / name}-N to resume")
    return max(unfinished, key=lambda path: path.stat().st_mtime)


def _new(name):
    runs = pathlib.Path("runs")
    with _writing():
        runs.mkdir(exist_ok=True)
        for number in itertools.count(1):
            path = runs / f"{name}-{number}"
            # Another process may choose a name at the same time.
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path


@contextlib.contextmanager
def claimed(folder, *, resume, overwrite):
    """Context in which only this process trains in a folder, which is created.

    At its start, what an earlier run has not finished is removed. With `overwrite`, its
    checkpoints are put aside; they come back at the end if the new run has none. If the
    folder is empty at its end, it is removed.

    Args:
        folder: `pathlib.Path`.
        resume, overwrite: bool. Whether the folder may hold files of a run.

    Raises:
        ValueError: another process trains there, the folder holds results and neither
            `resume` nor `overwrite` is given, there is nothing to resume, or nothing can
            be written there.
    """
    with contextlib.ExitStack() as claim:
        with _writing():
            folder.mkdir(parents=True, exist_ok=True)
            claim.callback(_remove_if_empty, folder)
            try:
                claim.enter_context(files.claimed(folder))
            except BlockingIOError as error:
                raise ValueError(
                    f"Another process is training in {folder}. Choose another "
                    "`output_dir`, or wait until it has ended."
                ) from error
            tempfile.TemporaryFile(dir=folder).close()
        _check_results(folder, resume, overwrite)
        if resume or overwrite:
            files.remove_partial(folder)
        if overwrite and not resume:
            _put_aside(folder)
            claim.callback(_put_back, folder)
            for old in (folder / TENSORBOARD).glob(_TENSORBOARD_FILES):
                old.unlink()
        yield


@contextlib.contextmanager
def _writing():
    try:
        yield
    except OSError as error:
        raise ValueError(f"Cannot write into `output_dir`: {error}") from error


def _remove_if_empty(folder):
    with contextlib.suppress(OSError):
        folder.rmdir()


def _checkpoint_files(inside):
    """List the files that a run has written into its folder of checkpoints."""
    paths = inside.iterdir() if inside.is_dir() else ()
    return [path for path in paths if _CHECKPOINT_FILES.fullmatch(path.name)]


def remove_checkpoints(folder, inside=CHECKPOINTS):
    """Remove the checkpoints of a run, and nothing else that may be with them."""
    for path in _checkpoint_files(folder / inside):
        path.unlink(missing_ok=True)
    files.remove_partial(folder / inside)
    _remove_if_empty(folder / inside)


def remove_earlier(folder):
    """Remove the checkpoints that were put aside, as the new results stand."""
    remove_checkpoints(folder, _EARLIER)


def _put_aside(folder):
    if _checkpoint_files(folder / _EARLIER):
        # Of the run whose results are still there, which a killed run was to replace.
        remove_checkpoints(folder)
    _move_checkpoints(folder / CHECKPOINTS, folder / _EARLIER)


def _put_back(folder):
    if not _checkpoint_files(folder / CHECKPOINTS):
        _move_checkpoints(folder / _EARLIER, folder / CHECKPOINTS)


def _move_checkpoints(source, target):
    paths = _checkpoint_files(source)
    if paths:
        target.mkdir(exist_ok=True)
    for path in paths:
        os.replace(path, target / path.name)
    _remove_if_empty(source)


def _check_results(folder, resume, overwrite):
    found = [f for f in (*DESCRIPTIONS, CHECKPOINTS) if (folder / f).exists()]
    if found and not overwrite and not resume:
        raise ValueError(
            f"{folder} holds {', '.join(found)} of another run. Choose another "
            "`output_dir`, or `overwrite` to replace them when this run is done"
            + (", or `resume` to continue it." if CHECKPOINTS in found else ".")
        )
    # Without a history, the run was stopped before its first epoch ended.
    finished = MODEL in found and HISTORY in found
    if resume and finished and CHECKPOINTS not in found:
        raise ValueError(f"The run in {folder} is finished; there is nothing to resume")


def replace(folder, partial):
    """Replace the files of an earlier run by those in `partial`.

    Returns:
        dict `{name: path}` of the files in the folder.
    """
    paths = {}
    for name in DESCRIPTIONS:
        file = partial / name
        if file.exists() and file.stat().st_size:  # no history before the first epoch
            os.replace(file, folder / name)
            paths[name] = folder / name
        else:
            (folder / name).unlink(missing_ok=True)
    return paths


def best_epoch(history):
    """Return the index of the epoch with the best validation accuracy.

    The validation loss breaks ties, which are frequent with few images.
    """
    pairs = zip(history["val_accuracy"], history["val_loss"])
    values = [(accuracy, -loss) for accuracy, loss in pairs]
    return values.index(max(values))
