"""Inference in this process, compiled for it."""

import contextlib

import keras

from keras_nfnets import checks
from keras_nfnets.backend import keras_internals
from keras_nfnets.backend.device import has_only_cpus
from keras_nfnets.deploy.folding import fold

# Protocol buffers, and so graphs of TensorFlow, hold at most 2 GiB.
_MOST_CONSTANTS = 2**31 - 2**26
# On CPUs, oneDNN computes these faster than XLA. Their constant kernels it arranges once.
_NOT_BY_XLA = ("Conv2D", "MatMul")


def inference_function(model, runtime=None):
    """Fold a network and compile it for inference on this machine.

    The function keeps the weights that the model has when it is created, as constants;
    after further training, create it again.

    `"onnxruntime"` runs the network in ONNX Runtime on the CPU, in float32, without
    compilation and for all batch sizes.

    `"keras"` compiles it by the backend. On TensorFlow and a CPU, convolutions and matrix
    products run in TensorFlow's own kernels, and XLA fuses the operations between them.
    On JAX, and on TensorFlow with an accelerator, XLA compiles everything. On PyTorch the
    folded network runs in inference mode, not compiled. On TensorFlow and JAX the first
    call with each shape compiles, for seconds to a minute: make that call in advance, and
    use few batch sizes.

    Args:
        model: `keras.Model`. See `fold`; may be folded already.
        runtime: str or None. `"onnxruntime"` or `"keras"`; by default ONNX Runtime if it
            is installed (`pip install "keras_nfnets[export]"`), there is no accelerator,
            the network computes in float32, and every layer can be written as ONNX
            directly (see `export`).

    Returns:
        A function of images (array or tensor of the shape of the model's input, any batch
        size but zero) that returns the predictions as a tensor of the backend. For a model of
        several inputs or outputs it takes and returns their structure. It raises
        ValueError for images of another shape.

    Raises:
        ValueError: `fold` does not accept the model, or `runtime` cannot run it.
        ImportError: ONNX Runtime was asked for and is not installed.

    Example:

    >>> model = keras_nfnets.NFNetTiny(classes=10)
    >>> predict = inference_function(model)
    >>> x = np.random.normal(size=(1, 32, 32, 3)).astype("float32")
    >>> np.allclose(model(x), predict(x), atol=1e-5)
    True
    """
    checks.one_of("runtime", runtime, (None, "onnxruntime", "keras"))
    folded = fold(model)
    compiled = _compiled(folded, runtime)

    def predict(images):
        return compiled(_checked(folded.input, images))

    return predict


def _compiled(folded, runtime):
    if runtime == "onnxruntime" or (runtime is None and has_only_cpus()):
        try:
            return _in_onnx_runtime(folded)
        except ImportError:
            if runtime is not None:
                raise
        except ValueError as error:
            if runtime is not None:
                raise ValueError(
                    f"ONNX Runtime cannot run this network: {error}. Use "
                    'runtime="keras". Received: runtime="onnxruntime"'
                ) from error
    return _COMPILERS[keras.backend.backend()](folded)


def _checked(inputs, images):
    """Convert images to tensors in the structure of a model's inputs."""
    expected = keras.tree.flatten(inputs)
    given = keras.tree.flatten(images)
    if isinstance(inputs, dict) and (
        not isinstance(images, dict) or images.keys() != inputs.keys()
    ):
        given = []
    elif len(expected) == 1 and len(given) != 1:
        given = [images]  # nested lists of numbers
    if len(given) != len(expected):
        wanted = list(inputs) if isinstance(inputs, dict) else len(expected)
        raise ValueError(
            f"`images` must have the structure of the model's inputs, {wanted}. Received: "
            f"{type(images).__name__}"
        )
    return keras.tree.pack_sequence_as(inputs, list(map(_tensor, expected, given)))


def _tensor(expected, images):
    """Convert images to a tensor of the input's dtype; check their shape."""
    try:
        images = keras.ops.convert_to_tensor(images, dtype=expected.dtype)
        shape = tuple(images.shape)
    except (TypeError, ValueError):
        shape = None
    if (
        shape is None
        or len(shape) != len(expected.shape)
        or not all(want in (None, size) for want, size in zip(expected.shape, shape))
        or 0 in shape
    ):
        raise ValueError(
            f"`images` must be a batch of shape {tuple(expected.shape)} (for one image, "
            "pass `image[None]`). Received: "
            + (type(images).__name__ if shape is None else f"shape {shape}")
        )
    return images


def _in_onnx_runtime(model):
    """Return the function in ONNX Runtime.

    Raises:
        ImportError: a package is missing, or does not work with the others.
        ValueError: the model does not compute in float32, or ONNX lacks an operation.
    """
    for package in ("onnx", "onnxruntime"):
        checks.installed("ONNX Runtime", package, '"keras_nfnets[export]"')
    import onnxruntime

    from keras_nfnets.deploy import onnx_files, onnx_model

    dtypes = {layer.compute_dtype for layer in keras_internals.layers_of(model)}
    if dtypes != {"float32"}:
        raise ValueError(f"it computes in {', '.join(sorted(dtypes))}")
    names = onnx_files.options(model)
    inputs, outputs = names["input_names"], names["output_names"]
    content = onnx_model.onnx_model(model, inputs, outputs).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def predict(images):
        arrays = map(keras.ops.convert_to_numpy, keras.tree.flatten(images))
        results = session.run(None, dict(zip(inputs, arrays, strict=True)))
        tensors = list(map(keras.ops.convert_to_tensor, results))
        if len(tensors) == 1 and isinstance(model.output, list):
            return tensors[0]  # as Keras does
        return keras.tree.pack_sequence_as(model.output, tensors)

    return predict


def _on_tensorflow(model):
    import tensorflow as tf

    from keras_nfnets.backend.keras_internals_tensorflow import plain_convolutions

    def scope():
        contexts = contextlib.ExitStack()
        if has_only_cpus():
            contexts.enter_context(plain_convolutions())
            contexts.enter_context(
                tf.xla.experimental.jit_scope(lambda node: node.op not in _NOT_BY_XLA)
            )
        return contexts

    values = [variable.value for variable in model.variables]
    if sum(value.dtype.size * value.shape.num_elements() for value in values) < (
        _MOST_CONSTANTS
    ):
        # Tensors become arguments of a graph, and arrays constants in it.
        values = [value.numpy() for value in values]

    @tf.function(autograph=False, jit_compile=not has_only_cpus())
    def predict(images):
        with scope():
            return _stateless(model, values, images)

    return predict


def _on_jax(model):
    import jax

    values = [variable.value for variable in model.variables]
    return jax.jit(lambda images: _stateless(model, values, images))


def _on_torch(model):
    import torch

    @torch.inference_mode()
    def predict(images):
        return model(images, training=False)

    return predict


_COMPILERS = {"tensorflow": _on_tensorflow, "jax": _on_jax, "torch": _on_torch}


def _stateless(model, values, images):
    """Compute predictions with `values` of `model.variables`."""
    with keras.StatelessScope(list(zip(model.variables, values))):
        return model(images, training=False)
