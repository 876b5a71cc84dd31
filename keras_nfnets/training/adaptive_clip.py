"""Adaptive gradient clipping (AGC) as a pure function."""

import fnmatch
import functools
import json
import math
import typing
import warnings

import keras
import numpy as np
from keras import ops

from keras_nfnets import checks
from keras_nfnets.backend import fusion, graph, keras_internals
from keras_nfnets.layers.units import (
    mark_units_of,
    unit_axes,
    variable_path,
    weights_of_units,
)

# The kernel of this package's classifiers. The authors never clip it, but clip its bias
# (their experiment_nfnets.py; arXiv 2102.06171, section 4.1).
CLASSIFIER_KERNEL = "predictions/kernel"


def adaptive_clip(gradients, variables, clip_factor=0.01, eps=1e-3, exclude=None):
    """Scale down gradients whose norm is large compared with that of the weights.

    With `W` the weights of one unit and `G` their gradient, `G` becomes

        G * min(1, clip_factor * max(|W|, eps) / |G|)

    A unit consists of the weights of one output:

    | variable | shape | the norm is over | one unit |
    | --- | --- | --- | --- |
    | scalar, vector, bias, gain, or at most one axis longer than 1 | any | everything | itself |
    | dense kernel, kernels of recurrent layers | (in, out) | axis 0 | an output |
    | convolution kernel, 1-D to 3-D | (..., in, out) | all but the last | a filter |
    | depthwise kernel | (..., channels, multiplier) | all but the last two | a filter |
    | transposed convolution kernel | (..., out, in) | all but the last but one | a filter |
    | embeddings | (vocabulary, size) | axis 1 | a row, the embedding of one token |
    | attention query, key, value kernel | (in, heads, size) | axis 0 | an output of a head |
    | attention output kernel | (heads, size, out) | axes 0, 1 | an output |
    | kernel of another `EinsumDense` | any | the axes that its equation sums | an output |
    | `PReLU` and normalization weights | any | everything | itself |

    The layer of a variable determines its kind. A custom layer can define the units by an
    attribute `unit_norm_axes`, a dict from names of its variables to the axes of the norm,
    such as `{"kernel": (0, 2)}`. Its other variables, and plain tensors, count as dense or
    convolution kernels, depending on their rank. A TensorFlow variable, or a variable of a
    layer that no longer exists, is recognized by the names that Keras gives layers and
    variables ("depthwise_conv2d", "embeddings", "query" of an attention, ...).

    Factors of LoRA count as dense or convolution kernels. The second factor is zero at
    first. `W` for one of its units is therefore the weights that it changes: those of the
    same output in the kernel or the embeddings (`W[..., output]`), with both factors. A
    variable with `overwrite_with_gradient` (a scale of float8 training), whose "gradient"
    is its new value, is not clipped.

    Norms are computed in float32 or better, whatever the dtype of the gradient, and the
    result has the gradient's dtype. A `None` gradient stays `None`. A sparse gradient
    (`tf.IndexedSlices`) of embeddings stays sparse; duplicate rows are summed before
    their norm is computed. Clipping never hides a value that is not finite, so that loss
    scaling and other guards detect it: a unit with a NaN is unchanged; in a unit with an
    infinity, that value becomes NaN (and the others zero). A unit whose values are finite
    but whose norm overflows (from about 1e19 in float32) becomes zero, and weights whose
    norm overflows count as if it were that limit.

    Args:
        gradients: list of tensors, `tf.IndexedSlices` or `None`.
        variables: list of the corresponding variables, of the same shapes.
        clip_factor: float. Largest ratio of a gradient's norm to its weights' norm.
        eps: float. Lower bound of the weights' norm, so that zero-initialized weights
            can move.
        exclude: str, list of str, callable or None. Variables that are not clipped: the
            name of a layer (`"predictions"`), a glob pattern of variable paths
            (`"stage1_*/gain"`; the beginning of the path may be omitted), a list of
            these, or a callable from variable to bool. None clips all.

    Returns:
        A list of clipped gradients, in the same order.

    Raises:
        ValueError: the lists have different lengths, the shapes of a gradient and its
            variable differ, `clip_factor` is not positive, `eps`
            is negative, `exclude` has another type, or a layer's `unit_norm_axes` do not
            fit its variables.

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
    gradients, variables = list(gradients), list(variables)
    mark_units_of(variables)
    return clip_units(gradients, variables, clip_factor, eps, exclude)[0]


class Count(typing.NamedTuple):
    """Number of units of a variable, and how many of these were clipped.

    Attributes:
        clipped: scalar float32 tensor. Number of clipped units.
        units: int. Number of units.
    """

    clipped: object = 0.0
    units: int = 0


def clip_units(gradients, variables, clip_factor, eps, exclude, loss_scale=1.0):
    """Clip as `adaptive_clip` does, and count units; gradients may be of a scaled loss.

    Args:
        gradients, variables, clip_factor, eps, exclude: see `adaptive_clip`.
        loss_scale: float or scalar tensor. Factor of the given and of the returned
            gradients. It does not affect which units are clipped.

    Returns:
        The gradients and a list of `Count`s, both in the order of `variables`.
    """
    gradients = list(gradients)
    if len(gradients) != len(variables):
        raise ValueError(
            "Clipping needs as many gradients as (trainable) variables. "
            f"Received: {len(gradients)} gradients, {len(variables)} variables"
        )
    counts, single = [Count()] * len(gradients), []
    settings = clip_factor, eps, loss_scale
    for i, (gradient, variable) in enumerate(zip(gradients, variables)):
        if gradient is None or is_overwritten(variable) or 0 in variable.shape:
            continue
        if is_excluded(variable, exclude):
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
    """Return `clip_factor` and `eps` as floats.

    Raises:
        ValueError: a setting of `adaptive_clip` is invalid.
    """
    clip_factor = checks.number("clip_factor", clip_factor, exclusive=True)
    eps = checks.number("eps", eps)
    patterns = _patterns(exclude)
    if not (
        exclude is None
        or callable(exclude)
        or isinstance(patterns, (list, tuple))
        and all(isinstance(pattern, str) for pattern in patterns)
    ):
        raise ValueError(
            "`exclude` must be None, a layer's name, a pattern of variable paths, a list of "
            f"these or a function of a variable. Received: exclude={exclude!r}"
        )
    return clip_factor, eps


def check_exclude(exclude, variables):
    """Raise a ValueError if a name or pattern in `exclude` matches no variable.

    Only the default need not match: not every model has this package's classifier.
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
                "`exclude` names nothing in this model. Give names of its layers, or "
                "patterns of its variables' paths. "
                f"Received: {pattern!r}"
                + (suggestion or f"; there are {', '.join(paths[:3])} and others")
            )


def warn_of_classifier(model, exclude, argument):
    """Warn about classifiers of a model that are clipped only because of their names.

    A classifier is the last layer with a kernel before an output whose loss is a
    cross-entropy; in a model without a graph, the last layer with a kernel.

    Args:
        model: a compiled `keras.Model`.
        exclude: see `adaptive_clip`.
        argument: str. Name of the user's argument for `exclude`, for the message.
    """
    if exclude != CLASSIFIER_KERNEL:
        return
    paths = [
        kernel.path
        for kernel in _kernels_of_classifiers(model)
        if kernel.trainable and not is_excluded(kernel, exclude)
    ]
    if paths:
        choice = f'"{paths[0]}"' if len(paths) == 1 else json.dumps(paths)
        warnings.warn(
            f"The gradient of {' and '.join(paths)}, apparently the kernel of a "
            "classifier, is clipped. The authors do not clip that of a classifier, and by "
            f'default a layer named "predictions" is left out. Pass {argument}={choice} '
            f"to leave it out, or {argument}=None to clip everything without this "
            "warning.",
            stacklevel=2,
        )


def _kernels_of_classifiers(model):
    """Return the kernels of the classifiers of a compiled model, each once."""
    if graph.has_graph(model):
        outputs, losses = graph.ends(model)[1], model.loss
        if isinstance(losses, dict) and not isinstance(outputs, dict):
            outputs = dict(zip(model.output_names, keras.tree.flatten(outputs)))
        kernels = [
            _kernel_before(output)
            for output, loss in _with_losses(outputs, losses)
            if _is_cross_entropy(loss)
        ]
    else:
        kernels = _kernels(model)[-1:] if _is_cross_entropy(model.loss) else []
    return list({id(k): k for k in kernels if k is not None}.values())


def _with_losses(outputs, losses):
    """Yield each output of a structure with its loss; one loss may be for all."""
    if isinstance(outputs, dict):
        for name, output in outputs.items():
            loss = losses.get(name) if isinstance(losses, dict) else losses
            yield from _with_losses(output, loss)
    elif isinstance(outputs, (list, tuple)):
        is_list = isinstance(losses, (list, tuple)) and len(losses) == len(outputs)
        for i, output in enumerate(outputs):
            yield from _with_losses(output, losses[i] if is_list else losses)
    else:
        yield outputs, losses


def _kernel_before(tensor):
    """Return the last kernel before a symbolic tensor; None if its path branches first."""
    while True:
        node = keras_internals.node_of(tensor)
        kernels = _kernels(node.operation)
        if kernels or len(node.input_tensors) != 1:
            return kernels[-1] if kernels else None
        [tensor] = node.input_tensors


def _kernels(layer):
    variables = getattr(layer, "variables", ())  # operations have none
    return [v for v in variables if v.name == "kernel" and len(v.shape) > 1]


def _is_cross_entropy(loss):
    """Whether a loss given to `compile`, or one of several, is a cross-entropy."""
    losses = keras.tree.flatten(loss)
    names = [x if isinstance(x, str) else getattr(x, "name", None) for x in losses]
    names = [n or getattr(x, "__name__", "") for n, x in zip(names, losses)]
    return any("crossentropy" in name.replace("_", "").lower() for name in names)


def is_excluded(variable, exclude):
    """Whether `exclude` (see `adaptive_clip`) matches `variable`."""
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
    """Return a single name or pattern as a list, and anything else unchanged."""
    return [exclude] if isinstance(exclude, str) else exclude


def _is_sparse(gradient):
    return hasattr(gradient, "dense_shape")


def is_overwritten(variable):
    """Whether optimizers assign the "gradient" of a variable to it, as its new value.

    The scales of float8 training are such variables.
    """
    return getattr(variable, "overwrite_with_gradient", False)


def is_finite(gradient):
    """Whether all values of a gradient are finite, a bool tensor; True for `None`."""
    if gradient is None:
        return ops.convert_to_tensor(True)
    values = gradient.values if _is_sparse(gradient) else gradient
    return ops.all(ops.isfinite(values))


def dense(gradient, variable):
    """Return a gradient as a tensor; duplicate rows of `tf.IndexedSlices` are summed."""
    if _is_sparse(gradient):
        import tensorflow as tf

        # In a graph, the static shape of the converted slices may be unknown.
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


def _clip(gradient, variable, *settings):
    """Clip the gradient of one variable; return it and its `Count`."""
    tensor = dense(gradient, variable)
    axes = unit_axes(variable)
    units = math.prod(tensor.shape) // math.prod(tensor.shape[axis] for axis in axes)
    weights = ops.convert_to_tensor(weights_of_units(variable))
    arguments = tensor, weights, *settings
    factor, clipped = fusion.fused(_factors_over(axes), *arguments)
    if _is_sparse(gradient):
        gradient = _scale_sparse(gradient, tensor, factor)
    else:
        # Not fused, so that TensorFlow multiplies in place.
        gradient = multiply(tensor, factor)
    return gradient, Count(clipped, units)


@functools.cache
def _factors_over(axes):
    """Return a function that computes the factors of units and counts those below one.

    It is cached, as `fusion.fused` compiles each function object once.
    """

    def factors(*arguments):
        factor = unit_factors(*arguments, axes)
        return factor, _clipped(factor)

    return factors


def _clip_together(pairs, *settings):
    """Clip gradients of variables that are one unit each; return pairs as `_clip` does.

    Gains and biases are two thirds of a network's variables, so their norms are stacked
    and all factors computed at once.
    """
    tensors = [dense(gradient, variable) for gradient, variable in pairs]
    weights = [ops.convert_to_tensor(weights_of_units(v)) for _, v in pairs]
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
    """Compute the factor of each unit's gradient: float32 or better, at most 1.

    The result has the gradient's rank, with size 1 in the axes of the norms.
    """
    dtype = keras.backend.result_type(gradient.dtype, weights.dtype, "float32")
    norms = [_norm(ops.cast(x, dtype), axes) for x in (gradient, weights)]
    return _factors(*norms, clip_factor, eps, loss_scale)


def _factors(norm, weights_norm, clip_factor, eps, loss_scale):
    """Compute the factors of units from the norms of their gradients and weights."""
    clip_factor, eps, loss_scale = (
        ops.cast(number, norm.dtype) for number in (clip_factor, eps, loss_scale)
    )
    # The limit must be finite, so that an infinite gradient norm exceeds it.
    most = float(np.finfo(keras.backend.standardize_dtype(norm.dtype)).max)
    weights_norm = ops.minimum(weights_norm, math.sqrt(most))
    largest = clip_factor * loss_scale * ops.maximum(weights_norm, eps)
    largest = ops.minimum(largest, most)
    # The authors' guard against division by zero. It has an effect only if
    # clip_factor * eps is below it.
    factor = largest / ops.maximum(norm, 1e-6 * loss_scale)
    return ops.where(norm > largest, factor, ops.ones_like(factor))


def _norm(x, axes):
    if axes != tuple(range(len(x.shape) - 1)) or len(axes) == 0:
        return ops.sqrt(ops.sum(ops.square(x), axis=axes, keepdims=True))
    shape = (*(1,) * len(axes), x.shape[-1])
    return ops.reshape(ops.sqrt(fusion.sum_per_unit(ops.square, x)), shape)


def _scale_sparse(gradient, tensor, factor):
    """Return `gradient * factor` in the gradient's dtype, sparse if possible."""
    if math.prod(factor.shape[1:]) > 1:
        return multiply(tensor, factor)
    if factor.shape[0] > 1:  # one factor per row
        factor = ops.take(factor, gradient.indices, axis=0)
    values = multiply(gradient.values, factor)
    return type(gradient)(values, gradient.indices, gradient.dense_shape)


def multiply(x, factor):
    return ops.cast(ops.cast(x, factor.dtype) * factor, x.dtype)
