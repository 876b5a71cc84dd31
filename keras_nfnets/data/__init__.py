"""Pictures in."""

from keras_nfnets.data.datasets import Pictures, load

__all__ = ["Pictures", "load"]
