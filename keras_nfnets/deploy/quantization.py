"""Quantization of exported networks: ranges of activations, and comparison."""

import warnings

import keras
import numpy as np

from keras_nfnets.backend import keras_internals

_PREPROCESSING = (keras.layers.Rescaling, keras.layers.Normalization)
# Number and side length of the random images that stand for examples.
_EXPECTED = 32
_EXPECTED_SIDE = 128
# Standard deviation of the noise. Images have larger values than noise of the same
# variance, and training makes activations larger. With 1, a network trained on letters
# lost 11 points of accuracy, with 2 none.
_STD = 2
# Examples on which a quantized network is compared with the float network.
_COMPARED = 32
# With suitable examples, the error is around 0.01 for the bundled network.
_LARGEST_ERROR = 0.2
# Networks are unsure on noise, with outputs that differ more.
_LARGEST_ERROR_ON_NOISE = 0.5
_LEAST_AGREEMENT = 0.9
# Larger than the values of standardized images, smaller than white among raw pixels.
_LARGEST_STANDARDIZED = 100
# Operations that ONNX Runtime computes with 8 bits.
_QUANTIZED = (
    *("Conv", "Gemm", "MatMul", "Add", "Mul"),
    *("AveragePool", "GlobalAveragePool", "MaxPool"),
)


def calibration_examples(model, folded, examples):
    """Return the images on which the ranges of the activations are measured.

    Without examples, they are normal noise, with some reserve: the networks are built to
    have known variances after each layer for inputs of mean zero and variance one.

    Args:
        model: `keras.Model`, as given by the user.
        folded: `keras.Model`. The folded network.
        examples: array, or None.

    Raises:
        ValueError: the model does not take the examples, or needs some.
    """
    if examples is not None:
        return _checked_examples(folded, examples)
    _check_one_input(folded)
    [wanted] = folded.inputs
    if "float" not in wanted.dtype or _preprocesses(model):
        raise ValueError(
            '`quantize="int8"` needs `examples` for a network that preprocesses its images '
            "itself: its inputs have no known mean and variance. Received: examples=None"
        )
    batch, *rest = wanted.shape
    shape = [_EXPECTED_SIDE if size is None else size for size in rest]
    rng = np.random.default_rng(0)
    noise = rng.normal(scale=_STD, size=(max(_EXPECTED, batch or 1), *shape))
    return noise.astype(wanted.dtype)


def litert_options(quantize, batches):
    """Return the attributes of TensorFlow's converter for a quantization."""
    import tensorflow as tf

    options = {"optimizations": [tf.lite.Optimize.DEFAULT]}
    if quantize == "int8":
        options["representative_dataset"] = lambda: ([x] for x in batches)
    if quantize == "float16":
        options["target_spec"] = {"supported_types": [tf.float16]}
    return options


def quantize_onnx(file, batches):
    """Quantize an ONNX file of one input to 8 bits, in place.

    Kernels have 8 bits per channel, of which 7 are used: on CPUs without instructions for
    8-bit products (VNNI), sums of larger ones overflow in ONNX Runtime.

    Args:
        file: str. Path of the file.
        batches: list of arrays, on which ranges of activations are measured.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    class Batches(quantization.CalibrationDataReader):
        def __init__(self):
            self._batches = iter(batches)

        def get_next(self):
            batch = next(self._batches, None)
            return None if batch is None else {name: batch}

    float_model = onnx.load(file)
    [name] = [x.name for x in float_model.graph.input]
    # The graph has its shapes and nothing left to simplify; otherwise there is a warning.
    add_pre_process_metadata(float_model)
    quantization.quantize_static(
        float_model,
        file,
        Batches(),
        per_channel=True,
        reduce_range=True,
        activation_type=quantization.QuantType.QUInt8,
        op_types_to_quantize=_QUANTIZED,
    )


def batches_of(examples, model):
    """Split examples into batches of the size that a model takes, one if it is free."""
    size = model.input_shape[0] or 1
    starts = range(0, len(examples) - size + 1, size)
    return [examples[start : start + size] for start in starts]


def doubts(model, folded, file, examples, are_noise):
    """Return sentences, without a full stop, on what is wrong with an int8 file.

    Args:
        model, folded, examples: see `calibration_examples`.
        file: str. Path of the file.
        are_noise: bool. Whether the examples are not the user's.
    """
    found = _disagreements(folded, file, examples, are_noise)
    if not are_noise and _look_raw(examples, model):
        found.insert(0, "the examples look like raw pixels")
    if not found:
        return ""
    if are_noise:
        cause = "Images like those of its later use, passed as `examples`, may give a better file"
    else:
        cause = (
            "The likely cause: the examples are not preprocessed as in training, too few, "
            "or unlike the images of its later use"
        )
    return (
        f"{'; and '.join(found)}. Its accuracy may be low. {cause}. Received: "
        f"{len(examples)} examples with values from {examples.min():.4g} to "
        f"{examples.max():.4g}, mean {examples.mean():.4g}"
    )


def _check_one_input(model):
    if len(model.inputs) != 1:
        raise ValueError(
            '`quantize="int8"` is for models of one input. Quantize others to float16, '
            f"which needs no examples. Received: a model of {len(model.inputs)} inputs"
        )


def _checked_examples(model, examples):
    """Return the examples as an array of the model's input shape and dtype."""
    _check_one_input(model)
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
            f"`examples` must have at least {batch or 1} examples; a hundred or more give "
            f"more accurate ranges. Received: shape {examples.shape}"
        )
    if not np.isfinite(examples).all():
        raise ValueError(
            "`examples` must be finite. Received: examples with NaN or infinite values"
        )
    if "float" in wanted.dtype and examples.dtype.kind != "f":
        raise ValueError(
            f"`examples` must be preprocessed as in training, to {wanted.dtype}, the dtype "
            "of the model's input. If the model itself preprocesses raw pixels, convert "
            f'them: examples.astype("{wanted.dtype}"). Received: dtype {examples.dtype}, '
            f"values from {examples.min()} to {examples.max()}"
        )
    return examples.astype(wanted.dtype)


def _preprocesses(model):
    layers = keras_internals.layers_of(model)
    return any(isinstance(layer, _PREPROCESSING) for layer in layers)


def _look_raw(examples, model):
    """Whether examples are raw pixels, for a model that does not preprocess them."""
    return (
        examples.dtype.kind == "f"
        and examples.min() >= 0
        and examples.max() > _LARGEST_STANDARDIZED
        and not _preprocesses(model)
    )


def _disagreements(model, file, examples, are_noise):
    """Describe how an int8 file differs from its network on examples, a list of str."""
    if len(model.outputs) > 1:  # a LiteRT file may have another order
        return []
    batches = batches_of(examples, model)
    batches = batches[:: -(-len(batches) * len(batches[0]) // _COMPARED)]
    expected = np.concatenate(
        [keras.tree.flatten(model.predict_on_batch(x))[0] for x in batches]
    )
    actual = np.concatenate(_outputs(file, batches))
    found = []
    size = np.linalg.norm(expected)
    error = np.linalg.norm(actual - expected) / (size or 1.0)
    largest = _LARGEST_ERROR_ON_NOISE if are_noise else _LARGEST_ERROR
    if not error <= largest:  # also if it is NaN
        found.append(
            f"its outputs for the examples have a relative error of {error:.2g}"
        )
    if not are_noise and expected.ndim == 2 and expected.shape[1] > 1:
        agreement = np.mean(expected.argmax(axis=1) == actual.argmax(axis=1))
        if agreement < _LEAST_AGREEMENT:
            found.append(
                "it predicts the same class as the float network for only "
                f"{agreement:.0%} of {len(expected)} examples"
            )
    return found


def _outputs(file, batches):
    """Run a file of one input and one output on batches; return its outputs."""
    if not file.endswith(".onnx"):
        return _litert_outputs(file, batches)
    from keras_nfnets.deploy.onnx_files import runtime_outputs  # onnx may be missing

    return [y for [y] in runtime_outputs(file, [[x] for x in batches])]


def _litert_outputs(file, batches):
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
