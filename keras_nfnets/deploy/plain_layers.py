"""Keras layers that compute in inference what layers of this package compute."""

import functools
import re

import keras
from keras import ops

from keras_nfnets.backend import keras_internals
from keras_nfnets.backend.convolution import convolve
from keras_nfnets.backend.graph import unique_name
from keras_nfnets.deploy.constants import PRECISE, Affine
from keras_nfnets.layers import (
    DynamicErf,
    DynamicTanh,
    EfficientChannelAttention,
    NFBlock,
    ScaledActivation,
    SkipGain,
    SqueezeExcite,
    SymmetricMaxPooling2D,
    WSConv2D,
)
from keras_nfnets.layers.endpoint import Endpoint
from keras_nfnets.layers.kernels import STANDARDIZED


class Scaled:
    """Symbolic tensor of the folded model, and a constant factor that it lacks.

    The factor goes into the kernel of the next layer if that is a standardized one of
    this package, otherwise into a multiplication.

    Attributes:
        tensor: `keras.KerasTensor`.
        factor: float. The tensor of the original model is `factor * tensor`.
        exact: `keras.KerasTensor` of that product, or None until `Plain.exact` needs it.
    """

    def __init__(self, tensor, factor=1.0):
        self.tensor, self.factor = tensor, factor
        self.exact = tensor if factor == 1.0 else None


class Plain:
    """Maker of the layers of a folded model, with unique names.

    Args:
        names: set of str. Names that are in use.
    """

    def __init__(self, names):
        self._names = names
        self._made = {}  # replacements of layers, for later calls

    def name(self, name):
        return unique_name(name, self._names)

    def options(self, layer, name):
        """Return the arguments of a Keras layer that stands for (a part of) `layer`."""
        return {"dtype": layer.dtype_policy, "name": self.name(name)}

    def replaced(self, layer, x):
        """Call the replacement of a layer of a type in `REPLACEMENTS`."""
        return REPLACEMENTS[type(layer)](self, layer, self.cast(layer, x), layer.name)

    def cast(self, layer, x):
        """Cast a float input to a layer's compute dtype, as the layer would."""
        dtype = keras.backend.standardize_dtype(x.tensor.dtype)
        if not layer.autocast or "float" not in dtype or dtype == layer.compute_dtype:
            return x
        name = self.name(f"{layer.name}_cast")
        cast = keras.layers.Identity(dtype=layer.compute_dtype, name=name)
        return Scaled(cast(self.exact(x)))

    def exact(self, x):
        """Return the tensor of a `Scaled` or `Affine` with its constants."""
        if x.exact is None and isinstance(x, Affine):
            x.exact = x.rescaled(self.name(x.name))
        elif x.exact is None:
            name = self.name(f"{keras_internals.operation_of(x.tensor).name}_scaled")
            dtype = x.tensor.dtype
            x.exact = keras.layers.Rescaling(x.factor, dtype=dtype, name=name)(x.tensor)
        return x.exact

    def operation(self, function, x, name):
        """Call a Keras operation, `function(x)`, and give it a unique name."""
        outputs = function(x)
        first = keras.tree.flatten(outputs)[0]
        keras_internals.rename(keras_internals.operation_of(first), self.name(name))
        return outputs

    def made(self, layer, x, create, weights, variant=None):
        """Call a replacement of a layer; `create()` makes it once per variant."""
        new = self._made.get((layer, variant))
        if new is None:
            new = self._made[layer, variant] = create()
            new.build(x.shape)
            new.set_weights(weights)
        return new(x)


# Functions `(plain, layer, x, name)`, some also with `scale=1.0`, a factor of the
# result. They return a `Scaled`.


def _convolution(plain, layer, x, name, scale=1.0):
    """Replace a `WSConv2D` by a `Conv2D`."""
    tensor, padding = _padded(plain, layer, x.tensor, name)
    kernel = layer.precise_kernel()
    bias = ops.convert_to_numpy(layer.precise_bias(kernel))
    kernel = ops.convert_to_numpy(kernel)

    def create():
        new = keras.layers.Conv2D(
            layer.filters,
            layer.kernel_size,
            strides=layer.strides,
            padding=padding,
            data_format=layer.data_format,
            dilation_rate=layer.dilation_rate,
            groups=layer.groups,
            activation=_inner_activation(layer),
            kernel_initializer="zeros",
            **plain.options(layer, name),
        )
        # In this process as fast as in the network. What is saved is a plain layer.
        new.convolution_op = functools.partial(
            convolve,
            new.convolution_op,
            strides=new.strides,
            groups=new.groups,
            data_format=new.data_format,
        )
        return new

    # Only convolutions of blocks have a scale here, and these have no activation.
    weights = [kernel * (x.factor * scale), bias * scale]
    tensor = plain.made(layer, tensor, create, weights, x.factor)
    return _activated(plain, layer, tensor)


def _padded(plain, layer, tensor, name):
    """Pad the input of a `WSConv2D` as Keras cannot; return it and the padding left."""
    if not layer.symmetric or max(layer.strides) == 1:
        return tensor, layer.padding
    pad = keras.layers.ZeroPadding2D(
        tuple(layer.symmetric_padding()),
        data_format=layer.data_format,
        **plain.options(layer, f"{name}_pad"),
    )
    return pad(tensor), "valid"


def _other_standardized(plain, layer, x, name):
    """Replace another layer with standardized kernels by its Keras counterpart."""
    kernels = [layer.precise_kernel(name=kernel.name) for kernel in layer.KERNELS]
    bias = layer.precise_bias(*kernels)
    weights = [ops.convert_to_numpy(weight) for weight in (*kernels, bias)]
    if isinstance(x, Affine):  # of a dense layer
        weights, variant = x.kernel_and_bias(*weights), id(x)
    else:
        weights[0], variant = weights[0] * x.factor, x.factor

    def create():
        config = {
            key: value
            for key, value in layer.keras_config().items()
            # For training only, and perhaps custom objects.
            if not re.search("lora|initializer|regularizer|constraint", key)
        }
        config |= {"name": plain.name(name), "activation": None}
        new = layer.keras_class().from_config(config)
        new.activation = _inner_activation(layer)
        return new

    tensor = plain.made(layer, x.tensor, create, weights, variant)
    return _activated(plain, layer, tensor)


def _inner_activation(layer):
    """Return the `activation` to leave in a layer; None if it is one of ours."""
    return None if type(layer.activation) in REPLACEMENTS else layer.activation


def _activated(plain, layer, tensor):
    """Apply a layer's `activation` if `_inner_activation` has left it out."""
    x = Scaled(tensor)
    is_ours = type(layer.activation) in REPLACEMENTS
    return plain.replaced(layer.activation, x) if is_ours else x


def _activation(plain, layer, x, name):
    """Replace a `ScaledActivation`; its gain becomes the factor of the result."""
    tensor = plain.exact(x)
    is_keras_own = keras_internals.is_keras_activation(layer.function)
    if layer.function is keras.activations.glu or (
        isinstance(layer.activation, str) and not is_keras_own
    ):
        # An operation infers its output shape (GLU) and saves its arguments.
        tensor = plain.operation(layer.function, tensor, name)
    else:
        options = plain.options(layer, name)
        tensor = keras.layers.Activation(layer.function, **options)(tensor)
    x = Scaled(tensor, layer.gain)
    return x if _merges(layer) else Scaled(plain.exact(x))


def _dynamic(plain, layer, x, name):
    """Replace a `DynamicTanh` or a `DynamicErf`."""
    tensor = plain.exact(x)
    scalars = [layer.alpha]
    if isinstance(layer, DynamicErf):
        scalars.append(layer.shift)
    scalars = [float(ops.convert_to_numpy(scalar)) for scalar in scalars]
    options = plain.options(layer, f"{name}_input")
    tensor = keras.layers.Rescaling(*scalars, **options)(tensor)
    if isinstance(layer, DynamicTanh):  # a layer, which passes masks on
        options = plain.options(layer, f"{name}_function")
        tensor = keras.layers.Activation("tanh", **options)(tensor)
    elif keras_internals.mask_of(tensor) is not None:
        raise ValueError(
            "A DynamicErf whose input has a Keras mask cannot be folded, because no plain "
            f"layer computes erf and passes the mask on. Received: {name!r}"
        )
    else:
        tensor = plain.operation(layer.function, tensor, f"{name}_function")
    gamma, beta = map(ops.convert_to_numpy, (layer.gamma, layer.beta))
    rank = len(tensor.shape)
    if layer.axis % rank == rank - 1 and _merges(layer):
        return Affine(tensor, gamma, beta, name)
    gamma, beta = (
        keras_internals.per_channel(weight, layer.axis, rank)
        for weight in (gamma, beta)
    )
    options = plain.options(layer, name)
    return Scaled(keras.layers.Rescaling(gamma, beta, **options)(tensor))


def _attention(plain, layer, x, name, scale=1.0):
    """Replace channel attention."""
    tensor = plain.exact(x)
    # The mean is computed in float32, as in the original.
    gate = keras.layers.GlobalAveragePooling2D(
        data_format=layer.data_format,
        dtype=keras.backend.result_type(layer.compute_dtype, "float32"),
        name=plain.name(f"{name}_mean"),
    )(tensor)
    if isinstance(layer, SqueezeExcite):
        parts = [layer.fc0, layer.fc1]
    else:
        gate = _reshaped(plain, layer, gate, (-1, 1), f"{name}_sequence")
        parts = [layer.conv]
    for part in parts:

        def create(part=part):
            config = {**part.get_config(), "name": plain.name(f"{name}_{part.name}")}
            return type(part).from_config(config)

        gate = plain.made(part, gate, create, part.get_weights())
    shape = (1, 1, -1) if layer.data_format == "channels_last" else (-1, 1, 1)
    gate = _reshaped(plain, layer, gate, shape, f"{name}_gate")
    for factor in [2.0 * scale] if _merges(layer) else [2.0, scale]:
        if factor != 1.0:
            gate = _rescaled(plain, layer, gate, factor, f"{name}_gate_scaled")
    options = plain.options(layer, name)
    return Scaled(keras.layers.Multiply(**options)([tensor, gate]))


def _reshaped(plain, layer, tensor, shape, name):
    return keras.layers.Reshape(shape, **plain.options(layer, name))(tensor)


def _rescaled(plain, layer, tensor, factor, name):
    return keras.layers.Rescaling(factor, **plain.options(layer, name))(tensor)


def _max_pooling(plain, layer, x, name):
    """Replace a `SymmetricMaxPooling2D`.

    Keras pads strided pooling asymmetrically: pool without strides, then subsample.
    """
    tensor = keras.layers.MaxPooling2D(
        layer.pool_size,
        strides=1,
        padding="same",
        data_format=layer.data_format,
        **plain.options(layer, f"{name}_dense"),
    )(x.tensor)
    tensor = keras.layers.MaxPooling2D(
        1,
        strides=layer.strides,
        data_format=layer.data_format,
        **plain.options(layer, name),
    )(tensor)
    return Scaled(tensor, x.factor)


def _endpoint(plain, layer, x, name):
    # A policy would have no place in the configuration of this layer.
    named = keras.layers.Identity(dtype=layer.compute_dtype, name=plain.name(name))
    return Scaled(named(x.tensor), x.factor)


def _skip_gain(plain, layer, x, name):
    return Scaled(_rescaled(plain, layer, plain.exact(x), _skip(layer), name))


def _block(plain, block, x, name):
    """Replace an `NFBlock` by a nested model.

    Keras traverses a graph recursively when it builds or loads it. In one graph,
    the deepest networks would exceed Python's recursion limit.
    """
    outside = plain.exact(x)
    inputs = shortcut = keras.Input(batch_shape=outside.shape, dtype=outside.dtype)
    x = _activation(
        plain, block.input_activation, Scaled(inputs), f"{name}_input_activation"
    )
    if block.shortcut_conv is not None:
        shortcut = _shortcut(plain, block, x, name)
    branch = _branch(plain, block, x, name)
    outputs = keras.layers.Add(**plain.options(block, f"{name}_sum"))(
        [branch, shortcut]
    )
    return Scaled(keras.Model(inputs, outputs, name=plain.name(name))(outside))


def _shortcut(plain, block, x, name):
    """Return the tensor of the projected shortcut of a block."""
    for layer in block.shortcut_pools:
        config = {**layer.get_config(), "name": plain.name(f"{name}_{layer.name}")}
        x = Scaled(type(layer).from_config(config)(x.tensor), x.factor)
    return _convolution(plain, block.shortcut_conv, x, f"{name}_shortcut_conv").tensor


def _branch(plain, block, x, name):
    """Return the tensor of the residual branch of a block, with all its factors."""
    skip = block.alpha if block.skip_gain is None else _skip(block)
    *layers, last = block.branch()
    for layer in layers:
        x = REPLACEMENTS[type(layer)](plain, layer, x, f"{name}_{layer.name}")
    if isinstance(last, WSConv2D) and not _merges(block):
        x = _convolution(plain, last, x, f"{name}_{last.name}")
        return _rescaled(plain, block, x.tensor, skip, f"{name}_residual")
    replace = REPLACEMENTS[type(last)]
    return replace(plain, last, x, f"{name}_{last.name}", skip).tensor


def _skip(layer):
    """Return alpha times the skip gain, computed in the layer's compute dtype."""
    alpha = ops.cast(layer.alpha, layer.compute_dtype)
    factor = alpha * ops.cast(layer.skip_gain, layer.compute_dtype)
    # NumPy has no bfloat16, and JAX by default no float64.
    dtype = keras.backend.result_type(layer.compute_dtype, "float32")
    return float(ops.convert_to_numpy(ops.cast(factor, dtype)))


def _merges(layer):
    """Whether constants may be multiplied in another order than in the layer."""
    return layer.compute_dtype in PRECISE


REPLACEMENTS = {
    **dict.fromkeys(STANDARDIZED.values(), _other_standardized),
    **dict.fromkeys((DynamicErf, DynamicTanh), _dynamic),
    EfficientChannelAttention: _attention,
    Endpoint: _endpoint,
    NFBlock: _block,
    ScaledActivation: _activation,
    SkipGain: _skip_gain,
    SqueezeExcite: _attention,
    SymmetricMaxPooling2D: _max_pooling,
    WSConv2D: _convolution,
}
