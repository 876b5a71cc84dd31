"""Networks as files for other runtimes."""

import functools
import importlib.util
import os
import pathlib
import tempfile

import keras
import numpy as np

from keras_nfnets import checks
from keras_nfnets.deploy.folding import fold

# format -> (its name in `keras.Model.export`, the ending of its files, the packages
# that write it)
_FORMATS = {
    "saved_model": ("tf_saved_model", "", ("tensorflow",)),
    "onnx": ("onnx", ".onnx", ("tensorflow", "tf2onnx", "onnx")),
    "litert": ("litert", ".tflite", ("tensorflow",)),
}
FORMATS = tuple(_FORMATS)
QUANTIZATIONS = ("dynamic", "int8")


def export(model, path, format=None, *, quantize=None, examples=None, overwrite=False):
    """Folds a network and writes it for another runtime.

    Args:
        model: a Keras model, see `fold`.
        path: file or, for a SavedModel, folder to write. It appears when it is whole.
        format: `"saved_model"` (TensorFlow, TensorFlow Serving), `"onnx"` (ONNX
            Runtime and others) or `"litert"` (LiteRT, formerly TensorFlow Lite). By
            default told by the ending: `.onnx`, `.tflite`, or else a SavedModel.
        quantize: of LiteRT: `"dynamic"` for kernels of 8 bits and computations that
            choose their own ranges, `"int8"` for 8 bits throughout, with ranges measured
            on `examples`; inputs and outputs stay floats. None for neither.
        examples: for `"int8"`, an array of a hundred or more pictures as the network
            takes them, `(examples, height, width, channels)`.
        overwrite: whether to replace what is at `path`.

    Raises:
        ValueError: arguments that do not go together, a path that is there already, a
            model that `fold` refuses, or a backend other than TensorFlow.
        ImportError: a package that writes the format is not installed; the message says
            how to get it.

    Example:

    >>> model = keras_nfnets.NFNetTiny(classes=10)
    >>> export(model, "tiny.onnx")  # doctest: +SKIP
    """
    path = pathlib.Path(path).expanduser()
    if format is None:
        endings = {ending: name for name, (_, ending, _) in _FORMATS.items() if ending}
        format = endings.get(path.suffix.lower(), "saved_model")
    checks.one_of("format", format, FORMATS)
    checks.one_of("quantize", quantize, (None, *QUANTIZATIONS))
    keras_format, ending, packages = _FORMATS[format]
    if quantize is not None and format != "litert":
        raise ValueError(
            '`quantize` is for `format="litert"`. Received: '
            f"quantize={quantize!r}, format={format!r}"
        )
    if (quantize == "int8") != (examples is not None):
        raise ValueError(
            '`quantize="int8"` needs `examples`, and nothing else does. Received: '
            f"quantize={quantize!r}, examples of type {type(examples).__name__}"
        )
    if ending and path.suffix.lower() != ending:
        raise ValueError(
            f"A file of format {format!r} must end in {ending}. Received: path={path}"
        )
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there already; `overwrite=True` replaces it.")
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "Networks are exported on Keras's TensorFlow backend. Received: "
            f"{keras.backend.backend()!r}; save the model, set KERAS_BACKEND=tensorflow "
            "and load it there."
        )
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"The format {format!r} needs the package {package!r}: "
                'pip install "keras_nfnets[export]"'
            )
    options = {}
    if quantize is not None:
        import tensorflow as tf

        options["optimizations"] = [tf.lite.Optimize.DEFAULT]
    if quantize == "int8":
        options["representative_dataset"] = functools.partial(
            _one_by_one, _checked_examples(model, examples)
        )
    folded = fold(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as partial:
        whole = os.path.join(partial, f"new{ending}")
        folded.export(
            whole,
            format=keras_format,
            verbose=False,
            input_signature=[keras.tree.map_structure(_spec, folded.input)],
            **options,
        )
        if path.is_dir():  # A folder cannot be replaced while something is in it.
            os.replace(path, os.path.join(partial, "old"))
        os.replace(whole, path)


def _spec(x):
    return keras.InputSpec(dtype=x.dtype, shape=x.shape, name=x.name)


def _checked_examples(model, examples):
    """Examples as a float32 array of the shape that the model takes, or a ValueError."""
    examples = np.asarray(examples, "float32")
    wanted = tuple(model.inputs[0].shape)
    fits = examples.ndim == len(wanted) and all(
        want in (None, size) for want, size in zip(wanted, examples.shape)
    )
    if len(model.inputs) != 1 or not fits or not len(examples):
        raise ValueError(
            f"`examples` must be an array of shape {wanted} for the model's one input. "
            f"Received: shape {examples.shape}"
        )
    return examples


def _one_by_one(examples):
    for example in examples:
        yield [example[np.newaxis]]
