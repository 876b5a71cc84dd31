"""Small networks of common families, with batch or layer normalization."""

import keras
from keras import layers, ops

from keras_nfnets.conversion.roles import NORMALIZATIONS

# Channels of the three stages.
_WIDTHS = (32, 64, 128)


def _normalized(x, activation=None):
    x = layers.BatchNormalization()(x)
    return layers.Activation(activation)(x) if activation else x


def _convolved(x, filters, size=3, strides=1, groups=1, activation="relu"):
    x = layers.Conv2D(
        filters, size, strides, padding="same", groups=groups, use_bias=False
    )(x)
    return _normalized(x, activation)


def _depthwise(x, size=3, strides=1, activation="relu"):
    x = layers.DepthwiseConv2D(size, strides, padding="same", use_bias=False)(x)
    return _normalized(x, activation)


def _gated(x, gate="sigmoid"):
    """Apply squeeze-and-excitation."""
    channels = x.shape[-1]
    y = layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = layers.Conv2D(channels // 4, 1, activation="relu")(y)
    return layers.Multiply()([x, layers.Conv2D(channels, 1, activation=gate)(y)])


def _blocks():
    """Yield (width, strides) of each block: two per stage, the first of them strided."""
    for width in _WIDTHS:
        yield width, 2
        yield width, 1


def _resnet(x):
    for width, strides in _blocks():
        y = _convolved(x, width // 2, 1)
        y = _convolved(y, width // 2, 3, strides)
        y = _convolved(y, width, 1, activation=None)
        if strides > 1:
            x = _convolved(x, width, 1, strides, activation=None)
        x = layers.Activation("relu")(layers.Add()([x, y]))
    return x


def _resnet_v2(x):
    for width, strides in _blocks():
        y = _normalized(x, "relu")
        if strides > 1:
            x = layers.Conv2D(width, 1, strides)(y)
        y = _convolved(y, width // 2, 1)
        y = _convolved(y, width // 2, 3, strides)
        x = layers.Add()([x, layers.Conv2D(width, 1)(y)])
    return _normalized(x, "relu")


def _vgg(x):
    for width in _WIDTHS:
        x = _convolved(_convolved(x, width), width)
        x = layers.MaxPooling2D(padding="same")(x)
    return x


def _inverted(x, width, strides, activation, gate=None, fused=False):
    shortcut, wide = x, 4 * x.shape[-1]
    if fused:
        x = _convolved(x, wide, 3, strides, activation=activation)
    else:
        x = _convolved(x, wide, 1, activation=activation)
        x = _depthwise(x, 3, strides, activation)
    if gate:
        x = _gated(x, gate=gate)
    x = _convolved(x, width, 1, activation=None)
    return layers.Add()([shortcut, x]) if shortcut.shape == x.shape else x


def _mobilenet_v2(x):
    for width, strides in _blocks():
        x = _inverted(x, width // 2, strides, "relu6")
    return _convolved(x, 128, 1, activation="relu6")


def _mobilenet_v3(x):
    for width, strides in _blocks():
        x = _inverted(x, width // 2, strides, "hard_silu", "hard_sigmoid")
    return _convolved(x, 128, 1, activation="hard_silu")


def _efficientnet(x):
    for width, strides in _blocks():
        x = _inverted(x, width // 2, strides, "silu", "sigmoid")
    return _convolved(x, 128, 1, activation="silu")


def _efficientnet_v2(x):
    for width, strides in _blocks():
        fused = width == _WIDTHS[0]
        gate = None if fused else "sigmoid"
        x = _inverted(x, width // 2, strides, "silu", gate, fused)
    return _convolved(x, 128, 1, activation="silu")


def _densenet(x):
    for stage in range(3):
        if stage:
            x = layers.Conv2D(x.shape[-1] // 2, 1)(_normalized(x, "relu"))
            x = layers.AveragePooling2D(2, padding="same")(x)
        for _ in range(3):
            y = _convolved(_normalized(x, "relu"), 48, 1)
            y = layers.Conv2D(16, 3, padding="same")(y)
            x = layers.Concatenate()([x, y])
    return _normalized(x, "relu")


def _inception(x):
    for width in _WIDTHS:
        filters = width // 4
        x = layers.MaxPooling2D(padding="same")(x)
        pooled = layers.AveragePooling2D(3, 1, padding="same")(x)
        x = layers.Concatenate()(
            [
                _convolved(x, filters, 1),
                _convolved(_convolved(x, filters, 1), filters),
                _convolved(_convolved(_convolved(x, filters, 1), filters), filters),
                _convolved(pooled, filters, 1),
            ]
        )
    return x


def _xception(x):
    for width, strides in _blocks():
        y = x
        for filters in (width, width):
            y = layers.Activation("relu")(y)
            y = layers.SeparableConv2D(filters, 3, padding="same", use_bias=False)(y)
            y = _normalized(y)
        if strides > 1:
            y = layers.MaxPooling2D(3, strides, padding="same")(y)
            x = _convolved(x, width, 1, strides, activation=None)
        x = layers.Add()([x, y])
    return layers.Activation("relu")(x)


def _convnext(x):
    for width, strides in _blocks():
        if strides > 1:
            x = layers.LayerNormalization()(x)
            x = layers.Conv2D(width, 2, 2, padding="same")(x)
        y = layers.DepthwiseConv2D(7, padding="same")(x)
        y = layers.LayerNormalization()(y)
        y = layers.Dense(4 * width, activation="gelu")(y)
        x = x + layers.Dense(width)(y)
    return x


def _regnet(x):
    for width, strides in _blocks():
        y = _convolved(x, width, 1)
        y = _gated(_convolved(y, width, 3, strides, groups=width // 16))
        y = _convolved(y, width, 1, activation=None)
        if strides > 1:
            x = _convolved(x, width, 1, strides, activation=None)
        x = ops.relu(x + y)
    return x


def _unet(x):
    skips = []
    for width in (16, 32):
        x = _convolved(_convolved(x, width), width)
        skips.append(x)
        x = layers.MaxPooling2D(padding="same")(x)
    x = _convolved(x, 64)
    for skip in reversed(skips):
        width = skip.shape[-1]
        x = layers.Conv2DTranspose(width, 2, 2)(x)
        x = _convolved(layers.Concatenate()([skip, x]), width)
    return x


# `{name: (body, strides of the first convolution)}`.
_BODIES = {
    "ResNet": (_resnet, 2),
    "ResNetV2": (_resnet_v2, 2),
    "VGG": (_vgg, 2),
    "MobileNetV2": (_mobilenet_v2, 2),
    "MobileNetV3": (_mobilenet_v3, 2),
    "DenseNet": (_densenet, 2),
    "Inception": (_inception, 2),
    "Xception": (_xception, 2),
    "EfficientNet": (_efficientnet, 2),
    "EfficientNetV2": (_efficientnet_v2, 2),
    "ConvNeXt": (_convnext, 2),
    "RegNet": (_regnet, 2),
    "U-Net": (_unet, 1),
}

NETWORKS = tuple(_BODIES)


def build(network, input_shape, classes):
    """Build a small classifier that outputs logits.

    Args:
        network: str. One of `NETWORKS`.
        input_shape: tuple `(height, width, channels)`. Height and width are at least four
            pixels; for the U-Net, multiples of four.
        classes: int. Number of classes.
    """
    body, strides = _BODIES[network]
    inputs = keras.Input(input_shape)
    x = body(_convolved(inputs, 16, 3, strides))
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(classes, name="predictions")(x)
    return keras.Model(inputs, x, name=network.lower().replace("-", ""))


class _Identity(layers.Layer):
    """Identity layer with the call signature of a normalization layer."""

    def call(self, x, training=None, mask=None):
        return x


def without_normalization(model):
    """Clone a model, with identities in place of its normalization layers."""

    def counterpart(layer):
        if isinstance(layer, NORMALIZATIONS):
            return _Identity(name=layer.name)
        if not isinstance(layer, keras.layers.Layer):
            return layer
        return type(layer).from_config(layer.get_config())

    return keras.models.clone_model(model, clone_function=counterpart, recursive=True)
