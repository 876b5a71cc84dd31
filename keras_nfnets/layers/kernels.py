"""Convolutions and dense layers by class: their standardized versions and kernels."""

import keras

from keras_nfnets.layers.convolution import (
    WSConv1D,
    WSConv2D,
    WSConv2DTranspose,
    WSConv3D,
    WSDepthwiseConv2D,
    WSSeparableConv2D,
)
from keras_nfnets.layers.dense import WSDense

# Layers with standardized kernels, by the class of the Keras layer.
STANDARDIZED = {
    cls.keras_class(): cls
    for cls in (
        WSConv1D,
        WSConv2D,
        WSConv2DTranspose,
        WSConv3D,
        WSDense,
        WSDepthwiseConv2D,
        WSSeparableConv2D,
    )
}
# Layers with several dense layers inside, whose kernels are not standardized.
ATTENTION = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
# Kernels of all convolutions and dense layers. A class without a standardized version
# has the kernels of its sibling with another number of axes.
KERNELS = {
    **{cls: standardized.KERNELS for cls, standardized in STANDARDIZED.items()},
    keras.layers.Conv1DTranspose: WSConv2DTranspose.KERNELS,
    keras.layers.Conv3DTranspose: WSConv2DTranspose.KERNELS,
    keras.layers.DepthwiseConv1D: WSDepthwiseConv2D.KERNELS,
    keras.layers.SeparableConv1D: WSSeparableConv2D.KERNELS,
}


def kernels_of(layer):
    """Return the `Kernel`s of a convolution or dense layer, `()` for other operations."""
    return next((KERNELS[cls] for cls in KERNELS if isinstance(layer, cls)), ())
