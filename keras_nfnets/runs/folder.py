"""The folder of a training run: its name and its files."""

import os
import pathlib
import re
import shutil
import tempfile

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
PARTIAL = "partial-"

DESCRIPTIONS = {
    REPORT: "report of the results, for a browser",
    MODEL: "the model, for keras_nfnets.runs.load_classifier",
    AVERAGED: "the model at the end, with averaged weights",
    METADATA: "preprocessing and class names",
    HISTORY: "loss, accuracy, learning rate and more per epoch",
    CURVES: "plots of the history",
    PREDICTIONS: "validation images and their predicted classes",
}


def choose(name, output_dir=None, *, resume=False, overwrite=False):
    """Return the path of the folder of a run.

    Args:
        name: str. Beginning of the folder's name under `runs/` if there is no
            `output_dir`.
        output_dir: str, path or None. None for a new folder, or with `resume` for that
            of the unfinished run that was changed last.
        resume, overwrite: bool. Whether the folder may hold files of a run.

    Raises:
        ValueError: the folder holds results and neither `resume` nor `overwrite` is
            given, or there is nothing to resume.
    """
    if output_dir:
        folder = pathlib.Path(output_dir).expanduser()
        found = [f for f in (*DESCRIPTIONS, CHECKPOINTS) if (folder / f).exists()]
        if found and not overwrite and not resume:
            raise ValueError(
                f"{folder} holds {', '.join(found)} of another run. Choose another "
                "`output_dir`, or `overwrite` to replace them when this run is done"
                + (", or `resume` to continue it." if CHECKPOINTS in found else ".")
            )
    elif resume:
        folder = _last_unfinished(name)
    else:
        folder = _unused(name)
    # Without a history, the run was stopped before its first epoch ended.
    finished = (folder / MODEL).exists() and (folder / HISTORY).exists()
    if resume and finished and not (folder / CHECKPOINTS).exists():
        raise ValueError(f"The run in {folder} is finished; there is nothing to resume")
    return folder


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


def _unused(name):
    runs = pathlib.Path("runs")
    taken = {path.name for path in runs.iterdir()} if runs.is_dir() else set()
    count = next(n for n in range(1, len(taken) + 2) if f"{name}-{n}" not in taken)
    return runs / f"{name}-{count}"


def create(folder, *, resume, overwrite):
    """Create the folder of a run, and remove what an earlier run has not finished.

    Raises:
        ValueError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"Cannot write into `output_dir`: {error}") from error
    if resume or overwrite:
        unfinished = [*folder.glob(f"{PARTIAL}*")]
        if not resume:
            unfinished += [folder / CHECKPOINTS, folder / TENSORBOARD]
        for old in unfinished:
            shutil.rmtree(old, ignore_errors=True)


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
