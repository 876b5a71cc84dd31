"""Building blocks shared by all families: input, stages of `NFBlock`s and head."""

import functools
import inspect
import math
import typing

import keras
import numpy as np

from keras_nfnets import checks, layers, pretrained
from keras_nfnets.layers.endpoint import Endpoint
from keras_nfnets.models import docstrings
from keras_nfnets.models.feature_pyramid import feature_maps, features
from keras_nfnets.training.agc_model import FunctionalAGCModel


@keras.saving.register_keras_serializable("keras_nfnets")
class Network(FunctionalAGCModel):
    """An `AGCModel` with feature maps: a network of this package."""

    @property
    def features(self):
        """List of the feature maps that `feature_pyramid` gives, finest resolution first.

        Each has the `name` of its layer, its `stride` (size of the images divided by that
        of the feature map) and its number of `channels`, as timm's `feature_info` has.

        >>> network = keras_nfnets.NFNetTiny(include_top=False)
        >>> network.features[1]
        Feature(name='stage1', stride=4, channels=32)
        """
        return features(self)

    @property
    def pyramid_outputs(self):
        """Symbolic feature maps by level, as KerasHub expects of an image encoder.

        A dict: `"P2"` is the last feature map of stride 4, `"P3"` that of stride 8 and so
        on, see `feature_pyramid`.
        """
        maps = feature_maps(self)
        return {f"P{math.log2(stride):.0f}": maps[stride] for stride in list(maps)[1:]}


class Head(typing.NamedTuple):
    """Settings of a head: arguments of `keras.applications` and the dropout rate."""

    include_top: bool
    pooling: str | None
    classes: int
    classifier_activation: object
    drop_rate: float

    def checked(self):
        """Return a validated copy, with Python numbers, or raise a ValueError."""
        return self._replace(
            pooling=checks.one_of("pooling", self.pooling, (None, "avg", "max")),
            classes=checks.integer("classes", self.classes),
            drop_rate=checks.number("drop_rate", self.drop_rate, below=1),
        )


def network_input(input_tensor, input_shape):
    """Return the symbolic input `(batch, height, width, channels)`, or channels first.

    `input_shape` excludes the batch; None means RGB images of any size.
    """
    channels_last = keras.config.image_data_format() == "channels_last"
    if input_tensor is not None:
        if not isinstance(input_tensor, keras.KerasTensor):
            raise ValueError(
                "`input_tensor` must be a symbolic Keras tensor, as keras.Input() "
                f"returns. Received: input_tensor of type {type(input_tensor)}"
            )
        if input_shape is not None and tuple(input_tensor.shape[1:]) != tuple(
            input_shape
        ):
            raise ValueError(
                "`input_tensor` and `input_shape` must agree. Received: a tensor of "
                f"shape {input_tensor.shape}, input_shape={tuple(input_shape)}"
            )
        input_shape = input_tensor.shape[1:]
    elif input_shape is None:
        input_shape = (None, None, 3) if channels_last else (3, None, None)
    try:
        input_shape = tuple(
            size if size is None else checks.integer("size", size)
            for size in input_shape
        )
        _, _, channels = input_shape if channels_last else input_shape[::-1]
        checks.integer("channels", channels)
    except (TypeError, ValueError):
        raise ValueError(
            "`input_shape` must be three positive integers, of which height and width "
            "may be None: (height, width, channels), or channels first where Keras is "
            f"set so. Received: input_shape={input_shape}"
        ) from None
    return keras.Input(input_shape) if input_tensor is None else input_tensor


class Style:
    """Convolutions and activations of one network, as its convention defines them."""

    def __init__(self, activation, convention):
        self.details = layers.convention(convention)
        self.activation = activation
        self.gain = layers.activation_gain(activation)

    def convolution(self, x, filters, kernel_size, strides=1, *, name):
        """Apply a weight-standardized convolution to a symbolic tensor."""
        layer = layers.WSConv2D(
            filters,
            kernel_size,
            strides=strides,
            name=name,
            **self.details.convolution_options(self.gain),
        )
        return layer(x)

    def activate(self, x, *, name):
        """Apply the network's scaled activation to a symbolic tensor."""
        gain, _ = self.details.gains(self.gain)
        return layers.ScaledActivation(self.activation, gain=gain, name=name)(x)


def endpoint(x, name, stride, half=None):
    """Name a symbolic tensor, so that `model.get_layer` finds it; see `Endpoint`."""
    return Endpoint(stride, half, name=name)(x)


def stages(
    x,
    *,
    widths,
    bottlenecks,
    alpha,
    stochastic_depth_rate,
    stem_strides,
    output_stride,
    **block_options,
):
    """Apply the residual stages to the output `x` of the stem.

    `widths` holds the channels of each stage, `bottlenecks` a list per stage with the
    bottleneck channels of its blocks. Each stage halves the resolution, except the first
    one after a stem with `stem_strides=4`, and those that would exceed `output_stride`:
    their convolutions are dilated instead, as in timm. The `beta` of a block is one over
    the expected standard deviation of its input: the first block of a stage resets the
    expected variance to one, and every block adds `alpha**2` (arXiv 2101.08692, section
    3). The stochastic depth rate grows linearly with depth.
    """
    stochastic_depth_rate = checks.number(
        "stochastic_depth_rate", stochastic_depth_rate, below=1
    )
    alpha = checks.number("alpha", alpha, exclusive=True)
    if isinstance(output_stride, np.integer):
        output_stride = int(output_stride)
    checks.one_of("output_stride", output_stride, (None, 8, 16, 32))
    reached, dilation_rate = stem_strides, 1
    expected_std = 1.0
    total, index = sum(map(len, bottlenecks)), 0
    for stage, (width, blocks) in enumerate(zip(widths, bottlenecks), start=1):
        strides = 1 if stage == 1 and stem_strides == 4 else 2
        first_dilation_rate = dilation_rate
        if strides == 2 and reached == output_stride:
            strides, dilation_rate = 1, 2 * dilation_rate
        reached *= strides
        for block, bottleneck in enumerate(blocks):
            x = layers.NFBlock(
                width,
                bottleneck_filters=bottleneck,
                strides=strides if block == 0 else 1,
                dilation_rate=dilation_rate,
                first_dilation_rate=first_dilation_rate if block == 0 else None,
                alpha=alpha,
                beta=1 / expected_std,
                stochastic_depth_rate=stochastic_depth_rate * index / total,
                name=f"stage{stage}_block{block + 1}",
                **block_options,
            )(x)
            index += 1
            if block == 0:
                expected_std = 1.0
            expected_std = (expected_std**2 + alpha**2) ** 0.5
        x = endpoint(x, f"stage{stage}", reached)
    return x


def stage_sizes(**lists):
    """Return lists of positive integers, one per stage, as validated lists of ints.

    Raises:
        ValueError: a list is empty or holds something else, or the lengths differ.
    """
    for name, values in lists.items():
        try:
            lists[name] = [checks.integer(name, value) for value in values]
        except (TypeError, ValueError):
            lists[name] = None
        if not lists[name]:
            raise ValueError(
                f"`{name}` must be a list of positive integers, one per stage. "
                f"Received: {name}={values!r}"
            )
    if len({len(values) for values in lists.values()}) > 1:
        given = ", ".join(f"{name}={values}" for name, values in lists.items())
        raise ValueError(
            f"`{'` and `'.join(lists)}` must have the same length, the number of stages. "
            f"Received: {given}"
        )
    return lists.values()


def finish(inputs, x, head, style, *, name, classifier_initializer=None):
    """Apply the head to the last feature map and create the model.

    `x` is activated (endpoint `"features"`). With `include_top` it is average-pooled
    (`"avg_pool"`) and classified (`"predictions"`), otherwise pooled as `head.pooling`
    says. The classifier's kernel is normal with standard deviation 0.01 by default.
    """
    head = head.checked()
    x = style.activate(x, name="features")
    if head.include_top:
        x = classified(x, head, classifier_initializer)
    elif head.pooling == "avg":
        x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    elif head.pooling == "max":
        x = keras.layers.GlobalMaxPooling2D(name="max_pool")(x)
    # `input_tensor` may be the output of other layers, which the model then includes.
    sources = keras.utils.get_source_inputs(inputs)
    return Network(sources[0] if len(sources) == 1 else sources, x, name=name)


def classified(features, head, kernel_initializer=None):
    """Pool and classify the last feature map; see `finish`."""
    x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(features)
    x = layers.Dropout(head.drop_rate, name="top_dropout")(x)
    return keras.layers.Dense(
        head.classes,
        activation=head.classifier_activation,
        # As in the authors' code and in timm.
        kernel_initializer=kernel_initializer
        or keras.initializers.RandomNormal(stddev=0.01),
        name="predictions",
    )(x)


# Arguments of a builder that do not affect which weights a network can load.
_FREE_ARGUMENTS = {
    "include_top",
    "input_tensor",
    "input_shape",
    "pooling",
    "classes",
    "classifier_activation",
    "name",
    "stochastic_depth_rate",
    "drop_rate",
    "output_stride",
    "rematerialize",
}


def builder(build):
    """Add the argument `weights` to a family's `build(...)`, after `include_top`.

    The docstring gets the arguments that all families share.
    """
    parameters = list(inspect.signature(build).parameters.values())
    at = [parameter.name for parameter in parameters].index("include_top") + 1
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters.insert(at, inspect.Parameter("weights", kind, default=None))
    signature = inspect.Signature(parameters)

    @functools.wraps(build)
    def with_weights(*args, **kwargs):
        options = _bound(build.__name__, signature, args, kwargs)
        weights = options.pop("weights")
        if weights is None:
            return build(**options)
        # Fail on invalid weights before a large network is built.
        source = pretrained.find(weights, _architecture(build.__name__, options))
        model = build(**options)
        pretrained.load(model, source)
        return model

    with_weights.__signature__ = signature
    with_weights.__doc__ = docstrings.of_builder(build.__doc__, signature)
    return with_weights


def _bound(name, signature, args, kwargs):
    """Return the arguments of a call of a function with this name, with defaults."""
    try:
        arguments = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name}: {error}. It takes {signature}") from None
    arguments.apply_defaults()
    return arguments.arguments


def _architecture(builder_name, arguments):
    """Return the builder and settings that define a network, in comparable form."""
    plain = {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in arguments.items()
    }
    settings = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in plain.items()
        if name not in _FREE_ARGUMENTS
    }
    return pretrained.Architecture(builder_name, settings)


def variant_constructor(builder, variants, fixed, reference, name):
    """Create the constructor of a variant: `builder` with some arguments fixed.

    `constructor.architecture(**options)` returns the `Architecture` that it would
    build; `constructor.train_size` and `constructor.test_size` are the variant's.

    Args:
        builder: callable. Builder of a family.
        variants: dict from names to named tuples: arguments of the builder, and
            `train_size` and `test_size` of the images, in pixels.
        fixed: tuple of str. Arguments that define a variant; its constructor lacks
            them. The variant's other arguments are defaults.
        reference: str. Source of the table of variants.
        name: str. Name of the variant; in lower case, the default model name.
    """
    defaults = {"name": name.lower(), **variants[name]._asdict()}
    fixed = {argument: defaults[argument] for argument in fixed}
    parameters = inspect.signature(builder).parameters
    signature = inspect.Signature(
        [
            parameter.replace(default=defaults.get(argument, parameter.default))
            for argument, parameter in parameters.items()
            if argument not in fixed
        ]
    )

    def constructor(*args, **kwargs):
        return builder(**fixed, **_bound(name, signature, args, kwargs))

    def architecture(**options):
        arguments = _bound(name, signature, (), options)
        del arguments["weights"]
        return _architecture(builder.__name__, {**fixed, **arguments})

    constructor.__name__ = constructor.__qualname__ = name
    constructor.__module__ = builder.__module__
    constructor.__signature__ = signature
    constructor.architecture = architecture
    sizes = defaults["train_size"], defaults["test_size"]
    constructor.train_size, constructor.test_size = sizes
    constructor.__doc__ = docstrings.of_constructor(
        name, builder, fixed, sizes, signature, reference
    )
    return constructor
