"""NFNets: F0 to F7, the wider F0+ to F7+, timm's light L0 to L3, and tiny ones."""

import functools
import typing

from keras_nfnets import checks
from keras_nfnets.models import network


class Variant(typing.NamedTuple):
    """Row of the table of NFNets. Image sizes are in pixels."""

    depths: tuple
    widths: tuple
    bottleneck_widths: tuple
    group_size: int
    drop_rate: float
    train_size: int
    test_size: int
    activation: str = "gelu"
    # The value of all F variants (experiment_nfnets.py).
    stochastic_depth_rate: float = 0.25
    stem_width: int | None = None
    final_width: int | None = None
    attention: str | None = "se"
    se_ratio: float = 0.5
    convention: str = "authors"
    classes: int = 1000


def _f_series(suffix, widths, bottleneck_widths):
    sizes_and_drop_rates = [
        (192, 256, 0.2),
        (224, 320, 0.3),
        (256, 352, 0.4),
        (320, 416, 0.4),
        (384, 512, 0.5),
        (416, 544, 0.5),
        (448, 576, 0.5),
        (480, 608, 0.5),
    ]
    return {
        f"NFNetF{n}{suffix}": Variant(
            depths=tuple((n + 1) * depth for depth in (1, 2, 6, 3)),
            widths=widths,
            bottleneck_widths=bottleneck_widths,
            group_size=128,
            drop_rate=drop_rate,
            train_size=train_size,
            test_size=test_size,
        )
        for n, (train_size, test_size, drop_rate) in enumerate(sizes_and_drop_rates)
    }


def _light(multiple, train_size, test_size, **options):
    return Variant(
        depths=tuple(multiple * depth for depth in (1, 2, 6, 3)),
        widths=(256, 512, 1536, 1536),
        bottleneck_widths=(64, 128, 384, 384),
        group_size=64,
        drop_rate=0.0,
        train_size=train_size,
        test_size=test_size,
        activation="silu",
        stochastic_depth_rate=0.0,
        convention="timm",
        **options,
    )


VARIANTS = {
    # arXiv 2102.06171, table 1; `nfnet_params` in the authors' base.py. Bottlenecks
    # are half the width, rounded down to complete groups: 128, not 192, in F+.
    **_f_series("", (256, 512, 1536, 1536), (128, 256, 768, 768)),
    **_f_series("Plus", (384, 768, 2048, 2048), (128, 384, 1024, 1024)),
    # For small images on a CPU; it has no published counterpart.
    "NFNetTiny": Variant(
        depths=(1, 1, 1, 1),
        widths=(32, 64, 96, 96),
        bottleneck_widths=(16, 32, 48, 48),
        group_size=16,
        drop_rate=0.1,
        train_size=32,
        test_size=32,
        activation="relu",
        classes=10,
    ),
    # timm 1.0, `model_cfgs` and `default_cfgs` in models/nfnet.py.
    "NFNetL0": _light(1, 224, 288, se_ratio=0.25, final_width=2304),
    "ECANFNetL0": _light(1, 224, 288, attention="eca", final_width=2304),
    "ECANFNetL1": _light(2, 256, 320, attention="eca"),
    "ECANFNetL2": _light(3, 320, 384, attention="eca"),
    "ECANFNetL3": _light(4, 352, 448, attention="eca"),
    "NFNetTest": Variant(
        depths=(1, 1, 1, 1),
        widths=(32, 64, 96, 128),
        bottleneck_widths=(8, 16, 24, 32),
        group_size=8,
        drop_rate=0.0,
        train_size=160,
        test_size=160,
        activation="silu",
        stochastic_depth_rate=0.0,
        stem_width=128,
        final_width=192,
        se_ratio=0.25,
        convention="timm",
    ),
}


@network.builder
def NFNet(
    depths,
    widths,
    include_top=True,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    name="nfnet",
    *,
    bottleneck_widths=None,
    group_size=128,
    stem_width=None,
    final_width=None,
    alpha=0.2,
    se_ratio=0.5,
    attention="se",
    activation="gelu",
    stochastic_depth_rate=0.0,
    drop_rate=0.0,
    convention="authors",
    output_stride=None,
    rematerialize=False,
):
    """Build a custom NFNet.

    The network consists of a stem of four 3x3 convolutions (total stride 4), stages of
    `NFBlock`s (each after the first halves the resolution), a 1x1 convolution and the
    head.

    Args:
        depths: list of ints. Number of blocks per stage.
        widths: list of ints. Number of channels per stage.
        bottleneck_widths: list of ints or None. Channels of the 3x3 convolutions per
            stage, multiples of `group_size`; None for half of `widths`.
        stem_width: int or None. Output channels of the stem; None for half of the first
            width.
        final_width: int or None. Channels of the last convolution; None for twice the
            last width.

    Returns:
        An `AGCModel` from float images `(batch, height, width, channels)`, normalized
        by `preprocess_input`, to class probabilities `(batch, classes)`.
        `model.get_layer(name).output` is an endpoint for the names `"stem"`,
        `"stage1"`, ..., `"features"` (the last feature map, activated).

    Raises:
        ValueError: invalid or inconsistent arguments, or weights of another network.
        OSError: the weights cannot be fetched.

    Example:

    >>> model = NFNet((1, 2), (16, 32), group_size=8, classes=10)
    >>> tuple(model(keras.random.normal((2, 37, 45, 3))).shape)
    (2, 10)

    Reference: Brock et al. (2021), arXiv 2102.06171.
    """
    depths, widths = network.stage_sizes(depths=depths, widths=widths)
    if bottleneck_widths is None:
        bottleneck_widths = [width // 2 for width in widths]
    depths, bottleneck_widths = network.stage_sizes(
        depths=depths, bottleneck_widths=bottleneck_widths
    )
    if stem_width is None:
        stem_width = max(1, widths[0] // 2)
    if final_width is None:
        final_width = 2 * widths[-1]
    stem_width = checks.integer("stem_width", stem_width)
    final_width = checks.integer("final_width", final_width)
    inputs = network.network_input(input_tensor, input_shape)
    style = network.Style(activation, convention)

    x = inputs
    stem = [(16, 2), (32, 1), (64, 1), (stem_width, 2)]
    for i, (filters, strides) in enumerate(stem):
        if i > 0:
            x = style.activate(x, name=f"stem_activation{i - 1}")
        x = style.convolution(x, filters, 3, strides, name=f"stem_conv{i}")
    x = network.endpoint(x, "stem", 4, half="stem_conv2")

    x = network.stages(
        x,
        widths=widths,
        bottlenecks=[
            [bottleneck] * depth for bottleneck, depth in zip(bottleneck_widths, depths)
        ],
        stem_strides=4,
        output_stride=output_stride,
        rematerialize=rematerialize,
        alpha=alpha,
        stochastic_depth_rate=stochastic_depth_rate,
        group_size=group_size,
        activation=activation,
        attention=attention,
        se_ratio=se_ratio,
        convention=convention,
    )
    x = style.convolution(x, final_width, 1, name="final_conv")
    head = network.Head(include_top, pooling, classes, classifier_activation, drop_rate)
    return network.finish(inputs, x, head, style, name=name)


_FIXED = (
    "depths",
    "widths",
    "bottleneck_widths",
    "group_size",
    "stem_width",
    "final_width",
)
_REFERENCE = "Brock et al. (2021), arXiv 2102.06171, table 1; timm 1.0 for L0 to L3."
_constructor = functools.partial(
    network.variant_constructor, NFNet, VARIANTS, _FIXED, _REFERENCE
)

NFNetF0 = _constructor("NFNetF0")
NFNetF1 = _constructor("NFNetF1")
NFNetF2 = _constructor("NFNetF2")
NFNetF3 = _constructor("NFNetF3")
NFNetF4 = _constructor("NFNetF4")
NFNetF5 = _constructor("NFNetF5")
NFNetF6 = _constructor("NFNetF6")
NFNetF7 = _constructor("NFNetF7")
NFNetF0Plus = _constructor("NFNetF0Plus")
NFNetF1Plus = _constructor("NFNetF1Plus")
NFNetF2Plus = _constructor("NFNetF2Plus")
NFNetF3Plus = _constructor("NFNetF3Plus")
NFNetF4Plus = _constructor("NFNetF4Plus")
NFNetF5Plus = _constructor("NFNetF5Plus")
NFNetF6Plus = _constructor("NFNetF6Plus")
NFNetF7Plus = _constructor("NFNetF7Plus")
NFNetTiny = _constructor("NFNetTiny")
NFNetL0 = _constructor("NFNetL0")
ECANFNetL0 = _constructor("ECANFNetL0")
ECANFNetL1 = _constructor("ECANFNetL1")
ECANFNetL2 = _constructor("ECANFNetL2")
ECANFNetL3 = _constructor("ECANFNetL3")
NFNetTest = _constructor("NFNetTest")
