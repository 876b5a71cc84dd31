"""Layers of normalizer-free networks."""

from keras_nfnets.layers.activations import (
    ScaledActivation,
    activation_gain,
    published_name,
)
from keras_nfnets.layers.attention import EfficientChannelAttention, SqueezeExcite
from keras_nfnets.layers.block import NFBlock
from keras_nfnets.layers.conventions import CONVENTIONS, Convention, convention
from keras_nfnets.layers.convolution import (
    WSConv1D,
    WSConv2D,
    WSConv2DTranspose,
    WSConv3D,
    WSDepthwiseConv2D,
    WSSeparableConv2D,
)
from keras_nfnets.layers.dense import WSDense
from keras_nfnets.layers.dropout import Dropout
from keras_nfnets.layers.dynamic import DynamicErf, DynamicTanh
from keras_nfnets.layers.pooling import SymmetricMaxPooling2D
from keras_nfnets.layers.skip_gain import SkipGain
from keras_nfnets.layers.standardization import WeightStandardized
from keras_nfnets.layers.stochastic_depth import StochasticDepth

__all__ = [
    "CONVENTIONS",
    "Convention",
    "Dropout",
    "DynamicErf",
    "DynamicTanh",
    "EfficientChannelAttention",
    "NFBlock",
    "ScaledActivation",
    "SkipGain",
    "SqueezeExcite",
    "StochasticDepth",
    "SymmetricMaxPooling2D",
    "WSConv1D",
    "WSConv2D",
    "WSConv2DTranspose",
    "WSConv3D",
    "WSDense",
    "WSDepthwiseConv2D",
    "WSSeparableConv2D",
    "WeightStandardized",
    "activation_gain",
    "convention",
    "published_name",
]
