"""Units of a layer's weights: the axes over which adaptive gradient clipping takes norms.

A unit consists of the weights of one output, see `keras_nfnets.adaptive_clip`.
"""

import re
import warnings
import weakref

import keras

from keras_nfnets.backend import keras_internals
from keras_nfnets.layers.convolution import WSConv2DTranspose, WSDepthwiseConv2D
from keras_nfnets.layers.kernels import kernels_of
from keras_nfnets.layers.standardization import Kernel

# Names of the second factor of LoRA, whose last axis is that of the adapted weights.
_LORA_B = re.compile(r"lora_(kernel|embeddings)_b")
# Weights with one value per output, however many axes they have.
_ELEMENTWISE = re.compile(r"(.*_)?(bias|gain|gamma|beta)")


def unit_axes(variable):
    """Return the axes of a variable over which the norm of a unit is computed.

    They are stored in the attribute `unit_norm_axes` of a marked variable.
    """
    axes = getattr(variable, "unit_norm_axes", None)
    if axes is None:
        axes = axes_by_path(tuple(variable.shape), variable_path(variable))
    return axes


def weights_of_units(variable):
    """Return weights whose norms, over `unit_axes(variable)`, are those of the units.

    They are the variable itself, except for the second factor of LoRA. Its columns, zeros
    at first, are changes of the outputs (columns) of the kernel that it adapts, so these
    are the units: the kernel as it is now, with both factors, as a matrix `(-1, outputs)`.
    """
    reference = getattr(variable, "adapted_layer", None)
    layer = None if reference is None else reference()
    if layer is None:
        return variable
    name = _LORA_B.fullmatch(variable.name)[1]
    if not keras_internals.has_kernel(layer, name):
        warnings.warn(
            f"The weights that {variable.path} adapts cannot be read here, so it is clipped "
            "like any other kernel: at first, as it is zero, to steps of `clip_factor * eps`. "
            "This is so for quantized layers, and on JAX for optimizers that clip (`AGC`, "
            "`SGDAGC`). On JAX, use an `AGCModel` with an optimizer that does not clip. "
            "Otherwise pass an `eps` (in `compile`: `agc_eps`) as large as the norms of "
            "outputs of the kernel, about 1.",
            stacklevel=2,
        )
        return variable
    weights = keras_internals.kernel_of(layer, name)
    return keras.ops.reshape(weights, (-1, weights.shape[-1]))


def mark_units(model):
    """Mark all trainable variables of a model with the units that its layers give them.

    Raises:
        ValueError: a layer's `unit_norm_axes` do not fit its variables.
    """
    if all(map(_is_marked, model.trainable_variables)):
        return
    for layer in keras_internals.layers_of(model):
        _mark(layer)


def mark_units_of(variables):
    """Mark variables with the units that the layers they belong to give them.

    A variable of no layer is marked by its path.
    """
    unmarked = [
        v for v in variables if isinstance(v, keras.Variable) and not _is_marked(v)
    ]
    if unmarked:
        for layer in keras_internals.layers_with(unmarked):
            _mark(layer)
        for variable in unmarked:
            variable.unit_norm_axes = unit_axes(variable)


def _is_marked(variable):
    return getattr(variable, "unit_norm_axes", None) is not None


def _mark(layer):
    """Mark the variables of a layer itself, without those of layers inside."""
    inner = keras_internals.layers_of(layer, include_self=False, recursive=False)
    of_inner = {id(variable) for other in inner for variable in other.variables}
    variables = [v for v in layer.variables if id(v) not in of_inner]
    axes_of = getattr(layer, "unit_norm_axes", None) or {}
    names = {variable.name for variable in variables}
    # Some may be missing: a class may name the variable of an option.
    if axes_of and layer.built and names.isdisjoint(axes_of):
        raise ValueError(
            f"`unit_norm_axes` of {type(layer).__name__} {layer.name!r} must have names of "
            f"its own variables: {', '.join(sorted(names)) or 'it has none'}. "
            f"Received: {', '.join(map(repr, axes_of))}"
        )
    kernels = {kernel.name: kernel for kernel in kernels_of(layer)}
    for variable in variables:
        shape, name = tuple(variable.shape), variable.name
        if name in axes_of:
            axes = _checked(axes_of[name], layer, variable)
        elif _is_one_unit(shape, name):
            axes = tuple(range(len(shape)))
        elif name in kernels:
            axes = kernels[name].norm_axes(len(shape))
        else:
            axes = _axes_by_class(layer, name, len(shape))
        variable.unit_norm_axes = axes
        if name not in axes_of and _LORA_B.fullmatch(name):
            # Weak, as variables should not keep layers alive.
            variable.adapted_layer = weakref.ref(layer)


def _checked(axes, layer, variable):
    rank = len(variable.shape)
    try:
        result = tuple(sorted(range(rank)[axis] for axis in axes))
    except (IndexError, TypeError):
        result = ()
    if not result:
        raise ValueError(
            f"`unit_norm_axes` of {type(layer).__name__} {layer.name!r} must be axes of "
            f"the variable, of shape {tuple(variable.shape)}, as a tuple of integers. "
            f"Received: {variable.name!r}: {axes!r}"
        )
    return result


def _is_one_unit(shape, name):
    return _ELEMENTWISE.fullmatch(name) or sum(size != 1 for size in shape) <= 1


def _axes_by_class(layer, name, rank):
    """Return the axes for a weight that is neither a bias nor a convolution's kernel."""
    everything = tuple(range(rank))
    if isinstance(layer, keras.layers.PReLU | keras.layers.RMSNormalization):
        return everything
    if isinstance(layer, keras.layers.Embedding) and name.endswith(
        ("lora_embeddings_a", "embeddings")
    ):
        return (rank - 2,) if name == "reverse_embeddings" else (rank - 1,)
    if isinstance(layer, keras.layers.EinsumDense):
        _, kernel, outputs = re.split(",|->", layer.equation)
        summed = [axis for axis, index in enumerate(kernel) if index not in outputs]
        if name == "kernel":
            return tuple(summed) or everything
        if name == "lora_kernel_a":  # the last axis of the kernel is that of its factor
            return tuple(axis for axis in summed if axis < rank - 1) or everything
    return Kernel().norm_axes(rank)


def axes_by_path(shape, path=""):
    """Return the axes for a variable of unknown layer, by the names Keras gives.

    Args:
        shape: tuple of ints.
        path: str. Path or name of the variable.
    """
    rank = len(shape)
    *layers, name = path.split("/")
    if _is_one_unit(shape, name):
        return tuple(range(rank))
    return _kernel_at(layers, name, rank).norm_axes(rank)


def _kernel_at(layers, name, rank):
    """Return the `Kernel` of such a name in layers with Keras's default names."""
    layer = layers[-1] if layers else ""
    if name == "embeddings":
        return Kernel(output_axes=(0,))
    # The default names that Keras gives such layers, without the number at their end.
    if name == "depthwise_kernel" or re.match(r"(ws_)?depthwise_conv", layer):
        return WSDepthwiseConv2D.KERNELS[0]
    if re.match(r"(ws_)?conv\dd_transpose", layer):
        return WSConv2DTranspose.KERNELS[0]
    # Sublayers of an attention layer.
    if rank == 3 and len(layers) > 1 and layer in ("query", "key", "value"):
        return Kernel(output_axes=(-2, -1))
    return Kernel()


def variable_path(variable):
    """Return `"layer/.../name"` of a Keras or TensorFlow variable, `""` for a tensor."""
    if isinstance(variable, keras.Variable):
        return variable.path
    return str(getattr(variable, "name", "")).partition(":")[0]
