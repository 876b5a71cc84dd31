"""Intermediate feature maps of a network, for detection and segmentation."""

import itertools

import keras

from keras_nfnets.backend import graph, keras_internals


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


def feature_maps(model):
    """Return the last feature map of each resolution, see `feature_pyramid`.

    Returns:
        A dict from strides (ints: sizes of the images divided by those of the feature
        map) to symbolic tensors, finest resolution first.
    """
    layers = {layer.name: layer for layer in model.layers}
    if "stem" not in layers or "stage1" not in layers:
        raise ValueError(
            "feature_pyramid needs a network of this package. Received: a model of "
            f"layers {list(layers)}"
        )
    # The stem halves the resolution twice in NFNets and NF-ResNets, once in NF-RegNets.
    if "stem_conv3" in layers:
        half, stride = layers["stem_conv2"], 4
    elif "stem_pool" in layers:
        half, stride = layers["stem_conv"], 4
    else:
        half, stride = layers["stem"], 2
    outputs = {2: half.output}
    for stage in itertools.count(1):
        if f"stage{stage}" not in layers:
            return outputs
        stride *= _strides(layers[f"stage{stage}_block1"])
        outputs[stride] = layers[f"stage{stage}"].output


def _strides(block):
    """Return the strides of an `NFBlock`, or of the model that `fold` makes of one."""
    strides = [
        getattr(layer, "strides", 1) for layer in keras_internals.layers_of(block)
    ]
    return max(keras.tree.flatten(strides))


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
        others, such as activations. An activation that is left may lack a constant factor,
        which is in the weights of the next layer.

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
