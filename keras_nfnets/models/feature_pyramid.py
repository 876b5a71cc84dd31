"""Intermediate feature maps of a network, for detection and segmentation."""

import re
import typing

import keras

from keras_nfnets.backend import graph, keras_internals
from keras_nfnets.layers.endpoint import Endpoint


def feature_pyramid(model):
    """Create a model that outputs the last feature map of each resolution.

    Args:
        model: `keras.Model`. A network of this package, with or without top, or what
            `fold` makes of it.

    Returns:
        A `keras.Model` that shares the layers and weights. It maps images to a dict of
        float tensors `(batch, height / stride, width / stride, channels)`, with sizes
        rounded up, or channels first if Keras is set so. The keys are `"stride2"`,
        `"stride4"` and so on, up to `"stride32"` for networks with four stages, or up to
        their `output_stride`. The feature maps are taken before the activation.

    Raises:
        ValueError: the model is not a network of this package.

    Example:

    >>> model = keras_nfnets.NFNetTiny(include_top=False, input_shape=(64, 96, 3))
    >>> for name, output in feature_pyramid(model).output.items():
    ...     print(name, output.shape)
    stride2 (None, 32, 48, 64)
    stride4 (None, 16, 24, 32)
    stride8 (None, 8, 12, 64)
    stride16 (None, 4, 6, 96)
    stride32 (None, 2, 3, 96)
    """
    outputs = {f"stride{stride}": x for stride, x in feature_maps(model).items()}
    return keras.Model(model.input, outputs)


class Feature(typing.NamedTuple):
    """Last feature map of a resolution: its layer, its stride and its channels."""

    name: str
    stride: int
    channels: int


def features(model):
    """Return a list of `Feature`s of a network, see `Network.features`."""
    axis = -1 if keras.config.image_data_format() == "channels_last" else 1
    layers = layers_of_network(model)
    return [
        Feature(name, stride, layers[name].output.shape[axis])
        for stride, name in _names_by_stride(model, layers).items()
    ]


def feature_maps(model):
    """Return the last feature map of each resolution, see `feature_pyramid`.

    Returns:
        A dict from strides (ints: sizes of the images divided by those of the feature
        map) to symbolic tensors, finest resolution first.
    """
    layers = layers_of_network(model)
    names = _names_by_stride(model, layers)
    return {stride: layers[name].output for stride, name in names.items()}


def layers_of_network(model, *more):
    """Return the layers of a network by name, in order.

    Args:
        model: `keras.Model`.
        *more: str. Names of endpoints that are required besides `"stem"` and `"stage1"`.

    Raises:
        ValueError: the model is not a network of this package, or has no such endpoint.
    """
    layers = {layer.name: layer for layer in model.layers}
    needed = ["stem", "stage1", *more]
    if not set(needed) <= layers.keys():
        raise ValueError(
            "The model must be a network of this package, with the layers "
            f"{', '.join(needed)}. Received: a model of layers {list(layers)}"
        )
    return layers


def _names_by_stride(model, layers):
    """Return `{stride: name of the layer of the last feature map}`."""
    if not isinstance(layers["stem"], Endpoint):
        return _measured(model, layers)
    names = {}
    for layer in layers.values():
        if isinstance(layer, Endpoint):
            if layer.half is not None:
                names[layer.stride // 2] = layer.half
            names[layer.stride] = layer.name
    return names


def _measured(model, layers):
    """Return the result of `_names_by_stride` for models that do not record strides.

    Folded networks consist of plain Keras layers, and files of earlier versions have no
    record. Strides are measured in the graph. Endpoints are known by their
    names; in the stem, feature maps are taken before activations, after convolutions.
    """
    known = [name for name in layers if re.fullmatch(r"stem(_conv\d*)?|stage\d+", name)]
    strides = _strides(model)
    # Layers before the network do not count, as where strides are recorded.
    before = strides[known[0]] // getattr(layers[known[0]], "strides", (1,))[0]
    return {strides[name] // before: name for name in known}


def _strides(model):
    """Return `{name: stride}` of the operations of a model, in the order of its calls."""
    strides, reached = {}, {}
    for call in graph.Graph(model, opens=lambda operation: False).calls:
        operation = call.operation
        is_layer = isinstance(operation, keras.layers.Layer)
        layers = keras_internals.layers_of(operation) if is_layer else []
        own = keras.tree.flatten([getattr(layer, "strides", 1) for layer in layers])
        stride = max(own, default=1) * max(reached.get(x, 1) for x in call.inputs)
        reached |= dict.fromkeys(call.outputs, stride)
        strides[operation.name] = stride
    return strides


def intermediate_features(model, names):
    """Create a model that outputs the results of some layers.

    Args:
        model: `keras.Model`. A network of this package, what `fold` makes of it, or
            another functional or sequential model.
        names: list of str. Names of layers of the model, such as the endpoints `"stem"`,
            `"stage1"`, ..., `"features"`, the blocks `"stage1_block1"` or the convolution
            `"final_conv"`.

    Returns:
        A `keras.Model` that shares the layers and weights. It maps images to a dict from
        the names to tensors. Folded networks lack the layers that `fold` merges into
        others, such as activations. A remaining activation may lack a constant factor, which
        `fold` has moved into the weights of the next layer.

    Raises:
        ValueError: the model has no layer of a given name, or no graph.

    Example:

    >>> model = keras_nfnets.NFNetTiny(input_shape=(64, 64, 3))
    >>> features = intermediate_features(model, ["stage2_block1", "features"])
    >>> {name: tuple(x.shape) for name, x in features.output.items()}
    {'stage2_block1': (None, 8, 8, 64), 'features': (None, 2, 2, 192)}
    """
    if not graph.has_graph(model):
        raise ValueError(
            "intermediate_features needs a functional model, or a sequential one that is "
            f"built. Received: {model!r}"
        )
    outputs = graph.outputs_by_name(model)
    is_list = isinstance(names, (list, tuple)) and names
    if not is_list or not set(names) <= outputs.keys():
        raise ValueError(
            "`names` must be a list of names of layers of the model: "
            f"{list(outputs)}. Received: names={names!r}"
        )
    inputs, _ = graph.ends(model)
    return keras.Model(inputs, {name: outputs[name] for name in names})
