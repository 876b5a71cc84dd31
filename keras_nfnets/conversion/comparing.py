"""Base class of the conversions that compare the new model with the original."""

import keras
import numpy as np
from keras import ops

from keras_nfnets.conversion.converter import Converter, Signal

# Relative errors below this are due to rounding.
ROUNDING = 1e-5


def relative_error(values, references):
    """Compute the error of values, relative to the channels' standard deviation.

    This is the root mean square of the differences over the root mean square of the
    standard deviations of the references' channels.

    Args:
        values, references: arrays `(batch, ..., channels)`.
    """
    values, references = (np.asarray(x, "float64") for x in (values, references))
    difference = np.sqrt(np.mean(np.square(values - references)))
    axes = tuple(range(references.ndim - 1))
    deviation = np.sqrt(np.mean(np.var(references, axis=axes)))
    return float(difference / (deviation or 1.0))


def per_channel_fit(x, y):
    """Fit `y` by a multiple of `x` plus an offset in each channel, by least squares.

    Args:
        x, y: arrays `(batch, ..., channels)`.

    Returns:
        Factors and offsets, float64 `(channels,)`, and the mean squared error.
    """
    x, y = (np.float64(z).reshape(-1, z.shape[-1]) for z in (x, y))
    mean, target = x.mean(axis=0), y.mean(axis=0)
    variance = x.var(axis=0)
    # A channel that is constant explains nothing of the others.
    factor = np.mean((x - mean) * (y - target), axis=0) / np.where(
        variance, variance, 1
    )
    error = np.mean(y.var(axis=0) - factor**2 * variance)
    return factor, target - factor * mean, error


def channels_last(x, axis):
    """Return a tensor as a float32 array with its axis of channels last."""
    return np.moveaxis(ops.convert_to_numpy(ops.cast(x, "float32")), axis, -1)


class ComparingConverter(Converter):
    """Converter whose samples of a signal are its values in the new model and the original."""

    def error(self):
        """Return the largest relative error of the outputs on the samples."""
        signals = map(self._signals.get, keras.tree.flatten(self._graph.outputs))
        return max(
            relative_error(*map(self._channels_last, signal.samples))
            for signal in signals
        )

    def _unchanged(self, call):
        self._keep(call, "needs no conversion")

    _activation = _merge = _concatenation = _layer_scale = _unchanged

    def _channels_last(self, x):
        return channels_last(x, self._channel_axis(len(x.shape)))

    def _replaced(self, old, new, signal):
        """Return the signal after a new layer, and its error for the same input."""
        before, original = signal.samples
        after = self._at(new, before)
        pair = after, self._at(old, before)
        error = relative_error(*map(self._channels_last, pair))
        return Signal(new(signal.tensor), (after, self._at(old, original))), error

    def _note(self, call, action, signal=None, name=None, error=0.0):
        if signal is not None:  # both variances are those of the new network
            signal = signal._replace(samples=signal.samples[:1] * 2)
        super()._note(call, action, signal, name)
        error = error if error > ROUNDING else 0.0
        self.steps[-1] = self.steps[-1]._replace(error=error)
