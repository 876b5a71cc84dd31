"""Training steps without weight standardization, and lower bounds on memory traffic."""

import contextlib

import numpy as np

from keras_nfnets import WSConv2D


@contextlib.contextmanager
def no_standardization():
    """Context in which networks are traced with scaled, not standardized kernels."""
    original = WSConv2D.precise_kernel
    WSConv2D.precise_kernel = lambda self, *_: self.kernel.value * 1e-2
    try:
        yield
    finally:
        WSConv2D.precise_kernel = original


def bytes_to_move(model):
    """Compute the bytes that clipping and standardization must move in a step.

    Clipping reads gradients and weights for their norms, then reads and writes the
    gradients. Standardization reads kernels twice for their moments (a single pass would
    lose precision of the variance). The forward pass and its recomputation for the
    gradient each read kernels once more and write standardized ones. The gradient reads
    kernels and the upstream gradient for two sums, then reads both again and writes the
    result.
    """
    parameters = sum(4 * np.prod(v.shape) for v in model.trainable_variables)
    kernels = sum(
        4 * np.prod(layer.kernel.shape)
        for layer in model._flatten_layers()
        if isinstance(layer, WSConv2D)
    )
    return {
        "clipping": 4 * int(parameters),
        "standardization": (2 + 2 * 2 + 2 + 3) * int(kernels),
    }
