"""Folding and export of trained networks."""

from keras_nfnets.deploy.exporting import FORMATS, QUANTIZATIONS, export
from keras_nfnets.deploy.folding import fold

__all__ = ["FORMATS", "QUANTIZATIONS", "export", "fold"]
