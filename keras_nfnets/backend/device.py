"""Devices of this process."""

import functools

import keras


@functools.cache
def has_only_cpus():
    """Whether this process has no accelerator."""
    if keras.backend.backend() == "torch":  # Keras cannot list its devices
        return keras.ops.zeros(()).device.type == "cpu"
    return all(
        device.lower().startswith("cpu") for device in keras.distribution.list_devices()
    )
