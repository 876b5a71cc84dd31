"""Time and memory that networks need on this machine."""

import statistics
import sys
import time

import keras
import numpy as np

_WARM_UP = 1


def step_seconds(model, batch_size, size, classes, steps, clip_factor=None):
    """Measure the median time of a training step with Nesterov momentum, in seconds.

    Args:
        model: `AGCModel`, or another Keras model that outputs probabilities or logits.
        batch_size: int. Number of images per step.
        size: int. Height and width of the images in pixels; they have three channels.
        classes: int. Number of classes.
        steps: int. Number of steps to take the median of.
        clip_factor: float. Clip factor of an `AGCModel`; None for the default of its
            `compile`.
    """
    generator = np.random.default_rng(0)
    x = generator.normal(size=(batch_size, size, size, 3)).astype("float32")
    y = generator.integers(0, classes, batch_size)
    model.compile(
        keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True),
        "sparse_categorical_crossentropy",
        **({} if clip_factor is None else {"clip_factor": clip_factor}),
    )
    # Reading the loss also waits for the step to finish.
    return _median(lambda: model.train_on_batch(x, y), steps)


def inference_seconds(model, batch_size, size, calls):
    """Measure the median time of a batch in inference, in seconds.

    On TensorFlow, it is the faster of the times with and without XLA.
    """
    x = np.random.default_rng(0).normal(size=(batch_size, size, size, 3))
    x = x.astype("float32")

    def seconds(jit_compile):
        model.compile(jit_compile=jit_compile)
        return _median(lambda: model.predict_on_batch(x), calls)

    on_tensorflow = keras.backend.backend() == "tensorflow"
    return min(map(seconds, (True, False) if on_tensorflow else ("auto",)))


def _median(call, times):
    for _ in range(_WARM_UP):
        call()
    laps = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        laps.append(time.perf_counter() - started)
    return statistics.median(laps)


def peak_memory():
    """Return the peak memory so far in MiB, of the accelerator or of this process."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        if peak is not None:
            return peak / 2**20
    if backend == "tensorflow":
        import tensorflow as tf

        if tf.config.list_physical_devices("GPU"):
            return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20
    import resource  # not available on Windows

    # `ru_maxrss` is in bytes on macOS and in KiB elsewhere.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
