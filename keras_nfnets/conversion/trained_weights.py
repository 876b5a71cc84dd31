"""Converts a trained model into one without normalization that computes the same."""

import math

import keras
import numpy as np
from keras import ops

from keras_nfnets.conversion.converter import Converter
from keras_nfnets.conversion.roles import is_weighted
from keras_nfnets.layers import SkipGain

# The covariance of all the numbers that a filter sees is taken up to this many of them,
# beyond that of the sums of each channel over them: of thousands, an inverse takes
# minutes, and a batch seldom has the positions to find it by.
_MOST_NUMBERS = 1024
_MOST_CHANNELS = 2048
# Positions that a covariance is taken over, and numbers held at once to find it.
_POSITIONS = 2**14
_HELD = 2**24
# What is added to the diagonal of a covariance, in shares of its mean: with few samples
# it is known badly, and a half of them tells how much is best for the other. The least
# only keeps the kernels from growing until single precision is felt.
_RIDGES = (1e-8, 1e-5, 1e-3, 1e-2, 1e-1, 1.0)
# What is less than this apart differs by rounding.
_ROUNDING = 1e-5


def relative_error(values, references):
    """How far values are apart, over the deviation of the references in a channel.

    Both are quadratic means.

    Args:
        values, references: arrays `(batch, ..., channels)`.
    """
    values, references = (np.asarray(x, "float64") for x in (values, references))
    difference = np.sqrt(np.mean(np.square(values - references)))
    axes = tuple(range(references.ndim - 1))
    deviation = np.sqrt(np.mean(np.var(references, axis=axes)))
    return float(difference / (deviation or 1.0))


class TrainedWeightsConverter(Converter):
    """Keeps what a batch-normalized model has learned.

    Every value of the new model is to be that of the original. The samples of a signal are
    its values in the new model and in the original.

    Args:
        graph: `Graph` of the model to convert.
        alpha: float. Standard deviation that a residual branch adds.
        tolerance: float. Largest error of a layer with standardized weights, over the
            standard deviation of its outputs.
    """

    def __init__(self, graph, alpha, tolerance):
        super().__init__(graph, alpha)
        # (What is off by rounding is not off.)
        self._tolerance = max(tolerance, _ROUNDING)
        self._parts = {}  # id of a layer: what it became
        self._calls = {}  # id of an operation: where it is called
        for call in graph.calls:
            self._calls.setdefault(id(call.operation), []).append(call)

    def error(self):
        """Of the outputs on the samples, the largest of several."""
        signals = map(self._signals.get, keras.tree.flatten(self._graph.outputs))
        return max(
            relative_error(*map(self._channels_last, signal.samples))
            for signal in signals
        )

    # What becomes of each kind of call.

    def _as_it_is(self, call):
        self._keep(call, "computes what it did")

    _activation = _merge = _concatenation = _layer_scale = _as_it_is

    def _normalization(self, call):
        layer, value = call.operation, call.inputs[0]
        if not isinstance(layer, keras.layers.BatchNormalization):
            raise ValueError(
                f"There are no trained statistics in {layer.name!r}, a "
                f"{type(layer).__name__}, which takes them of each example: with "
                "`trained=True` all normalization has to be batch normalization."
            )
        signal = self._signals[value]
        if value.call and self._folded(value.call) is layer:
            self._note(call, f"folded into {value.call.operation.name}")
        else:
            rank = len(value.shape)
            behind = [1] * (rank - 1 - layer.axis % rank)
            factor, offset = (x.reshape(-1, *behind).tolist() for x in _affine(layer))
            dtype = keras.backend.standardize_dtype(signal.tensor.dtype)
            name = self._name(layer.name)
            constants = keras.layers.Rescaling(factor, offset, dtype=dtype, name=name)
            signal = self._applied(constants, signal)
            self._note(call, "a constant factor and offset a channel", signal, name)
        self._signals[call.outputs[0]] = signal

    def _folded(self, call):
        """The batch normalization that can go into the weights of what is called.

        It alone sees what the layer gives, wherever that is called. Otherwise None.
        """
        layer, found = call.operation, set()
        outputs = keras.tree.flatten(self._graph.outputs)
        if not is_weighted(call) or layer.activation is not keras.activations.linear:
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
        # (A branch that gives the same for all samples has none.)
        deviation = self._variance(branch.samples[1]) ** 0.5 or 1.0
        gain = SkipGain(
            self._alpha / deviation,
            keras.initializers.Constant(deviation / self._alpha),
            name=self._name(f"{name}_skip_gain"),
        )
        add = keras.layers.Add(name=name)
        signal = self._applied(add, self._applied(gain, branch), shortcut)
        how = (
            f"residual: alpha {self._alpha:.3g} over a deviation of {deviation:.3g}, "
            f"skip gain {deviation / self._alpha:.3g}"
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
            how, error = "as before", None
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
        """Layers of Keras that do what a layer and the normalization after it do.

        They have a bias and no activation, and are one but for separable convolutions,
        of which the two are better taken by themselves: few depthwise filters can be
        standardized, and most of the weights are in the other.
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
        kernel = kernels[-1].from_matrix(rows, weights[-1].shape, np)
        bias = np.broadcast_to(factor * bias + offset, layers[-1].bias.shape)
        layers[-1].set_weights([kernel, bias])
        return layers

    def _nearest(self, plain, signal):
        """What stands for a layer of `_plain`, how, and its error.

        Standardized filters have a mean of zero: they cannot do what the mean of a
        filter does, which is to add a multiple of the sum of what it sees. Of all
        filters that can be had the ones taken are, on the samples, the nearest in the
        mean square; where something that is seen never changes, or follows from the
        rest, they are the same. What the difference is on average is in the bias.
        """
        self._names.discard(plain.name)  # to be that of the one or the other
        new = self._standardized(plain, signal.tensor)
        self._names.add(plain.name)
        if new is None:
            return plain, "left plain: one weight a unit, nothing to standardize", 0.0
        x = ops.cast(signal.samples[0], new.compute_dtype)
        target = self._at(plain, x)
        variance = self._variance(target)
        if not np.isfinite(variance):
            self._check(plain.name, variance)
        if variance == 0:
            return plain, "left plain: all images give the same", 0.0
        [info] = new.KERNELS
        kernel = ops.convert_to_numpy(getattr(plain, info.name))
        rows = info.as_matrix(np.float64(kernel), np)
        sums = rows.sum(axis=0)
        error = 0.0
        if (
            new.center
            and np.abs(sums).max() < 1e-6 * np.linalg.norm(rows, axis=0).max()
        ):
            rows = rows - rows.mean(axis=0)
        elif new.center:
            windows = _Windows(new, kernel.shape, info.output_axes)
            seen = windows.seen(x, target.shape, self._channels_last)
            directions, square = _directions(windows, seen, sums)
            error = float(square / (rows.shape[1] * variance)) ** 0.5
            if error > self._tolerance:
                how = f"left plain: standardized it would be off by {error:.2g}"
                return plain, how, 0.0
            rows = (
                rows - np.repeat(directions, rows.shape[1] // windows.groups, 1) * sums
            )
        _assign(new, info, info.from_matrix(rows, kernel.shape, np))
        new.bias.assign(plain.bias)
        # (Also what layers before this one have moved it by.)
        original = self._mean(self._at(plain, signal.samples[1]))
        new.bias.assign_add(original - self._mean(self._at(new, x)))
        how = f"{type(new).__name__}, scale {new.scale:.3g}"
        return new, how, error

    # Tools.

    def _channels_last(self, x):
        """As an array."""
        x = ops.convert_to_numpy(ops.cast(x, "float32"))
        return np.moveaxis(x, self._channel_axis(x.ndim), -1)

    def _note(self, call, action, signal=None, name=None, error=0.0):
        if signal is not None:  # the variances are those of the new network, twice
            signal = signal._replace(samples=signal.samples[:1] * 2)
        super()._note(call, action, signal, name)
        error = error if error > _ROUNDING else 0.0
        self.steps[-1] = self.steps[-1]._replace(error=error)


def _affine(norm):
    """The factors and offsets of channels that batch normalization is in inference."""
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
    """Gives a layer weights that it standardizes to a kernel of filters of mean zero.

    They are that, but of the deviation that new ones have, with the rest in the gain
    and, on average, in the scale.
    """
    rows = info.as_matrix(np.float64(kernel), np)
    norms = np.linalg.norm(rows, axis=0)
    # A filter of zeros has new weights, and no gain: it can still learn.
    fresh = ops.convert_to_numpy(layer.precise_kernel(name=info.name))
    fresh = info.as_matrix(np.float64(fresh), np)
    rows = np.where(norms > 0, rows / np.where(norms > 0, norms, 1.0), fresh)
    fresh_norms = np.linalg.norm(fresh, axis=0)
    rows *= fresh_norms / np.linalg.norm(rows, axis=0)
    gains = norms / fresh_norms
    getattr(layer, info.name).assign(info.from_matrix(rows, kernel.shape, np))
    layer.scale = float(np.sqrt(np.mean(np.square(gains)))) or 1.0
    getattr(layer, info.gain).assign(gains / layer.scale)


class _Windows:
    """What the filters of a layer see, or as much of it as their means are told by.

    That is the products of each window with the columns of `basis`, `(weights of a
    unit, numbers)`: the window itself, its sum over each channel, or its mean.

    Attributes:
        basis: array.
        groups: how many there are of units that see the same.
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
        """For inputs `x` the array `(images, positions, groups, numbers)`."""
        # The layer's own way over its inputs, padding and strides included.
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
    """What to take from the filters, times their sums, for these to be zero.

    Of all vectors of sum one that of which the product with what is seen has the least
    variance, for each group; found on all samples, once one half of them has told what
    to add to the covariance for the other.

    Returns:
        array `(weights of a unit, groups)`, and the squared error of the other half,
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
    """`(groups, numbers, numbers)`."""
    x = np.moveaxis(np.float64(seen).reshape(-1, *seen.shape[2:]), 1, 0)
    x = x - x.mean(axis=1, keepdims=True)
    return np.swapaxes(x, 1, 2) @ x / x.shape[1]
