"""RandAugment with the operations and magnitudes of the authors' code.

The `RandAugment` layer of Keras has other operations with other strengths, and computes
all of them for each image.

Reference: Cubuk et al. (2020), arXiv 1909.13719; autoaugment.py of the authors.
"""

import functools
import math

from keras_nfnets.data.augmentation import box

# Magnitude of an operation's nominal maximum; larger magnitudes go beyond it.
_TENTHS = 10
_GREY = 128  # fill value


def rand_augment(image, layers, magnitude, seed):
    """Apply randomly drawn operations, one after the other.

    Args:
        image: uint8 tensor `(height, width, 3)`.
        layers: int. Number of operations.
        magnitude: number. Magnitude of each operation, 0 to 30.
        seed: int32 tensor (2,). The same seed gives the same result.

    Returns:
        uint8 tensor of the same shape.

    Example:

    >>> image = np.full((8, 8, 3), 100, "uint8")
    >>> rand_augment(image, layers=2, magnitude=5, seed=(0, 0)).shape
    TensorShape([8, 8, 3])
    """
    import tensorflow as tf

    level = magnitude / _TENTHS
    image = tf.convert_to_tensor(image)

    def layer(i, image):
        layer_seed = tf.random.fold_in(seed, i)
        operation_seed = tf.random.fold_in(layer_seed, 0)
        number = tf.random.stateless_uniform(
            (), layer_seed, 0, len(OPERATIONS), dtype="int32"
        )
        # Only the operation that was drawn is computed.
        changed = tf.switch_case(
            number,
            [
                functools.partial(operation, image, level, operation_seed)
                for operation in OPERATIONS.values()
            ],
        )
        return i + 1, tf.ensure_shape(changed, image.shape)

    # A loop in the graph: its body is traced once, for any number of layers.
    _, image = tf.while_loop(lambda i, _: i < layers, layer, (0, image))
    return image


def _sign(seed):
    """Draw 1.0 or -1.0."""
    import tensorflow as tf

    return 2.0 * tf.floor(tf.random.stateless_uniform((), seed) + 0.5) - 1.0


def _to_uint8(values):
    """Clip values to [0, 255] and truncate them, as the authors do."""
    import tensorflow as tf

    return tf.cast(tf.clip_by_value(values, 0, 255), "uint8")


def _blend(plain, image, factor):
    """Interpolate from `plain` (factor 0) to `image` (factor 1), or extrapolate."""
    import tensorflow as tf

    plain, image = (tf.cast(x, "float32") for x in (plain, image))
    return _to_uint8(plain + factor * (image - plain))


def _strength(level):
    return level * 1.8 + 0.1


def _greyscale(image):
    import tensorflow as tf

    return tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(image))


def _color(image, level, seed):
    return _blend(_greyscale(image), image, _strength(level))


def _brightness(image, level, seed):
    return _blend(0 * image, image, _strength(level))


def _contrast(image, level, seed):
    import tensorflow as tf

    # The authors use the number of pixels divided by 256 as the mean gray level. Their
    # networks were trained with it.
    pixels = tf.cast(tf.size(image) // 3, "float32")
    grey = tf.floor(tf.minimum(pixels / 256, 255.0))
    return _blend(tf.fill(tf.shape(image), grey), image, _strength(level))


def _sharpness(image, level, seed):
    import tensorflow as tf

    kernel = tf.constant([[1, 1, 1], [1, 5, 1], [1, 1, 1]], "float32") / 13
    kernel = tf.tile(kernel[:, :, tf.newaxis, tf.newaxis], (1, 1, 3, 1))
    values = tf.cast(image, "float32")[tf.newaxis]
    smooth = tf.nn.depthwise_conv2d(values, kernel, (1, 1, 1, 1), "VALID")[0]
    # Pixels at the border stay unchanged.
    inner = tf.pad(tf.ones_like(smooth), ((1, 1), (1, 1), (0, 0)))
    smooth = tf.pad(smooth, ((1, 1), (1, 1), (0, 0)))
    smooth = tf.where(inner > 0, tf.cast(_to_uint8(smooth), "float32"), values[0])
    return _blend(smooth, image, _strength(level))


def _autocontrast(image, level, seed):
    import tensorflow as tf

    values = tf.cast(image, "float32")
    low, high = (f(values, (0, 1)) for f in (tf.reduce_min, tf.reduce_max))
    scale = 255 / tf.maximum(high - low, 1)
    return tf.where(high > low, _to_uint8(values * scale - low * scale), image)


def _equalize(image, level, seed):
    import tensorflow as tf

    def channel(values):
        values = tf.cast(values, "int32")
        counts = tf.math.bincount(tf.reshape(values, [-1]), minlength=256)
        last = counts[tf.reduce_max(values)]
        step = (tf.reduce_sum(counts) - last) // 255
        table = (tf.cumsum(counts, exclusive=True) + step // 2) // tf.maximum(step, 1)
        return tf.where(
            step > 0, tf.gather(tf.clip_by_value(table, 0, 255), values), values
        )

    return tf.cast(tf.stack([channel(image[..., c]) for c in range(3)], -1), "uint8")


def _invert(image, level, seed):
    return 255 - image


def _posterize(image, level, seed):
    import tensorflow as tf

    # Number of low bits to clear. A higher level clears fewer, as in the authors' code.
    lost = max(8 - int(level * 4), 0)
    if lost == 8:
        return tf.zeros_like(image)
    return tf.bitwise.left_shift(
        tf.bitwise.right_shift(image, tf.constant(lost, "uint8")),
        tf.constant(lost, "uint8"),
    )


def _solarize(image, level, seed):
    import tensorflow as tf

    return tf.where(tf.cast(image, "int32") < int(level * 256), image, 255 - image)


def _solarize_add(image, level, seed):
    import tensorflow as tf

    added = _to_uint8(tf.cast(image, "int32") + int(level * 110))
    return tf.where(image < 128, added, image)


def _cutout(image, level, seed):
    import tensorflow as tf

    height, width = tf.unstack(tf.shape(image)[:2])
    place = tf.random.stateless_uniform((2,), seed)
    lengths = tf.cast(tf.stack([height, width]), "float32")
    center = tf.cast(place * lengths, "int32")
    mask = box(height, width, center, int(level * 40))
    return tf.where(mask > 0, tf.constant(_GREY, "uint8"), image)


def _transformed(image, row_x, row_y):
    """Apply an affine transformation.

    The pixel (x, y) of the result is the pixel of `image` whose coordinates are the
    products of `row_x` and `row_y` with (x, y, 1).
    """
    import tensorflow as tf

    # A fourth channel marks the pixels that come from the image.
    image = tf.concat([image, tf.ones_like(image[..., :1])], -1)
    numbers = [tf.cast(x, "float32") for x in (*row_x, *row_y, 0, 0)]
    image = tf.raw_ops.ImageProjectiveTransformV3(
        images=image[tf.newaxis],
        transforms=tf.stack(numbers)[tf.newaxis],
        output_shape=tf.shape(image)[:2],
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )[0]
    return tf.where(image[..., 3:] > 0, image[..., :3], tf.constant(_GREY, "uint8"))


def _rotate(image, level, seed):
    import tensorflow as tf

    angle = _sign(seed) * math.radians(level * 30)
    cos, sin = tf.cos(angle), tf.sin(angle)
    y, x = (tf.cast(n - 1, "float32") / 2 for n in tf.unstack(tf.shape(image)[:2]))
    return _transformed(
        image, (cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y)
    )


def _shear_x(image, level, seed):
    return _transformed(image, (1, _sign(seed) * level * 0.3, 0), (0, 1, 0))


def _shear_y(image, level, seed):
    return _transformed(image, (1, 0, 0), (_sign(seed) * level * 0.3, 1, 0))


def _translate_x(image, level, seed):
    return _transformed(image, (1, 0, _sign(seed) * level * 100), (0, 1, 0))


def _translate_y(image, level, seed):
    return _transformed(image, (1, 0, 0), (0, 1, _sign(seed) * level * 100))


OPERATIONS = {
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "Rotate": _rotate,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "Color": _color,
    "Contrast": _contrast,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Cutout": _cutout,
    "SolarizeAdd": _solarize_add,
}
