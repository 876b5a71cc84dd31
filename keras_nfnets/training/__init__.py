"""Training without normalization: adaptive gradient clipping and what goes with it."""

from keras_nfnets.training.adaptive_clip import adaptive_clip
from keras_nfnets.training.agc_model import AGCModel
from keras_nfnets.training.clipping_optimizers import AGC, SGDAGC
from keras_nfnets.training.schedules import warmup_cosine

__all__ = ["AGC", "SGDAGC", "AGCModel", "adaptive_clip", "warmup_cosine"]
