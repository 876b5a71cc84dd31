"""How the signal's mean and variance change from block to block."""

import keras
import numpy as np
from keras import ops

from keras_nfnets.layers import NFBlock


def signal_propagation(model, images):
    """Measures the signal after the stem and after every block, in inference.

    Args:
        model: a network of this package (a functional model with an endpoint `"stem"`
            and `NFBlock`s).
        images: float pictures `(batch, height, width, channels)`.

    Returns:
        A dict of float arrays, under the authors' names. With `n` blocks:
        `"avg_sq_mean"`, `(n + 1,)`: the squared mean of a channel, averaged over
        channels, after the stem and each block; `"avg_var"`, `(n + 1,)`: the variance
        of a channel, likewise; `"res_avg_var"`, `(n,)`: the variance of each block's
        residual branch before its gains.

    Raises:
        ValueError: the model has no endpoint `"stem"` or no blocks.

    Example:

    >>> model = keras_nfnets.NFNetTiny(classes=10)
    >>> signal = signal_propagation(model, np.random.normal(size=(8, 32, 32, 3)))
    >>> signal["avg_var"].shape
    (5,)

    Reference: Brock, De, Smith (2021), arXiv 2101.08692, section 3; `signal_metrics`
    in the authors' base.py.
    """
    blocks = [layer for layer in model.layers if isinstance(layer, NFBlock)]
    if not blocks or "stem" not in [layer.name for layer in model.layers]:
        raise ValueError(
            "signal_propagation needs an endpoint 'stem' and NFBlocks. Received: "
            f"a model of layers {[layer.name for layer in model.layers]}"
        )
    tensors = [model.get_layer("stem").output]
    for block in blocks:
        tensors += [block.input, block.output]
    stem, *rest = keras.Model(model.inputs, tensors).predict(images, verbose=0)
    inputs, outputs = rest[::2], rest[1::2]
    axis = 1 if blocks[0].data_format == "channels_first" else -1

    def channel_moments(x):
        flat = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]).astype("float64")
        return flat.mean(axis=0), flat.var(axis=0)

    moments = [channel_moments(x) for x in [stem, *outputs]]
    residuals = [
        ops.convert_to_numpy(block.residual(ops.convert_to_tensor(x)))
        for block, x in zip(blocks, inputs)
    ]
    return {
        "avg_sq_mean": np.array([np.mean(mean**2) for mean, _ in moments]),
        "avg_var": np.array([np.mean(variance) for _, variance in moments]),
        "res_avg_var": np.array([np.mean(channel_moments(x)[1]) for x in residuals]),
    }
