"""Networks of kinds that `keras.applications` lacks, and networks cut down."""

import keras
from keras import layers, ops

from keras_nfnets.models.roles import NORMALIZATIONS

# Channels of the three stages.
_WIDTHS = (32, 64, 128)


def _convolved(x, filters, size=3, strides=1, groups=1, activation="relu"):
    x = layers.Conv2D(
        filters, size, strides, padding="same", groups=groups, use_bias=False
    )(x)
    x = layers.BatchNormalization()(x)
    return layers.Activation(activation)(x) if activation else x


def _gated(x):
    """Squeeze-and-excitation."""
    channels = x.shape[-1]
    y = layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = layers.Conv2D(channels // 4, 1, activation="relu")(y)
    return layers.Multiply()([x, layers.Conv2D(channels, 1, activation="sigmoid")(y)])


def _places():
    """(width, strides) of each block: two a stage, of which the first is strided."""
    for width in _WIDTHS:
        yield width, 2
        yield width, 1


def _regnet(x):
    for width, strides in _places():
        y = _convolved(x, width, 1)
        y = _gated(_convolved(y, width, 3, strides, groups=width // 16))
        y = _convolved(y, width, 1, activation=None)
        if strides > 1:
            x = _convolved(x, width, 1, strides, activation=None)
        x = ops.relu(x + y)
    return x


def _unet(x):
    skips = []
    for width in _WIDTHS[:2]:
        x = _convolved(_convolved(x, width), width)
        skips.append(x)
        x = layers.MaxPooling2D(padding="same")(x)
    x = _convolved(x, _WIDTHS[2])
    for skip in reversed(skips):
        width = skip.shape[-1]
        x = layers.Conv2DTranspose(width, 2, 2)(x)
        x = _convolved(layers.Concatenate()([skip, x]), width)
    return x


_BODIES = {"RegNet": _regnet, "U-Net": _unet}

NETWORKS = tuple(_BODIES)


def build(network, input_shape, classes):
    """A small classifier with batch norm.

    Args:
        network: one of `NETWORKS`.
        input_shape: `(height, width, channels)`, of four pixels at least (the U-Net's in
            multiples of four).
        classes: of the logits it gives.
    """
    inputs = keras.Input(input_shape)
    x = _BODIES[network](_convolved(inputs, 16))
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(classes, name="predictions")(x)
    return keras.Model(inputs, x, name=network.lower().replace("-", ""))


class _Nothing(layers.Layer):
    """What is given, called as a normalization is."""

    def call(self, x, training=None, mask=None):
        return x


def without_normalization(model):
    """A model like another one whose normalization was deleted, and nothing more."""

    def counterpart(layer):
        if isinstance(layer, NORMALIZATIONS):
            return _Nothing(name=layer.name)
        if not isinstance(layer, keras.layers.Layer):
            return layer
        return type(layer).from_config(layer.get_config())

    return keras.models.clone_model(model, clone_function=counterpart, recursive=True)
