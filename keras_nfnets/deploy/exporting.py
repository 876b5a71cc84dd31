"""Export of networks to files for other runtimes."""

import os
import pathlib
import re
import warnings

import keras

from keras_nfnets import checks, files
from keras_nfnets.backend import keras_internals
from keras_nfnets.backend.graph import copy_state, plain_name, unique_name
from keras_nfnets.deploy import metadata as file_metadata
from keras_nfnets.deploy import quantization
from keras_nfnets.deploy.folding import fold
from keras_nfnets.deploy.formats import BY_NAME, Content
from keras_nfnets.deploy.preprocessing import applied, with_preprocessing
from keras_nfnets.tables import FORMATS, QUANTIZATIONS

_FORMAT_OF = {known.ending: name for name, known in BY_NAME.items() if known.ending}
# Extensions of paths that are not meant to be SavedModel folders.
_OTHER_FILES = (".h5", ".keras", ".pb", ".tfl")


def export(
    model,
    path,
    format=None,
    *,
    quantize=None,
    examples=None,
    batch_size=None,
    input_name=None,
    output_name=None,
    opset=None,
    preprocessing=False,
    preparation=None,
    class_names=None,
    licence=None,
    overwrite=False,
):
    """Fold a network and write it for another runtime.

    Without quantization, all but SavedModels compute in float32, whatever the network's
    dtype policy. ONNX and OpenVINO files are compared with the network in their runtime
    (ONNX Runtime if it is installed) before they are moved to `path`. They are written on
    every backend, unless the network has layers or operations that need Keras's
    converter; other formats are written on TensorFlow.

    Args:
        model: `keras.Model`. See `fold`.
        path: str or path. File to write, or folder for a SavedModel. It appears when it
            is complete.
        format: str. `"saved_model"` (TensorFlow, TensorFlow Serving), `"onnx"` (ONNX
            Runtime and others), `"litert"` (LiteRT, formerly TensorFlow Lite) or
            `"openvino"` (OpenVINO, with the weights in a `.bin` file next to the file).
            By default chosen by the file extension: `.onnx`, `.tflite`, `.xml`, or none
            for a SavedModel. The extension must be that of the format.
        quantize: str or None. For ONNX and LiteRT, `"int8"` for 8-bit kernels and
            activations (in ONNX files, of the operations that ONNX Runtime computes with
            8 bits), with ranges measured on `examples`, but float inputs and outputs.
            For LiteRT also `"dynamic"` for 8-bit kernels, with the ranges computed at run
            time, and `"float16"` for 16-bit kernels. None for no quantization.
        examples: array `(examples, height, width, channels)` of the dtype of the
            model's input. For `"int8"`, a hundred or more images, preprocessed as in
            training. A warning says if the quantized network disagrees with the float
            network on them, or if they look like raw pixels. None for normal noise;
            models that contain `Rescaling` or `Normalization` layers, or take integers,
            need examples.
        batch_size: int or None. Number of images that the file takes; by default that of
            the model, usually any.
        input_name, output_name: str or None. For ONNX and OpenVINO: names of the input
            and the output, by default `"image"` and `"predictions"`. Several inputs or
            outputs keep their names in Keras.
        opset: int or None. For ONNX, and OpenVINO files, which are made from ONNX files:
            version of ONNX's operators, 15 or newer; by default 20, or 15 if Keras's
            converter is needed.
        preprocessing: bool. Whether the file takes images of any size as they are, uint8
            `(batch, height, width, 3)`, preprocesses them as `preparation` says and
            gives probabilities.
        preparation: dict or None. Keyword arguments of `data.prepare`, by which the
            images are preprocessed.
        class_names: list of str or None. Names of the classes.
        licence: str or None. Licence of the weights. Like the names, and the preparation
            if it is not in the file already, it becomes metadata of the file.
        overwrite: bool. Whether to replace a file or SavedModel at `path`. Other
            folders that are not empty are never replaced.

    Raises:
        ValueError: inconsistent arguments, a path that exists already, a model that
            `fold` does not accept, operations that ONNX lacks, a backend that cannot
            write the format, or a file that computes something else.
        ImportError: a package that the format needs is not installed; the message says
            how to install it.

    Example:

    >>> model = keras_nfnets.NFNetTiny(classes=10)
    >>> export(model, "tiny.onnx")  # doctest: +SKIP
    """
    path = _checked_path(path)
    format = _checked_format(path, format)
    known = BY_NAME[format]
    _check_quantization(format, quantize, examples)
    if batch_size is not None:
        batch_size = checks.integer("batch_size", batch_size)
    onnx_options = {
        "input_name": input_name,
        "output_name": output_name,
        "opset": opset,
    }
    _check_onnx_options(format, onnx_options)
    metadata = file_metadata.checked_metadata(model, preparation, class_names, licence)
    _check_preprocessing(format, quantize, preprocessing, preparation)
    _check_whether_free(path, known.ending, overwrite)
    second_path = path.with_suffix(known.second_ending)
    if known.second_ending:
        _check_whether_free(second_path, known.second_ending, overwrite)
    _check_whether_possible(format, quantize)

    folded = _folded(model, known.dtype, batch_size)
    content = Content(model, folded, metadata, quantize)
    if known.by_onnx:
        from keras_nfnets.deploy import onnx_files

        content.onnx_options = onnx_files.options(model, **onnx_options)
    if preprocessing:
        del metadata["preparation"]
        content.front, content.folded = with_preprocessing(folded, preparation)
    if quantize == "int8":
        content.are_noise = examples is None
        content.examples = quantization.calibration_examples(
            model, content.folded, examples
        )

    with files.parents(path), files.written(path) as partial:
        # Keras requires lower-case extensions.
        exported = partial.with_name(f"exported{known.ending}")
        doubts = known.write(content, os.fspath(exported))
        if known.second_ending:
            # From here on, both files are complete, and nothing is written any more.
            with files.written(second_path) as second_partial:
                os.replace(exported.with_suffix(known.second_ending), second_partial)
        os.replace(exported, partial)
    if doubts:
        warnings.warn(f"{path} was written, but {doubts}", stacklevel=2)


def _checked_path(path):
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise ValueError(
            f"`path` must be a path, as text or `pathlib.Path`. Received: path={path!r}"
        )
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:  # no such user
        raise ValueError(f"{error} Received: path={path!r}") from error


def _checked_format(path, format):
    """Return the format for a path, which must have its file extension."""
    looks_like_file = _ending(path) in (*_FORMAT_OF, *_OTHER_FILES)
    if format is None:
        format = _FORMAT_OF.get(_ending(path), "saved_model")
        # "model.onx" is probably a misspelled file; "model.v2" may be a folder.
        looks_like_file |= path.suffix[1:].isalpha()
    checks.one_of("format", format, FORMATS)
    ending = BY_NAME[format].ending
    if ending and _ending(path) != ending:
        raise ValueError(
            f"A file of format {format!r} must end in {ending}. Received: path={path}"
        )
    if not ending and looks_like_file:
        raise ValueError(
            "A SavedModel is a folder, but `path` looks like a file. Files end in "
            f"{' or '.join(_FORMAT_OF)}. For Keras files, use `fold(model).save(...)`. "
            f"Received: path={path}"
        )
    return format


def _check_quantization(format, quantize, examples):
    checks.one_of("quantize", quantize, (None, *QUANTIZATIONS))
    supported = BY_NAME[format].quantizations
    if quantize is not None and quantize not in supported:
        has = (
            f"can be quantized to {' or '.join(supported)}"
            if supported
            else "cannot be quantized. Omit `quantize`, or choose another format"
        )
        raise ValueError(
            f"The format {format!r} {has}. Received: quantize={quantize!r}"
        )
    if quantize != "int8" and examples is not None:
        raise ValueError(
            '`examples` are for `quantize="int8"`. Omit them otherwise. Received: '
            f"quantize={quantize!r}, examples of type {type(examples).__name__}"
        )


def _check_onnx_options(format, options):
    for name, value in options.items():
        if value is not None and not BY_NAME[format].by_onnx:
            raise ValueError(
                f"`{name}` is for ONNX and OpenVINO. Omit it for other formats. "
                f"Received: {name}={value!r}, format={format!r}"
            )
    for name in ("input_name", "output_name"):
        value = options[name]
        if value is not None:
            checks.text(name, value)


def _check_preprocessing(format, quantize, preprocessing, preparation):
    if not preprocessing:
        return
    if preparation is None:
        raise ValueError(
            "`preprocessing=True` needs `preparation`, the preprocessing of the images. "
            "Received: preparation=None"
        )
    if format == "litert" and quantize == "int8":
        raise ValueError(
            "Preprocessing in a LiteRT file cannot be quantized. Export it without "
            f"`preprocessing`, or as ONNX. Received: quantize={quantize!r}, format={format!r}"
        )


def _check_whether_possible(format, quantize):
    """Raise an error if the backend cannot write a format, or packages for it miss."""
    known = BY_NAME[format]
    if not known.by_onnx and keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"The format {format!r} needs the TensorFlow backend of Keras. Save the model, "
            "set KERAS_BACKEND=tensorflow and load it there. Received: the backend "
            f"{keras.backend.backend()!r}"
        )
    version = tuple(map(int, keras.__version__.split(".")[:2]))
    if format == "litert" and version < (3, 13):
        raise ValueError(
            "The format 'litert' needs Keras 3.13 or newer. Fold the network, save it as "
            f".keras and load it there. Received: Keras {keras.__version__}"
        )
    packages = known.packages
    if format == "onnx" and quantize:
        packages += ("onnxruntime",)
    for package in packages:
        extra = f'"keras_nfnets[{known.extra}]"'
        checks.installed(f"The format {format!r}", package, extra)


def _ending(path):
    # pathlib sees no suffix in the name `.onnx`.
    return (path.suffix or path.name).lower()


def _check_whether_free(path, ending, overwrite):
    if ending and path.is_dir():
        raise ValueError(
            f"{path} is a folder, which a file must not replace. Choose another `path`."
        )
    if os.path.lexists(path) and not overwrite:
        raise ValueError(
            f"{path} exists already. Choose another `path`, or use `overwrite=True` to "
            "replace it."
        )
    if path.is_dir() and any(path.iterdir()) and not _is_saved_model(path):
        raise ValueError(
            f"{path} is a folder with other files than those of a SavedModel, which must "
            "not be replaced. Choose another `path`."
        )


def _is_saved_model(folder):
    """Whether a folder contains only the files that Keras exports."""
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*")}
    ours = r"saved_model\.pb|fingerprint\.pb|assets(/keras_nfnets\.json)?|variables(/variables\..*)?"
    return "saved_model.pb" in files and all(re.fullmatch(ours, f) for f in files)


def _folded(model, dtype, batch_size):
    """Return the folded network as it is to be written; see `_cloned` for `dtype`."""
    folded = fold(model)
    folded = keras.Model(folded.input, folded.output, name=plain_name(folded.name))
    folded = _cloned(folded, dtype)
    return folded if batch_size is None else _with_batch_size(folded, batch_size)


# Of layers, as TensorFlow accepts them.
_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")


def _cloned(model, dtype):
    """Return a copy of a model with names that TensorFlow accepts.

    Args:
        model: `keras.Model`.
        dtype: str, or None to keep the dtype policies.
    """
    layers = keras_internals.layers_of(model)
    if all(_NAME.fullmatch(layer.name) for layer in layers) and all(
        dtype in (None, layer.compute_dtype) for layer in layers
    ):
        return model
    clone = _clone(model, dtype, {layer.name for layer in layers})
    copy_state(model, clone)
    return clone


def _clone(model, dtype, names):
    def renamed(name):
        if _NAME.fullmatch(name):
            return name
        return unique_name(f"layer_{plain_name(name)}", names)

    def counterpart(layer):
        if isinstance(layer, keras.Model):
            clone = _clone(layer, dtype, names)
            return keras.Model(clone.input, clone.output, name=renamed(layer.name))
        config = layer.get_config()
        if isinstance(layer, keras.layers.Layer):  # not an operation such as `+`
            config["name"] = renamed(layer.name)
            config["dtype"] = dtype or config.get("dtype")
        return type(layer).from_config(config)

    inputs = keras.tree.map_structure(
        lambda x: keras.Input(
            batch_shape=x.shape,
            dtype=dtype if dtype and "float" in x.dtype else x.dtype,
            name=x.name,
        ),
        model.input,
    )
    return keras.models.clone_model(
        model, input_tensors=inputs, clone_function=counterpart
    )


def _with_batch_size(model, size):
    """Return a model that takes batches of one size."""

    def fixed(x):
        if x.shape[0] not in (None, size):
            raise ValueError(
                f"The model takes batches of {x.shape[0]}. Give that `batch_size`, or none. "
                f"Received: batch_size={size}"
            )
        return keras.Input(batch_shape=(size, *x.shape[1:]), dtype=x.dtype, name=x.name)

    inputs = keras.tree.map_structure(fixed, model.input)
    return keras.Model(inputs, applied(model, inputs), name=model.name)
