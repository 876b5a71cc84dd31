"""`.keras` files that also hold preprocessing and class names."""

import json
import pathlib
import zipfile

import keras

from keras_nfnets import files
from keras_nfnets.backend import keras_internals

# File in the archive that a .keras file is; Keras ignores it.
_METADATA = "keras_nfnets.json"


def save_model(model, path, metadata):
    """Save a model in one file with the metadata needed to use it.

    Args:
        model: `keras.Model`.
        path: path of the file, which ends in `.keras`.
        metadata: JSON-serializable dict: `"preparation"`, `"class_names"`, ...

    Raises:
        OSError: the file cannot be written; what was there before is kept.
    """
    with files.written(path) as partial:
        with keras_internals.dates_of_archives():
            model.save(partial)
        with zipfile.ZipFile(partial, "a") as archive:
            archive.writestr(zipfile.ZipInfo(_METADATA), json.dumps(metadata))


def save_weights(model, path):
    """Save the weights of a model as `model.save_weights` does, completely or not at all.

    Args:
        model: `keras.Model`.
        path: path of the file, which ends in `.weights.h5`.

    Raises:
        OSError: the file cannot be written; what was there before is kept.
    """
    with files.written(path) as partial:
        partial.write_bytes(keras_internals.weights_in_memory(model))


def load_model(path):
    """Load the model in a `.keras` file, not compiled.

    Raises:
        ValueError: the file is not a complete `.keras` file.
    """
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises exceptions of many types
        raise ValueError(f"{path} is not a complete .keras file: {error}") from error


def is_of_run(path):
    """Whether a file was written by `save_model`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _METADATA in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def load_metadata(path):
    """Return the metadata in a file of `save_model`, or of a `.json` next to it, or None.

    Raises:
        ValueError: the file or its metadata cannot be read.
    """
    sibling = pathlib.Path(path).with_suffix(".json")
    file = path
    try:
        with zipfile.ZipFile(path) as archive:
            if _METADATA in archive.namelist():
                return json.loads(archive.read(_METADATA))
        file = sibling
        if sibling.is_file():
            return json.loads(sibling.read_text("utf-8"))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{file} is not metadata of a training run: {error!r}"
        ) from error
    return None
