"""Conversion to normalizer-free models, and measurement of signal propagation."""

from keras_nfnets.conversion.normalizer_free import normalizer_free
from keras_nfnets.conversion.report import Conversion, Step
from keras_nfnets.conversion.signal_propagation import (
    SaturationLog,
    draw_signal_propagation,
    plot_signal_propagation,
    signal_propagation,
)

__all__ = [
    "Conversion",
    "SaturationLog",
    "Step",
    "draw_signal_propagation",
    "normalizer_free",
    "plot_signal_propagation",
    "signal_propagation",
]
