"""Conversion of any model to a normalizer-free one."""

import keras
import numpy as np
from keras import ops

from keras_nfnets import checks
from keras_nfnets.backend.graph import Graph
from keras_nfnets.conversion.dynamic import DYNAMIC, DynamicConverter
from keras_nfnets.conversion.new_weights import NewWeightsConverter
from keras_nfnets.conversion.report import Conversion
from keras_nfnets.conversion.trained_weights import TrainedWeightsConverter
from keras_nfnets.training import AGCModel

# Spatial sizes for inputs of undefined size, by number of axes.
_OPEN_SIZES = {3: 256, 4: 224, 5: 32}


def normalizer_free(
    model,
    images=None,
    alpha=0.2,
    skip_gain_initializer="zeros",
    trained=False,
    tolerance=0.1,
    normalization="constants",
):
    """Convert a model to one without normalization layers.

    Convolutions and dense layers become layers with standardized weights (`WSConv2D`,
    ...; depthwise ones have `center=False`, and `input_mean` is the mean of their
    input). Activations are multiplied by their gain (`ScaledActivation`). Residual
    branches are scaled to a standard deviation of `alpha` and get a learned gain
    (`SkipGain`). Batch, group, layer and RMS normalization is removed, or replaced by
    constants where the variance of its input is not one. The constants are measured
    by passing `images` through the new network while it is built: the channel variance
    is one after each standardized layer, and that of the shortcut plus `alpha**2` after
    each residual addition.

    An addition is residual if one of its inputs, the shortcut, has passed through fewer
    layers with kernels than the others, not counting the layers that all of them share.
    Output layers, layers after global pooling and layers in gates, such as
    squeeze-and-excitation, do not change unless a normalization follows them. Nested
    models, and custom layers that contain normalization or convolutions, are expanded:
    their layers become layers of the new model. A custom layer with weights of its own
    does not change; it may contain convolutions, but no normalization. Layers of this
    package, which are normalizer-free already, do not change, nor do their weights: a
    network of this package can be the backbone of a model whose other layers are
    converted.

    With `normalization="dynamic_tanh"` or `"dynamic_erf"`, for transformers, only the
    normalization layers change: each becomes a `DynamicTanh` or `DynamicErf`. Its
    `alpha` starts at 0.5 divided by the root mean square of its input, and its `gamma`
    at that of the normalization times the factor that gives the function a variance of
    one, both measured with `images`. All other layers keep their weights.

    With `trained=True` the new network starts from the weights of a trained one. If
    that has batch normalization, it computes the same or nearly the same in inference.
    Activations and sums are unchanged, and each skip gain starts at the value that
    leaves its branch unchanged. Statistics, scales and offsets of normalization are
    folded into the weights and bias of the layer before, if only the normalization uses
    its output; otherwise they become a constant factor and offset per channel. A
    separable convolution becomes two layers, and no constants are added to correct the
    variance.

    For batch normalization, this is exact up to rounding, except in layers with
    standardized weights. Their filters have a mean of zero and thus lose what the mean
    of a trained filter adds: a multiple of the sum of its inputs. Nothing is lost if
    the trained filters have a mean of zero, or if some inputs are constant or linear in
    the others (a constant channel, one that is always rectified to zero, inputs that
    sum to one): then other weights compute the same. Otherwise the layer gets the
    weights and bias with the smallest mean squared error on `images`. Layers whose
    error exceeds `tolerance` stay plain layers, with normalization folded in. The first
    layers are often among them, as images are smooth. Depthwise layers lose nothing, as
    their filters keep the mean.

    Layer, group and RMS normalization compute statistics per example, which constants
    cannot. With `trained=True` each becomes the factor and offset per channel, or the
    dynamic function, with the smallest mean squared error on `images`, in the order of
    the layers. Train the new network for some more steps then. `fold` multiplies the
    constants into the dense and attention layers after them.

    Args:
        model: `keras.Model`. A built model: functional, sequential, or a subclass whose
            `call` uses only Keras layers and `keras.ops`. It is not modified.
        images: array, tensor or structure of these. One batch of model inputs to
            measure the constants with, preferably preprocessed training images. By
            default 8 to 64 examples of noise: standard normal, or uniform in [0, 255]
            for a model that begins with a rescaling layer. Images are smoother than
            noise, and the variance after the first convolution is smaller for them;
            with noise, the signal in training is therefore weaker than the report says.
        alpha: float. Standard deviation that a residual branch adds, as in the networks
            of this package.
        skip_gain_initializer: initializer of the skip gains of residual branches. With
            the default, zeros, each block starts as its shortcut. Not used with
            `trained=True`.
        trained: bool. Whether to start from the weights of `model`. Then `images` must
            be given: a few dozen inputs from the model's domain, preprocessed.
        tolerance: float. With `trained=True`, the largest error of a standardized
            layer's outputs, relative to their standard deviation. With 0 the outputs
            stay the same; with a large number all layers are standardized.
        normalization: str. What takes the place of normalization: `"constants"`,
            `"dynamic_tanh"` or `"dynamic_erf"`. With the latter two, `alpha`,
            `skip_gain_initializer` and `tolerance` are not used.

    Returns:
        An `AGCModel` with the same inputs and outputs, not compiled. Its weights are
        drawn anew by the initializers of `model`, except in unchanged layers and with
        `trained=True`. `model.conversion` is a `Conversion`: what was done with each
        layer and the expected variance after it; with `trained=True` also the errors of
        each layer and of the outputs. Pass `agc_exclude` to `compile` if the classifier
        is not named `"predictions"`.

    Raises:
        ValueError: the graph of the model cannot be traced. Or, with the name of the layer:
            a layer hides normalization or convolutions, has no standardized counterpart or
            cannot be copied; the variance vanishes or is not finite; a layer with weights
            of its own contains normalization; a dynamic function would replace
            normalization over several axes. Also `trained=True` without `images`, a
            negative `tolerance` or an unknown `normalization`.

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
    (2021), arXiv 2102.06171, section 2; Zhu et al. (2025), arXiv 2503.10622; Chen et al.
    (2025), arXiv 2512.10938.
    """
    alpha = checks.number("alpha", alpha, exclusive=True)
    tolerance = checks.number("tolerance", tolerance)
    checks.one_of("normalization", normalization, ("constants", *DYNAMIC))
    if trained and images is None:
        raise ValueError(
            "`trained=True` needs `images`, a batch of images of the model's data: the "
            "errors of the new layers are measured on them. Received: images=None"
        )
    if not (isinstance(model, keras.Model) and model.built):
        raise ValueError(
            "normalizer_free needs a built Keras model. Call the model on some inputs "
            f"first. Received: {model!r}"
        )
    if normalization in DYNAMIC:
        graph = Graph(model, DynamicConverter.opens)
        converter = DynamicConverter(graph, DYNAMIC[normalization], trained)
    elif trained:
        graph = Graph(model, TrainedWeightsConverter.opens)
        converter = TrainedWeightsConverter(graph, alpha, tolerance)
    else:
        graph = Graph(model, NewWeightsConverter.opens)
        converter = NewWeightsConverter(graph, alpha, skip_gain_initializer)
    inputs, outputs = converter.run(_samples(graph, images))
    result = AGCModel(inputs, outputs, name=model.name)
    error = converter.error() if trained else None
    result.conversion = Conversion(converter.steps, error)
    return result


def _samples(graph, images):
    """Return `{value: tensor}` for the graph's inputs."""
    values = keras.tree.flatten(graph.inputs)
    if images is None:
        return {value: _noise(value, graph) for value in values}
    arrays = keras.tree.flatten(images)
    if len(arrays) != len(values):
        raise ValueError(
            "`images` must have one array for each input of the model, "
            f"{len(values)} in all. Received: {len(arrays)}"
        )
    for value, array in zip(values, arrays):
        shape, expected = tuple(ops.shape(array)), value.shape
        fits = len(shape) == len(expected) and all(
            b in (None, a) for a, b in zip(shape[1:], expected[1:])
        )
        if not fits or not shape[0]:
            raise ValueError(
                f"`images` must be a batch of one or more images, of shape {expected}. "
                f"Received: shape {shape}"
            )
    return {
        value: ops.convert_to_tensor(array, dtype=value.spec.dtype)
        for value, array in zip(values, arrays)
    }


def _noise(value, graph):
    if not keras.backend.is_float_dtype(value.spec.dtype):
        raise ValueError(
            f"The input {value.spec.name!r} has the dtype {value.spec.dtype}, for which "
            "noise cannot be generated. Pass a batch of the model's inputs as `images`. "
            "Received: images=None"
        )
    size = _OPEN_SIZES.get(len(value.shape), 1)
    shape = [size if n is None else n for n in value.shape[1:]]
    # Small inputs have fewer positions to average over, so that more are needed.
    count = 8 * 224 * 224 // np.prod(shape[:-1], dtype=int)
    shape = (int(np.clip(count, 8, 64)), *shape)
    generator = np.random.default_rng(0)
    rescaling = (keras.layers.Rescaling, keras.layers.Normalization)
    if any(isinstance(c.operation, rescaling) for c in graph.consumers[value]):
        noise = generator.uniform(0, 255, shape)
    else:
        noise = generator.standard_normal(shape)
    return ops.convert_to_tensor(noise.astype("float32"), dtype=value.spec.dtype)
