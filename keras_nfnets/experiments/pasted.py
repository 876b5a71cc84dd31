"""Photographs with stamps pasted on them, whose masks and boxes are known exactly.

Backgrounds are crops of the color photographs in scikit-learn and scikit-image. A stamp is
a square with a character, an image of a data set of `images`, in its middle; stamps have
their own colors, sizes and positions. Splits have neither photographs nor characters in
common.
"""

import functools
import typing

import numpy as np
from PIL import Image

from keras_nfnets import checks
from keras_nfnets.experiments import images

# Names in `sklearn.datasets.load_sample_image` (with a suffix) and in `skimage.data`.
PHOTOGRAPHS = {
    "train": ("china.jpg", "flower.jpg", "coffee", "stereo_motorcycle"),
    "validation": ("astronaut",),
    "test": ("chelsea", "rocket"),
}

# Side of a stamp, and side of the crop that becomes the background, as fractions of the side
# of an image.
_STAMP, _CROP = (0.3, 0.5), (1, 3)
# Longer side of a character as a fraction of its stamp's.
_CHARACTER = 0.8
# Least distance between the two colors of a stamp, where black is 1.7 from white.
_LEAST_CONTRAST = 0.5
# Number of random positions that are tried for a stamp, so that it hides no other.
_TRIES = 20
# Opacity from which a pixel belongs to a character, when margins are cut off.
_OPAQUE = 0.5
# Padding of boxes and labels.
_NONE = -1


class Scenes(typing.NamedTuple):
    """Images with several objects.

    Attributes:
        images: float32 `(n, side, side, 3)`, about zero mean and unit variance.
        masks: uint8 `(n, side, side)`. Class of each pixel: 0 for the background, and one
            more than the label of a stamp on its pixels.
        boxes: float32 `(n, most objects, 4)`. Left, top, right and bottom edge of each
            stamp in pixels; -1 where there is no stamp.
        labels: int32 `(n, most objects)`. Classes of the stamps from 0; -1 where there is
            none.
    """

    images: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def scenes(settings, split, count, seed):
    """Paste stamps on photographs, at most `settings["objects"]` per image.

    Args:
        settings: dict with `"dataset"`, the data set of the characters, `"classes"`, of
            which the first are used, `"side"` of the images in pixels, and `"objects"`.
        split: str. `"train"`, `"validation"` or `"test"`.
        count: int. Number of images.
        seed: int. The same seed gives the same images; with a larger `count`, the first
            images stay the same.

    Returns:
        `Scenes`.

    Raises:
        ValueError: the data set is not in memory or not available.
        ModuleNotFoundError: scikit-image is not installed.
    """
    side, objects = settings["side"], settings["objects"]
    pixels = np.zeros((count, side, side, 3), "float32")
    masks = np.zeros((count, side, side), "uint8")
    boxes = np.full((count, objects, 4), _NONE, "float32")
    labels = np.full((count, objects), _NONE, "int32")
    generator = np.random.default_rng([seed, *split.encode()])
    photographs = _photographs(split)
    characters = _characters(settings["dataset"], split, settings["classes"])
    for i in range(count):
        image = _background(photographs, side, generator)
        for j in range(generator.integers(1, objects + 1)):
            stamp, label = _stamp(characters, side, generator)
            place = _free_place(masks[i], stamp, generator)
            if place is None:
                continue
            image[place] = stamp
            masks[i][place] = 1 + label
            rows, columns = place
            boxes[i, j] = columns.start, rows.start, columns.stop, rows.stop
            labels[i, j] = label
        pixels[i] = _normalized(image)
    return Scenes(pixels, masks, boxes, labels)


def single(settings, split, count, seed):
    """Paste one stamp on each image, for the training of classifiers.

    The images have half the side of those of `scenes`, and the stamp is as large.

    Args:
        settings, split, count, seed: see `scenes`.

    Returns:
        Images, float32 `(n, side / 2, side / 2, 3)`, and labels, int32 `(n,)`.
    """
    side = settings["side"] // 2
    pixels = np.zeros((count, side, side, 3), "float32")
    labels = np.zeros(count, "int32")
    generator = np.random.default_rng([seed, *split.encode(), side])
    photographs = _photographs(split)
    characters = _characters(settings["dataset"], split, settings["classes"])
    for i in range(count):
        image = _background(photographs, side, generator)
        stamp, labels[i] = _stamp(characters, 2 * side, generator)
        image[_place((side, side), stamp, generator)] = stamp
        pixels[i] = _normalized(image)
    return pixels, labels


@functools.cache
def _photographs(split):
    """Return the photographs of a split, PIL images."""
    checks.one_of("split", split, tuple(PHOTOGRAPHS))
    return [_photograph(name) for name in PHOTOGRAPHS[split]]


def _photograph(name):
    if "." in name:
        from sklearn.datasets import load_sample_image

        return Image.fromarray(load_sample_image(name))
    checks.installed(
        "This experiment", "skimage", "'keras_nfnets[experiments]' (for scikit-image)"
    )
    from skimage import data

    found = getattr(data, name)()
    # Of the two views of a stereo pair, one.
    return Image.fromarray(found[0] if isinstance(found, tuple) else found)


@functools.cache
def _characters(dataset, split, classes):
    """Return images of the first classes, cropped to the character, and their labels."""
    x, y = images.in_splits(dataset)[split]
    return [
        (_cropped(image), int(label))
        for image, label in zip(x, y, strict=True)
        if label < classes
    ]


def _cropped(image):
    rows, columns = np.nonzero(image >= _OPAQUE)
    image = image[
        rows.min() : rows.max() + 1,
        columns.min() : columns.max() + 1,
    ]
    return Image.fromarray(np.round(255 * image).astype("uint8"))


def _background(photographs, side, generator):
    """Return a random crop of one of the photographs, float `(side, side, 3)`."""
    photograph = photographs[generator.integers(len(photographs))]
    size = round(side * generator.uniform(*_CROP))
    size = min(size, *photograph.size)
    left, top = generator.integers(np.array(photograph.size) - size + 1)
    box = (left, top, left + size, top + size)
    resized = photograph.resize((side, side), Image.Resampling.BOX, box)
    return np.array(resized, "float32") / 255


def _stamp(characters, side, generator):
    """Return the pixels of a random stamp for images of a side, and its label."""
    character, label = characters[generator.integers(len(characters))]
    size = round(side * generator.uniform(*_STAMP))
    scale = _CHARACTER * size / max(character.size)
    width, height = (max(1, round(scale * length)) for length in character.size)
    character = character.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (size - width) // 2, (size - height) // 2
    opacity = np.zeros((size, size, 1), "float32")
    opacity[top : top + height, left : left + width, 0] = character
    # Thin strokes get paler when they shrink.
    opacity /= opacity.max()
    paper = ink = generator.uniform(size=3)
    while np.linalg.norm(ink - paper) < _LEAST_CONTRAST:
        ink = generator.uniform(size=3)
    return paper + opacity * (ink - paper), label


def _free_place(mask, stamp, generator):
    """Return slices where a stamp hides no other, or None if none is found."""
    for _ in range(_TRIES):
        place = _place(mask.shape, stamp, generator)
        if not mask[place].any():
            return place
    return None


def _place(shape, stamp, generator):
    """Return slices of rows and columns of a random position inside an image."""
    size = len(stamp)
    top, left = map(int, generator.integers(np.array(shape) - size + 1))
    return slice(top, top + size), slice(left, left + size)


def _normalized(image):
    return (image - 0.5) / 0.25
