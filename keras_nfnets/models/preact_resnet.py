"""Pre-activation ResNets with batch normalization, the baseline of NF-ResNets."""

import keras

from keras_nfnets import checks
from keras_nfnets.models import network


def PreActResNet(
    depths,
    width=4,
    include_top=True,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    name="preact_resnet",
    *,
    normalization="batch",
    momentum=0.9,
    activation="relu",
    drop_rate=0.0,
):
    """Build a pre-activation ResNet with the shape of an `NFResNet`.

    Stem, stages, bottlenecks and shortcuts are those of an `NFResNet` with the same
    `depths` and `width`. A batch normalization precedes each activation, and the
    convolutions are not weight-standardized.

    Args:
        depths: list of ints. Number of blocks per stage.
        width: int. Multiplier of the channels, see `NFResNet`. 4 is the standard.
        normalization: str or None. `"batch"`, or None for no normalization; the
            convolutions then have biases.
        momentum: float. Momentum of the running mean and variance that batch
            normalization uses in inference.
        include_top, input_tensor, input_shape, pooling, classes, classifier_activation,
            name, activation, drop_rate: see `NFNet`.

    Returns:
        An `AGCModel` with endpoints, see `NFNet`. With `clip_factor=None` in `compile` it
        trains like any `keras.Model`.

    Raises:
        ValueError: invalid or inconsistent arguments.

    Example:

    >>> model = PreActResNet((2, 2), width=1, classes=10)
    >>> tuple(model(keras.random.normal((2, 37, 45, 3))).shape)
    (2, 10)

    Reference: He et al. (2016), arXiv 1603.05027; the baseline of Brock, De, Smith
    (2021), arXiv 2101.08692.
    """
    [depths] = network.stage_sizes(depths=depths)
    width = checks.integer("width", width)
    inputs = network.network_input(input_tensor, input_shape)
    style = _Style(activation, normalization, momentum)

    x = style.convolution(inputs, 16 * width, 7, 2, name="stem_conv")
    x = keras.layers.MaxPooling2D(3, strides=2, padding="same", name="stem_pool")(x)
    x = network.endpoint(x, "stem", 4, half="stem_conv")
    for stage, depth in enumerate(depths, start=1):
        filters = 64 * width * 2 ** (stage - 1)
        for block in range(1, depth + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            x = _block(x, filters, strides, style, f"stage{stage}_block{block}")
        x = network.endpoint(x, f"stage{stage}", 2 ** (stage + 1))
    head = network.Head(include_top, pooling, classes, classifier_activation, drop_rate)
    return network.finish(inputs, x, head, style, name=name)


class _Style:
    """Convolutions and normalized activations of one network."""

    def __init__(self, activation, normalization, momentum):
        self.activation = activation
        self.normalization = checks.one_of(
            "normalization", normalization, ("batch", None)
        )
        self.momentum = checks.number("momentum", momentum, below=1)

    def convolution(self, x, filters, kernel_size, strides=1, *, name):
        layer = keras.layers.Conv2D(
            filters,
            kernel_size,
            strides=strides,
            padding="same",
            use_bias=self.normalization is None,
            kernel_initializer="he_normal",
            name=name,
        )
        return layer(x)

    def activate(self, x, *, name):
        """Apply the normalization, then the activation, which has the given name."""
        if self.normalization is not None:
            last = keras.config.image_data_format() == "channels_last"
            x = keras.layers.BatchNormalization(
                axis=-1 if last else 1,
                momentum=self.momentum,
                epsilon=1e-5,
                name=f"{name}_norm",
            )(x)
        return keras.layers.Activation(self.activation, name=name)(x)


def _block(inputs, filters, strides, style, name):
    channels = inputs.shape[
        -1 if keras.config.image_data_format() == "channels_last" else 1
    ]
    bottleneck = filters // 4
    x = style.activate(inputs, name=f"{name}_input_activation")
    shortcut = inputs
    if strides > 1 or channels != filters:
        shortcut = style.convolution(
            x, filters, 1, strides, name=f"{name}_shortcut_conv"
        )
    x = style.convolution(x, bottleneck, 1, name=f"{name}_conv0")
    x = style.activate(x, name=f"{name}_activation0")
    x = style.convolution(x, bottleneck, 3, strides, name=f"{name}_conv1")
    x = style.activate(x, name=f"{name}_activation2")
    x = style.convolution(x, filters, 1, name=f"{name}_conv2")
    return keras.layers.Add(name=name)([shortcut, x])
