"""Any model without its normalization."""

import keras
import numpy as np
from keras import ops

from keras_nfnets import checks
from keras_nfnets.backend.graph import Graph
from keras_nfnets.conversion.converter import is_custom_and_hides
from keras_nfnets.conversion.new_weights import NewWeightsConverter
from keras_nfnets.conversion.report import Conversion
from keras_nfnets.conversion.trained_weights import TrainedWeightsConverter
from keras_nfnets.training import AGCModel

# Sizes taken where a model's input leaves them open, by the number of its axes.
_OPEN_SIZES = {3: 256, 4: 224, 5: 32}


def normalizer_free(
    model,
    images=None,
    alpha=0.2,
    skip_gain_initializer="zeros",
    trained=False,
    tolerance=0.1,
):
    """A model like another one, but for its normalization.

    Convolutions and dense layers become those with standardized weights
    (`WSConv2D`, ...; depthwise ones with `center=False`, and as `input_mean` that of
    what they see), activations get their gain (`ScaledActivation`), residual branches a
    scale `alpha` and a learned gain (`SkipGain`), and batch, group, layer and RMS
    normalization is gone, or constants where the signal it sees has another variance
    than one. Which constants are right is found by sending `images` through the new
    network while it is made: after each standardized layer the variance of a channel is
    one, and after each addition that of the shortcut plus `alpha**2`.

    Whatever surrounds them, additions are residual if one of what they add is the
    longer way from a tensor that all are made of. Left alone are the layers that give
    the outputs, those after global pooling and those in gates, as of
    squeeze-and-excitation, unless they are normalized too. Nested models, and layers
    of your own with normalization or convolutions inside, are opened: their layers
    become the model's.

    With `trained=True` the new network starts as what a batch-normalized one has
    learned: it is to compute in inference what that does. Activations and sums are as
    they were, branches have the skip gain that leaves them as they are, and the
    statistics, scales and offsets of normalization are in the weights and bias of the
    layer before it, or, where there is none that only it sees, constants of channels.
    Two things differ from new weights: a separable convolution becomes two layers, and
    no constant is put in. That is exact, up to rounding, but for the layers with
    standardized weights. Their filters have a mean of zero; what the mean of a trained
    filter does is lost, which is to add a multiple of the sum of all that it sees.
    Nothing is lost where the filters have a mean of zero already, or where some of what
    they see does not change or follows linearly from the rest (a channel that is
    constant, one that is always rectified to zero, inputs that sum to one): then other
    weights do the same. Otherwise the layer has, on `images`, the nearest weights and
    bias in the mean square, and layers further off than `tolerance` stay plain ones,
    normalization folded into them. Those are often the first, for pictures are smooth.
    Nothing is lost of depthwise filters, which can have a mean here.

    Args:
        model: a built Keras model, functional, sequential, or of a class of your own
            whose `call` is of Keras layers and `keras.ops` alone. It is left as it is.
        images: what the model takes, one batch, to find the constants by: some of
            those to train on, as they are then. By default noise, eight to 64 of them: standard
            normal, or, for a model that begins by rescaling, of pictures from 0 to 255.
            Pictures are smoother than noise, and the first convolution makes less of
            them; with noise the signal in training is smaller than the report says.
        alpha: the deviation that a residual branch adds, as in the networks of this
            package.
        skip_gain_initializer: of the gains of residual branches; with the default,
            zeros, each block starts as its shortcut. Not used with `trained=True`.
        trained: whether to start from what `model` has learned, for which it must have
            no other than batch normalization, and `images` are needed: some dozens of
            those that it is for, as it takes them.
        tolerance: with `trained=True`, by how much a layer's outputs may be off, over
            their deviation, for it to be standardized. With 0 the outputs stay the
            same and with a large number all layers are standardized.

    Returns:
        An `AGCModel` of the same inputs and outputs, not compiled. Its weights are new,
        drawn as `model` draws its own (but with `trained=True`, and those of layers left
        alone).
        `model.conversion` is a `Conversion`: what was done with each layer, and what
        variance is to be expected after it; with `trained=True` also how far each layer
        is off, and the outputs are. Pass `agc_exclude` to `compile` where the
        classifier is not named `"predictions"`.

    Raises:
        ValueError: a model whose graph cannot be had, a layer that hides
            normalization or convolutions, one that has no standardized counterpart, or
            images through which the signal ends somewhere; with `trained=True` layer,
            group or RMS normalization, whose statistics are of each example. All name
            the layer. `trained=True` without `images`, a negative `tolerance`.

    Example:

    >>> inputs = keras.Input((32, 32, 3))
    >>> x = keras.layers.Conv2D(16, 3, padding="same", use_bias=False)(inputs)
    >>> x = keras.layers.BatchNormalization()(x)
    >>> x = keras.layers.Activation("relu")(x)
    >>> x = keras.layers.GlobalAveragePooling2D()(x)
    >>> model = keras.Model(inputs, keras.layers.Dense(10, name="predictions")(x))
    >>> [type(layer).__name__ for layer in normalizer_free(model).layers]
    ['InputLayer', 'WSConv2D', 'ScaledActivation', 'GlobalAveragePooling2D', 'Dense']

    Reference: Brock, De, Smith (2021), arXiv 2101.08692, section 4; Brock et al.
    (2021), arXiv 2102.06171, section 2.
    """
    alpha = checks.number("alpha", alpha, exclusive=True)
    tolerance = checks.number("tolerance", tolerance)
    if trained and images is None:
        raise ValueError(
            "With `trained=True` pass `images`, some of those that the model is for: "
            "how far layers are off is found by them. Received: images=None"
        )
    if not (isinstance(model, keras.Model) and model.built):
        raise ValueError(
            "normalizer_free takes Keras models that are built: call yours on some "
            f"inputs first. Received: {model!r}"
        )
    graph = Graph(model, opens=is_custom_and_hides)
    if trained:
        converter = TrainedWeightsConverter(graph, alpha, tolerance)
    else:
        converter = NewWeightsConverter(graph, alpha, skip_gain_initializer)
    inputs, outputs = converter.run(_samples(graph, images))
    result = AGCModel(inputs, outputs, name=model.name)
    error = converter.error() if trained else None
    result.conversion = Conversion(converter.steps, error)
    return result


def _samples(graph, images):
    """`{value: array}` of the graph's inputs."""
    values = keras.tree.flatten(graph.inputs)
    if images is None:
        return {value: _noise(value, graph) for value in values}
    arrays = keras.tree.flatten(images)
    if len(arrays) != len(values):
        raise ValueError(
            f"`images` must be what the model takes: {len(values)} tensors. "
            f"Received: {len(arrays)}"
        )
    for value, array in zip(values, arrays):
        shape, expected = tuple(ops.shape(array)), value.shape
        fits = len(shape) == len(expected) and all(
            b in (None, a) for a, b in zip(shape[1:], expected[1:])
        )
        if not fits or not shape[0]:
            raise ValueError(
                f"`images` must be a batch of what the model takes, {expected} with "
                f"at least one in it. Received: shape {shape}"
            )
    return {
        value: ops.convert_to_tensor(array, dtype=value.spec.dtype)
        for value, array in zip(values, arrays)
    }


def _noise(value, graph):
    if not keras.backend.is_float_dtype(value.spec.dtype):
        raise ValueError(
            f"The input {value.spec.name!r} is of dtype {value.spec.dtype}, for which "
            "there is no noise: pass `images`, some of what the model takes."
        )
    size = _OPEN_SIZES.get(len(value.shape), 1)
    shape = [size if n is None else n for n in value.shape[1:]]
    # Small ones are cheap, and have fewer positions to take a variance over.
    count = 8 * 224 * 224 // np.prod(shape[:-1], dtype=int)
    shape = (int(np.clip(count, 8, 64)), *shape)
    generator = np.random.default_rng(0)
    rescaling = (keras.layers.Rescaling, keras.layers.Normalization)
    if any(isinstance(c.operation, rescaling) for c in graph.consumers[value]):
        noise = generator.uniform(0, 255, shape)
    else:
        noise = generator.standard_normal(shape)
    return ops.convert_to_tensor(noise.astype("float32"), dtype=value.spec.dtype)
