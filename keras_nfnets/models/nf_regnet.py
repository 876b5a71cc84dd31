"""NF-RegNets: B0 to B8."""

import functools
import typing

import keras

from keras_nfnets import checks
from keras_nfnets.models import network


class Variant(typing.NamedTuple):
    """Row of the table of NF-RegNets. Image sizes are in pixels."""

    depths: tuple
    # Before the width multiplier.
    widths: tuple
    train_size: int
    test_size: int
    drop_rate: float
    # The default of the authors' class.
    stochastic_depth_rate: float = 0.1


# `nf_regnet_params` in the authors' base.py.
VARIANTS = {
    "NFRegNetB0": Variant((1, 3, 6, 6), (48, 104, 208, 440), 192, 224, 0.2),
    "NFRegNetB1": Variant((2, 4, 7, 7), (48, 104, 208, 440), 224, 256, 0.2),
    "NFRegNetB2": Variant((2, 4, 8, 8), (56, 112, 232, 488), 240, 272, 0.3),
    "NFRegNetB3": Variant((2, 5, 9, 9), (56, 128, 248, 528), 288, 320, 0.3),
    "NFRegNetB4": Variant((2, 6, 11, 11), (64, 144, 288, 616), 320, 384, 0.4),
    "NFRegNetB5": Variant((3, 7, 14, 14), (80, 168, 336, 704), 384, 456, 0.4),
    "NFRegNetB6": Variant((3, 8, 16, 16), (88, 184, 376, 792), 448, 528, 0.5),
    "NFRegNetB7": Variant((4, 10, 19, 19), (96, 208, 416, 880), 512, 600, 0.5),
    "NFRegNetB8": Variant((4, 11, 22, 22), (104, 232, 456, 968), 600, 672, 0.5),
}


@network.builder
def NFRegNet(
    depths,
    widths,
    include_top=True,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    name="nf_regnet",
    *,
    width_multiplier=0.75,
    expansion=2.25,
    group_size=8,
    alpha=0.2,
    se_ratio=0.5,
    attention="se",
    activation="silu",
    stochastic_depth_rate=0.0,
    drop_rate=0.0,
    convention="authors",
    output_stride=None,
    rematerialize=False,
):
    """Build a custom NF-RegNet.

    The network consists of a strided 3x3 convolution, stages of `NFBlock`s that each
    halve the resolution, a 1x1 convolution and the head. Each block has one grouped 3x3
    convolution, with squeeze-and-excitation on its output.

    Args:
        depths: list of ints. Number of blocks per stage.
        widths: list of ints. Number of channels per stage, before `width_multiplier`.
            The stem has as many channels as the first stage.
        width_multiplier: float. Factor of the widths. Products are rounded down, or to
            multiples of 8 in timm's convention.
        expansion: float. Channels of a 3x3 convolution as a multiple of the block's
            input channels, rounded down to complete groups. It is one in the very first
            block.

    Returns:
        An `AGCModel` with endpoints, see `NFNet`.

    Raises:
        ValueError: invalid or inconsistent arguments, or weights of another network.
        OSError: the weights cannot be fetched.

    Example:

    >>> model = NFRegNet((1, 2), (32, 64), classes=10)
    >>> tuple(model(keras.random.normal((2, 37, 45, 3))).shape)
    (2, 10)

    Reference: `NF_RegNet` in the authors' nf_regnet.py; the shapes are those of
    EfficientNets (arXiv 1905.11946) on RegNet's blocks (arXiv 2003.13678).
    """
    depths, widths = network.stage_sizes(depths=depths, widths=widths)
    # Bounded, as larger factors are meaningless.
    width_multiplier = checks.number(
        "width_multiplier", width_multiplier, below=1e3, exclusive=True
    )
    expansion = checks.number("expansion", expansion, below=1e3, exclusive=True)
    group_size = checks.integer("group_size", group_size)
    inputs = network.network_input(input_tensor, input_shape)
    style = network.Style(activation, convention)
    # In proportion to EfficientNet's head: 1280 channels for 440 in the last stage.
    final_width = style.details.width(1280 * int(widths[-1] * width_multiplier) // 440)
    widths = [style.details.width(width * width_multiplier) for width in widths]
    checks.integer("width of the first stage", widths[0])

    bottlenecks, channels = [], widths[0]
    for width, depth in zip(widths, depths):
        bottlenecks.append([])
        for _ in range(depth):
            first = bottlenecks == [[]]
            expanded = style.details.width(channels * (1 if first else expansion))
            bottlenecks[-1].append(max(1, expanded // group_size) * group_size)
            channels = width

    x = style.convolution(inputs, widths[0], 3, 2, name="stem_conv")
    x = network.endpoint(x, "stem", 2)
    x = network.stages(
        x,
        widths=widths,
        bottlenecks=bottlenecks,
        stem_strides=2,
        output_stride=output_stride,
        rematerialize=rematerialize,
        alpha=alpha,
        stochastic_depth_rate=stochastic_depth_rate,
        group_size=group_size,
        extra_conv=False,
        activation=activation,
        attention=attention,
        attention_on="bottleneck",
        se_ratio=se_ratio,
        convention=convention,
    )
    x = style.convolution(x, max(1, final_width), 1, name="final_conv")
    head = network.Head(include_top, pooling, classes, classifier_activation, drop_rate)
    # The authors initialize the classifier of this family with zeros.
    zeros = keras.initializers.Zeros() if convention == "authors" else None
    return network.finish(
        inputs, x, head, style, name=name, classifier_initializer=zeros
    )


_FIXED = ("depths", "widths")
_REFERENCE = "`nf_regnet_params` in the authors' base.py."
_constructor = functools.partial(
    network.variant_constructor, NFRegNet, VARIANTS, _FIXED, _REFERENCE
)

NFRegNetB0 = _constructor("NFRegNetB0")
NFRegNetB1 = _constructor("NFRegNetB1")
NFRegNetB2 = _constructor("NFRegNetB2")
NFRegNetB3 = _constructor("NFRegNetB3")
NFRegNetB4 = _constructor("NFRegNetB4")
NFRegNetB5 = _constructor("NFRegNetB5")
NFRegNetB6 = _constructor("NFRegNetB6")
NFRegNetB7 = _constructor("NFRegNetB7")
NFRegNetB8 = _constructor("NFRegNetB8")
