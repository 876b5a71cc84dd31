"""Data sets for training and evaluation, and preprocessing of single images."""

from keras_nfnets.data.augmentation import WORDS, Augmentation
from keras_nfnets.data.image_files import find_pictures
from keras_nfnets.data.images import prepare, read_picture
from keras_nfnets.data.pipeline import load, steps_per_epoch
from keras_nfnets.data.preprocessing import (
    IMAGENET,
    INTERPOLATIONS,
    check_crop_mode,
)
from keras_nfnets.data.sources import (
    Source,
    find,
    folder_of,
    load_digits,
    random_pictures,
)

__all__ = [
    "IMAGENET",
    "INTERPOLATIONS",
    "WORDS",
    "Augmentation",
    "Source",
    "check_crop_mode",
    "find",
    "find_pictures",
    "folder_of",
    "load",
    "load_digits",
    "prepare",
    "random_pictures",
    "read_picture",
    "steps_per_epoch",
]
