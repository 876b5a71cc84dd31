"""NF-ResNets: ResNets without normalization."""

import functools
import typing

import keras

from keras_nfnets import checks
from keras_nfnets.layers import SymmetricMaxPooling2D
from keras_nfnets.models import network


class Variant(typing.NamedTuple):
    """Row of the table of NF-ResNets. Image sizes are in pixels."""

    depths: tuple
    # As in the authors' experiment.py.
    train_size: int = 224
    test_size: int = 224
    attention: str | None = None
    se_ratio: float = 0.25
    # The default of the authors' class.
    stochastic_depth_rate: float = 0.1
    convention: str = "authors"
    width: int = 4


def _of_timm(depths, attention):
    # `_nfres_cfg` and `model_cfgs` in timm's models/nfnet.py.
    return Variant(
        depths,
        attention=attention,
        se_ratio=1 / 16,
        stochastic_depth_rate=0.0,
        convention="timm",
    )


# `variant_dict` in the authors' nf_resnet.py; depth 26 is timm's.
VARIANTS = {
    "NFResNet26": Variant((2, 2, 2, 2)),
    "NFResNet50": Variant((3, 4, 6, 3)),
    "NFResNet101": Variant((3, 4, 23, 3)),
    "NFResNet152": Variant((3, 8, 36, 3)),
    "NFResNet200": Variant((3, 24, 36, 3)),
    "NFResNet288": Variant((24, 24, 24, 24)),
    "NFResNet600": Variant((50, 50, 50, 50)),
    "NFSEResNet26": _of_timm((2, 2, 2, 2), "se"),
    "NFSEResNet50": _of_timm((3, 4, 6, 3), "se"),
    "NFSEResNet101": _of_timm((3, 4, 23, 3), "se"),
    "NFECAResNet26": _of_timm((2, 2, 2, 2), "eca"),
    "NFECAResNet50": _of_timm((3, 4, 6, 3), "eca"),
    "NFECAResNet101": _of_timm((3, 4, 23, 3), "eca"),
}


@network.builder
def NFResNet(
    depths,
    width=4,
    include_top=True,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    name="nf_resnet",
    *,
    alpha=0.2,
    se_ratio=0.25,
    attention=None,
    activation="relu",
    stochastic_depth_rate=0.0,
    drop_rate=0.0,
    convention="authors",
    output_stride=None,
    rematerialize=False,
):
    """Build a custom NF-ResNet.

    The network consists of a strided 7x7 convolution, a max pooling, stages of
    bottleneck `NFBlock`s without groups (each stage after the first halves the
    resolution) and the head.

    Args:
        depths: list of ints. Number of blocks per stage.
        width: int. Multiplier of the channels: the stem has `16 * width`, the stages
            `64 * width`, `128 * width` and so on. 4 gives the standard ResNet widths.
        convention: str. `"authors"` or `"timm"`, see `NFBlock`. A shortcut that reduces
            the resolution pools and then projects in timm's networks; in the authors'
            it is a strided projection.

    Returns:
        An `AGCModel` with endpoints, see `NFNet`.

    Raises:
        ValueError: invalid or inconsistent arguments, or weights of another network.
        OSError: the weights cannot be fetched.

    Example:

    >>> model = NFResNet((2, 2), width=1, classes=10, attention="se")
    >>> tuple(model(keras.random.normal((2, 37, 45, 3))).shape)
    (2, 10)

    Reference: Brock, De, Smith (2021), arXiv 2101.08692.
    """
    [depths] = network.stage_sizes(depths=depths)
    width = checks.integer("width", width)
    widths = [64 * width * 2**stage for stage in range(len(depths))]
    inputs = network.network_input(input_tensor, input_shape)
    style = network.Style(activation, convention)

    x = style.convolution(inputs, 16 * width, 7, 2, name="stem_conv")
    if style.details.padding == "same":
        pool = keras.layers.MaxPooling2D(3, strides=2, padding="same", name="stem_pool")
    else:
        pool = SymmetricMaxPooling2D(3, strides=2, name="stem_pool")
    x = network.endpoint(pool(x), "stem", 4, half="stem_conv")

    x = network.stages(
        x,
        widths=widths,
        bottlenecks=[[width // 4] * depth for width, depth in zip(widths, depths)],
        stem_strides=4,
        output_stride=output_stride,
        rematerialize=rematerialize,
        alpha=alpha,
        stochastic_depth_rate=stochastic_depth_rate,
        group_size=None,
        extra_conv=False,
        avg_pool_shortcut=convention == "timm",
        activation=activation,
        attention=attention,
        se_ratio=se_ratio,
        convention=convention,
    )
    head = network.Head(include_top, pooling, classes, classifier_activation, drop_rate)
    return network.finish(inputs, x, head, style, name=name)


_FIXED = ("depths", "width")
_REFERENCE = "Brock, De, Smith (2021), arXiv 2101.08692; timm 1.0 for SE and ECA."
_constructor = functools.partial(
    network.variant_constructor, NFResNet, VARIANTS, _FIXED, _REFERENCE
)

NFResNet26 = _constructor("NFResNet26")
NFResNet50 = _constructor("NFResNet50")
NFResNet101 = _constructor("NFResNet101")
NFResNet152 = _constructor("NFResNet152")
NFResNet200 = _constructor("NFResNet200")
NFResNet288 = _constructor("NFResNet288")
NFResNet600 = _constructor("NFResNet600")
NFSEResNet26 = _constructor("NFSEResNet26")
NFSEResNet50 = _constructor("NFSEResNet50")
NFSEResNet101 = _constructor("NFSEResNet101")
NFECAResNet26 = _constructor("NFECAResNet26")
NFECAResNet50 = _constructor("NFECAResNet50")
NFECAResNet101 = _constructor("NFECAResNet101")
