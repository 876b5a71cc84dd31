"""Keras layers and operations as ONNX nodes."""

import dataclasses
import functools
import math

import keras
import numpy as np
from keras import ops

from keras_nfnets.backend import keras_internals
from keras_nfnets.deploy.onnx_arrays import Array, Ops


class UnknownOperation(ValueError):
    """Error for a layer or operation, or a use of it, that `WRITERS` cannot write."""

    def __init__(self, operation):
        super().__init__(f"{operation.name!r} ({keras_internals.kind_of(operation)})")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Tensor of an ONNX model, with its differences from the Keras tensor.

    Constant factors and zero padding are left to the next layer, whose kernel or
    attributes can take them in.

    Attributes:
        name: str. Name in the ONNX model.
        shape: tuple. Shape of the Keras tensor, with None for unknown sizes.
        moved: bool. Whether the last axis, the channels, is the second one in ONNX.
        factor: float. Factor that is not in the values yet.
        pads: tuple of pairs of ints. Zeros before and after each spatial axis that are
            not in the values yet, but in `shape`; () for none. The channels are first
            then.
    """

    name: str
    shape: tuple
    moved: bool = False
    factor: float = 1.0
    pads: tuple = ()

    def having(self, **changes):
        return dataclasses.replace(self, **changes)

    def is_same_in_memory(self):
        """Whether moving the channels leaves the order of the values."""
        *pixels, channels = self.shape[1:]
        return channels == 1 or all(size == 1 for size in pixels)


# Functions `(writer, operation, *tensors)` that return a `Tensor`. The writer is that of
# onnx_model.py.


def _convolution(writer, layer, x):
    kernel = ops.convert_to_numpy(keras_internals.kernel_of(layer, "kernel"))
    return _convolved(writer, layer, x, kernel, layer.groups)


def _depthwise_convolution(writer, layer, x):
    return _convolved(writer, layer, x, *_in_groups(layer.kernel))


def _separable_convolution(writer, layer, x):
    kernel, groups = _in_groups(layer.depthwise_kernel)
    name = f"{layer.name}/depthwise"
    weights = writer.constant(_arranged(kernel), f"{name}/kernel")
    name, x = _convolution_node(writer, layer, x, [weights], kernel, groups, name)
    kernel = ops.convert_to_numpy(layer.pointwise_kernel)
    weights = _weights(writer, layer, kernel, x.factor, _arranged)
    name = writer.node("Conv", [name, *weights], layer.name)
    return _activated(writer, layer, _output(writer, name, x.moved))


def _in_groups(kernel):
    """Return a depthwise kernel as that of a convolution with groups, and their number."""
    *size, channels, multiplier = kernel.shape
    kernel = ops.convert_to_numpy(kernel)
    return kernel.reshape((*size, 1, channels * multiplier)), channels


def _convolved(writer, layer, x, kernel, groups):
    weights = _weights(writer, layer, kernel, x.factor, _arranged)
    name, x = _convolution_node(writer, layer, x, weights, kernel, groups, layer.name)
    return _activated(writer, layer, _output(writer, name, x.moved))


def _arranged(kernel):
    """Arrange the axes of a convolution's kernel as ONNX does."""
    return np.moveaxis(kernel, (-1, -2), (0, 1))


def _convolution_node(writer, layer, x, weights, kernel, groups, name):
    """Add a convolution with the strides and padding of a layer.

    Args:
        writer, layer, x: as above.
        weights: list of str. Names of the kernel, and of the bias if there is one.
        kernel: array `(*size, channels, filters)`.
        groups: int.
        name: str.

    Returns:
        The name of the output, and the input with channels first.
    """
    *size, _, _ = kernel.shape
    strides, dilations = (
        list(np.broadcast_to(n, len(size)).tolist())
        for n in (layer.strides, layer.dilation_rate)
    )
    extent = [d * (k - 1) + 1 for k, d in zip(size, dilations)]
    x = _channels_first(writer, layer, x)
    padding = _padding(layer, x, extent, strides)
    if "pads" not in padding:
        x = writer.padded(x)
    elif x.pads:
        padding["pads"] = np.add(padding["pads"], np.transpose(x.pads).ravel()).tolist()
    name = writer.node(
        "Conv",
        [x.name, *weights],
        name,
        kernel_shape=size,
        strides=strides,
        dilations=dilations,
        group=groups,
        **padding,
    )
    return name, x


def _dense(writer, layer, x):
    if layer.quantization_mode:
        raise UnknownOperation(layer)
    kernel = ops.convert_to_numpy(keras_internals.kernel_of(layer, "kernel"))
    if len(x.shape) == 2:
        weights = _weights(writer, layer, kernel, x.factor)
        name = writer.node("Gemm", [x.name, *weights], layer.name)
        return _activated(writer, layer, _output(writer, name))
    kernel, *bias = _weights(writer, layer, kernel)
    name = writer.node("MatMul", [writer.plain(x).name, kernel], layer.name)
    if bias:
        name = writer.node("Add", [name, *bias], f"{layer.name}/biased")
    return _activated(writer, layer, _output(writer, name))


def _weights(writer, layer, kernel, factor=1.0, arrange=np.asarray):
    """Return the names of the kernel, times a factor, and the bias if there is one.

    A `Rescaling` or `BatchNormalization` after the layer goes into them, too.

    Args:
        writer, layer: as above.
        kernel: array `(..., filters)`.
        factor: float.
        arrange: callable that arranges the axes of the kernel as ONNX does.
    """
    scale, offset = _scaling_after(writer, layer)
    bias = ops.convert_to_numpy(layer.bias) if layer.use_bias else 0.0
    bias, factor = bias * scale + offset, factor * scale
    names = []
    if layer.use_bias or np.any(bias):
        bias = np.broadcast_to(bias, kernel.shape[-1:])
        names.append(writer.constant(bias, f"{layer.name}/bias"))
    if np.any(factor != 1.0):  # in float64, so that it is rounded once
        kernel = kernel.astype("float64") * factor
    return [writer.constant(arrange(kernel), f"{layer.name}/kernel"), *names]


def _scaling_after(writer, layer):
    """Return the scale and the offset of the next layer, if that is left out for them."""
    if not _is_linear(layer):
        return 1.0, 0.0
    next_call = writer.takes_in(
        "Rescaling", lambda x: np.ndim(x.scale) == np.ndim(x.offset) == 0
    )
    if next_call:
        return next_call.operation.scale, next_call.operation.offset
    rank = len(writer.call.outputs[0].shape)
    is_first = getattr(layer, "data_format", None) == "channels_first"
    next_call = writer.takes_in(
        "BatchNormalization", lambda x: x.axis % rank == (1 if is_first else rank - 1)
    )
    if not next_call:
        return 1.0, 0.0
    scale, offset, mean, variance = _statistics(next_call.operation)
    scale = scale / np.sqrt(variance + next_call.operation.epsilon)
    return scale, offset - mean * scale


def _statistics(layer):
    """Return gamma, beta, mean and variance of a `BatchNormalization`, in float64."""
    mean, variance = layer.moving_mean, layer.moving_variance
    gamma = layer.gamma if layer.scale else np.ones(mean.shape)
    beta = layer.beta if layer.center else np.zeros(mean.shape)
    return [
        ops.convert_to_numpy(x).astype("float64") for x in (gamma, beta, mean, variance)
    ]


def _is_linear(layer):
    return layer.activation in (None, keras.activations.linear)


def _activated(writer, layer, x):
    if _is_linear(layer):
        return x
    return writer.activated(layer.activation, x, f"{layer.name}/activation")


def _output(writer, name, moved=False):
    """Return the tensor of this call's output."""
    [output] = writer.call.outputs
    return Tensor(name, output.shape, moved)


def _channels_first(writer, layer, x):
    return writer.moved(x) if layer.data_format == "channels_last" else writer.plain(x)


def _padding(layer, x, extent, strides):
    """Return the attributes of padding of a node for a layer with `padding`.

    Args:
        layer: convolution or pooling.
        x: `Tensor`. Its input, with channels first.
        extent: list of int. Size of the receptive field per spatial axis.
        strides: list of int.
    """
    if layer.padding == "valid":
        return {"pads": [0] * 2 * len(extent)}
    if layer.padding == "causal":
        return {"pads": [extent[0] - 1, 0]}
    sizes = x.shape[1:-1] if x.moved else x.shape[2:]
    totals = []
    for size, n, stride in zip(sizes, extent, strides):
        if stride == 1 or n == 1:
            totals.append(n - 1)
        elif size is None:
            return {"auto_pad": "SAME_UPPER"}
        else:
            totals.append(max((math.ceil(size / stride) - 1) * stride + n - size, 0))
    return {"pads": [*(n // 2 for n in totals), *(n - n // 2 for n in totals)]}


def _average_pooling(writer, layer, x):
    x = writer.padded(_channels_first(writer, layer, x))
    pool, strides = list(layer.pool_size), list(layer.strides)
    name = writer.node(
        "AveragePool",
        [x.name],
        layer.name,
        kernel_shape=pool,
        strides=strides,
        **_padding(layer, x, pool, strides),
    )
    return _output(writer, name, x.moved).having(factor=x.factor)


def _max_pooling(writer, layer, x):
    x = _channels_first(writer, layer, writer.exact(x))
    pool, strides = list(layer.pool_size), list(layer.strides)
    padding = _padding(layer, x, pool, strides)
    if "auto_pad" in padding and any(n < stride for n, stride in zip(pool, strides)):
        raise UnknownOperation(layer)  # ONNX Runtime fails
    following = max(strides) == 1 and writer.takes_in(
        keras_internals.kind_of(layer),
        lambda after: (
            max(after.pool_size) == 1 and after.data_format == layer.data_format
        ),
    )
    if following:
        strides = list(following.operation.strides)
    name = writer.node(
        "MaxPool", [x.name], layer.name, kernel_shape=pool, strides=strides, **padding
    )
    output = _output(writer, name, x.moved)
    return output.having(shape=following.outputs[0].shape) if following else output


def _global_average_pooling(writer, layer, x):
    x = writer.padded(x)
    return _global_pooling(writer, layer, x, "GlobalAveragePool").having(
        factor=x.factor
    )


def _global_max_pooling(writer, layer, x):
    return _global_pooling(writer, layer, writer.exact(x), "GlobalMaxPool")


def _global_pooling(writer, layer, x, kind):
    x = _channels_first(writer, layer, x)
    if layer.keepdims:
        return _output(writer, writer.node(kind, [x.name], layer.name), x.moved)
    name = writer.node(kind, [x.name], f"{layer.name}/pooled")
    return _output(writer, writer.node("Flatten", [name], layer.name))


def _zero_padding(writer, layer, x):
    x = _channels_first(writer, layer, writer.padded(x))
    [output] = writer.call.outputs
    pads = np.reshape(layer.padding, (-1, 2)).tolist()
    return x.having(shape=output.shape, pads=tuple(map(tuple, pads)))


def _reshape(writer, layer, x):
    if not isinstance(layer, keras.Layer):  # `keras.ops` may reshape the batch, too
        raise UnknownOperation(layer)
    x = writer.padded(x)
    if x.moved and not x.is_same_in_memory():
        x = writer.plain(x)
    new = _output(writer, x.name)
    new = new.having(moved=len(new.shape) > 2 and new.is_same_in_memory())
    return new.having(name=writer.reshaped(x.name, new, layer.name), factor=x.factor)


def _flatten(writer, layer, x):
    if layer.data_format == "channels_first" and len(x.shape) > 2:
        raise UnknownOperation(layer)
    name = writer.node("Flatten", [writer.plain(x).name], layer.name)
    return _output(writer, name)


def _identity(writer, layer, x):
    return x


def _rescaling(writer, layer, x):
    scale, offset = layer.scale, layer.offset
    x = _as_float(writer, layer, x)
    if np.ndim(scale) or np.ndim(offset) or scale * x.factor == 0:
        x = _by_constant(writer, "Mul", x, scale, f"{layer.name}/scaled")
        return _by_constant(writer, "Add", x, offset, layer.name)
    # scale * factor * (x + offset / scale / factor)
    factor = scale * x.factor
    if offset:
        x = writer.padded(x).having(factor=1.0)
        x = _by_constant(writer, "Add", x, offset / factor, layer.name)
    return x.having(factor=factor)


def _as_float(writer, layer, x):
    """Cast the input of this call to float32 if it has integers."""
    [given] = writer.call.inputs
    if "float" in given.spec.dtype:
        return x
    return x.having(name=writer.node("Cast", [x.name], f"{layer.name}/cast", to=1))


def _normalization(writer, layer, x):
    if layer.invert:
        raise UnknownOperation(layer)
    mean, variance = map(ops.convert_to_numpy, (layer.mean, layer.variance))
    std = np.maximum(np.sqrt(variance), keras.config.epsilon())
    x = _as_float(writer, layer, x)
    x = _by_constant(writer, "Sub", x, mean, f"{layer.name}/centered")
    return _by_constant(writer, "Div", x, std, layer.name)


def _batch_normalization(writer, layer, x):
    rank = len(x.shape)
    axis = layer.axis % rank
    if axis not in (1, rank - 1):
        raise UnknownOperation(layer)
    x = writer.exact(x)
    x = writer.moved(x) if axis == rank - 1 else writer.plain(x)
    weights = [
        writer.constant(value, f"{layer.name}/{name}")
        for value, name in zip(
            _statistics(layer), ("gamma", "beta", "mean", "variance"), strict=True
        )
    ]
    inputs, epsilon = [x.name, *weights], layer.epsilon
    name = writer.node("BatchNormalization", inputs, layer.name, epsilon=epsilon)
    return x.having(name=name)


def _layer_normalization(writer, layer, x):
    [axis] = np.ravel(layer.axis) if np.size(layer.axis) == 1 else [0]
    is_last = axis % len(x.shape) == len(x.shape) - 1
    if writer.opset < 17 or not is_last or layer.rms_scaling:
        raise UnknownOperation(layer)
    x = writer.plain(x)
    size = x.shape[-1]
    gamma = np.ones(size) if layer.gamma is None else ops.convert_to_numpy(layer.gamma)
    inputs = [x.name, writer.constant(gamma, f"{layer.name}/gamma")]
    if layer.beta is not None:
        beta = ops.convert_to_numpy(layer.beta)
        inputs.append(writer.constant(beta, f"{layer.name}/beta"))
    epsilon = layer.epsilon
    name = writer.node("LayerNormalization", inputs, layer.name, epsilon=epsilon)
    return x.having(name=name)


def _layer_scale(writer, layer, x):
    gamma = ops.convert_to_numpy(layer.gamma)
    return _by_constant(writer, "Mul", x, gamma, layer.name)


def _preprocessing(writer, layer, x):
    functions = Ops(writer, layer.name)
    images = Array(functions, x.name, "uint8")
    return _output(writer, layer.compute(images, functions).name)


def _by_constant(writer, kind, x, constant, name):
    x = writer.exact(x)
    constant = writer.constant(_laid_out(constant, x), f"{name}/constant")
    return x.having(name=writer.node(kind, [x.name, constant], name))


def _laid_out(constant, x):
    """Return a constant such that it broadcasts to a tensor as in the Keras model."""
    constant = np.asarray(constant, "float32")
    if constant.ndim and x.moved:
        missing = len(x.shape) - constant.ndim
        constant = constant.reshape((1,) * missing + constant.shape)
        constant = np.moveaxis(constant, -1, 1)
    return constant


def _elementwise(kind, writer, operation, *tensors):
    operands = writer.operands()
    rank = len(writer.call.outputs[0].shape)
    if any(len(x.shape) != rank for x in tensors):
        raise UnknownOperation(operation)
    if kind == "Mul" and len(operands) == 2 and len(tensors) == 1:
        [x] = tensors
        [number] = [n for n in operands if n is not x]
        if np.ndim(number) == 0:
            return x.having(factor=x.factor * float(number))
    moved = any(x.moved for x in tensors)
    like = tensors[0].having(shape=writer.call.outputs[0].shape, moved=moved)
    names = []
    for x in operands:
        if isinstance(x, np.ndarray):
            x = writer.constant(_laid_out(x, like), f"{operation.name}/constant")
        else:
            x = writer.exact(writer.moved(x) if moved else x).name
        names.append(x)
    name = functools.reduce(
        lambda a, b: writer.node(kind, [a, b], operation.name), names
    )
    return _output(writer, name, moved)


def _concatenation(writer, operation, *tensors):
    tensors = [writer.exact(x) for x in tensors]
    moved = any(x.moved for x in tensors)
    if moved:
        tensors = [writer.moved(x) for x in tensors]
    if len(writer.operands()) != len(tensors):  # one is a constant
        raise UnknownOperation(operation)
    output = _output(writer, "", moved)
    names = [x.name for x in tensors]
    axis = _axis(operation.axis, output)
    name = writer.node("Concat", names, operation.name, axis=axis)
    return output.having(name=name)


def _axis(axis, x):
    """Return the axis of an ONNX tensor that is one of the Keras tensor."""
    rank = len(x.shape)
    axis %= rank
    if not x.moved or axis == 0:
        return axis
    return 1 if axis == rank - 1 else axis + 1


def _activation(writer, layer, x):
    if _is_linear(layer):
        return x
    return writer.activated(layer.activation, x, layer.name)


def _unary(kind, writer, operation, x, **attributes):
    x = writer.exact(x)
    return x.having(name=writer.node(kind, [x.name], operation.name, **attributes))


def _relu(writer, operation, x):
    # Of `keras.ops`, it has no arguments.
    slope = getattr(operation, "negative_slope", 0.0)
    most = getattr(operation, "max_value", None)
    if getattr(operation, "threshold", 0.0) or (slope and most is not None):
        raise UnknownOperation(operation)
    if slope:
        return _unary("LeakyRelu", writer, operation, x, alpha=slope)
    if most is not None:
        return _clipped(writer, operation, x, most)
    # Without padding, which it would leave, but a factor can only pass if it is positive.
    x = writer.padded(x) if x.factor > 0 else writer.exact(x)
    return x.having(name=writer.node("Relu", [x.name], operation.name))


def _clipped(writer, operation, x, most=6.0):
    x = writer.exact(x)
    ends = [writer.constant(n, f"{operation.name}/{n:g}") for n in (0.0, most)]
    return x.having(name=writer.node("Clip", [x.name, *ends], operation.name))


def _leaky_relu(writer, operation, x):
    return _unary("LeakyRelu", writer, operation, x, alpha=operation.negative_slope)


def _elu(writer, operation, x):
    return _unary("Elu", writer, operation, x, alpha=operation.alpha)


def _celu(writer, operation, x):
    return _unary("Celu", writer, operation, x, alpha=operation.alpha)


def _softmax(writer, operation, x):
    if not isinstance(operation.axis, int):
        raise UnknownOperation(operation)
    kind = keras_internals.kind_of(operation)
    return _unary(kind, writer, operation, x, axis=_axis(operation.axis, x))


def _hard_sigmoid(writer, operation, x):
    return _unary("HardSigmoid", writer, operation, x, alpha=1 / 6, beta=0.5)


def _silu(writer, operation, x):
    x = writer.exact(x)
    gate = writer.node("Sigmoid", [x.name], f"{operation.name}/sigmoid")
    return x.having(name=writer.node("Mul", [x.name, gate], operation.name))


def _log_sigmoid(writer, operation, x):
    name = operation.name
    x = writer.exact(x)
    z = writer.node("Neg", [x.name], f"{name}/negative")
    z = writer.node("Softplus", [z], f"{name}/softplus")
    return x.having(name=writer.node("Neg", [z], name))


def _gelu(writer, operation, x):
    form = "tanh" if operation.approximate else "none"
    if writer.opset >= 20:
        return _unary("Gelu", writer, operation, x, approximate=form)
    x, name = writer.exact(x), operation.name

    def product(a, b):
        if not isinstance(b, str):
            b = writer.constant(b, f"{name}/{b:.3g}")
        return writer.node("Mul", [a, b], f"{name}/product")

    if operation.approximate:  # tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))
        cube = product(product(product(x.name, x.name), x.name), 0.044715)
        z = writer.node("Add", [x.name, cube], f"{name}/sum")
        z = writer.node("Tanh", [product(z, math.sqrt(2 / math.pi))], f"{name}/tanh")
    else:
        z = writer.node("Erf", [product(x.name, math.sqrt(0.5))], f"{name}/erf")
    one = writer.constant(1.0, f"{name}/1")
    z = product(writer.node("Add", [z, one], f"{name}/gate"), 0.5)
    return x.having(name=writer.node("Mul", [x.name, z], name))


# Names of classes; see `keras_internals.kind_of`.
TAKE_INTEGERS = {"Normalization", "Preprocessing", "Rescaling"}
TAKE_SEVERAL = {"Add", "Concatenate", "Maximum", "Minimum", "Multiply", "Subtract"}
WRITERS = {
    "Activation": _activation,
    **dict.fromkeys((f"AveragePooling{n}D" for n in (1, 2, 3)), _average_pooling),
    "BatchNormalization": _batch_normalization,
    "Celu": _celu,
    "Concatenate": _concatenation,
    **dict.fromkeys((f"Conv{n}D" for n in (1, 2, 3)), _convolution),
    "Dense": _dense,
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), _depthwise_convolution),
    **dict.fromkeys(("ELU", "Elu"), _elu),
    "Flatten": _flatten,
    "Gelu": _gelu,
    **dict.fromkeys(
        (f"GlobalAveragePooling{n}D" for n in (1, 2, 3)), _global_average_pooling
    ),
    **dict.fromkeys((f"GlobalMaxPooling{n}D" for n in (1, 2, 3)), _global_max_pooling),
    "HardSigmoid": _hard_sigmoid,
    "HardSilu": functools.partial(_unary, "HardSwish"),
    "Identity": _identity,
    "LayerNormalization": _layer_normalization,
    "LayerScale": _layer_scale,  # of `keras.applications`, as is StochasticDepth
    **dict.fromkeys(("LeakyReLU", "LeakyRelu"), _leaky_relu),
    "LogSigmoid": _log_sigmoid,
    **dict.fromkeys(("LogSoftmax", "Softmax"), _softmax),
    **dict.fromkeys((f"MaxPooling{n}D" for n in (1, 2, 3)), _max_pooling),
    "Normalization": _normalization,
    "Preprocessing": _preprocessing,
    **dict.fromkeys(("ReLU", "Relu"), _relu),
    "Relu6": _clipped,
    "Rescaling": _rescaling,
    "Reshape": _reshape,
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), _separable_convolution),
    "Silu": _silu,
    **dict.fromkeys((f"ZeroPadding{n}D" for n in (1, 2, 3)), _zero_padding),
    "StochasticDepth": _identity,
    **{
        kind: functools.partial(_elementwise, onnx_kind)
        for kind, onnx_kind in [
            ("Add", "Add"),
            ("Maximum", "Max"),
            ("Minimum", "Min"),
            ("Multiply", "Mul"),
            ("Subtract", "Sub"),
        ]
    },
    **{
        kind: functools.partial(_unary, kind)
        for kind in ("Selu", "Sigmoid", "Softplus", "Softsign", "Tanh")
    },
}
