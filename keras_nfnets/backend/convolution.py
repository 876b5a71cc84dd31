"""Convolutions, computed in the fastest way on this device."""

import math

import keras
from keras import ops

from keras_nfnets.backend.device import has_only_cpus


def _runs_on_cpu_by_xla():
    return keras.backend.backend() in ("tensorflow", "jax") and has_only_cpus()


def _splits_groups():
    """Whether a grouped convolution runs faster as one convolution per group.

    On a CPU, TensorFlow and JAX pass grouped convolutions to XLA, whose gradient of them is
    slow. Forward and backward, batch 8, two cores, one operation and one per group
    (milliseconds, TensorFlow 2.21 / JAX 0.10):

        12 x 12 pixels, 6 groups of 128 channels:   428 and 20  /  483 and 32
        24 x 24 pixels, 8 groups of 32 channels:    670 and 15  /  755 and 19
        12 x 12 pixels, 30 groups of 8 channels:    557 and 10  /  615 and  4

    Forward alone it is faster too: NFNet-F0, folded and compiled by XLA, takes 0.90 s
    instead of 0.96 s for eight images of 256 x 256. Accelerators and PyTorch have fast
    grouped convolutions of their own.
    """
    return _runs_on_cpu_by_xla()


def _is_product(kernel, strides, data_format):
    """Whether a convolution runs faster as a matrix product.

    A 1 x 1 convolution is a product of a pixels x channels matrix and the kernel. Forward
    and backward, batch 16, two cores, convolution and product (milliseconds, TensorFlow
    2.21 / JAX 0.10):

        32 x 32 pixels,   64 to  256 channels:   6.3 and 4.6  /  37.4 and 5.5
        16 x 16 pixels,  512 to  128 channels:   4.3 and 3.9  /  12.3 and 6.5
          8 x 8 pixels,  384 to 1536 channels:   8.9 and 8.8  /  17.8 and 9.2

    A training step of NFNet-F0 (batch 8, 192 x 192) takes 6 % less, inference 1 to 3 %.
    """
    return (
        _runs_on_cpu_by_xla()
        and math.prod(kernel.shape[:-2]) == 1
        and max(strides) == 1
        and data_format == "channels_last"
    )


def convolve_groups(convolution, inputs, kernel, groups, axis):
    """Compute a grouped convolution as one `convolution(inputs, kernel)` per group.

    Args:
        convolution, inputs, kernel, groups: see `convolve`.
        axis: int. Axis of the channels.

    Returns:
        A tensor, the result of the convolution.
    """
    pairs = zip(
        ops.split(inputs, groups, axis=axis), ops.split(kernel, groups, axis=-1)
    )
    return ops.concatenate([convolution(x, k) for x, k in pairs], axis=axis)


def convolve(convolution, inputs, kernel, strides, groups, data_format):
    """Compute `convolution(inputs, kernel)` in the fastest way on this device.

    Args:
        convolution: callable of inputs and kernel. If the inputs have more channels than
            the kernel, it computes a grouped convolution.
        inputs: tensor `(batch, ..., channels)`, or `(batch, channels, ...)`.
        kernel: tensor `(..., channels / groups, filters)`.
        strides: tuple of ints, one per spatial axis.
        groups: int. Number of groups.
        data_format: `"channels_last"` or `"channels_first"`.

    Returns:
        A tensor, the result of the convolution.
    """
    if groups > 1 and _splits_groups():
        axis = -1 if data_format == "channels_last" else 1
        return convolve_groups(convolution, inputs, kernel, groups, axis)
    if groups == 1 and _is_product(kernel, strides, data_format):
        *pixels, channels = ops.shape(inputs)
        rows = ops.matmul(
            ops.reshape(inputs, (-1, channels)),
            ops.reshape(kernel, kernel.shape[-2:]),
        )
        return ops.reshape(rows, (*pixels, kernel.shape[-1]))
    return convolution(inputs, kernel)
