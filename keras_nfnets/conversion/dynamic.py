"""Conversion of normalization layers to dynamic functions; all other layers stay."""

import keras
import numpy as np
import scipy.optimize
from keras import ops

from keras_nfnets.conversion.comparing import (
    ComparingConverter,
    channels_last,
    per_channel_fit,
)
from keras_nfnets.conversion.roles import NORMALIZATIONS
from keras_nfnets.layers import DynamicErf, DynamicTanh

# Values of the argument `normalization` of `normalizer_free`.
DYNAMIC = {"dynamic_tanh": DynamicTanh, "dynamic_erf": DynamicErf}

# The start of alpha for inputs with a root mean square of one, as in arXiv 2503.10622.
_ALPHA = 0.5


class DynamicConverter(ComparingConverter):
    """Converter that replaces normalization by `DynamicTanh` or `DynamicErf`.

    Args:
        graph: `Graph` of the model to convert.
        cls: `DynamicTanh` or `DynamicErf`.
        trained: bool. Whether the layers are fitted to the outputs of a trained model's
            normalization. Otherwise they get the variance of its outputs.
    """

    converted = NORMALIZATIONS

    def __init__(self, graph, cls, trained):
        super().__init__(graph)
        self._class, self._trained = cls, trained

    _weighted = ComparingConverter._unchanged

    def _residual(self, call, residual):
        self._unchanged(call)

    def _normalization(self, call):
        old, signal = call.operation, self._signals[call.inputs[0]]
        new = self._made.get(id(old))
        how = "shared with an earlier call"
        if new is None:
            create = self._fitted if self._trained else self._calibrated
            new = self._made[id(old)] = create(old, signal)
            how = f"alpha {new.initial_alpha:.3g}"
        signal, error = self._replaced(old, new, signal)
        self._signals[call.outputs[0]] = signal
        self._note(call, f"{type(new).__name__}, {how}", signal, new.name, error)

    def _calibrated(self, old, signal):
        """Create the layer that replaces a normalization layer in a model to be trained.

        Its alpha is inversely proportional to the root mean square of its input. Its gamma
        is that of the normalization, times the factor that gives the function a variance of
        one, as the normalization defines it. Its beta is that of the normalization.
        """
        x = signal.samples[0]
        new = self._created(old, signal, _ALPHA / self._rms(old, x))
        weights = {weight.name: weight for weight in old.weights}
        gamma = weights.get("gamma", weights.get("scale"))
        if gamma is not None:
            new.gamma.assign(gamma)
        if "beta" in weights:
            new.beta.assign(weights["beta"])
        outputs = ops.stop_gradient(new.function(new.scaled(x)))
        variance = self._seen_by(old, outputs)
        self._check(old.name, variance)
        new.gamma.assign(new.gamma * variance**-0.5)
        return new

    def _fitted(self, old, signal):
        """Create the layer with the smallest mean squared error from a normalization."""
        x, original = signal.samples
        axis = _axis(self._class, old)
        target = channels_last(self._at(old, original), axis)

        def fit(log_alpha):
            outputs = self._class.function(float(np.exp(log_alpha)) * x)
            return per_channel_fit(channels_last(outputs, axis), target)

        # From nearly linear to nearly the sign.
        middle = -np.log(self._rms(old, x))
        found = scipy.optimize.minimize_scalar(
            lambda log_alpha: fit(log_alpha)[2],
            bounds=(middle - 5, middle + 3),
            method="bounded",
            options={"xatol": 0.01},
        )
        new = self._created(old, signal, float(np.exp(found.x)))
        gamma, beta, _ = fit(found.x)
        new.gamma.assign(gamma)
        new.beta.assign(beta)
        return new

    def _rms(self, old, x):
        rms = float(ops.sqrt(ops.mean(ops.square(ops.cast(x, "float32")))))
        self._check(old.name, rms**2)
        return rms

    def _created(self, old, signal, alpha):
        new = self._class(
            alpha,
            _axis(self._class, old),
            dtype=old.dtype_policy,
            name=self._name(old.name),
        )
        new.build(signal.tensor.shape)
        return new


def _axis(cls, old):
    """Return the axis of a normalization, which must be one."""
    axes = keras.tree.flatten(old.axis)
    if len(axes) != 1:
        raise ValueError(
            f"{cls.__name__} has one gamma and beta per channel, so it cannot replace "
            f"normalization over several axes. Received: {old.name!r}, a "
            f"{type(old).__name__} with axis={old.axis}"
        )
    return axes[0]
