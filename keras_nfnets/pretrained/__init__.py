"""Published weights: registry of networks and checkpoints, downloads, readers."""

from keras_nfnets.pretrained.architectures import (
    Architecture,
    find_network,
    register,
    without_memory,
)
from keras_nfnets.pretrained.checkpoints import (
    Checkpoint,
    find_checkpoint,
    list_checkpoints,
)
from keras_nfnets.pretrained.deepmind import load_deepmind
from keras_nfnets.pretrained.timm import load_timm
from keras_nfnets.pretrained.weights import (
    Source,
    create,
    find,
    is_weight_file,
    load,
    published,
    recognize,
)

__all__ = [
    "Architecture",
    "Checkpoint",
    "Source",
    "create",
    "find",
    "find_checkpoint",
    "find_network",
    "is_weight_file",
    "list_checkpoints",
    "load",
    "load_deepmind",
    "load_timm",
    "published",
    "recognize",
    "register",
    "without_memory",
]
