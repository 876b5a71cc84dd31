"""A training step without one of its parts, and what that part must at least cost."""

import contextlib

import numpy as np

from keras_nfnets import WSConv2D


@contextlib.contextmanager
def no_standardization():
    """Within it, networks are traced with their kernels unchanged."""
    original = WSConv2D.precise_kernel
    WSConv2D.precise_kernel = lambda self, *_: self.kernel.value * 1e-2
    try:
        yield
    finally:
        WSConv2D.precise_kernel = original


def bytes_to_move(model):
    """Bytes that clipping and standardization must at least read and write per step.

    Clipping reads gradients and weights for their norms, then reads and writes the
    gradients. Standardization, in the forward pass and again for the gradient, reads
    kernels once more and writes the standardized ones; before, it reads them twice for
    their moments (a single pass would lose digits of the variance). Its gradient reads
    kernels and the upstream gradient for two sums, and both again to write the result.
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
