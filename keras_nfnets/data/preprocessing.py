"""Crops, resizing and normalization of images, as the authors define them.

These are TensorFlow functions for `tf.data`. A crop is a window (top, left, height,
width). It is known before a JPEG is decoded, so that only the necessary part is
decoded.
"""

import re

import numpy as np

from keras_nfnets import checks

# Statistics of the channels, for values in [0, 1].
IMAGENET = {"mean": (0.485, 0.456, 0.406), "deviation": (0.229, 0.224, 0.225)}


def random_window(shape, size, area, seed):
    """Draw a window of random area and aspect ratio, for training.

    Args:
        shape: int32 tensor (height, width, channels). Shape of the image.
        size: int. Side length of the result, in pixels.
        area: pair of floats. Smallest and largest fraction of the image area.
        seed: int32 tensor (2,).

    Returns:
        int32 tensor (4,).

    Reference: `_decode_and_random_crop` in the authors' dataset.py.
    """
    import tensorflow as tf

    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed,
        min_object_covered=0.1,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=area,
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], extent[:2]], 0)
    # If TensorFlow finds no window, it returns the complete image.
    found = tf.reduce_any(extent[:2] != shape[:2])
    return tf.where(found, window, middle_window(shape, size))


def middle_window(shape, size):
    """Return the central square that leaves margins of 16 pixels.

    The margins are measured along the shorter side, in pixels of the resized image.
    """
    import tensorflow as tf

    height, width = shape[0], shape[1]
    scale = tf.cast(tf.minimum(height, width), "float32") / (size + 32)
    side = tf.maximum(tf.cast(scale * size, "int32"), 1)
    return tf.stack([(height - side + 1) // 2, (width - side + 1) // 2, side, side])


def full_window(shape, size):
    """Return the window that covers the complete image."""
    import tensorflow as tf

    return tf.stack([0, 0, shape[0], shape[1]])


# "bicubic" has no antialiasing, as in the authors' code: of an image that is made much
# smaller, most pixels do not count. "bilinear" has it.
INTERPOLATIONS = ("bicubic", "antialiased_bicubic", "bilinear")


def resize(image, size, interpolation):
    """Resize an image to a square, ignoring its aspect ratio.

    Args:
        image: tensor `(height, width, channels)`.
        size: int. Side length of the result, in pixels.
        interpolation: str. One of `INTERPOLATIONS`, or `"nearest"`.

    Returns:
        float32 tensor `(size, size, channels)`; values are not rounded.
    """
    import tensorflow as tf

    method = interpolation.removeprefix("antialiased_")
    antialias = method != interpolation or method == "bilinear"
    return tf.image.resize(image, (size, size), method, antialias=antialias)


# Crop modes of `prepare` that are timm's, in addition to those of `check_crop_mode`.
TIMM_CROP_MODES = ("center", "squash")


def check_crop_mode(crop_mode):
    """Check that an evaluation crop mode is one of the authors'.

    Args:
        crop_mode: str. `"crop_resize"`, `"whole"` or `"resize_crop_32"` (or another
            number of pixels), see `prepare`.

    Raises:
        ValueError: `crop_mode` is not one of these.

    Example:

    >>> check_crop_mode("resize_crop_32")

    Reference: `_preprocess_image` in the authors' dataset.py.
    """
    _check_crop_mode(crop_mode)


def _check_crop_mode(crop_mode, others=()):
    """Check as `check_crop_mode` does; the message also offers the modes `others`."""
    if not re.fullmatch(r"crop_resize|whole|resize_crop_\d{1,4}", str(crop_mode)):
        choices = ", ".join(map(repr, ("crop_resize", "whole", *others)))
        raise ValueError(
            f"`crop_mode` must be one of {choices} and 'resize_crop_32' (or another "
            f"number of pixels). Received: crop_mode={crop_mode!r}"
        )


def crop_margin(crop_mode):
    """Return how many pixels of a resized side a crop mode crops, 32 in `"resize_crop_32"`."""
    return int(crop_mode.rpartition("_")[2]) if crop_mode.startswith("resize_") else 0


def evaluation_crop(crop_mode, interpolation):
    """Return the functions that crop and resize images in evaluation.

    Args:
        crop_mode: str. `"crop_resize"` crops the central square with margins of 16
            pixels, and resizes it. `"resize_crop_32"` resizes the image to a square
            that is 32 pixels larger than the result, and crops the center. `"whole"`
            resizes the complete image to a square.
        interpolation: str. One of `INTERPOLATIONS`.

    Returns:
        A pair of functions: `window(shape, size)`, and `resize(image, size)`, which
        converts the content of the window to a float32 tensor `(size, size, channels)`.

    Raises:
        ValueError: `crop_mode` or `interpolation` is unknown.

    Reference: `_preprocess_image` in the authors' dataset.py.
    """
    import tensorflow as tf

    _check_crop_mode(crop_mode, TIMM_CROP_MODES)
    checks.one_of("interpolation", interpolation, INTERPOLATIONS)
    if crop_mode == "crop_resize":
        return middle_window, lambda x, size: resize(x, size, interpolation)
    if crop_mode == "whole":
        return full_window, lambda x, size: resize(x, size, interpolation)
    margin = crop_margin(crop_mode)
    begin = (margin + 1) // 2

    def resize_crop(x, size):
        x = resize(x, size + margin, interpolation)
        return tf.slice(x, (begin, begin, 0), (size, size, -1))

    return full_window, resize_crop


def standardize(image, mean, deviation):
    """Compute `(image / 255 - mean) / deviation`.

    If `mean` is None, the image is standardized by its own mean and standard deviation.
    """
    import tensorflow as tf

    if mean is None:
        return tf.image.per_image_standardization(image)
    return scale(image, mean, deviation)


def per_channel(values, channels):
    """Average the statistics of three channels if images are grayscale."""
    if values is not None and channels == 1 and np.size(values) == 3:
        return [float(np.mean(values))]
    return values


def scale(image, mean, deviation):
    """Compute `(image / 255 - mean) / deviation` in float32."""
    factor, shift = factor_and_shift(mean, deviation)
    return image * factor - shift


def factor_and_shift(mean, deviation):
    """Return float32 arrays with `(x / 255 - mean) / deviation = factor * x - shift`."""
    mean, deviation = np.float64(mean), np.float64(deviation)
    return np.float32(1 / (255 * deviation)), np.float32(mean / deviation)
