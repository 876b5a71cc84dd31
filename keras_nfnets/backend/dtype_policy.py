"""Keras's global dtype policy, for a while."""

import contextlib

import keras


@contextlib.contextmanager
def dtype_policy_is(policy):
    """Context with a global dtype policy; None for the one that there is."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(before if policy is None else policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
