"""Training without normalization: adaptive gradient clipping."""

from keras_nfnets.training.adaptive_clip import adaptive_clip
from keras_nfnets.training.agc_model import AGCModel
from keras_nfnets.training.clipping_optimizers import AGC, SGDAGC

__all__ = ["AGC", "SGDAGC", "AGCModel", "adaptive_clip"]
