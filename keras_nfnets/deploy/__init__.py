"""Trained networks out: folding and export."""

from keras_nfnets.deploy.exporting import FORMATS, QUANTIZATIONS, export
from keras_nfnets.deploy.folding import fold

__all__ = ["FORMATS", "QUANTIZATIONS", "export", "fold"]
