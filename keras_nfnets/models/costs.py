"""Cost of a network: parameters, multiply-adds and activations."""

import csv
import math

from keras_nfnets import pretrained, tables
from keras_nfnets.layers import NFBlock, WSConv2D
from keras_nfnets.layers.kernels import kernels_of
from keras_nfnets.models.registered import FAMILIES
from keras_nfnets.pretrained.architectures import NETWORKS


def variants():
    """Return `{name: variant}` of all networks, family by family."""
    return {
        name: variant
        for family in FAMILIES
        for name, variant in family.VARIANTS.items()
    }


def costs():
    """Return the parameters and FLOPs of all networks.

    Returns:
        `{name: (parameters, flops)}`, two ints, for the default number of classes and
        the test image size; see `count_flops`.
    """
    return {
        name: (network.parameters, network.flops)
        for name, network in tables.networks().items()
    }


def timm_names(name):
    """Return the names in timm of one of our networks, a tuple of str."""
    return tuple(
        other
        for other, network in NETWORKS.items()
        if network.constructor.__name__ == name and other != name
    )


def count_costs(name):
    """Build a network to count its entry in `costs`."""
    [family] = [family for family in FAMILIES if name in family.VARIANTS]
    size = family.VARIANTS[name].test_size
    with pretrained.without_memory():
        model = getattr(family, name)(input_shape=(size, size, 3))
        return model.count_params(), count_flops(model)


def count_flops(model):
    """Count the multiply-adds per image of a model built for a fixed input size.

    Only convolutions and dense layers count, as in the authors' `count_flops` in
    nfnet.py; biases, activations and pooling do not. Any functional model is accepted,
    such as those of `keras.applications`.
    """
    flops = 0
    for layer in model.layers:
        if isinstance(layer, NFBlock):
            before, after = (_positions(t, layer) for t in (layer.input, layer.output))
            flops += layer.count_flops(before, after)
        elif kernels := kernels_of(layer):
            # Each weight is used once per output position, or input position.
            tensor = layer.input if kernels[0].is_transposed else layer.output
            flops += _positions(tensor, layer) * _kernel_size(layer)
    return flops


def count_activations(model):
    """Count the values per image that training saves for the backward pass.

    The model must be built for a fixed input size. The outputs of `WSConv2D`s and
    `NFBlock`s count; the outputs of activations do not, as they are rematerialized.
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
    channels_first = getattr(layer, "data_format", None) == "channels_first"
    return math.prod(tensor.shape[2:] if channels_first else tensor.shape[1:-1])


if __name__ == "__main__":
    with open(tables.NETWORKS, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(tables.Network._fields)
        for network, variant in variants().items():
            names = " ".join(timm_names(network))
            sizes = variant.train_size, variant.test_size
            writer.writerow([network, names, *count_costs(network), *sizes])
