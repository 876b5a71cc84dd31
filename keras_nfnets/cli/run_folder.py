"""The folder of a training run: its name and its files."""

import json
import os
import pathlib
import re
import shutil
import tempfile
import zipfile

from keras_nfnets import training
from keras_nfnets.cli.command import UsageError

MODEL, AVERAGED, ABOUT, HISTORY = (
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
    REPORT: "what came out of it, for a browser",
    MODEL: "the network, for keras.saving.load_model after import keras_nfnets",
    AVERAGED: "the network at the end, with averaged weights",
    ABOUT: "how its pictures are prepared and what its classes are called",
    HISTORY: "loss, accuracy, learning rate and more, epoch by epoch",
    CURVES: "the same, drawn",
    PREDICTIONS: "held-out pictures and what the network says they are",
}


def make(flags, name, strategy):
    """Create the folder of a run, and return its path.

    A folder with results of another run needs --overwrite or --resume.
    """
    runs = pathlib.Path("runs")
    writes = training.is_chief(strategy)
    if training.has_workers(strategy) and not flags.output_dir:
        raise UsageError(
            "Several workers need one --output_dir, in a file system that all of them see"
        )
    if flags.output_dir:
        folder = pathlib.Path(flags.output_dir).expanduser()
        there = [f for f in (*DESCRIPTIONS, CHECKPOINTS) if (folder / f).exists()]
        if there and writes and not flags.overwrite and not flags.resume:
            raise UsageError(
                f"{folder} holds {', '.join(there)} of another run; give another "
                "--output_dir, or --overwrite to replace them when this run is done"
                + (", or --resume to go on with it." if CHECKPOINTS in there else ".")
            )
    elif flags.resume:
        unfinished = [
            path.parent
            for path in runs.glob(f"*/{CHECKPOINTS}")
            if re.fullmatch(rf"{re.escape(name)}-\d+", path.parent.name)
        ]
        if not unfinished:
            raise UsageError(f"There is no unfinished run {runs / name}-N to resume")
        folder = max(unfinished, key=lambda path: path.stat().st_mtime)
    else:
        taken = {path.name for path in runs.iterdir()} if runs.is_dir() else set()
        count = next(n for n in range(1, len(taken) + 2) if f"{name}-{n}" not in taken)
        folder = runs / f"{name}-{count}"
    if writes:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UsageError(f"Cannot write into --output_dir: {error}") from error
    # Without a history, the run was stopped before its first epoch ended.
    finished = (folder / MODEL).exists() and (folder / HISTORY).exists()
    if flags.resume and finished and not (folder / CHECKPOINTS).exists():
        raise UsageError(f"The run in {folder} is finished; there is nothing to resume")
    if writes and (flags.resume or flags.overwrite):
        left_over = [*folder.glob(f"{PARTIAL}*")]
        if not flags.resume:
            left_over += [folder / CHECKPOINTS, folder / TENSORBOARD]
        for old in left_over:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def best_epoch(history):
    """Return the index of the epoch with the best validation accuracy.

    The validation loss breaks ties, which are frequent with few images.
    """
    pairs = zip(history["val_accuracy"], history["val_loss"])
    values = [(accuracy, -loss) for accuracy, loss in pairs]
    return values.index(max(values))


def move(partial, folder):
    """Replace the files of an earlier run by those of this run, and return their names."""
    written = []
    for name in DESCRIPTIONS:
        file = partial / name
        if file.exists() and file.stat().st_size:  # no history before the first epoch
            os.replace(file, folder / name)
            written.append(name)
        else:
            (folder / name).unlink(missing_ok=True)
    return written


# File in the archive that a .keras file is; Keras ignores it.
_PAGE = "keras_nfnets.json"


def save_model(model, path, about):
    """Save a model in one file with the metadata needed to use it.

    Args:
        model: `keras.Model`.
        path: path of the file, which ends in `.keras`.
        about: JSON-serializable dict: `"preparation"`, `"class_names"`, ...
    """
    model.save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(_PAGE, json.dumps(about))


def about_model(path):
    """Return the metadata in a file of `save_model`, or next to a model, or None.

    Raises:
        ValueError: the file or its metadata cannot be read.
    """
    beside = pathlib.Path(path).with_suffix(".json")
    place = path
    try:
        with zipfile.ZipFile(path) as archive:
            if _PAGE in archive.namelist():
                return json.loads(archive.read(_PAGE))
        place = beside
        if beside.is_file():
            return json.loads(beside.read_text("utf-8"))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{place} is not what 'keras-nfnets train' writes: {error!r}"
        ) from error
    return None
