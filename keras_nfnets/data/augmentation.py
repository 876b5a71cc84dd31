"""Augmentation settings: random crops, flips, MixUp, CutMix and RandAugment."""

import dataclasses
import re

WORDS = (
    "none, crop or crop_0.35 (smallest share of the area), flip, mixup_0.2 (alpha), "
    "cutmix, randaugment_4x5 (layers x magnitude)"
)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Augmentation of training images, in addition to their preprocessing.

    Attributes:
        crop: float or None. Smallest fraction of the image area that a random crop
            covers, in (0, 1]. None: images are preprocessed as in evaluation.
        flip: bool. Whether to flip images left to right with probability 0.5.
        mixup: float. Alpha of MixUp; 0 disables it.
        cutmix: bool. Whether to apply CutMix. With MixUp too, each is applied to half
            of a batch.
        rand_augment: tuple `(layers, magnitude)` of RandAugment, or None.

    Raises:
        ValueError: in `parse`, an unknown word.

    Example:

    >>> augmentation = Augmentation.parse("crop_0.35 cutmix")
    >>> augmentation.crop, augmentation.flip, augmentation.mixes
    (0.35, False, True)

    Reference: section 5 of Brock et al. (2021), arXiv 2102.06171, and the authors'
    dataset.py. MixUp: arXiv 1710.09412; CutMix: 1905.04899; RandAugment: 1909.13719.
    """

    crop: float | None = None
    flip: bool = False
    mixup: float = 0.0
    cutmix: bool = False
    rand_augment: tuple | None = None

    @classmethod
    def parse(cls, text):
        """Parse words such as `"crop flip mixup_0.2 cutmix randaugment_4x5"`.

        Args:
            text: str. Words separated by spaces.

        Returns:
            An `Augmentation`.

        Raises:
            ValueError: a word is unknown or repeated, or its number is out of range.

        Example:

        >>> Augmentation.parse("crop flip mixup_0.2 randaugment_4x5").rand_augment
        (4, 5)
        """
        values = {}
        for word in str(text).split():
            name, _, number = word.partition("_")
            new = _setting(name, number)
            if new is None or new.keys() & values.keys():
                raise ValueError(
                    f"{word!r} is not a known augmentation, or is repeated. Give one or "
                    f"more of {WORDS}, each once, separated by spaces. "
                    f"Received: {word!r} in {text!r}"
                )
            values.update(new)
        return cls(**values)

    @property
    def mixes(self):
        """Whether each training image is a mixture of two images."""
        return self.mixup > 0 or self.cutmix


def _setting(name, number):
    """Return the attributes that a word sets, or None if it is unknown."""
    if not number:
        plain = {
            "none": {},
            "crop": {"crop": 0.08},
            "flip": {"flip": True},
            "mixup": {"mixup": 0.2},
            "cutmix": {"cutmix": True},
        }
        return plain.get(name)
    if name == "crop" and 0 < (_float(number) or 0) <= 1:
        return {"crop": _float(number)}
    if name == "mixup" and 0 < (_float(number) or 0) <= 100:
        return {"mixup": _float(number)}
    layers = re.fullmatch(r"(\d{1,2})x(\d{1,2})", number)
    if name == "randaugment" and layers and int(layers[2]) <= 30:
        return {"rand_augment": (int(layers[1]), int(layers[2]))}
    return None


def _float(text):
    return float(text) if re.fullmatch(r"\d*\.?\d+", text) else None


def mix(first, second, ratio_or_mask):
    """Compute `m * first + (1 - m) * second` in float32."""
    import tensorflow as tf

    first, second = (tf.cast(x, "float32") for x in (first, second))
    return ratio_or_mask * first + (1 - ratio_or_mask) * second


def mixup_ratio(alpha, seed):
    """Draw a float32 scalar from the distribution Beta(alpha, alpha).

    Reference: Zhang et al. (2018), arXiv 1710.09412.
    """
    import tensorflow as tf

    # The ratio comes from two gamma variables. Their logarithms are used because both
    # may underflow to zero for small alpha. If U is uniform and G is Gamma(alpha + 1),
    # then U^(1 / alpha) * G is Gamma(alpha).
    gammas = tf.random.stateless_gamma((2,), seed, alpha + 1, dtype="float64")
    uniform = tf.random.stateless_uniform(
        (2,), tf.random.fold_in(seed, 1), dtype="float64"
    )
    logs = tf.math.log(gammas) + tf.math.log(uniform) / alpha
    return tf.cast(tf.nn.softmax(logs)[0], "float32")


def cutmix_mask(size, seed):
    """Draw a CutMix mask.

    Args:
        size: int. Side length of the images, in pixels.
        seed: int32 tensor (2,).

    Returns:
        float32 tensor `(size, size, 1)`: ones in a box around a random center, zeros
        elsewhere. Its mean is the weight of the first image's label.

    Reference: Yun et al. (2019), arXiv 1905.04899; `cutmix_padding` in the authors'
    dataset.py.
    """
    import tensorflow as tf

    center = tf.random.stateless_uniform((2,), seed, 0, size, "int32")
    share = tf.random.stateless_uniform((), tf.random.fold_in(seed, 1))
    half = tf.cast(tf.sqrt(1 - share) * size, "int32") // 2
    return box(size, size, center, half)


def box(height, width, center, half):
    """Create a mask that is one inside a square and zero outside.

    Args:
        height, width: int or scalar integer tensor. Size of the mask, in pixels.
        center: int32 tensor (2,). Row and column of the square's center.
        half: int or scalar int32 tensor. Half of the square's side length.

    Returns:
        float32 tensor `(height, width, 1)`.
    """
    import tensorflow as tf

    inside = [
        (tf.range(length) >= center[i] - half) & (tf.range(length) < center[i] + half)
        for i, length in enumerate((height, width))
    ]
    mask = inside[0][:, tf.newaxis] & inside[1][tf.newaxis, :]
    return tf.cast(mask, "float32")[..., tf.newaxis]
