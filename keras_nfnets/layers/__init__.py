"""What a normalizer-free network is made of."""

from keras_nfnets.layers.activations import ScaledActivation, activation_gain
from keras_nfnets.layers.attention import EfficientChannelAttention, SqueezeExcite
from keras_nfnets.layers.block import NFBlock
from keras_nfnets.layers.conventions import CONVENTIONS, Convention, convention
from keras_nfnets.layers.convolution import WSConv2D
from keras_nfnets.layers.dropout import Dropout
from keras_nfnets.layers.pooling import SymmetricMaxPooling2D
from keras_nfnets.layers.stochastic_depth import StochasticDepth

__all__ = [
    "CONVENTIONS",
    "Convention",
    "Dropout",
    "EfficientChannelAttention",
    "NFBlock",
    "ScaledActivation",
    "SqueezeExcite",
    "StochasticDepth",
    "SymmetricMaxPooling2D",
    "WSConv2D",
    "activation_gain",
    "convention",
]
