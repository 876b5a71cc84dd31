"""Folding and export of trained networks."""

from keras_nfnets.deploy.exporting import export
from keras_nfnets.deploy.folding import fold
from keras_nfnets.deploy.inference import inference_function
from keras_nfnets.tables import FORMATS, QUANTIZATIONS

__all__ = ["FORMATS", "QUANTIZATIONS", "export", "fold", "inference_function"]
