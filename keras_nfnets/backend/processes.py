"""Values that `keras.distribution` divides among several processes (JAX)."""

import collections

import keras
from keras import ops


def is_divided(variable):
    """Whether some process has only a part of the value of a `keras.Variable`.

    All processes get the same answer.
    """
    if keras.backend.backend() != "jax":
        return False
    value = variable.value
    parts = collections.defaultdict(set)
    for device, index in value.sharding.devices_indices_map(value.shape).items():
        parts[device.process_index].add(str(index))
    all_parts = set.union(*parts.values())
    return any(own != all_parts for own in parts.values())


def to_numpy(variable):
    """Return the value of a `keras.Variable` as a NumPy array.

    If it `is_divided`, all processes must call this function together.
    """
    if not is_divided(variable):
        return ops.convert_to_numpy(variable)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(variable.value, tiled=True)
