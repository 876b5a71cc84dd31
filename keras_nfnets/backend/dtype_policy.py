"""Temporary changes of Keras's global dtype policy."""

import contextlib

import keras


@contextlib.contextmanager
def dtype_policy_is(policy):
    """Context in which the global dtype policy is `policy`; None keeps the current one."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(before if policy is None else policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
