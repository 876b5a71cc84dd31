"""Conversion of a trained model to a normalizer-free one that starts from its weights."""

import math

import keras
import numpy as np
from keras import ops

from keras_nfnets.backend import keras_internals
from keras_nfnets.conversion.comparing import (
    ROUNDING,
    ComparingConverter,
    per_channel_fit,
    relative_error,
)
from keras_nfnets.conversion.converter import is_normalizer_free
from keras_nfnets.conversion.roles import is_weighted
from keras_nfnets.layers import SkipGain

# Largest receptive field, in values, for which their covariance is used, and largest
# number of channels for which the covariance of the sums over each channel is used
# instead: a system of thousands takes minutes to solve, and a batch seldom has enough
# positions to estimate it.
_MOST_NUMBERS = 1024
_MOST_CHANNELS = 2048
# Number of positions for a covariance, and of values held in memory for it at once.
_POSITIONS = 2**14
_HELD = 2**24
# Candidates for the ridge on the diagonal of a covariance, relative to its mean. As the
# estimate from few samples is poor, the ridge is selected by fitting on one half and
# testing on the other. The smallest only keeps kernels from growing until
# single-precision rounding matters.
_RIDGES = (1e-8, 1e-5, 1e-3, 1e-2, 1e-1, 1.0)


class TrainedWeightsConverter(ComparingConverter):
    """Converter that preserves the function of a trained model.

    The samples of a signal are its values in the new model and in the original. They are
    equal, but for what standardized weights and constants cannot compute.

    Args:
        graph: `Graph` of the model to convert.
        alpha: float. Standard deviation that a residual branch adds.
        tolerance: float. Largest error of a layer with standardized weights, relative
            to the standard deviation of its outputs.
    """

    def __init__(self, graph, alpha, tolerance):
        super().__init__(graph)
        self._alpha = alpha
        # Rounding errors are always tolerated.
        self._tolerance = max(tolerance, ROUNDING)
        self._parts = {}  # id of a layer: pairs (plain layer, its counterpart)
        self._calls = {}  # id of an operation: its calls
        for call in graph.calls:
            self._calls.setdefault(id(call.operation), []).append(call)

    # Conversion of each kind of call.

    def _normalization(self, call):
        layer, value = call.operation, call.inputs[0]
        signal = self._signals[value]
        how = "replaced by a constant factor and offset per channel"
        if value.call and self._folded(value.call) is layer:
            self._note(call, f"folded into {value.call.operation.name}")
        elif isinstance(layer, keras.layers.BatchNormalization):
            signal = self._constants(call, layer.axis, *_affine(layer), how)
        else:  # without statistics of the training set
            pair = signal.samples[0], self._at(layer, signal.samples[1])
            fit = per_channel_fit(*map(self._channels_last, pair))
            axis = self._channel_axis(len(value.shape))
            signal = self._constants(
                call, axis, *fit[:2], f"{how}, fitted to its outputs"
            )
        self._signals[call.outputs[0]] = signal

    def _constants(self, call, axis, factor, offset, how):
        """Return the signal after a factor and an offset per channel, with its errors."""
        layer, signal = call.operation, self._signals[call.inputs[0]]
        rank = len(signal.tensor.shape)
        factor, offset = (
            keras_internals.per_channel(x, axis, rank) for x in (factor, offset)
        )
        dtype = keras.backend.standardize_dtype(signal.tensor.dtype)
        name = self._name(layer.name)
        new = keras.layers.Rescaling(factor, offset, dtype=dtype, name=name)
        signal, error = self._replaced(layer, new, signal)
        self._note(call, how, signal, name, error)
        return signal

    def _folded(self, call):
        """Return the batch normalization to fold into the layer of a call, or None.

        It must be the only consumer of the layer's output in each call of the layer.
        """
        layer, found = call.operation, set()
        outputs = keras.tree.flatten(self._graph.outputs)
        if not is_weighted(call) or is_normalizer_free(call):
            return None
        if layer.activation is not keras.activations.linear:
            return None
        for each in self._calls[id(layer)]:
            value, rank = each.outputs[0], len(each.outputs[0].shape)
            for later in self._graph.consumers[value]:
                norm = later.operation
                found.add(
                    norm
                    if isinstance(norm, keras.layers.BatchNormalization)
                    and norm.axis % rank == self._channel_axis(rank)
                    else None
                )
            if value in outputs or each in self._roles.alone:
                return None
        return found.pop() if len(found) == 1 else None

    def _residual(self, call, residual):
        branch, shortcut, name = self._ways(call, residual)
        # A branch that is constant over the samples has a standard deviation of zero.
        deviation = self._variance(branch.samples[1]) ** 0.5 or 1.0
        gain = SkipGain(
            self._alpha / deviation,
            keras.initializers.Constant(deviation / self._alpha),
            name=self._name(f"{name}_skip_gain"),
        )
        add = keras.layers.Add(name=name)
        signal = self._applied(add, self._applied(gain, branch), shortcut)
        how = (
            f"residual: alpha {self._alpha:.3g} over a standard deviation of "
            f"{deviation:.3g}, skip gain {deviation / self._alpha:.3g}"
        )
        self._signals[call.outputs[0]] = signal
        self._note(call, how, signal, name)

    def _weighted(self, call):
        old, signal = call.operation, self._signals[call.inputs[0]]
        parts = self._parts.get(id(old))
        if parts is None:
            layers = self._plain(old, self._folded(call), signal.tensor.shape)
            parts = self._parts[id(old)] = [(plain, None) for plain in layers]
        for i, (plain, new) in enumerate(parts):
            before, original = signal.samples
            how, error = "shared with an earlier call", None
            if new is None:
                new, how, error = self._nearest(plain, signal)
                parts[i] = plain, new
                if i == len(parts) - 1:
                    plain.activation = new.activation = old.activation
            samples = self._at(new, before), self._at(plain, original)
            signal = signal._replace(
                tensor=new(signal.tensor), samples=samples, shortcut=None
            )
            if error is None:
                pair = samples[0], self._at(plain, before)
                error = relative_error(*map(self._channels_last, pair))
            self._note(call, how, signal, new.name, error)
        self._signals[call.outputs[0]] = signal

    def _plain(self, old, norm, shape):
        """Create Keras layers that compute a layer and the normalization after it.

        They have a bias and no activation. A separable convolution becomes a depthwise
        and a pointwise layer, which are standardized separately; any other layer
        becomes one layer.
        """
        kernels = self._counterpart(old).KERNELS
        config = {**self._config(old), "use_bias": True, "activation": None}
        if len(kernels) == 1:
            config["name"] = self._name(old.name)
            layers = [type(old).from_config(config)]
        else:
            both = {key: config[key] for key in ("data_format", "dtype", "trainable")}
            of_first = ("kernel_size", "strides", "padding", "dilation_rate")
            of_first += ("depth_multiplier", "depthwise_regularizer")
            layers = [
                keras.layers.DepthwiseConv2D(
                    **both,
                    **{key: config[key] for key in of_first},
                    name=self._name(f"{old.name}_depthwise"),
                ),
                keras.layers.Conv2D(
                    old.filters,
                    1,
                    **both,
                    kernel_regularizer=config["pointwise_regularizer"],
                    name=self._name(old.name),
                ),
            ]
        weights = [ops.convert_to_numpy(getattr(old, k.name)) for k in kernels]
        for layer, kernel in zip(layers, weights):
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
            layer.set_weights([kernel, np.zeros(layer.bias.shape)])
        bias = ops.convert_to_numpy(old.bias) if old.use_bias else 0.0
        factor, offset = (1.0, 0.0) if norm is None else _affine(norm)
        rows = kernels[-1].as_matrix(np.float64(weights[-1]), np) * factor
        kernel = kernels[-1].from_units_last(rows, weights[-1].shape, np)
        bias = np.broadcast_to(factor * bias + offset, layers[-1].bias.shape)
        layers[-1].set_weights([kernel, bias])
        return layers

    def _nearest(self, plain, signal):
        """Return the layer that replaces one of `_plain`, a description and its error.

        The bias corrects the mean difference. The plain layer stays if the error
        exceeds the tolerance.
        """
        self._names.discard(plain.name)  # to be used by either layer
        new = self._standardized(plain, signal.tensor)
        self._names.add(plain.name)
        if new is None:
            return plain, "not standardized: one weight per unit", 0.0
        x = ops.cast(signal.samples[0], new.compute_dtype)
        target = self._at(plain, x)
        variance = self._variance(target)
        if not np.isfinite(variance):
            self._check(plain.name, variance)
        if variance == 0:
            return plain, "not standardized: its output is the same for all images", 0.0
        [info] = new.KERNELS
        kernel = ops.convert_to_numpy(getattr(plain, info.name))
        error = 0.0
        if new.center:
            kernel, square = self._centered(kernel, new, x, target.shape)
            error = float(square / (info.units(kernel.shape) * variance)) ** 0.5
            if error > self._tolerance:
                how = f"not standardized: the error would be {error:.2g}"
                return plain, how, 0.0
        _assign(new, info, kernel)
        new.bias.assign(plain.bias)
        # This also corrects the shift of the mean by earlier layers.
        original = self._mean(self._at(plain, signal.samples[1]))
        new.bias.assign_add(original - self._mean(self._at(new, x)))
        how = f"{type(new).__name__}, scale {new.scale:.3g}"
        return new, how, error

    def _centered(self, kernel, layer, x, output_shape):
        """Find the zero-mean kernel with the smallest mean squared error on inputs `x`.

        Standardized filters have a mean of zero, so they cannot add a multiple of the
        sum of their inputs. They are exact if some inputs are constant or linear
        functions of the others.

        Returns:
            An array of the kernel's shape, and the squared error, summed over units.
        """
        [info] = layer.KERNELS
        rows = info.as_matrix(np.float64(kernel), np)
        sums, square = rows.sum(axis=0), 0.0
        if np.abs(sums).max() < 1e-6 * np.linalg.norm(rows, axis=0).max():
            rows = rows - rows.mean(axis=0)
        else:
            windows = _Windows(layer, kernel.shape, info.output_axes)
            seen = windows.seen(x, output_shape, self._channels_last)
            directions, square = _directions(windows, seen, sums)
            directions = np.repeat(directions, rows.shape[1] // windows.groups, axis=1)
            rows = rows - directions * sums
        return info.from_units_last(rows, kernel.shape, np), square


def _affine(norm):
    """Return the factor and offset per channel of batch normalization in inference."""
    mean, variance = (
        np.asarray(ops.convert_to_numpy(x), "float64")
        for x in (norm.moving_mean, norm.moving_variance)
    )
    factor = (variance + norm.epsilon) ** -0.5
    if norm.scale:
        factor = factor * ops.convert_to_numpy(norm.gamma)
    offset = -mean * factor
    return factor, offset + ops.convert_to_numpy(norm.beta) if norm.center else offset


def _assign(layer, info, kernel):
    """Set the weights of a layer so that it standardizes them to a zero-mean kernel.

    The filters are rescaled to the norm of standardized new ones. The ratios of the
    norms go into the gains, and the root mean square of these into the scale.
    """
    rows = info.as_matrix(np.float64(kernel), np)
    norms = np.linalg.norm(rows, axis=0)
    # A zero filter gets new weights and a gain of zero, so that it can still learn.
    fresh = ops.convert_to_numpy(layer.precise_kernel(name=info.name))
    fresh = info.as_matrix(np.float64(fresh), np)
    rows = np.where(norms > 0, rows / np.where(norms > 0, norms, 1.0), fresh)
    fresh_norms = np.linalg.norm(fresh, axis=0)
    rows *= fresh_norms / np.linalg.norm(rows, axis=0)
    gains = norms / fresh_norms
    getattr(layer, info.name).assign(info.from_units_last(rows, kernel.shape, np))
    layer.scale = float(np.sqrt(np.mean(np.square(gains)))) or 1.0
    getattr(layer, info.gain).assign(gains / layer.scale)


class _Windows:
    """Receptive fields of a layer (im2col), projected onto `basis`.

    The projections are the receptive field itself, the sums over each of its channels,
    or its mean, depending on the size.

    Attributes:
        basis: array `(weights per unit, projections)`.
        groups: int. Number of groups of units with the same inputs.
    """

    def __init__(self, layer, shape, output_axes):
        self._layer, self._shape = layer, shape
        self.groups = getattr(layer, "groups", 1)
        [self._axis] = output_axes
        size = math.prod(shape) // shape[self._axis]
        channels = shape[{-1: -2, -2: -1}[self._axis]]
        if size <= _MOST_NUMBERS:
            self.basis = np.eye(size)
        elif channels <= _MOST_CHANNELS:
            self.basis = np.tile(np.eye(channels), (size // channels, 1))
        else:
            self.basis = np.ones((size, 1)) / size

    def seen(self, x, output_shape, channels_last):
        """Project inputs `x` to an array `(images, positions, groups, projections)`."""
        # The layer applies the basis as a kernel, with its own padding and strides.
        layer, numbers = self._layer, self.basis.shape[1]
        inner = np.delete(self._shape, self._axis)
        kernel = self.basis.reshape(*inner, numbers)
        kernel = np.tile(kernel, self.groups)
        kernel = np.moveaxis(kernel, -1, self._axis)
        kernel = ops.convert_to_tensor(kernel, dtype=layer.compute_dtype)
        count, generator, parts = len(x), np.random.default_rng(0), []
        units = layer.bias.shape[0]
        size = math.prod(output_shape[1:]) // units * self.groups * numbers
        chunk = max(1, _HELD // size)
        for start in range(0, count, chunk):
            part = layer.apply_kernels(x[start : start + chunk], kernel)
            part = channels_last(part)
            part = part.reshape(len(part), -1, self.groups, numbers)
            positions, most = part.shape[1], max(1, _POSITIONS // count)
            if positions > most:
                part = part[:, generator.choice(positions, most, replace=False)]
            parts.append(part)
        return np.concatenate(parts)


def _directions(windows, seen, sums):
    """Find the minimum-variance vector with sum one for each group.

    It is the vector whose product with the receptive fields has the smallest variance.
    Subtracting it from a filter, times the filter's sum, makes the sum zero at the
    smallest error. The ridge is selected by fitting on one half of the samples and
    testing on the other; the result is fitted on all samples.

    Returns:
        array `(weights per unit, groups)`, and the squared error on the test half,
        summed over units.
    """
    totals = windows.basis.sum(axis=0)
    sums = np.square(sums).reshape(windows.groups, -1).sum(axis=1)

    def least(covariance, ridge):
        mean = np.trace(covariance, axis1=1, axis2=2) / len(totals)
        mean = np.where(mean > 0, mean, 1.0)[:, None, None]
        regular = covariance + ridge * mean * np.eye(len(totals))
        right = np.broadcast_to(totals[:, None], (*regular.shape[:2], 1))
        solution = np.linalg.solve(regular, right)[..., 0]
        return solution / (solution @ totals)[:, None]

    def error(solution, covariance):
        return sums @ np.einsum("gi,gij,gj->g", solution, covariance, solution)

    if len(seen) == 1:
        seen = np.swapaxes(seen, 0, 1)
    one, other = _covariance(seen[::2]), _covariance(seen[1::2])
    errors = [error(least(one, ridge), other) for ridge in _RIDGES]
    best = _RIDGES[int(np.argmin(errors))]
    solution = least((one + other) / 2, best)
    return windows.basis @ solution.T, max(min(errors), 0.0)


def _covariance(seen):
    """Compute the covariances `(groups, projections, projections)`."""
    x = np.moveaxis(np.float64(seen).reshape(-1, *seen.shape[2:]), 1, 0)
    x = x - x.mean(axis=1, keepdims=True)
    return np.swapaxes(x, 1, 2) @ x / x.shape[1]
