"""Export of networks to files for other runtimes."""

import contextlib
import functools
import importlib.util
import os
import pathlib
import re
import typing
import warnings

import keras
import numpy as np

from keras_nfnets import checks, files
from keras_nfnets.backend import keras_internals
from keras_nfnets.backend.graph import copy_state, plain_name
from keras_nfnets.deploy.folding import fold
from keras_nfnets.tables import FORMATS, QUANTIZATIONS


def _write_by_keras(keras_format, model, file, **options):
    with _plain_convolutions():
        model.export(
            file,
            format=keras_format,
            verbose=False,
            input_signature=[keras.tree.map_structure(_spec, model.input)],
            **options,
        )


def _plain_convolutions():
    """Return the context in which Keras's convolutions can be written or run anywhere."""
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    # Other backends may lack the package.
    from keras_nfnets.backend.keras_internals_tensorflow import plain_convolutions

    return plain_convolutions()


def _write_onnx(model, file, **options):
    from keras_nfnets.deploy import onnx_files

    def convert(file, opset):
        # The import registers operations that tf2onnx lacks.
        from keras_nfnets.deploy import onnx_operations  # noqa: F401

        _write_by_keras("onnx", model, file, opset_version=opset)

    with _plain_convolutions():  # TensorFlow has some on accelerators only
        onnx_files.write_onnx(model, file, convert, **options)


class _Format(typing.NamedTuple):
    """File extension, the packages that write it, and `write(model, file)`."""

    ending: str
    packages: tuple
    write: typing.Callable


_FORMATS = {
    "saved_model": _Format(
        "", ("tensorflow",), functools.partial(_write_by_keras, "tf_saved_model")
    ),
    "onnx": _Format(".onnx", ("onnx",), _write_onnx),
    "litert": _Format(
        ".tflite", ("tensorflow",), functools.partial(_write_by_keras, "litert")
    ),
}
_FORMAT_OF = {known.ending: name for name, known in _FORMATS.items() if known.ending}
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
    overwrite=False,
):
    """Fold a network and write it for another runtime.

    ONNX and LiteRT files compute in float32, whatever the network's dtype policy. An ONNX
    file is loaded by ONNX Runtime, if that is installed, and compared with the network
    before it appears. It is written on every backend, unless the network has layers or
    operations that need Keras's own converter; other formats are written on TensorFlow.

    Args:
        model: `keras.Model`. See `fold`.
        path: str or path. File to write, or folder for a SavedModel. It appears when it
            is complete.
        format: str. `"saved_model"` (TensorFlow, TensorFlow Serving), `"onnx"` (ONNX
            Runtime and others) or `"litert"` (LiteRT, formerly TensorFlow Lite). By
            default chosen by the file extension: `.onnx`, `.tflite`, or none for a
            SavedModel.
        quantize: str or None. For LiteRT: `"dynamic"` for 8-bit kernels, with the
            ranges of activations computed at run time; `"int8"` for 8 bits throughout,
            with ranges calibrated on `examples`, but float inputs and outputs; None for
            no quantization.
        examples: array `(examples, height, width, channels)` of the dtype of the
            model's input. For `"int8"`, a hundred or more images, preprocessed as in
            training. A warning says if the quantized network disagrees with the float
            network on them, or if they look like raw pixels.
        batch_size: int or None. Number of images that the file takes; by default as the
            model, mostly any number.
        input_name, output_name: str or None. Names of the input and the output in an ONNX
            file, by default `"image"` and `"predictions"`. Several inputs or outputs
            keep their names in Keras.
        opset: int or None. For ONNX: the version of its set of operations; by default 20,
            or 15 if Keras's own converter is needed.
        overwrite: bool. Whether to replace a file or SavedModel at `path`. Other
            folders that are not empty are never replaced.

    Raises:
        ValueError: inconsistent arguments, a path that exists already, a model that
            `fold` does not accept, operations that ONNX lacks, a backend that cannot
            write the format, or an ONNX file that computes something else.
        ImportError: a package that the format needs is not installed; the message says
            how to install it.

    Example:

    >>> model = keras_nfnets.NFNetTiny(classes=10)
    >>> export(model, "tiny.onnx")  # doctest: +SKIP
    """
    path = _checked_path(path)
    format = _checked_format(path, format)
    _check_quantization(format, quantize, examples)
    if batch_size is not None:
        batch_size = checks.integer("batch_size", batch_size)
    onnx_options = {
        "input_name": input_name,
        "output_name": output_name,
        "opset": opset,
    }
    _check_onnx_options(format, onnx_options)
    ending, _, write = _FORMATS[format]
    _check_whether_free(path, ending, overwrite)
    _check_whether_possible(format)
    folded = fold(model)
    options = {}
    if format == "onnx":
        from keras_nfnets.deploy import onnx_files

        options = onnx_files.options(model, **onnx_options)
    folded = keras.Model(folded.input, folded.output, name=plain_name(folded.name))
    if format != "saved_model":
        folded = _in_float32(folded)
    if batch_size is not None:
        folded = _with_batch_size(folded, batch_size)
    if quantize is not None:
        import tensorflow as tf

        options["optimizations"] = [tf.lite.Optimize.DEFAULT]
    if quantize == "int8":
        examples = _checked_examples(folded, examples)
        options["representative_dataset"] = functools.partial(
            _batches, examples, folded.input_shape[0] or 1
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.written(path) as partial:
        # Keras requires lower-case extensions.
        exported = os.fspath(partial.with_name(f"exported{ending}"))
        write(folded, exported, **options)
        doubts = []
        if quantize == "int8":
            if _look_raw(examples, model):
                doubts.append("the examples look like raw pixels")
            doubts += _disagreements(folded, exported, examples)
        os.replace(exported, partial)
    if doubts:
        warnings.warn(
            f"{path} is written, but {'; and '.join(doubts)}. Its accuracy may be low. The "
            "likely cause: the examples are not preprocessed as in training, too few, or "
            f"unlike the images that it is for. Received: {len(examples)} examples with "
            f"values from {examples.min():.4g} to {examples.max():.4g}, mean "
            f"{examples.mean():.4g}",
            stacklevel=2,
        )


def _checked_path(path):
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise ValueError(f"`path` must be a path. Received: path={path!r}")
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
    ending = _FORMATS[format].ending
    if ending and _ending(path) != ending:
        raise ValueError(
            f"A file of format {format!r} must end in {ending}. Received: path={path}"
        )
    if not ending and looks_like_file:
        raise ValueError(
            f"A SavedModel is a folder, and {path} looks like a file. Files end in "
            f"{' or '.join(_FORMAT_OF)}; Keras writes its own, `fold(model).save(...)`."
        )
    return format


def _check_quantization(format, quantize, examples):
    checks.one_of("quantize", quantize, (None, *QUANTIZATIONS))
    if quantize is not None and format != "litert":
        raise ValueError(
            "Only LiteRT, a .tflite file, can be quantized. Received: "
            f"quantize={quantize!r}, format={format!r}"
        )
    if (quantize == "int8") != (examples is not None):
        raise ValueError(
            '`quantize="int8"` needs `examples`, and nothing else does. Received: '
            f"quantize={quantize!r}, examples of type {type(examples).__name__}"
        )


def _check_onnx_options(format, options):
    for name, value in options.items():
        if value is not None and format != "onnx":
            raise ValueError(
                f"`{name}` is for ONNX files. Received: {name}={value!r}, "
                f"format={format!r}"
            )
    for name in ("input_name", "output_name"):
        value = options[name]
        if value is not None and not (isinstance(value, str) and value):
            raise ValueError(f"`{name}` must be a name. Received: {name}={value!r}")


def _check_whether_possible(format):
    """Raise an error if the backend cannot write a format, or packages for it miss."""
    if format != "onnx" and keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"The format {format!r} is written on Keras's TensorFlow backend. Received: "
            f"{keras.backend.backend()!r}; save the model, set KERAS_BACKEND=tensorflow "
            "and load it there."
        )
    for package in _FORMATS[format].packages:
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"The format {format!r} needs the package {package!r}: "
                'pip install "keras_nfnets[export]"'
            )


def _ending(path):
    # pathlib sees no suffix in the name `.onnx`.
    return (path.suffix or path.name).lower()


def _check_whether_free(path, ending, overwrite):
    if ending and path.is_dir():
        raise ValueError(
            f"{path} is a folder, and is left as it is. Choose another `path`."
        )
    if os.path.lexists(path) and not overwrite:
        raise ValueError(f"{path} is there already; `overwrite=True` replaces it.")
    if path.is_dir() and any(path.iterdir()) and not _is_saved_model(path):
        raise ValueError(
            f"{path} is a folder, with something other than a SavedModel in it, and is "
            "left as it is. Choose another `path`."
        )


def _is_saved_model(folder):
    """Whether a folder has what Keras exports, and nothing else."""
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*")}
    ours = r"saved_model\.pb|fingerprint\.pb|assets|variables(/variables\..*)?"
    return "saved_model.pb" in files and all(re.fullmatch(ours, f) for f in files)


def _in_float32(model):
    layers = keras_internals.layers_of(model)
    if all(layer.compute_dtype == "float32" for layer in layers):
        return model
    clone = _clone_in_float32(model)
    copy_state(model, clone)
    return clone


def _clone_in_float32(model):
    def counterpart(layer):
        if isinstance(layer, keras.Model):
            return _clone_in_float32(layer)
        config = layer.get_config()
        if isinstance(layer, keras.layers.Layer):  # not an operation such as `+`
            config["dtype"] = "float32"
        return type(layer).from_config(config)

    inputs = keras.tree.map_structure(
        lambda x: keras.Input(
            batch_shape=x.shape,
            dtype="float32" if "float" in x.dtype else x.dtype,
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
                f"The model takes batches of {x.shape[0]}. Received: batch_size={size}"
            )
        return keras.Input(batch_shape=(size, *x.shape[1:]), dtype=x.dtype, name=x.name)

    inputs = keras.tree.map_structure(fixed, model.input)
    return keras.Model(inputs, model(inputs), name=model.name)


def _spec(x):
    return keras.InputSpec(dtype=x.dtype, shape=x.shape, name=plain_name(x.name))


def _checked_examples(model, examples):
    """Return the examples as an array of the model's input shape and dtype."""
    if len(model.inputs) != 1:
        raise ValueError(
            '`quantize="int8"` is for models of one input. Received: a model of '
            f"{len(model.inputs)}"
        )
    [wanted] = model.inputs
    batch, *rest = wanted.shape
    try:
        examples = np.asarray(examples)
        fits = examples.dtype.kind in "buif" and examples.ndim == len(rest) + 1
    except ValueError:  # nested lists of different lengths
        fits = False
    if not fits or not all(
        want in (None, size) for want, size in zip(rest, examples.shape[1:])
    ):
        received = f"{type(examples).__name__}"
        if isinstance(examples, np.ndarray):
            received = f"dtype {examples.dtype}, shape {examples.shape}"
        raise ValueError(
            f"`examples` must be an array of numbers of shape {(None, *rest)}. "
            f"Received: {received}"
        )
    if len(examples) < (batch or 1) or not examples.size:
        raise ValueError(
            f"`examples` must hold at least {batch or 1}, a hundred or more do better. "
            f"Received: shape {examples.shape}"
        )
    if not np.isfinite(examples).all():
        raise ValueError(
            "`examples` must be finite. Received: some that are NaN or inf"
        )
    if "float" in wanted.dtype and examples.dtype.kind != "f":
        raise ValueError(
            f"`examples` must be preprocessed as in training, to {wanted.dtype}, the dtype "
            "of the model's input. If the model itself preprocesses raw pixels, convert "
            f'them: examples.astype("{wanted.dtype}"). Received: dtype {examples.dtype}, '
            f"values from {examples.min()} to {examples.max()}"
        )
    return examples.astype(wanted.dtype)


def _batches(examples, size):
    for start in range(0, len(examples) - size + 1, size):
        yield [examples[start : start + size]]


# Examples on which a quantized network is compared with the float network.
_COMPARED = 32
# With suitable examples, the error is around 0.01 for the bundled network.
_LARGEST_ERROR = 0.2
_LEAST_AGREEMENT = 0.9
# Larger than the values of standardized images, smaller than white among raw pixels.
_LARGEST_STANDARDIZED = 100


def _look_raw(examples, model):
    """Whether examples are raw pixels, for a model that does not preprocess them."""
    preprocessing = (keras.layers.Rescaling, keras.layers.Normalization)
    return (
        examples.dtype.kind == "f"
        and examples.min() >= 0
        and examples.max() > _LARGEST_STANDARDIZED
        and not any(
            isinstance(layer, preprocessing)
            for layer in keras_internals.layers_of(model)
        )
    )


def _disagreements(model, file, examples):
    """Describe how an int8 file differs from its network on examples, a list of str."""
    if len(model.outputs) > 1:  # a LiteRT file may have another order
        return []
    size = model.input_shape[0] or 1
    batches = [batch for [batch] in _batches(examples, size)]
    batches = batches[:: -(-len(batches) * size // _COMPARED)]
    expected = np.concatenate(
        [keras.tree.flatten(model.predict_on_batch(x))[0] for x in batches]
    )
    actual = np.concatenate(_litert_outputs(file, batches))
    found = []
    size = np.linalg.norm(expected)
    error = np.linalg.norm(actual - expected) / (size or 1.0)
    if not error <= _LARGEST_ERROR:  # also if it is NaN
        found.append(
            f"its outputs for the examples have a relative error of {error:.2g}"
        )
    if expected.ndim == 2 and expected.shape[1] > 1:
        agreement = np.mean(expected.argmax(axis=1) == actual.argmax(axis=1))
        if agreement < _LEAST_AGREEMENT:
            found.append(
                "it predicts the same class as the float network for only "
                f"{agreement:.0%} of {len(expected)} examples"
            )
    return found


def _litert_outputs(file, batches):
    """Run a LiteRT file of one input and one output on batches; return its outputs."""
    import tensorflow as tf

    with warnings.catch_warnings():
        # It recommends another package, which lacks some operations of TensorFlow.
        warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated")
        interpreter = tf.lite.Interpreter(model_path=file)
    [inputs], [outputs] = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )
    interpreter.resize_tensor_input(inputs["index"], batches[0].shape)
    interpreter.allocate_tensors()
    results = []
    for batch in batches:
        interpreter.set_tensor(inputs["index"], batch)
        interpreter.invoke()
        results.append(interpreter.get_tensor(outputs["index"]))
    return results
