"""What a network costs: parameters and floating point operations."""

import math

import keras

from keras_nfnets.layers import NFBlock, WSConv2D
from keras_nfnets.models import nf_regnet, nf_resnet, nfnet


def variants():
    """`{name: variant}` of every network of the zoo, smallest family first."""
    return {**nf_resnet.VARIANTS, **nf_regnet.VARIANTS, **nfnet.VARIANTS}


def count_flops(model):
    """Multiply-adds of one picture through a network built for one input size.

    Counted as the authors count NFNets (`count_flops` in their nfnet.py), that is
    convolutions and dense layers; biases, activations and pooling are left out.
    """
    flops = 0
    for layer in model.layers:
        if isinstance(layer, NFBlock):
            before, after = (_positions(t, layer) for t in (layer.input, layer.output))
            flops += layer.count_flops(before, after)
        elif isinstance(layer, WSConv2D):
            flops += layer.count_flops(_positions(layer.output, layer))
        elif isinstance(layer, keras.layers.Dense):
            flops += math.prod(layer.kernel.shape)
    return flops


def _positions(tensor, layer):
    channels_last = layer.data_format == "channels_last"
    return math.prod(tensor.shape[1:3] if channels_last else tensor.shape[2:])
