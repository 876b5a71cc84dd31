"""Values that `keras.distribution` divides among several processes (JAX)."""

import keras
from keras import ops


def is_divided(variable):
    """Whether this process has only a part of the value of a `keras.Variable`."""
    if keras.backend.backend() != "jax":
        return False
    value = variable.value
    # Each part once; devices may have copies of it.
    sizes = {str(part.index): part.data.size for part in value.addressable_shards}
    return sum(sizes.values()) < value.size


def to_numpy(variable):
    """Return the value of a `keras.Variable` as a NumPy array.

    If it `is_divided`, all processes must call this function together.
    """
    if not is_divided(variable):
        return ops.convert_to_numpy(variable)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(variable.value, tiled=True)
