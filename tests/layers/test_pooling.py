import keras
import numpy as np
import pytest
from comparing import assert_close

from keras_nfnets.layers import SymmetricMaxPooling2D


@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_padding_is_symmetric_and_never_the_maximum(size, dtype):
    # All values are negative, so zeros from padding would be the maximum.
    x = -np.abs(np.random.default_rng(0).normal(size=(1, size, size, 2))) - 1
    layer = SymmetricMaxPooling2D(3, strides=2, dtype=dtype)
    y = keras.ops.cast(layer(x.astype("float32")), "float32")
    assert tuple(y.shape) == layer.compute_output_shape(x.shape)
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
    count = -(-size // 2)
    expected = [
        [padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max(axis=(1, 2))]
        for i in range(count)
        for j in range(count)
    ]
    assert_close(
        y, np.reshape(expected, (count, count, 1, 2)).transpose(2, 0, 1, 3), rtol=1e-2
    )


def test_even_windows_are_refused():
    with pytest.raises(ValueError, match="pool_size=2"):
        SymmetricMaxPooling2D(2)


def test_config_round_trip():
    layer = SymmetricMaxPooling2D(5, 3, name="pool")
    assert SymmetricMaxPooling2D.from_config(layer.get_config()).pool_size == (5, 5)
