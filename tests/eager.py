"""Functions that run eagerly: for a few steps, tracing and compiling takes longer."""

import contextlib

import keras


@contextlib.contextmanager
def eager_functions():
    """Context in which TensorFlow's functions run eagerly."""
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)
