"""How a convolution is computed on this device."""

import math

import keras
from keras import ops

from keras_nfnets import lean


def _is_cpu_of_xla():
    return keras.backend.backend() in ("tensorflow", "jax") and lean.only_cpu()


def one_convolution_a_group():
    """Whether groups run faster as convolutions of their own, concatenated.

    On a CPU, TensorFlow and JAX hand a grouped convolution to XLA, whose gradient of
    it is slow. Forward and backward, batch 8, two cores, single op against split
    (milliseconds, TensorFlow 2.21 / JAX 0.10):

        12 x 12 pixels, 6 groups of 128 channels:   428 against 20  /  483 against 32
        24 x 24 pixels, 8 groups of 32 channels:    670 against 15  /  755 against 19
        12 x 12 pixels, 30 groups of 8 channels:    557 against 10  /  615 against  4

    The same holds going forward alone: NFNet-F0 folded takes 0.90 s for eight pictures
    of 256 x 256 split and 0.96 s not, compiled by XLA. Accelerators and PyTorch have a
    good grouped convolution of their own.
    """
    return _is_cpu_of_xla()


def _is_product(kernel, strides, data_format):
    """Whether a convolution runs faster as a matrix product.

    One of single pixels is a product of pixels and channels. Forward and backward,
    batch 16, two cores, convolution against product (milliseconds, TensorFlow 2.21 / JAX
    0.10):

        32 x 32 pixels,   64 to  256 channels:   6.3 against 4.6  /  37.4 against 5.5
        16 x 16 pixels,  512 to  128 channels:   4.3 against 3.9  /  12.3 against 6.5
          8 x 8 pixels,  384 to 1536 channels:   8.9 against 8.8  /  17.8 against 9.2

    A training step of NFNet-F0 (batch 8, 192 x 192) takes 6 % less, inference 1 to 3 %.
    """
    return (
        _is_cpu_of_xla()
        and math.prod(kernel.shape[:-2]) == 1
        and max(strides) == 1
        and data_format == "channels_last"
    )


def convolve(convolution, inputs, kernel, strides, groups, data_format):
    """`convolution(inputs, kernel)` in the way that is fastest here.

    Args:
        convolution: function of inputs and kernel; with inputs of more channels than
            the kernel takes it computes a grouped convolution by itself.
        inputs: `(batch, ..., channels)` or channels second.
        kernel: `(..., channels / groups, filters)`.
        strides: of the convolution, an integer an axis.
        groups: number of groups.
        data_format: `"channels_last"` or `"channels_first"`.
    """
    if groups > 1 and one_convolution_a_group():
        axis = -1 if data_format == "channels_last" else 1
        pairs = zip(
            ops.split(inputs, groups, axis=axis), ops.split(kernel, groups, axis=-1)
        )
        return ops.concatenate([convolution(x, k) for x, k in pairs], axis=axis)
    if groups == 1 and _is_product(kernel, strides, data_format):
        *pixels, channels = ops.shape(inputs)
        rows = ops.matmul(
            ops.reshape(inputs, (-1, channels)),
            ops.reshape(kernel, kernel.shape[-2:]),
        )
        return ops.reshape(rows, (*pixels, kernel.shape[-1]))
    return convolution(inputs, kernel)
