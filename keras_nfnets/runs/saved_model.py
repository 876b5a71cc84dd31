"""`.keras` files that also hold preprocessing and class names."""

import json
import math
import pathlib
import zipfile

import keras

from keras_nfnets import files
from keras_nfnets.backend import keras_internals
from keras_nfnets.backend.graph import Graph, has_graph
from keras_nfnets.guards import json_text, model_files
from keras_nfnets.guards.archive import Archive
from keras_nfnets.pretrained.assign import is_finite

# File in the archive that a .keras file is; Keras ignores it.
_METADATA = "keras_nfnets.json"

# Values in an output of a layer, for one image. Those of NFNet-F7 have 6 million.
_MAX_OUTPUT = 2**28


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

    The memory that this takes depends on the size of the file, whatever its content says:
    the complete content is checked first.

    Raises:
        ValueError: the file is not a complete `.keras` file, its content or model is far
            larger than the file, or it has weights that are not finite.
    """
    with model_files.checked(path):
        try:
            with keras_internals.limited_variables(model_files.limit_of(path)):
                model = keras.saving.load_model(path, compile=False)
            _check_values(model)
            _check_outputs(model)
        except Exception as error:  # Keras raises exceptions of many types
            raise ValueError(
                f"{path} is not a complete .keras file: {model_files.reason(error)}. Save "
                "or download it again."
            ) from error
    return model


def _check_values(model):
    wrong = [v.path for v in model.weights if not is_finite(v)]
    if wrong:
        raise ValueError(f"values that are not finite, in {', '.join(wrong[:5])}")


def _check_outputs(model):
    """Refuse a model whose images or layers take gigabytes for one image."""
    if not has_graph(model):
        return
    graph = Graph(model, has_graph)
    outputs = [value for call in graph.calls for value in call.outputs]
    for value in [*keras.tree.flatten(graph.inputs), *outputs]:
        if math.prod(size or 1 for size in value.shape[1:]) > _MAX_OUTPUT:
            raise ValueError(
                f"a model with arrays of shape {value.shape}, more than "
                f"{_MAX_OUTPUT:,} values for one image"
            )


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
        with Archive.opened(path) as archive:
            if _METADATA in archive.names:
                content = archive.read(_METADATA, json_text.MAX_BYTES)
                return json_text.parse(content)
        file = sibling
        if sibling.is_file():
            return json_text.read(sibling)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{file} is not metadata of a training run: {error!r}"
        ) from error
    return None
