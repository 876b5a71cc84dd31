"""Metadata of exported files: preprocessing, class names and licence."""

import json
import pathlib
import zipfile

import numpy as np

from keras_nfnets import checks
from keras_nfnets.data.preparation import checked_preparation, completed

# In a SavedModel's folder `assets`, and in the archive at the end of a LiteRT file.
FILE_NAME = "keras_nfnets.json"


def checked_metadata(model, preparation=None, class_names=None, licence=None):
    """Return the given metadata of a file as a JSON-serializable dict.

    Args:
        model: `keras.Model`.
        preparation: dict or None. Keyword arguments of `data.prepare`.
        class_names: sequence of str or None. One for each output of the model.
        licence: str or None. Licence of the weights.

    Raises:
        ValueError: one of these is not what it should be.
    """
    metadata = {}
    if preparation is not None:
        values = completed(checked_preparation(preparation))
        metadata["preparation"] = {
            key: np.asarray(value).tolist() for key, value in values.items()
        }
    if class_names is not None:
        metadata["class_names"] = _checked_names(model, class_names)
    if licence is not None:
        metadata["licence"] = checks.text("licence", licence)
    return metadata


def _checked_names(model, names):
    if not isinstance(names, (list, tuple)):
        raise ValueError(
            "`class_names` must be a list. Received: "
            f"{type(names).__name__} {str(names)[:100]}"
        )
    shape = model.output_shape
    if not isinstance(shape, tuple) or shape[-1] != len(names):
        raise ValueError(
            "`class_names` must have one name for each output of the model, of shape "
            f"{shape}. Received: {len(names)} names"
        )
    return [checks.text("class_names", name) for name in names]


def add_to_saved_model(folder, metadata):
    """Add metadata to a SavedModel, as a file in its folder `assets`."""
    assets = pathlib.Path(folder, "assets")
    assets.mkdir(exist_ok=True)
    (assets / FILE_NAME).write_text(_json(metadata), "utf-8")


def add_to_litert(file, metadata):
    """Add metadata to a LiteRT file, as a ZIP archive at its end.

    LiteRT's own tools store files, such as those of labels, in the same way.
    """
    with zipfile.ZipFile(file, "a") as archive:
        # With a date that does not change.
        archive.writestr(zipfile.ZipInfo(FILE_NAME), _json(metadata))


def add_to_onnx(file, metadata):
    """Add metadata to an ONNX file, as entries of `metadata_props`: JSON, or text."""
    import onnx

    properties = onnx.ModelProto()
    for key, value in metadata.items():
        text = value if isinstance(value, str) else _json(value)
        properties.metadata_props.add(key=key, value=text)
    # Messages of protobuf are merged by concatenation.
    with open(file, "ab") as end:
        end.write(properties.SerializeToString(deterministic=True))


def _json(value):
    return json.dumps(value, ensure_ascii=False)
