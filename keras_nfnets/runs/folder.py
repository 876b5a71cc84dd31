"""The folder of a training run: its name and its files."""

import contextlib
import glob
import itertools
import os
import pathlib
import re
import tempfile

from keras_nfnets import files
from keras_nfnets.runs.saved_model import is_of_run
from keras_nfnets.training.checkpoints import rename_first

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
BEST = f"{CHECKPOINTS}/keras_nfnets-best.weights.h5"
# What a run writes into these folders. A user's own files there are left alone.
_FILES = {
    CHECKPOINTS: re.compile(r"keras_nfnets-(epoch-\d{6,}\.npz|best\.weights\.h5)"),
    TENSORBOARD: re.compile(r"(train|validation)/events\.out\.tfevents\..*"),
}
# Where those of the run are whose results are being replaced.
_EARLIER = ".earlier-"

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
        path
        for path in runs.glob(f"{glob.escape(name)}-*")
        if re.fullmatch(rf"{re.escape(name)}-\d+", path.name)
        # (The first checkpoints were called so, see `rename_first`.)
        and (
            _files_of_run(path, CHECKPOINTS)
            or [*path.glob(f"{CHECKPOINTS}/epoch-*.npz")]
        )
    ]
    if not unfinished:
        raise ValueError(
            f"There is no unfinished run {runs / name}-N to resume. Start a new one without "
            "`resume`, or give the folder of a run as `output_dir`."
        )
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
            # As long a path as any that will be written there.
            tempfile.NamedTemporaryFile(
                prefix=files.PARTIAL + 100 * "-", dir=folder
            ).close()
        # Of an `overwrite` that was killed before it had a checkpoint.
        _put_back(folder)
        if resume and rename_first(folder / CHECKPOINTS):
            with contextlib.suppress(FileNotFoundError):
                (folder / CHECKPOINTS / "best.weights.h5").rename(folder / BEST)
        _check_results(folder, resume, overwrite)
        files.remove_partial(folder)
        if overwrite and not resume:
            _put_aside(folder)
            claim.callback(_put_back, folder)
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


def _files_of_run(folder, name):
    """List what a run has written into its folder `name` of `_FILES`, or its copy."""
    pattern = _FILES[name.removeprefix(_EARLIER)]
    return [
        path
        for path in (folder / name).rglob("*")
        if pattern.fullmatch(path.relative_to(folder / name).as_posix())
        and path.is_file()
    ]


def remove_files(folder, name):
    """Remove the files that a run has written into a folder, and no others."""
    paths = _files_of_run(folder, name)
    for path in paths:
        path.unlink(missing_ok=True)
    files.remove_partial(folder / name)
    for parent in {path.parent for path in paths}:
        _remove_if_empty(parent)
    _remove_if_empty(folder / name)


def remove_earlier(folder):
    """Remove the files that were set aside, as the new results are complete."""
    for name in _FILES:
        remove_files(folder, _EARLIER + name)


def _put_aside(folder):
    if not ((folder / MODEL).exists() or _files_of_run(folder, CHECKPOINTS)):
        return  # logs of TensorBoard may be of anything
    for name in _FILES:
        if _files_of_run(folder, _EARLIER + name):
            # Of the run whose results are still there, which a killed run was to replace.
            remove_files(folder, name)
        _move(folder, name, _EARLIER + name)


def _put_back(folder):
    """Restore the files that were set aside, unless the new run has a checkpoint."""
    is_aside = any(_files_of_run(folder, _EARLIER + name) for name in _FILES)
    if is_aside and not _files_of_run(folder, CHECKPOINTS):
        for name in _FILES:
            remove_files(folder, name)
            _move(folder, _EARLIER + name, name)


def _move(folder, source, target):
    for path in _files_of_run(folder, source):
        moved = folder / target / path.relative_to(folder / source)
        moved.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, moved)
        _remove_if_empty(path.parent)
    _remove_if_empty(folder / source)


def _check_results(folder, resume, overwrite):
    found = [f for f in DESCRIPTIONS if (folder / f).exists()]
    if _files_of_run(folder, CHECKPOINTS):
        found.append(CHECKPOINTS)
    if found and not overwrite and not resume:
        raise ValueError(
            f"{folder} holds {', '.join(found)} of another run. Choose another "
            "`output_dir`, or `overwrite` to replace them when this run is done"
            + (", or `resume` to continue it." if CHECKPOINTS in found else ".")
        )
    for name in {*found, *_FILES}:
        path, is_folder = folder / name, name in _FILES
        if os.path.lexists(path) and path.is_dir() != is_folder:
            raise ValueError(
                f"A run writes a {'folder' if is_folder else 'file'} called {name}. Choose "
                f"another `output_dir`, or move that one away. Received: {path}"
            )
    # Without a history, the run was stopped before its first epoch ended.
    finished = MODEL in found and HISTORY in found
    if resume and finished and CHECKPOINTS not in found:
        raise ValueError(
            f"The run in {folder} is finished; there is nothing to resume. Use `overwrite` "
            "to replace it, or choose another `output_dir`."
        )
    foreign = [
        name
        for name in found
        if name.endswith(".keras") and not is_of_run(folder / name)
    ]
    if found != [CHECKPOINTS] and MODEL not in found:
        foreign = [name for name in found if name != CHECKPOINTS]
    if foreign:
        raise ValueError(
            f"{folder} holds {', '.join(foreign)}, but no {MODEL} of a training run: these "
            "files may be yours and are not replaced. Choose another `output_dir`, or move "
            "them elsewhere."
        )


def replace(folder, partial):
    """Replace the files of an earlier run by those in `partial`.

    Returns:
        dict `{name: path}` of the files in the folder.
    """
    # The model first, by which a folder is known as that of a run.
    for name in sorted(DESCRIPTIONS, key=lambda name: name != MODEL):
        file = partial / name
        if file.exists() and file.stat().st_size:  # no history before the first epoch
            os.replace(file, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    paths = {name: folder / name for name in DESCRIPTIONS}
    return {name: path for name, path in paths.items() if path.exists()}


def best_epoch(history):
    """Return the index of the epoch with the best validation accuracy.

    The validation loss breaks ties, which are frequent with few images.
    """
    pairs = zip(history["val_accuracy"], history["val_loss"])
    values = [(accuracy, -loss) for accuracy, loss in pairs]
    return values.index(max(values))
