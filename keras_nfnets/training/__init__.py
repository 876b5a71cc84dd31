"""Training of normalizer-free networks: adaptive gradient clipping and related tools."""

from keras_nfnets.tables import STRATEGIES
from keras_nfnets.training.adaptive_clip import adaptive_clip
from keras_nfnets.training.agc_model import AGCModel
from keras_nfnets.training.callbacks import TrainingLog
from keras_nfnets.training.checkpoints import Checkpoints
from keras_nfnets.training.clipping_optimizers import AGC, SGDAGC
from keras_nfnets.training.schedules import growing_image_sizes, warmup_cosine
from keras_nfnets.training.strategies import has_workers, is_chief, strategy

__all__ = [
    "AGC",
    "SGDAGC",
    "STRATEGIES",
    "AGCModel",
    "Checkpoints",
    "TrainingLog",
    "adaptive_clip",
    "growing_image_sizes",
    "has_workers",
    "is_chief",
    "strategy",
    "warmup_cosine",
]
