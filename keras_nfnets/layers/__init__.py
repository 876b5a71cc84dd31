"""What a normalizer-free network is made of."""

from keras_nfnets.layers.activations import ScaledActivation, activation_gain
from keras_nfnets.layers.attention import SqueezeExcite
from keras_nfnets.layers.block import NFBlock
from keras_nfnets.layers.convolution import WSConv2D
from keras_nfnets.layers.stochastic_depth import StochasticDepth

__all__ = [
    "NFBlock",
    "ScaledActivation",
    "SqueezeExcite",
    "StochasticDepth",
    "WSConv2D",
    "activation_gain",
]
