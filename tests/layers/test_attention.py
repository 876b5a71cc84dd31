import keras
import numpy as np
import pytest
from comparing import assert_close

from keras_nfnets import EfficientChannelAttention, SqueezeExcite


def images(channels):
    x = np.random.default_rng(0).normal(size=(2, 5, 6, channels))
    return x.astype("float32")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(
    "channels, size", [(16, 3), (64, 3), (128, 5), (256, 5), (512, 5), (2048, 7)]
)
def test_eca_kernel_size_is_that_of_the_paper(channels, size):
    layer = EfficientChannelAttention()
    layer.build((None, 4, 4, channels))
    assert layer.conv.kernel.shape == (size, 1, 1)


def test_eca_is_a_convolution_over_channels():
    x = images(6)
    layer = EfficientChannelAttention(kernel_size=3)
    layer.build(x.shape)
    weights = np.array([0.5, -1.0, 2.0])
    layer.conv.kernel.assign(weights.reshape(3, 1, 1))
    padded = np.pad(x.mean(axis=(1, 2)), [(0, 0), (1, 1)])
    gate = sum(w * padded[:, i : i + 6] for i, w in enumerate(weights))
    assert_close(layer(x), 2 * sigmoid(gate)[:, None, None] * x, rtol=1e-5)


@pytest.mark.parametrize(
    "channels, ratio, divisor, hidden",
    [
        (40, 0.5, None, 20),
        (40, 0.5, 8, 24),
        (1, 0.25, None, 1),
        (16, 0.25, 8, 8),
        (256, 1 / 16, 8, 16),
    ],
)
def test_width_of_squeeze_and_excitation(channels, ratio, divisor, hidden):
    layer = SqueezeExcite(ratio, divisor=divisor)
    layer.build((None, 4, 4, channels))
    assert layer.fc0.units == hidden


@pytest.mark.parametrize(
    "layer", [EfficientChannelAttention(5), SqueezeExcite(0.3, divisor=4)]
)
def test_channels_first_and_configs(layer):
    x = images(12)
    y = layer(x)
    again = type(layer).from_config({**layer.get_config(), "name": "again"})
    first = type(layer).from_config(
        {**layer.get_config(), "data_format": "channels_first", "name": "first"}
    )
    for other in (again, first):
        other.build((None, 5, 6, 12) if other is again else (None, 12, 5, 6))
        other.set_weights(layer.get_weights())
    assert_close(again(x), y, rtol=1e-6)
    assert_close(
        np.moveaxis(keras.ops.convert_to_numpy(first(np.moveaxis(x, -1, 1))), 1, -1),
        y,
        rtol=1e-5,
    )


@pytest.mark.parametrize("bad", [4, 0, -1, 2.5, "3"])
def test_even_kernel_sizes_are_refused(bad):
    with pytest.raises(ValueError, match="kernel_size"):
        EfficientChannelAttention(bad)


def test_numpy_integers_are_saved_as_python_integers():
    assert (
        type(EfficientChannelAttention(np.int64(3)).get_config()["kernel_size"]) is int
    )


def test_inputs_of_another_rank_are_refused():
    with pytest.raises(ValueError, match=r"EfficientChannelAttention .*\(None, 8\)"):
        EfficientChannelAttention().build((None, 8))
    with pytest.raises(ValueError, match="channels of the input"):
        EfficientChannelAttention().build((None, 4, 4, None))
    with pytest.raises(ValueError, match="divisor=0"):
        SqueezeExcite(divisor=0)
