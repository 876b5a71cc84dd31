"""Published weights into our networks."""

from keras_nfnets.pretrained.deepmind import load_deepmind

__all__ = ["load_deepmind"]
