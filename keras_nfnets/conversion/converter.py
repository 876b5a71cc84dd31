"""Base class of the conversions to normalizer-free models."""

import abc
import typing

import keras
import numpy as np
from keras import ops

from keras_nfnets.backend import keras_internals
from keras_nfnets.backend.graph import copy_state, has_graph, own_weights, unique_name
from keras_nfnets.conversion.report import Step
from keras_nfnets.conversion.roles import (
    NORMALIZATIONS,
    WEIGHTED,
    Roles,
    activation_of,
    is_normalization,
    is_weighted,
)
from keras_nfnets.layers import SkipGain
from keras_nfnets.layers.kernels import ATTENTION, STANDARDIZED


def is_normalizer_free(call):
    """Whether a call is of a layer of this package, or adds a branch with a skip gain."""
    before = [value.call.operation for value in call.inputs if value.call]
    is_sum = keras_internals.kind_of(call.operation) == "Add"
    has_gain = any(isinstance(operation, SkipGain) for operation in before)
    return _package(call.operation) == "keras_nfnets" or is_sum and has_gain


def _package(operation):
    return type(operation).__module__.split(".")[0]


def _is_custom(operation):
    """Whether an operation comes from outside Keras and this package."""
    return _package(operation) not in ("keras", "keras_nfnets")


def _is_depthwise(layer, kernel):
    """Whether each output unit has a single input channel of several.

    Such a unit has about nine weights; without their mean it could learn much less.
    """
    if getattr(layer, "groups", 1) > 1:
        return layer.kernel.shape[-2] == 1
    return kernel.is_depthwise


class Signal(typing.NamedTuple):
    """Tensor of the new model with sampled values.

    Attributes:
        tensor: `keras.KerasTensor` of the new model.
        samples: pair of tensors. Its values for the images in two versions of a model;
            each converter states which.
        is_unit: bool. Whether a layer was calibrated to give it a variance of one.
        shortcut: pair of tensors or None. For a sum, the samples of its identity
            shortcut.
    """

    tensor: keras.KerasTensor
    samples: tuple
    is_unit: bool = False
    shortcut: tuple | None = None


class Converter(abc.ABC):
    """Base class that creates the new model call by call.

    Args:
        graph: `Graph` of the model to convert.

    Attributes:
        steps: list of `Step`. The conversion of each call so far.
    """

    converted = (*NORMALIZATIONS, *WEIGHTED)  # not to be hidden in other layers

    @classmethod
    def opens(cls, layer):
        """Whether to convert the layers inside a layer, in its place.

        These are models, and custom layers that hide layers to convert.
        """
        return has_graph(layer) or _is_custom(layer) and cls._hidden(layer) is not None

    @classmethod
    def _hidden(cls, layer):
        """Return a layer to convert inside a layer, or None.

        Custom layers with weights of their own, such as a class token, cannot be replaced
        by the layers inside. They stay as they are if they hide no normalization.
        """
        if not isinstance(layer, keras.layers.Layer):
            return None
        kinds = cls.converted
        if _is_custom(layer) and own_weights(layer):
            kinds = NORMALIZATIONS
        for inner in keras_internals.layers_of(layer, include_self=False):
            if isinstance(inner, kinds):
                return inner
        return None

    def __init__(self, graph):
        self._graph, self._roles = graph, Roles(graph)
        self._signals = {}  # by value, as long as calls or outputs use it
        self._made = {}  # id of a layer: its counterpart, for later calls
        self._names = set()
        self._waiting = {value: len(calls) for value, calls in graph.consumers.items()}
        self.steps = []
        layers = (call.operation for call in graph.calls)
        formats = {getattr(layer, "data_format", None) for layer in layers}
        self._channels_first = "channels_first" in formats

    def run(self, samples):
        inputs = {}
        for value, sample in samples.items():
            spec = value.spec
            inputs[value] = keras.Input(
                batch_shape=spec.shape, dtype=spec.dtype, name=spec.name
            )
            self._names.add(spec.name)
            self._signals[value] = Signal(inputs[value], (sample, sample))
        outputs = set(keras.tree.flatten(self._graph.outputs))
        for call in self._graph.calls:
            self._convert(call)
            for value in call.inputs:
                self._waiting[value] -= 1
                if not self._waiting[value] and value not in outputs:
                    del self._signals[value]
        return (
            keras.tree.map_structure(inputs.get, self._graph.inputs),
            keras.tree.map_structure(
                lambda value: self._signals[value].tensor, self._graph.outputs
            ),
        )

    def _convert(self, call):
        operation = call.operation
        reason = self._roles.alone.get(call)
        if is_normalizer_free(call):
            self._keep(call, "normalizer-free already")
        elif is_normalization(call):
            self._normalization(call)
        elif is_weighted(call) and reason is None:
            self._weighted(call)
        elif isinstance(operation, ATTENTION):
            self._attention(call)
        elif call in self._roles.residuals and reason is None:
            self._residual(call, self._roles.residuals[call])
        elif call in self._roles.merges and reason is None:
            self._merge(call)
        elif isinstance(operation, keras.layers.Concatenate) and reason is None:
            self._concatenation(call)
        elif keras_internals.is_layer_scale(operation):
            self._layer_scale(call)
        elif self._is_activation(call) and reason is None:
            self._activation(call)
        else:
            self._keep(call, reason or "no conversion for this kind of layer")

    def _is_activation(self, call):
        operation = call.operation
        function = activation_of(operation)
        return (
            function not in (None, keras.activations.linear, keras.activations.softmax)
            and len(call.inputs) == 1
            and not getattr(operation, "weights", ())
        )

    # Conversion of each kind of call.

    @abc.abstractmethod
    def _normalization(self, call):
        """Convert the call of a normalization layer."""

    @abc.abstractmethod
    def _weighted(self, call):
        """Convert the call of a convolution or dense layer."""

    def _attention(self, call):
        """Convert the call of an attention layer."""
        self._keep(call, "attention")

    @abc.abstractmethod
    def _residual(self, call, residual):
        """Convert the addition of a residual branch and its shortcut."""

    @abc.abstractmethod
    def _merge(self, call):
        """Convert an addition without a shortcut."""

    @abc.abstractmethod
    def _concatenation(self, call):
        """Convert a concatenation."""

    @abc.abstractmethod
    def _layer_scale(self, call):
        """Convert the call of a `LayerScale`."""

    @abc.abstractmethod
    def _activation(self, call):
        """Convert the call of an activation."""

    # Helpers.

    def _keep(self, call, reason, signals=None):
        """Repeat a call in the new model, on `signals` (by value) if given.

        Returns the operation of the new model.
        """
        signals = self._signals if signals is None else signals
        operation = call.operation
        hidden = self._hidden(operation)
        if hidden is not None and _package(operation) != "keras_nfnets":
            raise ValueError(
                f"normalizer_free cannot convert {hidden.name!r}, a "
                f"{type(hidden).__name__}, inside another layer. Call it in the model "
                f"itself. Received: {operation.name!r}, a {type(operation).__name__}"
            )
        new = self._made.get(id(operation))
        if new is None:
            new = operation
            if isinstance(operation, keras.layers.Layer):
                new = self._copied(operation)
            self._made[id(operation)] = new
        fresh = isinstance(new, keras.layers.Layer) and not new.built

        def outputs(of):
            args, kwargs = call.arguments(lambda value: of(signals[value]))
            return keras.tree.flatten(new(*args, **kwargs))

        tensors = outputs(lambda signal: signal.tensor)
        if isinstance(new, keras.layers.Layer) and operation.weights and fresh:
            copy_state(operation, new)
        samples = [
            map(
                keras_internals.detached,
                outputs(lambda signal, i=i: signal.samples[i]),
            )
            for i in range(2)
        ]
        for value, tensor, *both in zip(call.outputs, tensors, *samples):
            self._signals[value] = Signal(tensor, tuple(both))
        self._note(call, f"left alone: {reason}", name=new.name)
        return new

    def _copied(self, layer):
        """Create a layer of the same configuration, with a unique name."""
        try:
            config = {**layer.get_config(), "name": self._name(layer.name)}
            return type(layer).from_config(config)
        except Exception as error:  # custom code can raise anything
            raise ValueError(
                f"{layer.name!r} ({type(layer).__name__}) cannot be copied: its class does "
                "not accept the result of its `get_config`. "
                f"Received: {type(error).__name__}: {str(error)[:300]}"
            ) from error

    def _counterpart(self, old):
        """Return the class with standardized weights that replaces a layer."""
        if type(old) not in STANDARDIZED:
            raise ValueError(
                "normalizer_free standardizes the weights of the layers "
                f"{', '.join(cls.__name__ for cls in STANDARDIZED)}, but not of classes "
                "derived from them or of other layers. Received: "
                f"{old.name!r}, a {type(old).__name__}"
            )
        return STANDARDIZED[type(old)]

    def _config(self, old):
        """Return the config of a layer without LoRA and quantization."""
        return {
            key: value
            for key, value in old.get_config().items()
            if not key.startswith(("lora", "quantization"))
        }

    def _standardized(self, old, x):
        """Build the counterpart of a layer; None if it has one weight per unit."""
        config = {**self._config(old), "use_bias": True, "activation": None}
        config["name"] = self._name(old.name)
        counterpart = self._counterpart(old)
        config["center"] = not _is_depthwise(old, counterpart.KERNELS[0])
        new = counterpart.from_config(config)
        kernels = [getattr(old, kernel.name) for kernel in new.KERNELS]
        if any(
            np.prod(kernel.shape) == info.units(kernel.shape)
            for kernel, info in zip(kernels, new.KERNELS)
        ):
            self._names.discard(new.name)
            return None
        new.build(x.shape)
        kernels = (getattr(new, kernel.name) for kernel in new.KERNELS)
        if any(np.ptp(ops.convert_to_numpy(kernel)) == 0 for kernel in kernels):
            # Constant weights, such as zeros, would be standardized to zero: use the
            # default initializer.
            for kernel in new.KERNELS:
                del config[kernel.initializer]
            new = type(new).from_config(config)
            new.build(x.shape)
        if not new.center:
            # Kernels start with a mean of zero: otherwise differences in contrast
            # between images would grow from layer to layer.
            kernel = getattr(new, new.KERNELS[0].name)
            positions = tuple(range(len(kernel.shape) - 2))
            kernel.assign(kernel - ops.mean(kernel, positions, keepdims=True))
        return new

    def _ways(self, call, residual):
        """Return the signals of branch (sum of several) and shortcut, and a name."""
        signals = [self._signals[value] for value in call.inputs]
        shortcut = signals.pop(residual.shortcut)
        name = self._name(call.operation.name)
        branch = signals[0]
        if len(signals) > 1:
            add = keras.layers.Add(name=self._name(f"{name}_branches"))
            branch = self._applied(add, *signals)
        return branch, shortcut, name

    def _at(self, layer, *samples):
        outputs = layer(samples if len(samples) > 1 else samples[0])
        return keras_internals.detached(outputs)

    def _applied(self, layer, *signals):
        tensors = [signal.tensor for signal in signals]
        return Signal(
            layer(tensors if len(tensors) > 1 else tensors[0]),
            tuple(
                self._at(layer, *samples)
                for samples in zip(*(signal.samples for signal in signals))
            ),
        )

    def _variance(self, x):
        """Estimate the variance of a channel, averaged over channels."""
        variance = ops.mean(ops.var(ops.cast(x, "float32"), axis=self._positions(x)))
        return float(ops.convert_to_numpy(variance)) + self._error_of_mean(x)

    def _seen_by(self, layer, sample):
        """Return the variance by which a normalization would divide."""
        if isinstance(layer, keras.layers.BatchNormalization):
            return self._variance(sample)
        sample = ops.cast(sample, "float32")
        if isinstance(layer, keras.layers.GroupNormalization):
            axes = list(range(1, len(sample.shape)))
        else:
            axes = layer.axis
        if isinstance(layer, keras.layers.RMSNormalization):
            return float(ops.mean(ops.square(sample)))
        return float(ops.mean(ops.var(sample, axis=axes)))

    def _error_of_mean(self, x):
        """Estimate the sampling variance of a channel's mean, averaged over channels.

        By this much, few images underestimate the variance and overestimate the squared
        mean. The images are the independent samples; positions in one image are not.
        """
        positions = tuple(self._positions(x)[1:])
        of_images = ops.mean(ops.cast(x, "float32"), axis=positions)
        variance = ops.mean(ops.var(of_images, axis=0))
        return float(ops.convert_to_numpy(variance)) / max(len(x) - 1, 1)

    def _mean(self, x):
        """Return the mean of each channel."""
        return ops.mean(ops.cast(x, "float32"), axis=self._positions(x))

    def _positions(self, x):
        """Return all axes except the channel axis."""
        rank = len(x.shape)
        return [axis for axis in range(rank) if axis != self._channel_axis(rank)]

    def _channel_axis(self, rank):
        return 1 if self._channels_first and rank > 2 else rank - 1

    def _check(self, name, variance):
        if not (np.isfinite(variance) and variance > 1e-12):
            raise ValueError(
                f"The signal vanishes or is not finite at {name!r}. Pass `images` that are "
                "finite, not constant, and large enough for the feature maps there. "
                f"Received: images for which the variance there is {variance:g}"
            )

    def _name(self, name):
        return unique_name(name, self._names)

    def _note(self, call, action, signal=None, name=None, variances=()):
        """Record a step, with the variances of `signal` unless these are given."""
        if signal is not None and not variances:
            variances = [self._variance(x) for x in signal.samples]
        kind = keras_internals.kind_of(call.operation)
        name = name or call.operation.name
        self.steps.append(Step(name, kind, action, *variances))
