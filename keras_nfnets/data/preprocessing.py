"""What of a picture is taken, and its numbers, as the authors define them.

Functions of TensorFlow, for `tf.data`. A crop is a window (top, left, height, width),
which is known before a JPEG is decoded, so that no more of it is decoded than needed.
"""

import re

import numpy as np

from keras_nfnets import checks

# Of the channels, for values in [0, 1].
IMAGENET = {"mean": (0.485, 0.456, 0.406), "deviation": (0.229, 0.224, 0.225)}


def random_window(shape, size, area, seed):
    """A window of random area and aspect ratio, for training.

    Args:
        shape: int32 tensor (height, width, channels) of a picture.
        size: pixels a side of the result.
        area: range of the share of the picture.
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
    # Where no window was found, it is all of the picture.
    found = tf.reduce_any(extent[:2] != shape[:2])
    return tf.where(found, window, middle_window(shape, size))


def middle_window(shape, size):
    """The square in the middle that leaves 16 pixels at its sides when resized."""
    import tensorflow as tf

    height, width = shape[0], shape[1]
    scale = tf.cast(tf.minimum(height, width), "float32") / (size + 32)
    side = tf.maximum(tf.cast(scale * size, "int32"), 1)
    return tf.stack([(height - side + 1) // 2, (width - side + 1) // 2, side, side])


def whole_window(shape, size):
    """All of the picture."""
    import tensorflow as tf

    return tf.stack([0, 0, shape[0], shape[1]])


def resize(image, size, interpolation="bicubic"):
    """The picture, squashed into a square of that size; float32, not rounded."""
    import tensorflow as tf

    # Bilinear interpolation is for pictures of very few pixels, or very many.
    antialias = interpolation == "bilinear"
    return tf.image.resize(image, (size, size), interpolation, antialias=antialias)


# What is done in evaluation, by name. (The last two are timm's.)
CROP_MODES = ("crop_resize", "resize_crop_32", "whole", "center", "squash")


def check_crop_mode(crop_mode):
    """Checks that a way to crop in evaluation is one of the authors'.

    Args:
        crop_mode: a name, see `prepare`: `"crop_resize"`, `"whole"` or
            `"resize_crop_32"` (or with another number).

    Raises:
        ValueError: it is another one.

    Example:

    >>> check_crop_mode("resize_crop_32")

    Reference: `_preprocess_image` in the authors' dataset.py.
    """
    plain = ("crop_resize", "whole")
    if crop_mode not in plain and not re.fullmatch(
        r"resize_crop_\d{1,4}", str(crop_mode)
    ):
        raise ValueError(
            f"`crop_mode` must be one of {', '.join(CROP_MODES)}. Received: {crop_mode!r}"
        )


def evaluation_crop(crop_mode, interpolation="bicubic"):
    """How pictures are cropped in evaluation.

    Args:
        crop_mode: `"crop_resize"` takes the middle square with a margin of 16 pixels,
            and resizes it. `"resize_crop_32"` squashes the picture into a square with a
            margin of 32 pixels together, and takes the middle. `"whole"` squashes the
            whole picture.
        interpolation: `"bicubic"` or `"bilinear"`.

    Returns:
        A pair of functions: `window(shape, size)`, and one of what is in the window and
        the size, which makes a float32 tensor `(size, size, channels)`.

    Raises:
        ValueError: another mode or interpolation.

    Reference: `_preprocess_image` in the authors' dataset.py.
    """
    import tensorflow as tf

    check_crop_mode(crop_mode)
    checks.one_of("interpolation", interpolation, ("bicubic", "bilinear"))
    if crop_mode == "crop_resize":
        return middle_window, lambda x, size: resize(x, size, interpolation)
    if crop_mode == "whole":
        return whole_window, lambda x, size: resize(x, size, interpolation)
    margin = int(crop_mode.rpartition("_")[2])
    begin = (margin + 1) // 2

    def resize_crop(x, size):
        x = resize(x, size + margin, interpolation)
        return tf.slice(x, (begin, begin, 0), (size, size, -1))

    return whole_window, resize_crop


def standardize(image, mean, deviation):
    """`(image / 255 - mean) / deviation`; where they are None, by the picture's own."""
    import tensorflow as tf

    if mean is None:
        return tf.image.per_image_standardization(image)
    return scale(image, mean, deviation)


def scale(image, mean, deviation):
    """`(image / 255 - mean) / deviation`, of an array or a tensor; float32."""
    mean, deviation = np.float64(mean), np.float64(deviation)
    factor, shift = 1 / (255 * deviation), mean / deviation
    return image * np.float32(factor) - np.float32(shift)
