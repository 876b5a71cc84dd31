"""Adaptive gradient clipping (AGC) as one pure function."""

import fnmatch
import functools
import math
import re
import typing

import keras
from keras import ops

from keras_nfnets import checks
from keras_nfnets.backend import fusion, keras_internals

# The kernel of this package's classifiers, which the authors never clip (their
# experiment_nfnets.py; arXiv 2102.06171, section 4.1). Its bias is clipped.
CLASSIFIER_KERNEL = "predictions/kernel"


def adaptive_clip(gradients, variables, clip_factor=0.01, eps=1e-3, exclude=None):
    """Scales down gradients that are large beside the weights they change.

    With `W` the weights of one unit and `G` their gradient, `G` becomes

        G * min(1, clip_factor * max(|W|, eps) / |G|)

    A unit is what one output is computed from:

    | variable | shape | the norm is over | one unit |
    | --- | --- | --- | --- |
    | scalar, vector, bias, or at most one axis longer than 1 | any | everything | itself |
    | dense kernel | (in, out) | axis 0 | an output |
    | convolution kernel, 1-D to 3-D | (..., in, out) | all but the last | a filter |
    | depthwise kernel | (..., channels, multiplier) | all but the last two | a filter |
    | transposed convolution kernel | (..., out, in) | all but the last but one | a filter |
    | embeddings | (vocabulary, size) | axis 1 | a row: one token is looked up, not all |
    | attention query, key, value kernel | (in, heads, size) | axis 0 | an output of a head |
    | attention output kernel | (heads, size, out) | axes 0, 1 | an output |

    An `AGCModel` tells these by its layers. For other variables the last five are told
    by the names that Keras gives layers and variables ("depthwise_conv2d", "embeddings",
    "query" of an attention, ...), which stand in a variable's path; a kernel of a layer
    that was named otherwise, and a plain tensor, is taken for a dense or convolution
    kernel by its rank.

    Norms are taken in float32 or better, whatever the dtype of the gradient, and the
    result has the gradient's dtype. A `None` gradient stays `None`. A sparse gradient
    (`tf.IndexedSlices`) of embeddings stays sparse; rows that are named twice are
    summed before their norm is taken. Clipping never hides a number that is not
    finite: a unit with a NaN is left as it is, in one with an infinity that becomes a
    NaN (and the rest zero), so that loss scaling and other guards see it. A unit whose
    numbers are finite but whose norm overflows (from about 1e19 in float32) becomes
    zero.

    Args:
        gradients: list of tensors, `tf.IndexedSlices` or `None`.
        variables: list of the variables they belong to, of the same shapes.
        clip_factor: largest ratio of a gradient's norm to its weights' norm.
        eps: norm that weights are taken to have at least, so that those that start at
            zero can move.
        exclude: which variables to leave alone: the name of a layer
            (`"predictions"`), a pattern of variable paths as a shell would have it
            (`"stage1_*/gain"`; the path's beginning may be left out), a list of
            these, or a function from variable to bool.

    Returns:
        A list of clipped gradients, in order.

    Raises:
        ValueError: no variables, lists of different lengths, a gradient of another
            shape than its variable, a `clip_factor` that is not positive, a negative
            `eps`, or an `exclude` of another type.

    Example:

    >>> w = keras.Variable([[3.0, 0.0], [4.0, 0.0]])
    >>> g = keras.ops.array([[6.0, 1e-6], [8.0, 0.0]])
    >>> clipped = adaptive_clip([g], [w], clip_factor=0.1)[0]
    >>> keras.ops.convert_to_numpy(clipped).round(6).tolist()
    [[0.30000001192092896, 9.999999974752427e-07], [0.4000000059604645, 0.0]]

    Reference: Brock et al. (2021), arXiv 2102.06171, section 4, equation 3; the
    authors' optim.py.
    """
    check_settings(clip_factor, eps, exclude)
    return clip_units(gradients, variables, clip_factor, eps, exclude)[0]


class Count(typing.NamedTuple):
    """Of one variable: how many units were scaled down (a float32 scalar), of how many."""

    clipped: object = 0.0
    units: int = 0


def clip_units(gradients, variables, clip_factor, eps, exclude, loss_scale=1.0):
    """`adaptive_clip` that counts units and takes gradients of a scaled loss.

    The gradients come in and go out multiplied by `loss_scale` (a number or scalar
    tensor); what is decided and counted is decided as if they were not. Returns the
    gradients and a list of `Count`, both in order.
    """
    gradients, variables = list(gradients), list(variables)
    if not variables or len(gradients) != len(variables):
        raise ValueError(
            "Clipping needs as many gradients as (trainable) variables, at least one. "
            f"Received: {len(gradients)} gradients, {len(variables)} variables"
        )
    counts, single = [Count()] * len(gradients), []
    settings = clip_factor, eps, loss_scale
    for i, (gradient, variable) in enumerate(zip(gradients, variables)):
        if gradient is None or is_excluded(variable, exclude):
            continue
        if len(unit_axes(variable)) == len(variable.shape) and not _is_sparse(gradient):
            single.append(i)
        else:
            gradients[i], counts[i] = _clip(gradient, variable, *settings)
    if single:
        pairs = [(gradients[i], variables[i]) for i in single]
        for i, clipped in zip(single, _clip_together(pairs, *settings)):
            gradients[i], counts[i] = clipped
    return gradients, counts


def check_settings(clip_factor, eps, exclude):
    """Raises a ValueError for settings of `adaptive_clip` that cannot be meant."""
    checks.number("clip_factor", clip_factor, exclusive=True)
    checks.number("eps", eps)
    patterns = _patterns(exclude)
    if not (
        exclude is None
        or callable(exclude)
        or isinstance(patterns, (list, tuple))
        and all(isinstance(pattern, str) for pattern in patterns)
    ):
        raise ValueError(
            "`exclude` must be a layer's name, a pattern of variable paths, a list of "
            f"these or a function of a variable. Received: exclude={exclude!r}"
        )


def check_exclude(exclude, variables):
    """Raises a ValueError if a name or pattern in `exclude` matches no variable.

    The default may: not every model has this package's classifier.
    """
    if exclude is None or callable(exclude):
        return
    for pattern in _patterns(exclude):
        if pattern == CLASSIFIER_KERNEL:
            continue
        if not any(is_excluded(variable, [pattern]) for variable in variables):
            paths = [variable_path(variable) for variable in variables]
            names = sorted({name for path in paths for name in path.split("/")})
            suggestion = checks.perhaps(pattern, names + paths)
            raise ValueError(
                "`exclude` names nothing in this model, which can hardly be meant. "
                f"Received: {pattern!r}"
                + (suggestion or f"; there are {', '.join(paths[:3])} and others")
            )


def is_excluded(variable, exclude):
    """Whether `exclude` (see `adaptive_clip`) names `variable`."""
    if exclude is None:
        return False
    if callable(exclude):
        return bool(exclude(variable))
    path = variable_path(variable)
    layers = path.split("/")[:-1]
    return any(
        pattern in layers
        or fnmatch.fnmatchcase(path, pattern)
        or fnmatch.fnmatchcase(path, f"*/{pattern}")
        for pattern in _patterns(exclude)
    )


def _patterns(exclude):
    """A single name or pattern as a list of one; anything else as it is."""
    return [exclude] if isinstance(exclude, str) else exclude


def variable_path(variable):
    """`"layer/.../name"` of a Keras or TensorFlow variable, `""` for a tensor."""
    if isinstance(variable, keras.Variable):
        return variable.path
    return str(getattr(variable, "name", "")).partition(":")[0]


def norm_axes(shape, path=""):
    """Axes over which the norm of one unit is taken: the table of `adaptive_clip`."""
    rank = len(shape)
    every_axis = tuple(range(rank))
    *layers, name = path.split("/")
    if name.endswith("bias") or sum(size != 1 for size in shape) <= 1:
        return every_axis
    layer = layers[-1] if layers else ""
    if name == "embeddings":
        return every_axis[1:]
    # These two are as Keras names layers by itself, with a number behind.
    if name == "depthwise_kernel" or re.match(r"(ws_)?depthwise_conv", layer):
        return every_axis[:-2]
    if re.match(r"(ws_)?conv\dd_transpose", layer):
        return (*every_axis[:-2], rank - 1)
    # The parts of an attention layer.
    if rank == 3 and len(layers) > 1 and layer in ("query", "key", "value"):
        return (0,)
    return every_axis[:-1]


def mark_units(model):
    """Notes on the kernels of a model what a unit is, where the layer's class tells.

    Names tell only of layers that were not named by hand. The note is an attribute
    `unit_norm_axes` of the variable, which every way of clipping reads.
    """
    for layer in keras_internals.layers_of(model):
        for name, classes in _CLASSES_BY_NAME.items():
            if layer.built and isinstance(layer, classes):
                for variable in layer.trainable_variables:
                    path = f"{name}/{variable.name}"
                    variable.unit_norm_axes = norm_axes(tuple(variable.shape), path)


# Layers whose kernels `norm_axes` knows by such a name.
_CLASSES_BY_NAME = {
    "conv2d_transpose": (
        keras.layers.Conv1DTranspose,
        keras.layers.Conv2DTranspose,
        keras.layers.Conv3DTranspose,
    ),
    "depthwise_conv2d": (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D),
    "other": (
        keras.layers.Conv1D,
        keras.layers.Conv2D,
        keras.layers.Conv3D,
        keras.layers.Dense,
    ),
}


def _is_sparse(gradient):
    return hasattr(gradient, "dense_shape")


def is_finite(gradient):
    """Whether all numbers of a gradient are finite, a bool tensor; True for `None`."""
    if gradient is None:
        return ops.convert_to_tensor(True)
    values = gradient.values if _is_sparse(gradient) else gradient
    return ops.all(ops.isfinite(values))


def dense(gradient, variable):
    """The gradient as a tensor; rows that `tf.IndexedSlices` name twice are summed."""
    if _is_sparse(gradient):
        import tensorflow as tf

        # In a graph the shape of slices may not be known before they are.
        tensor = tf.convert_to_tensor(gradient)
        if tensor.shape.is_compatible_with(variable.shape):
            return tf.ensure_shape(tensor, variable.shape)
    else:
        tensor = ops.convert_to_tensor(gradient)
    if tuple(tensor.shape) != tuple(variable.shape):
        raise ValueError(
            "A gradient must have the shape of its variable. Received: a gradient of "
            f"shape {tuple(tensor.shape)} for {variable_path(variable) or 'a variable'} "
            f"of shape {tuple(variable.shape)}"
        )
    return tensor


def unit_axes(variable):
    """Axes of a variable over which the norm of one unit is taken."""
    axes = getattr(variable, "unit_norm_axes", None)
    if axes is not None:
        return axes
    return norm_axes(tuple(variable.shape), variable_path(variable))


def _clip(gradient, variable, *settings):
    """The clipped gradient of one variable, and its `Count`."""
    tensor = dense(gradient, variable)
    axes = unit_axes(variable)
    units = math.prod(tensor.shape) // math.prod(tensor.shape[axis] for axis in axes)
    arguments = tensor, ops.convert_to_tensor(variable), *settings
    factor, clipped = fusion.fused(_factors_over(axes), *arguments)
    if _is_sparse(gradient):
        gradient = _scale_sparse(gradient, tensor, factor)
    else:
        # Not fused: TensorFlow then multiplies in place.
        gradient = multiply(tensor, factor)
    return gradient, Count(clipped, units)


@functools.cache
def _factors_over(axes):
    """The one function of what to multiply by, with norms over `axes`, that counts."""

    def factors(*arguments):
        factor = unit_factors(*arguments, axes)
        return factor, _clipped(factor)

    return factors


def _clip_together(pairs, *settings):
    """As `_clip`, of gradients and variables that are one unit each.

    Gains and biases are two thirds of a network's variables: what is computed of their
    norms is computed once for all.
    """
    tensors = [dense(gradient, variable) for gradient, variable in pairs]
    weights = [ops.convert_to_tensor(variable) for _, variable in pairs]
    dtype = keras.backend.result_type(*(x.dtype for x in tensors + weights), "float32")
    norms = [
        ops.sqrt(ops.stack([ops.sum(ops.square(ops.cast(x, dtype))) for x in arrays]))
        for arrays in (tensors, weights)
    ]
    factors = _factors(*norms, *settings)
    clipped = ops.cast(factors < 1, "float32")
    return [
        (multiply(tensor, factor), Count(count, 1))
        for tensor, factor, count in zip(
            tensors, ops.unstack(factors), ops.unstack(clipped)
        )
    ]


def _clipped(factor):
    return ops.sum(ops.cast(factor < 1, "float32"))


def unit_factors(gradient, weights, clip_factor, eps, loss_scale, axes):
    """What to multiply each unit's gradient by, float32 or better, at most 1.

    Of the gradient's rank, with 1 in place of the axes the norms were taken over.
    """
    dtype = keras.backend.result_type(gradient.dtype, weights.dtype, "float32")
    norms = [_norm(ops.cast(x, dtype), axes) for x in (gradient, weights)]
    return _factors(*norms, clip_factor, eps, loss_scale)


def _factors(norm, weights_norm, clip_factor, eps, loss_scale):
    """What to multiply units by whose gradients and weights have these norms."""
    clip_factor, eps, loss_scale = (
        ops.cast(number, norm.dtype) for number in (clip_factor, eps, loss_scale)
    )
    largest = clip_factor * loss_scale * ops.maximum(weights_norm, eps)
    # The guard against a division by zero is the authors'. It matters only where
    # clip_factor * eps is below it.
    factor = largest / ops.maximum(norm, 1e-6 * loss_scale)
    return ops.where(norm > largest, factor, ops.ones_like(factor))


def _norm(x, axes):
    if axes != tuple(range(len(x.shape) - 1)) or len(axes) == 0:
        return ops.sqrt(ops.sum(ops.square(x), axis=axes, keepdims=True))
    rows = ops.reshape(x, (-1, x.shape[-1]))
    shape = (*(1,) * len(axes), x.shape[-1])
    return ops.reshape(ops.sqrt(fusion.sum_of_rows(ops.square, rows)), shape)


def _scale_sparse(gradient, tensor, factor):
    """`gradient * factor` in the gradient's dtype; sparse if it can be."""
    if math.prod(factor.shape[1:]) > 1:
        return multiply(tensor, factor)
    if factor.shape[0] > 1:  # one a row
        factor = ops.take(factor, gradient.indices, axis=0)
    values = multiply(gradient.values, factor)
    return type(gradient)(values, gradient.indices, gradient.dense_shape)


def multiply(x, factor):
    return ops.cast(ops.cast(x, factor.dtype) * factor, x.dtype)
