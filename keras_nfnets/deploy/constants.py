"""Constants per channel, and the layers whose kernels and biases take them over."""

import keras
import numpy as np
from keras import ops

from keras_nfnets.backend import keras_internals
from keras_nfnets.backend.graph import values_of
from keras_nfnets.layers import WSDense
from keras_nfnets.layers.kernels import ATTENTION

# The arguments of attention layers, which are also the names of their projections.
_ARGUMENTS = ("query", "value", "key")
# In half precision, constants stay where they are: rounding would be another.
PRECISE = ("float32", "float64")


class Affine:
    """Symbolic tensor of the folded model, and constants per channel that it lacks.

    They go into the kernels and biases of the next layers if these are dense or attention
    layers, see `takes_constants`, otherwise into a `Rescaling`.

    Attributes:
        tensor: `keras.KerasTensor`, with the channels last.
        factor, offset: float arrays `(channels,)`. The tensor of the original model is
            `factor * tensor + offset`.
        name: str. Name for the `Rescaling`.
        exact: `keras.KerasTensor` of that, or None until `Plain.exact` needs it.
    """

    def __init__(self, tensor, factor, offset, name):
        self.tensor, self.factor, self.offset = tensor, factor, offset
        self.name, self.exact = name, None

    @classmethod
    def of(cls, layer, tensor):
        """Return the signal after a call for which `is_constants` is true."""
        channels = tensor.shape[-1]
        scale, offset = (
            np.broadcast_to(np.asarray(constant, layer.compute_dtype), channels)
            for constant in (layer.scale, layer.offset)
        )
        return cls(tensor, scale, offset, layer.name)

    def rescaled(self, name):
        """Return the tensor with its constants."""
        constants = (
            keras_internals.per_channel(x, -1, len(self.tensor.shape))
            for x in (self.factor, self.offset)
        )
        dtype = keras.backend.standardize_dtype(self.tensor.dtype)
        return keras.layers.Rescaling(*constants, dtype=dtype, name=name)(self.tensor)

    def kernel_and_bias(self, kernel, bias):
        """Return the kernel and the bias of a layer that takes over the constants."""
        columns = [1] * (kernel.ndim - 1)
        bias = bias + np.tensordot(self.offset, kernel, 1)
        return self.factor.reshape(-1, *columns) * kernel, bias


def is_constants(layer, inputs):
    """Whether a call is of a `Rescaling` with numbers, or with one per (last) channel."""
    if type(layer) is not keras.layers.Rescaling:
        return False
    [value] = inputs
    dtype = keras.backend.standardize_dtype(value.spec.dtype)
    return (
        dtype == layer.compute_dtype
        and dtype in PRECISE
        and max(np.ndim(layer.scale), np.ndim(layer.offset)) <= _most_axes()
        and value.shape[-1] is not None
    )


def _most_axes():
    """Return how many axes the constants of a `Rescaling` of the last axis may have."""
    return 0 if keras.config.image_data_format() == "channels_first" else 1


def takes_constants(layer):
    """Whether a layer can take over the constants of its inputs."""
    if type(layer) not in (keras.layers.Dense, WSDense, *ATTENTION):
        return False
    if type(layer) is not WSDense and isinstance(
        getattr(layer, "activation", None), keras.layers.Layer
    ):
        return False  # `fold` refuses activations of this package elsewhere
    is_adapted = any(
        getattr(part, "quantization_mode", None) or getattr(part, "lora_enabled", False)
        for part in keras_internals.layers_of(layer)
    )
    has_gate = getattr(layer, "use_gate", False)
    return layer.compute_dtype in PRECISE and not is_adapted and not has_gate


def other_values(call):
    """Return the values of a call that are not multiplied by kernels, such as masks."""
    named = {name: x for name, x in call.kwargs.items() if name not in _ARGUMENTS}
    return set(values_of((call.args[len(_ARGUMENTS) :], named)))


def call_with_constants(layer, arguments, options):
    """Call a copy of a dense or attention layer that takes over constants.

    Args:
        layer: Keras layer for which `takes_constants` is true.
        arguments, options: tuple and dict. Arguments of the call, with `Affine` in place of
            tensors that lack constants.

    Returns:
        The outputs of the copy, which has the same name, and biases.
    """
    signals = {**dict(zip(_ARGUMENTS, arguments)), **options}
    if signals.get("key") is None:
        signals["key"] = signals.get("value")
    new = type(layer).from_config({**layer.get_config(), "use_bias": True})
    tensors, others = keras.tree.map_structure(
        lambda x: x.tensor if isinstance(x, Affine) else x, (arguments, options)
    )
    outputs = new(*tensors, **others)
    old = _weights(layer)
    for argument, weights in _weights(new).items():
        kernel = ops.convert_to_numpy(old[argument]["kernel"])
        bias = np.zeros(weights["bias"].shape, kernel.dtype)
        if "bias" in old[argument]:
            bias = ops.convert_to_numpy(old[argument]["bias"])
        if isinstance(signals.get(argument), Affine):
            kernel, bias = signals[argument].kernel_and_bias(kernel, bias)
        weights["kernel"].assign(kernel)
        weights["bias"].assign(bias)
    return outputs


def _weights(layer):
    """Return `{argument that a weight projects: {name: weight}}`."""
    if not isinstance(layer, ATTENTION):
        return {_ARGUMENTS[0]: {weight.name: weight for weight in layer.weights}}
    parts = keras_internals.layers_of(layer, include_self=False)
    return {
        part.name: {weight.name: weight for weight in part.weights}
        for part in parts
        if part.weights
    }
