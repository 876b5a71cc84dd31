"""Conversion of normalization layers to dynamic functions; all other layers stay."""

import keras
from keras import ops

from keras_nfnets.conversion.converter import Converter
from keras_nfnets.layers import DynamicErf, DynamicTanh

# Values of the argument `normalization` of `normalizer_free`.
DYNAMIC = {"dynamic_tanh": DynamicTanh, "dynamic_erf": DynamicErf}

# The start of alpha for inputs with a root mean square of one, as in arXiv 2503.10622.
_ALPHA = 0.5


class DynamicConverter(Converter):
    """Converter that replaces normalization by `DynamicTanh` or `DynamicErf`.

    Both samples of a signal are its values in the new model.

    Args:
        graph: `Graph` of the model to convert.
        cls: `DynamicTanh` or `DynamicErf`.
    """

    def __init__(self, graph, cls):
        super().__init__(graph)
        self._class = cls

    def _unchanged(self, call):
        self._keep(call, "needs no conversion")

    _activation = _concatenation = _layer_scale = _merge = _weighted = _unchanged

    def _residual(self, call, residual):
        self._unchanged(call)

    def _normalization(self, call):
        old, signal = call.operation, self._signals[call.inputs[0]]
        new = self._made.get(id(old))
        how = "shared with an earlier call"
        if new is None:
            new = self._made[id(old)] = self._calibrated(old, signal)
            how = f"alpha {new.initial_alpha:.3g}"
        signal = self._applied(new, signal)
        self._signals[call.outputs[0]] = signal
        self._note(call, f"{type(new).__name__}, {how}", signal, new.name)

    def _calibrated(self, old, signal):
        """Create the layer that replaces a normalization layer.

        Its alpha is inversely proportional to the root mean square of its input. Its gamma
        is that of the normalization, times the factor that gives the output a variance of
        one, as the normalization defines it. Its beta is that of the normalization.
        """
        x = signal.samples[0]
        rms = float(ops.sqrt(ops.mean(ops.square(ops.cast(x, "float32")))))
        self._check(old.name, rms**2)
        new = self._class(
            _ALPHA / rms,
            self._axis_of_channels(old, len(x.shape)),
            dtype=old.dtype_policy,
            name=self._name(old.name),
        )
        new.build(signal.tensor.shape)
        weights = {weight.name: weight for weight in old.weights}
        gamma = weights.get("gamma", weights.get("scale"))
        if gamma is not None:
            new.gamma.assign(gamma)
        if "beta" in weights:
            new.beta.assign(weights["beta"])
        outputs = ops.stop_gradient(new.function(new.scaled(x)))
        variance = self._seen_by(old, outputs)
        new.gamma.assign(new.gamma * variance**-0.5)
        return new

    def _axis_of_channels(self, old, rank):
        axes = keras.tree.flatten(old.axis)
        if [axis % rank for axis in axes] != [self._channel_axis(rank)]:
            raise ValueError(
                f"{self._class.__name__} has one gamma and beta per channel, so it can "
                f"replace only normalization over the axis of channels. Received: {old.name!r}, "
                f"a {type(old).__name__} with axis={old.axis}"
            )
        return axes[0]
