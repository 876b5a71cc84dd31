"""Max pooling with PyTorch's padding."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_nfnets")
class SymmetricMaxPooling2D(keras.layers.MaxPooling2D):
    """Max pooling with odd windows and equal padding on both sides.

    With strides, Keras's `padding="same"` may pad one side more than the other; PyTorch
    pads both equally. The output sizes are the same. Padding is never the maximum.

    Args: those of `keras.layers.MaxPooling2D` except `padding`.

    Input and output: those of `keras.layers.MaxPooling2D(padding="same")`.

    Raises:
        ValueError: `pool_size` is not odd.

    Example:

    >>> x = keras.ops.reshape(keras.ops.arange(4.0), (1, 1, 4, 1))
    >>> y = SymmetricMaxPooling2D(3, strides=2)(x)
    >>> keras.ops.convert_to_numpy(y).ravel().tolist()
    [1.0, 3.0]
    """

    def __init__(self, pool_size=3, strides=2, data_format=None, **kwargs):
        super().__init__(pool_size, strides, "same", data_format, **kwargs)
        if not all(size % 2 for size in self.pool_size):
            raise ValueError(
                f"`pool_size` must be odd. Received: pool_size={pool_size}"
            )

    def call(self, inputs):
        spatial = [(size // 2, size // 2) for size in self.pool_size]
        padding = [(0, 0), (0, 0)]
        at = 1 if self.data_format == "channels_last" else 2
        padding[at:at] = spatial
        return ops.max_pool(
            ops.pad(inputs, padding, constant_values=float("-inf")),
            self.pool_size,
            self.strides,
            "valid",
            self.data_format,
        )

    def get_config(self):
        config = super().get_config()
        del config["padding"]
        return config
