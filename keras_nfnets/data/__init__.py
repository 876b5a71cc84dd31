"""Pictures in: data sets ready to train on, and single files."""

from keras_nfnets.data.datasets import Pictures, load, load_digits
from keras_nfnets.data.pictures import find_pictures, prepare, read_picture

__all__ = [
    "Pictures",
    "find_pictures",
    "load",
    "load_digits",
    "prepare",
    "read_picture",
]
