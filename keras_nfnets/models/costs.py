"""What a network costs: parameters and floating point operations."""

import csv
import math
import pathlib

import keras

from keras_nfnets import pretrained
from keras_nfnets.layers import NFBlock, WSConv2D
from keras_nfnets.models import nf_regnet, nf_resnet, nfnet

# Of each output pixel all of the kernels is used once.
_CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)
# Of each input pixel.
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)


def variants():
    """`{name: variant}` of every network of the zoo, smallest family first."""
    return {**nf_resnet.VARIANTS, **nf_regnet.VARIANTS, **nfnet.VARIANTS}


# Parameters and multiply-adds of every network, so that nobody has to build 45 of them to
# see these; `python -m keras_nfnets.models.costs` writes it anew.
_COSTS = pathlib.Path(__file__).parent / "costs.csv"


def costs():
    """Parameters and FLOPs of every network of the zoo.

    Returns:
        `{name: (parameters, flops)}`, two ints, with the classes it has by default and
        at its test size; see `count_flops`.
    """
    with open(_COSTS, newline="") as file:
        return {
            row["network"]: (int(row["parameters"]), int(row["flops"]))
            for row in csv.DictReader(file)
        }


def count_costs(name):
    """The entry of a network in `costs`, counted by building the network."""
    families = (nf_resnet, nf_regnet, nfnet)
    [family] = [family for family in families if name in family.VARIANTS]
    size = family.VARIANTS[name].test_size
    with pretrained.without_memory():
        model = getattr(family, name)(input_shape=(size, size, 3))
        return model.count_params(), count_flops(model)


def count_flops(model):
    """Multiply-adds of one picture through a network built for one input size.

    Counted as the authors count NFNets (`count_flops` in their nfnet.py), that is
    convolutions and dense layers; biases, activations and pooling are left out. The
    model may be any functional one, such as those of `keras.applications`.
    """
    flops = 0
    for layer in model.layers:
        if isinstance(layer, NFBlock):
            before, after = (_positions(t, layer) for t in (layer.input, layer.output))
            flops += layer.count_flops(before, after)
        elif isinstance(layer, _CONVOLUTIONS):
            flops += _positions(layer.output, layer) * _kernel_size(layer)
        elif isinstance(layer, _TRANSPOSED):
            flops += _positions(layer.input, layer) * _kernel_size(layer)
        elif isinstance(layer, keras.layers.Dense):
            flops += math.prod(layer.output.shape[1:-1]) * _kernel_size(layer)
    return flops


def count_activations(model):
    """Numbers that training keeps of one picture, for a model built for one input size.

    Those are what convolutions and blocks give; what activations make of them is
    computed again.
    """
    count = 0
    for layer in model.layers:
        if isinstance(layer, NFBlock):
            before, after = (_positions(t, layer) for t in (layer.input, layer.output))
            count += layer.count_activations(before, after)
        elif isinstance(layer, WSConv2D):
            count += layer.filters * _positions(layer.output, layer)
    return count


def _kernel_size(layer):
    kernels = [v for v in layer.weights if v.name.endswith("kernel")]
    return sum(math.prod(kernel.shape) for kernel in kernels)


def _positions(tensor, layer):
    channels_last = layer.data_format == "channels_last"
    return math.prod(tensor.shape[1:-1] if channels_last else tensor.shape[2:])


if __name__ == "__main__":
    with open(_COSTS, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["network", "parameters", "flops"])
        for network in variants():
            writer.writerow([network, *count_costs(network)])
