"""Feature maps of every resolution, for detection and segmentation."""

import itertools

import keras

from keras_nfnets.backend import keras_internals


def feature_pyramid(model):
    """Create a model that outputs the last feature map of each resolution.

    Args:
        model: `keras.Model`. A network of this package, with or without top, or what
            `fold` makes of it.

    Returns:
        A `keras.Model` that shares the layers and weights. It maps images to a dict of
        float tensors `(batch, height / stride, width / stride, channels)`, with sizes
        rounded up, or channels first if Keras is set so. The keys are `"stride2"`,
        `"stride4"` and so on, up to `"stride32"` for networks with four stages. The
        feature maps are taken before the activation.

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
    outputs = {"stride2": half.output}
    for stage in itertools.count(1):
        if f"stage{stage}" not in layers:
            return keras.Model(model.input, outputs)
        stride *= _strides(layers[f"stage{stage}_block1"])
        outputs[f"stride{stride}"] = layers[f"stage{stage}"].output


def _strides(block):
    """Return the strides of an `NFBlock`, or of the model that `fold` makes of one."""
    strides = [
        getattr(layer, "strides", 1) for layer in keras_internals.layers_of(block)
    ]
    return max(keras.tree.flatten(strides))
