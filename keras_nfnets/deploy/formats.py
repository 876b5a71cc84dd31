"""Formats of exported files: their requirements and their writers."""

import contextlib
import dataclasses
import os
import pathlib
import typing
import warnings

import keras

from keras_nfnets.backend.graph import plain_name
from keras_nfnets.deploy import metadata as file_metadata
from keras_nfnets.deploy import quantization
from keras_nfnets.deploy.preprocessing import joined
from keras_nfnets.tables import QUANTIZATIONS


@dataclasses.dataclass
class Content:
    """Content of an exported file.

    Attributes:
        model: `keras.Model`, as given by the user.
        folded: `keras.Model`. The network as it is to be written.
        metadata: dict, JSON-serializable. May be empty.
        quantize: str or None. See `export`.
        examples: array or None. For int8, the images on which ranges are measured.
        are_noise: bool. Whether the examples are not the user's.
        front: `keras.Model` that preprocesses images for `folded`, or None.
        onnx_options: dict. For ONNX: see `onnx_files.options`.
    """

    model: keras.Model
    folded: keras.Model
    metadata: dict
    quantize: str | None
    examples: object = None
    are_noise: bool = False
    front: keras.Model | None = None
    onnx_options: dict = dataclasses.field(default_factory=dict)

    @property
    def complete(self):
        """The network, with its preprocessing if that is included."""
        return self.folded if self.front is None else joined(self.front, self.folded)

    @property
    def batches(self):
        """The examples in batches that the network takes."""
        return quantization.batches_of(self.examples, self.folded)

    def doubts(self, file):
        """Return what is wrong with a quantized file, see `quantization.doubts`."""
        if self.quantize != "int8":
            return ""
        return quantization.doubts(
            self.model, self.folded, file, self.examples, self.are_noise
        )


# Functions `(content, file)` that write a file or folder, and return what is wrong with it,
# or "" if nothing is.


def _write_saved_model(content, folder):
    _write_by_keras("tf_saved_model", content.complete, folder)
    if content.metadata:
        file_metadata.add_to_saved_model(folder, content.metadata)
    return ""


def _write_litert(content, file):
    options = {}
    if content.quantize is not None:
        batches = content.batches if content.quantize == "int8" else None
        options = quantization.litert_options(content.quantize, batches)
    _write_by_keras("litert", content.complete, file, **options)
    doubts = content.doubts(file)
    if content.metadata:
        file_metadata.add_to_litert(file, content.metadata)
    return doubts


def _write_onnx(content, file):
    from keras_nfnets.deploy import onnx_files

    options = content.onnx_options
    with _plain_convolutions():
        onnx_files.write_onnx(content.folded, file, _convert, **options)
    if content.quantize == "int8":
        quantization.quantize_onnx(file, content.batches)
    doubts = content.doubts(file)
    if content.front is not None:
        onnx_files.put_before(content.front, file, options["input_names"])
    if content.metadata:
        file_metadata.add_to_onnx(file, content.metadata)
    return doubts


def _write_openvino(content, file):
    from keras_nfnets.deploy import openvino_files

    onnx_file = os.fspath(pathlib.Path(file).with_suffix(".onnx"))
    doubts = _write_onnx(content, onnx_file)
    with _plain_convolutions():
        openvino_files.convert(content.complete, onnx_file)
    return doubts


class Format(typing.NamedTuple):
    """One format of files.

    Attributes:
        ending: str. File extension, `""` for folders.
        packages: tuple of str. What writes it.
        write: callable, see above.
        by_onnx: bool. Whether it is an ONNX file, or made from one.
        quantizations: tuple of str.
        dtype: str or None. What it computes in; None for the dtypes of the network.
        extra: str. Extra of this package that installs the packages.
        second_ending: str. Extension of a second file next to it, or `""`.
    """

    ending: str
    packages: tuple
    write: typing.Callable
    by_onnx: bool = False
    quantizations: tuple = ()
    dtype: str | None = "float32"
    extra: str = "export"
    second_ending: str = ""


BY_NAME = {
    "saved_model": Format("", ("tensorflow",), _write_saved_model, dtype=None),
    "onnx": Format(
        ".onnx", ("onnx",), _write_onnx, by_onnx=True, quantizations=("int8",)
    ),
    "litert": Format(
        ".tflite", ("tensorflow",), _write_litert, quantizations=QUANTIZATIONS
    ),
    "openvino": Format(
        ".xml",
        ("onnx", "openvino"),
        _write_openvino,
        by_onnx=True,
        extra="openvino",
        second_ending=".bin",
    ),
}


def _write_by_keras(keras_format, model, file, **options):
    with _plain_convolutions():
        model.export(
            file,
            format=keras_format,
            verbose=False,
            input_signature=[keras.tree.map_structure(_spec, model.input)],
            **options,
        )


def _spec(x):
    return keras.InputSpec(dtype=x.dtype, shape=x.shape, name=plain_name(x.name))


def _plain_convolutions():
    """Return the context in which Keras's convolutions can be written or run anywhere.

    TensorFlow has some of them on accelerators only.
    """
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    # Other backends may lack the package.
    from keras_nfnets.backend.keras_internals_tensorflow import plain_convolutions

    return plain_convolutions()


def _convert(model, file, opset):
    # The import registers operations that tf2onnx lacks.
    from keras_nfnets.deploy import onnx_operations  # noqa: F401

    with warnings.catch_warnings():
        # Keras, when it imports tf2onnx.
        warnings.filterwarnings("ignore", "In the future `np.object`", FutureWarning)
        _write_by_keras("onnx", model, file, opset_version=opset)
