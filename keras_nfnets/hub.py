"""Classes of KerasHub for the networks of this package.

Import this module before KerasHub loads a preset of them.
"""

import keras
import numpy as np

from keras_nfnets import checks, data, pretrained
from keras_nfnets.backend.dtype_policy import dtype_policy_is
from keras_nfnets.data.preparation import checked_preparation

checks.installed("keras_nfnets.hub", "keras_hub", '"keras_nfnets[hub]"')

import keras_hub

if tuple(map(int, keras_hub.__version__.split(".")[:2])) < (0, 32):
    raise ValueError(
        "keras_nfnets.hub needs KerasHub 0.32 or later: earlier versions do not standardize "
        "images as the networks need. Run: pip install --upgrade keras-hub. "
        f"Received: KerasHub {keras_hub.__version__}"
    )

__all__ = [
    "NFNetBackbone",
    "NFNetImageClassifier",
    "NFNetImageClassifierPreprocessor",
    "NFNetImageConverter",
    "image_classifier",
]


@keras.saving.register_keras_serializable("keras_nfnets")
class NFNetBackbone(keras_hub.models.FeaturePyramidBackbone):
    """A network of this package, without its classifier, as a KerasHub backbone.

    `pyramid_outputs` are the feature maps `"P2"` (stride 4) to `"P5"` (stride 32).

    Args:
        network: str. Name of a network, ours or timm's, as in `pretrained.create`.
        weights: str or None. See `NFNet`. Presets and saved models do not store it, as
            they have weights of their own.
        image_shape: tuple `(height, width, channels)`, or channels first if Keras is set
            so. Height and width may be None. RGB images of any size by default.
        output_stride: int or None. See `NFNet`.
        dtype: str or `keras.DTypePolicy`. Dtype policy of the layers.
        **kwargs: `name` and `trainable`.

    Input: float tensor `(batch, height, width, channels)`, normalized.
    Output: the last feature map, activated.

    Raises:
        ValueError: an unknown network, or an argument that its constructor rejects.
        OSError: the weights cannot be fetched.

    Example:

    >>> backbone = NFNetBackbone("NFNetTiny", weights="digits")
    >>> list(backbone.pyramid_outputs)
    ['P2', 'P3', 'P4', 'P5']
    >>> network = keras_nfnets.NFNetTiny(include_top=False)
    >>> backbone.set_weights(network.get_weights())  # those of a network
    """

    def __init__(
        self,
        network,
        weights=None,
        image_shape=None,
        output_stride=None,
        dtype=None,
        **kwargs,
    ):
        found = pretrained.find_network(network)
        with dtype_policy_is(dtype):
            model = found.build(
                include_top=False,
                weights=weights,
                input_shape=image_shape,
                output_stride=output_stride,
            )
        super().__init__(
            inputs=model.input, outputs=model.output, dtype=dtype, **kwargs
        )
        self.network = network
        self.image_shape = image_shape
        self.output_stride = output_stride
        self.pyramid_outputs = model.pyramid_outputs

    def get_config(self):
        return {
            **super().get_config(),
            "network": self.network,
            "image_shape": self.image_shape,
            "output_stride": self.output_stride,
        }


_PREPARATION = ["crop_mode", "interpolation", "mean", "deviation", "crop", "channels"]


@keras.saving.register_keras_serializable("keras_nfnets")
class NFNetImageConverter(keras_hub.layers.ImageConverter):
    """Preprocessing by `data.prepare`, as a KerasHub image converter.

    It resizes with Pillow or TensorFlow as for the checkpoints, not with Keras's
    `Resizing`, which has no margins and other kernels.

    Args:
        image_size: tuple `(height, width)` of the results, in pixels; both are the same.
        crop_mode, interpolation, mean, deviation, crop, channels: see `data.prepare`.
        **kwargs: see `keras.layers.Layer`.

    Input: images of values in [0, 255], `(batch, height, width, 3)` or
    `(height, width, 3)`. Values that are not uint8 are rounded.
    Output: float32 array, or tensor in tf.data, of the same rank and `channels` channels.

    Raises:
        ValueError: an argument is invalid.

    Example:

    >>> converter = NFNetImageConverter(
    ...     (32, 32), "center", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), crop=0.9
    ... )
    >>> converter(np.zeros((2, 60, 80, 3), "uint8")).shape
    (2, 32, 32, 3)
    """

    backbone_cls = NFNetBackbone

    def __init__(
        self,
        image_size,
        crop_mode,
        interpolation,
        mean,
        deviation,
        crop=1.0,
        channels=3,
        **kwargs,
    ):
        super().__init__(image_size=image_size, **kwargs)
        self.interpolation = interpolation
        self.crop_mode, self.crop = crop_mode, crop
        self.mean, self.deviation = mean, deviation
        self.channels = channels
        checked_preparation(self.preparation)

    @property
    def preparation(self):
        """Keyword arguments of `data.prepare`."""
        height, width = self.image_size
        if height != width:
            raise ValueError(
                "`image_size` must be two equal numbers of pixels. Received: "
                f"image_size={self.image_size}"
            )
        return {"size": height} | {name: getattr(self, name) for name in _PREPARATION}

    # In NumPy on every backend: a pipeline of tf.data or Grain may belong to any of them.

    def _call_python(self, inputs):
        images = np.asarray(inputs)
        if images.dtype != np.uint8:
            images = np.clip(np.rint(images), 0, 255).astype("uint8")
        if images.ndim == 3:
            return data.prepare(images, **self.preparation)
        return np.stack([data.prepare(image, **self.preparation) for image in images])

    def _call_tf(self, inputs):
        import tensorflow as tf

        images = tf.convert_to_tensor(inputs)
        result = tf.numpy_function(self._call_python, [images], tf.float32)
        result.set_shape((*images.shape[:-3], *self.image_size, self.channels))
        return result

    def get_config(self):
        # Without the base class's, whose arguments are others.
        config = keras.layers.Layer.get_config(self)
        config |= {name: getattr(self, name) for name in _PREPARATION}
        return {**config, "image_size": self.image_size}


@keras.saving.register_keras_serializable("keras_nfnets")
class NFNetImageClassifierPreprocessor(keras_hub.models.ImageClassifierPreprocessor):
    """KerasHub's preprocessor of an image classifier, with an `NFNetImageConverter`."""

    backbone_cls = NFNetBackbone
    image_converter_cls = NFNetImageConverter


@keras.saving.register_keras_serializable("keras_nfnets")
class NFNetImageClassifier(keras_hub.models.ImageClassifier):
    """KerasHub's image classifier, with an `NFNetBackbone`."""

    backbone_cls = NFNetBackbone
    preprocessor_cls = NFNetImageClassifierPreprocessor


def image_classifier(network, weights="imagenet", *, classes=None, preparation=None):
    """Create a KerasHub image classifier with weights and their preprocessing.

    It takes uint8 images of any size, and can be saved as a preset.

    Args:
        network: str. Name of a network, ours or timm's, as in `pretrained.create`.
        weights: str. See `NFNet`.
        classes: int. Number of classes; by default that of the checkpoint. If it is
            another, the classifier is random, with a warning.
        preparation: dict. Preprocessing of images, the keyword arguments of
            `data.prepare`; by default that of the checkpoint. It is needed, as `classes`
            is, if `weights` is a file.

    Returns:
        An `NFNetImageClassifier` with probabilities as outputs. Its optimizer does not
        clip: for training, compile it with `AGC` around an optimizer.

    Raises:
        ValueError: an argument is invalid or missing.
        OSError: the weights cannot be fetched.

    Example:

    >>> classifier = image_classifier("NFNetTiny", "digits")
    >>> images = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), "uint8")
    >>> classifier.predict(images, verbose=0).shape
    (2, 10)
    """
    found = pretrained.find_network(network)
    checkpoint = pretrained.find(weights, found.architecture).checkpoint
    if checkpoint is None and (classes is None or preparation is None):
        raise ValueError(
            "With a file as `weights`, pass `classes` and `preparation`. Received: "
            f"weights={str(weights)!r}, classes={classes}, preparation={preparation}"
        )
    classes = checkpoint.classes if classes is None else classes
    options = dict(checkpoint.preparation if preparation is None else preparation)
    needed = {"size", "crop_mode", "interpolation", "mean", "deviation"}
    if not needed <= options.keys():
        raise ValueError(
            f"`preparation` must have {', '.join(sorted(needed))}. "
            f"Received: preparation={preparation}"
        )
    size = options.pop("size")
    converter = NFNetImageConverter((size, size), **options)
    model = found.build(weights=weights, classes=classes)
    backbone = NFNetBackbone(network)
    for layer in backbone.layers:
        if layer.weights:
            layer.set_weights(model.get_layer(layer.name).get_weights())
    classifier = NFNetImageClassifier(
        backbone,
        classes,
        NFNetImageClassifierPreprocessor(converter),
        activation="softmax",
        dropout=model.get_layer("top_dropout").rate,
    )
    head = model.get_layer("predictions").get_weights()
    classifier.output_dense.set_weights(head)
    return classifier
