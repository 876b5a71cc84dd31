"""Any network without its normalization, its signal kept by constants instead."""

import typing

import keras
import numpy as np
from keras import ops

from keras_nfnets import checks
from keras_nfnets.backend import keras_internals
from keras_nfnets.backend.graph import Graph, Value, copy_state
from keras_nfnets.conversion.roles import (
    NORMALIZATIONS,
    WEIGHTED,
    Roles,
    activation_of,
    is_normalization,
    is_weighted,
)
from keras_nfnets.conversion.trained_start import TrainedStart
from keras_nfnets.layers import (
    ScaledActivation,
    SkipGain,
    WeightStandardized,
    WSConv1D,
    WSConv2D,
    WSConv2DTranspose,
    WSConv3D,
    WSDense,
    WSDepthwiseConv2D,
    WSSeparableConv2D,
    activation_gain,
    published_name,
)
from keras_nfnets.training import AGCModel

_STANDARDIZED = {
    keras.layers.Conv1D: WSConv1D,
    keras.layers.Conv2D: WSConv2D,
    keras.layers.Conv2DTranspose: WSConv2DTranspose,
    keras.layers.Conv3D: WSConv3D,
    keras.layers.Dense: WSDense,
    keras.layers.DepthwiseConv2D: WSDepthwiseConv2D,
    keras.layers.SeparableConv2D: WSSeparableConv2D,
}
# Sizes taken where a model's input leaves them open, by the number of its axes.
_OPEN_SIZES = {3: 256, 4: 224, 5: 32}
# Nearer to one than this a variance is left as it is.
_NEAR = 0.02
# A squared mean, as a share of the variance, that is considerable: an activation sees
# something else than the standard normal signal its published gain is for.
_SHIFTED = 0.1


def normalizer_free(
    model,
    images=None,
    alpha=0.2,
    skip_gain_initializer="zeros",
    trained=False,
    tolerance=0.1,
):
    """A model like another one, but for its normalization.

    Convolutions and dense layers become those with standardized weights
    (`WSConv2D`, ...; depthwise ones with `center=False`, and as `input_mean` that of
    what they see), activations get their gain (`ScaledActivation`), residual branches a
    scale `alpha` and a learned gain (`SkipGain`), and batch, group, layer and RMS
    normalization is gone, or constants where the signal it sees has another variance
    than one. Which constants are right is found by sending `images` through the new
    network while it is made: after each standardized layer the variance of a channel is
    one, and after each addition that of the shortcut plus `alpha**2`.

    Whatever surrounds them, additions are residual if one of what they add is the
    longer way from a tensor that all are made of. Left alone are the layers that give
    the outputs, those after global pooling and those in gates, as of
    squeeze-and-excitation, unless they are normalized too. Nested models, and layers
    of your own with normalization or convolutions inside, are opened: their layers
    become the model's.

    With `trained=True` the new network starts as what a batch-normalized one has
    learned: it is to compute in inference what that does. Activations and sums are as
    they were, branches have the skip gain that leaves them as they are, and the
    statistics, scales and offsets of normalization are in the weights and bias of the
    layer before it, or, where there is none that only it sees, constants of channels.
    Two things differ from new weights: a separable convolution becomes two layers, and
    no constant is put in. That is exact, up to rounding, but for the layers with
    standardized weights. Their filters have a mean of zero; what the mean of a trained
    filter does is lost, which is to add a multiple of the sum of all that it sees.
    Nothing is lost where the filters have a mean of zero already, or where some of what
    they see does not change or follows linearly from the rest (a channel that is
    constant, one that is always rectified to zero, inputs that sum to one): then other
    weights do the same. Otherwise the layer has, on `images`, the nearest weights and
    bias in the mean square, and layers further off than `tolerance` stay plain ones,
    normalization folded into them. Those are often the first, for pictures are smooth.
    Nothing is lost of depthwise filters, which can have a mean here.

    Args:
        model: a built Keras model, functional, sequential, or of a class of your own
            whose `call` is of Keras layers and `keras.ops` alone. It is left as it is.
        images: what the model takes, one batch, to find the constants by: some of
            those to train on, as they are then. By default noise, eight to 64 of them: standard
            normal, or, for a model that begins by rescaling, of pictures from 0 to 255.
            Pictures are smoother than noise, and the first convolution makes less of
            them; with noise the signal in training is smaller than the report says.
        alpha: the deviation that a residual branch adds, as in the networks of this
            package.
        skip_gain_initializer: of the gains of residual branches; with the default,
            zeros, each block starts as its shortcut. Not used with `trained=True`.
        trained: whether to start from what `model` has learned, for which it must have
            no other than batch normalization, and `images` are needed: some dozens of
            those that it is for, as it takes them.
        tolerance: with `trained=True`, by how much a layer's outputs may be off, over
            their deviation, for it to be standardized. With 0 the outputs stay the
            same and with a large number all layers are standardized.

    Returns:
        An `AGCModel` of the same inputs and outputs, not compiled. Its weights are new,
        drawn as `model` draws its own (but with `trained=True`, and those of layers left
        alone).
        `model.conversion` is a `Conversion`: what was done with each layer, and what
        variance is to be expected after it; with `trained=True` also how far each layer
        is off, and the outputs are. Pass `agc_exclude` to `compile` where the
        classifier is not named `"predictions"`.

    Raises:
        ValueError: a model whose graph cannot be had, a layer that hides
            normalization or convolutions, one that has no standardized counterpart, or
            images through which the signal ends somewhere; with `trained=True` layer,
            group or RMS normalization, whose statistics are of each example. All name
            the layer. `trained=True` without `images`, a negative `tolerance`.

    Example:

    >>> inputs = keras.Input((32, 32, 3))
    >>> x = keras.layers.Conv2D(16, 3, padding="same", use_bias=False)(inputs)
    >>> x = keras.layers.BatchNormalization()(x)
    >>> x = keras.layers.Activation("relu")(x)
    >>> x = keras.layers.GlobalAveragePooling2D()(x)
    >>> model = keras.Model(inputs, keras.layers.Dense(10, name="predictions")(x))
    >>> [type(layer).__name__ for layer in normalizer_free(model).layers]
    ['InputLayer', 'WSConv2D', 'ScaledActivation', 'GlobalAveragePooling2D', 'Dense']

    Reference: Brock, De, Smith (2021), arXiv 2101.08692, section 4; Brock et al.
    (2021), arXiv 2102.06171, section 2.
    """
    alpha = checks.number("alpha", alpha, exclusive=True)
    tolerance = checks.number("tolerance", tolerance)
    if trained and images is None:
        raise ValueError(
            "With `trained=True` pass `images`, some of those that the model is for: "
            "how far layers are off is found by them. Received: images=None"
        )
    if not (isinstance(model, keras.Model) and model.built):
        raise ValueError(
            "normalizer_free takes Keras models that are built: call yours on some "
            f"inputs first. Received: {model!r}"
        )
    graph = Graph(model, opens=_is_own_and_hides)
    if trained:
        converter = _TrainedConverter(graph, alpha, tolerance)
    else:
        converter = _Converter(graph, alpha, skip_gain_initializer)
    inputs, outputs = converter.run(_samples(graph, images))
    result = AGCModel(inputs, outputs, name=model.name)
    error = converter.error() if trained else None
    result.conversion = Conversion(converter.steps, error)
    return result


class Step(typing.NamedTuple):
    """What was done with one layer.

    Attributes:
        layer: its name, in the new model too if it is still there.
        kind: name of its class.
        action: in words.
        variance: of a channel after it with the residual branches open (their gains
            one), averaged over channels; None where there is no such layer any more or
            nothing was found out.
        variance_at_start: the same with the gains that the model starts with.
        error: with `trained=True`, by how much what it gives differs from what the
            original would, given the same, over the deviation of that in a channel;
            zero if by rounding alone.

    Example:

    >>> Step("conv1", "Conv2D", "scale 1.02", 1.0, 1.0).action
    'scale 1.02'
    """

    layer: str
    kind: str
    action: str
    variance: float | None = None
    variance_at_start: float | None = None
    error: float | None = None


class Conversion:
    """What `normalizer_free` has done, layer by layer: print it.

    Attributes:
        steps: list of `Step`.
        error: with `trained=True`, how far the outputs for the images are from the
            original's, over the deviation of these; else None.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 3)),
    ...     keras.layers.Conv2D(4, 3, name="conv"),
    ...     keras.layers.BatchNormalization(name="norm"),
    ...     keras.layers.GlobalAveragePooling2D(),
    ...     keras.layers.Dense(2, name="predictions"),
    ... ])
    >>> conversion = keras_nfnets.normalizer_free(model).conversion
    >>> {step.layer: step.action for step in conversion.steps}["norm"]
    'removed: the variance before it is one'
    """

    def __init__(self, steps, error=None):
        self.steps, self.error = steps, error

    @property
    def variances(self):
        """`{layer: Step}` of those after which a variance is to be expected."""
        return {step.layer: step for step in self.steps if step.variance is not None}

    def __str__(self):
        heads = ["layer", "kind", "variance", "at start", "what was done"]
        rows = [
            [
                *(step.layer, step.kind),
                *map(_written, (step.variance, step.variance_at_start)),
                step.action,
            ]
            for step in self.steps
        ]
        if self.error is not None:  # (and the two variances are the same)
            heads[3] = "error"
            for step, row in zip(self.steps, rows):
                row[3] = f"{step.error:.2g}" if step.error else "exact"
            end = ["outputs", "", "", f"{self.error:.2g}", "from the original's"]
            rows.append(end)
        rows = [heads, *rows]
        widths = [max(map(len, column)) for column in list(zip(*rows))[:-1]]
        aligned = [str.ljust, str.ljust, str.rjust, str.rjust]
        return "\n".join(
            "  ".join([*(f(x, n) for f, x, n in zip(aligned, row, widths)), row[-1]])
            for row in rows
        )


def _written(number):
    return "" if number is None else f"{number:.2f}"


def _hides(layer):
    """The normalization, convolution or dense layer inside of a layer, if any."""
    if isinstance(layer, keras.layers.Layer):
        for inner in keras_internals.layers_of(layer, include_self=False):
            if isinstance(inner, (*NORMALIZATIONS, *WEIGHTED)):
                return inner
    return None


def _is_own_and_hides(operation):
    module = type(operation).__module__.split(".")[0]
    return module not in ("keras", "keras_nfnets") and _hides(operation) is not None


def _is_depthwise(layer, kernel):
    """Whether each unit sees one channel of several, by a kernel or by its groups.

    Of the nine weights or so that it has the mean is much of what they can learn.
    """
    if getattr(layer, "groups", 1) > 1:
        return layer.kernel.shape[-2] == 1
    return kernel.is_depthwise


# Samples: what the constants are found by.


def _samples(graph, images):
    """`{value: array}` of the graph's inputs."""
    values = keras.tree.flatten(graph.inputs)
    if images is None:
        return {value: _noise(value, graph) for value in values}
    arrays = keras.tree.flatten(images)
    if len(arrays) != len(values):
        raise ValueError(
            f"`images` must be what the model takes: {len(values)} tensors. "
            f"Received: {len(arrays)}"
        )
    for value, array in zip(values, arrays):
        shape, expected = tuple(ops.shape(array)), value.shape
        fits = len(shape) == len(expected) and all(
            b in (None, a) for a, b in zip(shape[1:], expected[1:])
        )
        if not fits or not shape[0]:
            raise ValueError(
                f"`images` must be a batch of what the model takes, {expected} with "
                f"at least one in it. Received: shape {shape}"
            )
    return {
        value: ops.convert_to_tensor(array, dtype=value.spec.dtype)
        for value, array in zip(values, arrays)
    }


def _noise(value, graph):
    if not keras.backend.is_float_dtype(value.spec.dtype):
        raise ValueError(
            f"The input {value.spec.name!r} is of dtype {value.spec.dtype}, for which "
            "there is no noise: pass `images`, some of what the model takes."
        )
    size = _OPEN_SIZES.get(len(value.shape), 1)
    shape = [size if n is None else n for n in value.shape[1:]]
    # Small ones are cheap, and have fewer positions to take a variance over.
    count = 8 * 224 * 224 // np.prod(shape[:-1], dtype=int)
    shape = (int(np.clip(count, 8, 64)), *shape)
    generator = np.random.default_rng(0)
    rescaling = (keras.layers.Rescaling, keras.layers.Normalization)
    if any(isinstance(c.operation, rescaling) for c in graph.consumers[value]):
        noise = generator.uniform(0, 255, shape)
    else:
        noise = generator.standard_normal(shape)
    return ops.convert_to_tensor(noise.astype("float32"), dtype=value.spec.dtype)


class _Signal(typing.NamedTuple):
    """A value of the graph in the new network.

    Attributes:
        tensor: symbolic.
        samples: what it is for the images: with residual branches open, and at start.
        is_unit: whether its variance was made one.
        shortcut: of a sum, the samples of an identity shortcut in it.
    """

    tensor: keras.KerasTensor
    samples: tuple
    is_unit: bool = False
    shortcut: tuple | None = None


class _Converter:
    """Makes the new network call by call.

    Attributes:
        steps: what was done.
    """

    def __init__(self, graph, alpha, skip_gain_initializer):
        self._graph, self._roles = graph, Roles(graph)
        self._alpha = alpha
        self._initializer = skip_gain_initializer
        self._signals = {}  # of values that are still to be used
        self._made = {}  # id of a layer: what was made of it, if called again
        self._gains = {}  # of activations
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
            self._signals[value] = _Signal(inputs[value], (sample, sample))
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
        if is_normalization(call):
            self._normalization(call)
        elif is_weighted(call) and reason is None:
            self._weighted(call)
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
            self._keep(call, reason or "not of a kind that is changed")

    def _is_activation(self, call):
        operation = call.operation
        function = activation_of(operation)
        return (
            function not in (None, keras.activations.linear, keras.activations.softmax)
            and len(call.inputs) == 1
            and not getattr(operation, "weights", ())
        )

    # What becomes of each kind of call.

    def _layer_scale(self, call):
        self._signals[call.outputs[0]] = self._signals[call.inputs[0]]
        self._note(call, "removed: the gain of the branch is there for it")

    def _normalization(self, call):
        layer, signal = call.operation, self._signals[call.inputs[0]]
        output = call.outputs[0]
        if signal.is_unit:
            self._signals[output] = signal
            self._note(call, "removed: the variance before it is one")
            return
        signal = signal._replace(shortcut=None)
        variance = self._seen_by(layer, signal.samples[0])
        self._check(call.operation.name, variance)
        shifted = self._mean_square(signal.samples[0]) > _SHIFTED * variance
        if abs(variance - 1) < _NEAR and not shifted:
            self._signals[output] = signal
            self._note(call, f"removed: the variance before it is {variance:.2f}")
            return
        offset, centred = 0.0, ""
        if shifted:
            offset = self._mean(signal.samples[0]) * -(variance**-0.5)
            centred = ", and one against the mean of each channel"
        signal = self._rescaled(signal, variance**-0.5, layer.name, offset)
        self._signals[output] = signal
        # (The variance of a mean over positions depends on what is in the images.)
        pooled = output in self._roles.pooled
        how = f"a constant, {variance**-0.5:.3g}{centred}"
        self._note(call, how, None if pooled else signal)

    def _seen_by(self, layer, sample):
        """The variance by which a normalization would divide."""
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

    def _weighted(self, call):
        old, signal = call.operation, self._signals[call.inputs[0]]
        new = self._made.get(id(old))
        first = new is None
        if first:
            new = self._made[id(old)] = self._standardized(old, signal.tensor)
            if new is None:
                del self._made[id(old)]
                self._keep(call, "one weight a unit: nothing to standardize")
                return
            how = self._calibrate(new, signal.samples[0])
        else:
            how = "as before"
        signal = self._applied(new, signal)._replace(is_unit=first)
        self._note(call, f"{type(new).__name__}, {how}", signal, new.name)
        if old.activation is not keras.activations.linear:
            function = old.activation
            name = f"{new.name}_{getattr(function, '__name__', 'activation')}"
            signal, how = self._activated(function, signal, self._name(name))
            self._note(call, f"its activation, {how}", signal, name)
        self._signals[call.outputs[0]] = signal

    def _calibrate(self, layer, sample):
        """Gives a standardized layer the scale with which its variance is one.

        And the bias that takes away a considerable mean, as normalization would have.
        """
        outputs = self._at(layer, sample)
        variance = self._variance(outputs)
        self._check(layer.name, variance)
        layer.scale = variance**-0.5
        how = f"scale {layer.scale:.3g}"
        if self._mean_square(outputs) > _SHIFTED * variance:
            layer.bias.assign(-layer.scale * self._mean(outputs))
            how += ", bias against the mean"
        if not layer.center:
            # (Filters that have no mean yet give the same.)
            layer.input_mean = float(ops.mean(ops.cast(sample, "float32")))
            how += f", input mean {layer.input_mean:.3g}"
        return how

    def _counterpart(self, old):
        """The class of what stands for a layer."""
        if type(old) not in _STANDARDIZED:
            raise ValueError(
                f"There is no layer with standardized weights in place of {old.name!r}, "
                f"a {type(old).__name__}: normalizer_free knows "
                f"{', '.join(cls.__name__ for cls in _STANDARDIZED)}, themselves, not "
                "classes derived from them."
            )
        return _STANDARDIZED[type(old)]

    def _config(self, old):
        """That of a layer, without what was done to its weights later."""
        return {
            key: value
            for key, value in old.get_config().items()
            if not key.startswith(("lora", "quantization"))
        }

    def _standardized(self, old, x):
        """The counterpart of a layer, built; None if it has one weight a unit."""
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
            # Of weights that are all the same, as zeros, nothing would be left.
            for kernel in new.KERNELS:
                del config[kernel.initializer]
            new = type(new).from_config(config)
            new.build(x.shape)
        if not new.center:
            # They start without one: else how images differ in contrast would grow from
            # layer to layer.
            kernel = getattr(new, new.KERNELS[0].name)
            positions = tuple(range(len(kernel.shape) - 2))
            kernel.assign(kernel - ops.mean(kernel, positions, keepdims=True))
        return new

    def _activation(self, call):
        value = call.inputs[0]
        signal = self._signals[value]
        function = activation_of(call.operation)
        name = self._name(call.operation.name)
        if signal.shortcut is not None and len(self._graph.consumers[value]) == 1:
            # What it gives is the next block's shortcut: at the start it is to leave
            # the variance of that as it is.
            gain = self._keeping(function, signal.shortcut[0])
            signal = self._scaled_activation(function, gain, signal, name)
            how = f"gain {gain:.3g}, which keeps the variance of the shortcut"
        else:
            signal, how = self._activated(function, signal, name)
        self._signals[call.outputs[0]] = signal
        self._note(call, how, signal, name)

    def _activated(self, function, signal, name):
        """An activation of what is first brought to a variance of one, and its gain."""
        variance = self._variance(signal.samples[0])
        self._check(name, variance)
        if not signal.is_unit and abs(variance - 1) >= _NEAR:
            signal = self._rescaled(signal, variance**-0.5, self._name(f"{name}_beta"))
        if self._mean_square(signal.samples[0]) > _SHIFTED:  # of the variance, one
            # Rectified before, as in a pre-activation network's first block.
            gain = self._keeping(function, signal.samples[0])
            how = f"gain {gain:.3g}, of what has a mean already"
        else:
            # (That of a function without a published one takes half a second.)
            if function not in self._gains:
                self._gains[function] = activation_gain(published_name(function))
            gain = self._gains[function]
            how = f"gain {gain:.3g}"
        return self._scaled_activation(function, gain, signal, name), how

    def _keeping(self, function, sample):
        """The gain with which a function leaves the variance of a sample as it is."""
        after = self._variance(self._at(function, sample))
        self._check(getattr(function, "__name__", "activation"), after)
        return (self._variance(sample) / after) ** 0.5

    def _scaled_activation(self, function, gain, signal, name):
        layer = ScaledActivation(published_name(function), gain=gain, name=name)
        return self._applied(layer, signal)

    def _ways(self, call, residual):
        """The signal of the branch, if several summed, and of the shortcut; a name."""
        signals = [self._signals[value] for value in call.inputs]
        shortcut = signals.pop(residual.shortcut)
        name = self._name(call.operation.name)
        branch = signals[0]
        if len(signals) > 1:
            add = keras.layers.Add(name=self._name(f"{name}_branches"))
            branch = self._applied(add, *signals)
        return branch, shortcut, name

    def _residual(self, call, residual):
        branch, shortcut, name = self._ways(call, residual)
        variance = self._variance(branch.samples[0])
        self._check(call.operation.name, variance)
        gain = SkipGain(
            self._alpha * variance**-0.5,
            self._initializer,
            name=self._name(f"{name}_skip_gain"),
        )
        tensor = gain(branch.tensor)
        start = float(ops.convert_to_numpy(gain.skip_gain))
        scaled = _Signal(
            tensor,
            tuple(x * (gain.alpha * g) for x, g in zip(branch.samples, (1.0, start))),
        )
        signal = self._applied(keras.layers.Add(name=name), scaled, shortcut)
        if residual.is_identity:
            signal = signal._replace(shortcut=shortcut.samples)
        self._signals[call.outputs[0]] = signal
        expected = [
            self._variance(x) + (self._alpha * g) ** 2
            for x, g in zip(shortcut.samples, (1.0, start))
        ]
        self._note(
            call,
            f"residual: alpha {self._alpha:.3g} over a deviation of "
            f"{variance**0.5:.3g}, skip gain {start:.3g}",
            signal,
            name,
            expected,
        )

    def _merge(self, call):
        signals = [self._signals[value] for value in call.inputs]
        name = self._name(call.operation.name)
        signal = self._applied(keras.layers.Add(name=name), *signals)
        variance = self._variance(signal.samples[0])
        self._check(call.operation.name, variance)
        name = self._name(f"{name}_scaled")
        signal = self._rescaled(signal, variance**-0.5, name)
        how = f"a sum of {len(signals)}, none a shortcut, times {variance**-0.5:.3g}"
        self._note(call, how, signal, name)
        self._signals[call.outputs[0]] = signal

    def _concatenation(self, call):
        parts, scaled = dict(self._signals), []
        for i, value in enumerate(call.inputs):
            variance = self._variance(parts[value].samples[0])
            self._check(call.operation.name, variance)
            if not 0.8 < variance < 1.25:
                name = self._name(f"{call.operation.name}_part{i}")
                parts[value] = self._rescaled(parts[value], variance**-0.5, name)
                scaled.append(f"{variance**-0.5:.3g}")
        how = ", its parts scaled by " + ", ".join(scaled) if scaled else ""
        self._keep(call, f"a concatenation{how}", parts)

    def _keep(self, call, reason, signals=None):
        """Calls what the call calls, on `signals` (of each value) if these differ."""
        signals = self._signals if signals is None else signals
        operation = call.operation
        hidden = _hides(operation)
        if hidden is not None and not isinstance(operation, WeightStandardized):
            raise ValueError(
                f"normalizer_free cannot see into {operation.name!r}, a "
                f"{type(operation).__name__}, which hides {hidden.name!r}, a "
                f"{type(hidden).__name__}: call that by itself instead."
            )
        new = self._made.get(id(operation))
        if new is None:
            new = operation
            if isinstance(operation, keras.layers.Layer):
                config = {**operation.get_config(), "name": self._name(operation.name)}
                new = type(operation).from_config(config)
            self._made[id(operation)] = new
        fresh = isinstance(new, keras.layers.Layer) and not new.built

        def outputs(of):
            args, kwargs = keras.tree.map_structure(
                lambda x: of(signals[x]) if isinstance(x, Value) else x,
                (call.args, call.kwargs),
            )
            return keras.tree.flatten(new(*args, **kwargs))

        tensors = outputs(lambda signal: signal.tensor)
        if isinstance(new, keras.layers.Layer) and operation.weights and fresh:
            copy_state(operation, new)
        samples = [outputs(lambda signal, i=i: signal.samples[i]) for i in range(2)]
        for value, tensor, *both in zip(call.outputs, tensors, *samples):
            self._signals[value] = _Signal(tensor, tuple(both))
        self._note(call, f"left alone: {reason}")

    # Tools.

    def _at(self, layer, *samples):
        return ops.stop_gradient(layer(samples if len(samples) > 1 else samples[0]))

    def _applied(self, layer, *signals):
        tensors = [signal.tensor for signal in signals]
        return _Signal(
            layer(tensors if len(tensors) > 1 else tensors[0]),
            tuple(
                self._at(layer, *samples)
                for samples in zip(*(signal.samples for signal in signals))
            ),
        )

    def _rescaled(self, signal, factor, name, offset=0.0):
        dtype = keras.backend.standardize_dtype(signal.tensor.dtype)
        if not isinstance(offset, float):  # of channels
            rank = len(signal.tensor.shape)
            behind = rank - 2 if self._channels_first else 0
            offset = ops.convert_to_numpy(offset).reshape(-1, *[1] * behind).tolist()
        layer = keras.layers.Rescaling(factor, offset, dtype=dtype, name=name)
        self._names.add(name)
        return self._applied(layer, signal)

    def _variance(self, x):
        """Of a channel, averaged over channels."""
        variance = ops.mean(ops.var(ops.cast(x, "float32"), axis=self._positions(x)))
        return float(variance) + self._error_of_mean(x)

    def _mean_square(self, x):
        """The squared mean of a channel, averaged over channels."""
        return float(ops.mean(ops.square(self._mean(x)))) - self._error_of_mean(x)

    def _error_of_mean(self, x):
        """The expected squared error of a channel's mean, averaged over channels.

        By so much the mean of few images is nearer to them, and further from zero, than
        that of all would be. Images are independent of each other; positions in one
        are not.
        """
        positions = tuple(self._positions(x)[1:])
        of_images = ops.mean(ops.cast(x, "float32"), axis=positions)
        variance = ops.mean(ops.var(of_images, axis=0))
        return float(variance) / max(len(x) - 1, 1)

    def _mean(self, x):
        """Of each channel."""
        return ops.mean(ops.cast(x, "float32"), axis=self._positions(x))

    def _positions(self, x):
        """All axes but that of the channels."""
        rank = len(x.shape)
        return [axis for axis in range(rank) if axis != self._channel_axis(rank)]

    def _channel_axis(self, rank):
        return 1 if self._channels_first and rank > 2 else rank - 1

    def _check(self, name, variance):
        if not (np.isfinite(variance) and variance > 1e-12):
            raise ValueError(
                f"The signal ends at {name!r}: of the images it sees, the variance there "
                f"is {variance:g}. Pass `images` that are not constant, of a size at "
                "which something is left there, and finite."
            )

    def _name(self, name):
        """It, or one like it if there is a layer of that name."""
        count, unique = 0, name
        while unique in self._names:
            count += 1
            unique = f"{name}_{count}"
        self._names.add(unique)
        return unique

    def _note(self, call, action, signal=None, name=None, variances=()):
        """Takes down what was done, and what variance is after it, if `signal` is given."""
        if signal is not None and not variances:
            variances = [self._variance(x) for x in signal.samples]
        kind = keras_internals.kind_of(call.operation)
        name = name or call.operation.name
        self.steps.append(Step(name, kind, action, *variances))


class _TrainedConverter(TrainedStart, _Converter):
    """Of batch-normalized networks that keeps what they have learned."""
