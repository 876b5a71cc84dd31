"""Preprocessing of images as part of an exported model."""

import math

import keras

from keras_nfnets.backend import keras_internals
from keras_nfnets.backend.graph import activation_of_outputs, unique_name
from keras_nfnets.data import preprocessing
from keras_nfnets.data.preparation import checked_preparation, completed

_INPUT = "image"


def with_preprocessing(model, preparation):
    """Split a classifier of images of any size into two models, one after the other.

    Args:
        model: `keras.Model` of one input, images with channels last, and one output. If
            its last layer is linear, the outputs are logits.
        preparation: dict. See `preprocessing_model`.

    Returns:
        A pair of models: the preprocessing, and the model with probabilities as outputs.

    Raises:
        ValueError: the model does not take images that are prepared in this way, or it
            is not known what its outputs are.
    """
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            "`preprocessing=True` is for models of one input and one output. Received: a "
            f"model of {len(model.inputs)} and {len(model.outputs)}"
        )
    batch_size = model.input_shape[0]
    front = preprocessing_model(preparation, batch_size)
    shape = front.output_shape
    expected = model.input_shape
    if len(expected) != 4 or any(
        want not in (None, size) for want, size in zip(expected, shape)
    ):
        raise ValueError(
            f"The model must take the images that `preparation` gives, of shape {shape}. "
            f"Received: a model with inputs of shape {expected}"
        )
    return front, _with_probabilities(model)


def _with_probabilities(model):
    """Return the model with an activation for its logits."""
    activation = activation_of_outputs(model)
    if activation is None:
        raise ValueError(
            "`preprocessing=True` is for models with probabilities or logits as outputs: "
            "their last layer must be linear, a softmax or a sigmoid. Received: a model "
            f"that ends in {model.layers[-1].name!r}"
        )
    if activation != "linear":
        return model
    names = {layer.name for layer in model.layers}
    activate = keras.layers.Activation(
        "softmax" if model.output_shape[-1] > 1 else "sigmoid",
        dtype="float32",
        name=unique_name("probabilities", names),
    )
    return keras.Model(model.input, activate(model.output), name=model.name)


def joined(front, model):
    """Return a model that applies two models one after the other."""
    return keras.Model(front.input, applied(model, front.output), name=model.name)


def applied(model, inputs):
    """Apply a model to tensors of another, of which a layer may have the same name."""
    operations = map(keras_internals.operation_of, keras.tree.flatten(inputs))
    name = unique_name(
        model.name, {operation.name for operation in operations} | {_INPUT}
    )
    return keras.Model(model.input, model.output, name=name)(inputs)


def preprocessing_model(preparation, batch_size=None):
    """Build a model that preprocesses a batch of images of one size.

    It computes what `data.prepare` computes, within a fraction of a level of the pixels;
    where images are prepared as timm does, within two levels.

    Args:
        preparation: dict. Keyword arguments of `data.prepare`. `interpolation="nearest"`
            is not supported.
        batch_size: int or None, for any.

    Returns:
        `keras.Model` from uint8 `(batch, height, width, 3)` to float32
        `(batch, size, size, channels)`.

    Raises:
        ValueError: `preparation` has invalid or unsupported entries.
    """
    images = keras.Input((None, None, 3), batch_size, dtype="uint8", name=_INPUT)
    return keras.Model(images, Preprocessing(preparation)(images))


class Preprocessing(keras.layers.Layer):
    """Crop, resize and normalize images.

    Resizing is linear in the pixels: a matrix for the rows, and one for the columns.
    Runtimes that resize with antialiasing differ in what they compute, or lack it; all of
    them multiply matrices.

    Args:
        preparation: dict. Keyword arguments of `data.prepare`.
    """

    def __init__(self, preparation):
        super().__init__(dtype="float32", name="preprocessing")
        values = completed(checked_preparation(preparation))
        missing = {"crop_mode", "interpolation", "mean", "deviation"} - values.keys()
        if missing:
            raise ValueError(
                f"`preparation` must have {', '.join(sorted(missing))}. "
                f"Received: {preparation}"
            )
        if values["interpolation"] == "nearest":
            raise ValueError(
                "Preprocessing with interpolation='nearest' cannot be exported. "
                f"Received: {preparation}"
            )
        self._channels = values["channels"]
        self._size, self._mode = values["size"], values["crop_mode"]
        self._is_timm = self._mode in preprocessing.TIMM_CROP_MODES
        self._side = math.floor(self._size / values["crop"])  # as timm resizes
        self._antialias = values["interpolation"] != "bicubic" or self._is_timm
        is_linear = values["interpolation"] == "bilinear"
        self._kernel = _triangle if is_linear else _cubic
        self._mean, self._deviation = (
            preprocessing.per_channel(values[name], self._channels)
            for name in ("mean", "deviation")
        )

    def compute_output_shape(self, shape):
        return (shape[0], self._size, self._size, self._channels)

    def call(self, images):
        return self.compute(images, keras.ops)

    def compute(self, images, ops):
        """Preprocess images.

        Args:
            images: uint8 tensor `(batch, height, width, 3)`.
            ops: what has the functions of `keras.ops`: that, or those of onnx_arrays.py.
        """
        x = ops.cast(images, "float32")
        if self._channels == 1:
            x = _grayscale(x, ops)
        batch, height, width, _ = ops.shape(x)
        rows, columns = self._matrices(height, width, ops)
        x = ops.reshape(
            ops.matmul(columns, x), (batch, height, self._size * self._channels)
        )
        x = ops.reshape(
            ops.matmul(rows, x), (batch, self._size, self._size, self._channels)
        )
        if self._is_timm:
            x = _levels(x, ops)
        if self._mean is not None:
            constants = preprocessing.factor_and_shift(self._mean, self._deviation)
            factor, shift = map(ops.convert_to_tensor, constants)
            return x * factor - shift
        return _standardized(x, self._size**2 * self._channels, ops)

    def _matrices(self, height, width, ops):
        """Return the matrices that crop and resize the rows and the columns."""
        lengths = (height, width)
        shorter = ops.minimum(height, width)
        if self._is_timm:
            windows = [self._timm_window(length, shorter, ops) for length in lengths]
        elif self._mode == "crop_resize":
            # In the order and the precision of `middle_window`.
            scale = ops.cast(shorter, "float32") / (self._size + 32)
            side = ops.maximum(ops.cast(scale * self._size, "int32"), 1)
            windows = [((x - side + 1) // 2, side, self._size, 0) for x in lengths]
        else:
            margin = preprocessing.crop_margin(self._mode)
            windows = [(0, x, self._size + margin, (margin + 1) // 2) for x in lengths]
        return [
            self._matrix(length, *window, ops)
            for length, window in zip(lengths, windows)
        ]

    def _timm_window(self, length, shorter, ops):
        """Return the arguments of `_matrix` of the function `data.images.crop_as_timm`."""
        side = ops.convert_to_tensor(self._side, "int32")
        start, used = 0, length
        if self._mode == "center":
            used = ops.minimum(length, 4 * shorter)
            start = (length - used) // 2
            side = side * used // shorter
        begin = ops.round(ops.cast(side - self._size, "float32") / 2)
        return start, used, side, begin

    def _matrix(self, length, start, used, resized, begin, ops):
        """Return the matrix `(size, length)` that resizes a window and crops the result.

        Args:
            length: int. Number of pixels of the image, as the next ones perhaps a tensor.
            start, used: int. First pixel and number of pixels of the window.
            resized: int. Number of pixels to which the window is resized.
            begin: float. First of the resized pixels that is used.
            ops: see `compute`.
        """
        start, used, resized, begin = (
            ops.cast(x, "float32") for x in (start, used, resized, begin)
        )
        ratio = used / resized
        scale = ops.maximum(ratio, 1.0) if self._antialias else 1.0
        centers = (ops.arange(self._size, dtype="float32") + begin + 0.5) * ratio
        pixels = ops.cast(ops.arange(length), "float32") - start
        distances = pixels + 0.5 - ops.expand_dims(centers, 1)
        weights = self._kernel(distances / scale, ops)
        is_inside = ops.logical_and(pixels >= 0, pixels < used)
        weights = ops.where(is_inside, weights, 0.0)
        return weights / ops.sum(weights, axis=1, keepdims=True)


def _levels(x, ops):
    """Round as Pillow does: halves up, although runtimes may be a little below them."""
    return ops.minimum(ops.maximum(ops.floor(x + 0.501), 0), 255)


def _triangle(x, ops):
    return ops.maximum(1 - ops.abs(x), 0.0)


def _cubic(x, ops):
    """Keys's cubic kernel, of a = -1/2."""
    x = ops.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return ops.where(x < 1, near, ops.where(x < 2, far, 0.0))


def _grayscale(x, ops):
    """Convert RGB to luma as Pillow does, in integers of at most 24 bits."""
    weights = ops.convert_to_tensor([19595.0, 38470.0, 7471.0])
    total = ops.sum(x * weights, axis=-1, keepdims=True)
    return ops.floor((total + 32768) / 65536)


def _standardized(x, size, ops):
    """Standardize each image, of `size` values, by its own mean and standard deviation.

    The same as `tf.image.per_image_standardization`.
    """
    x = x - ops.sum(x, axis=(1, 2, 3), keepdims=True) / size
    variance = ops.sum(x * x, axis=(1, 2, 3), keepdims=True) / size
    return x / ops.maximum(ops.sqrt(variance), 1 / math.sqrt(size))
