import keras
import numpy as np
import pytest
from comparing import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_nfnets import WSConv2D


def standardized(kernel, gain, eps=1e-4):
    """Standardize a kernel in float64, by the papers' formula."""
    kernel = np.asarray(kernel, "float64")
    mean = kernel.mean(axis=(0, 1, 2))
    fan_in = np.prod(kernel.shape[:-1])
    variance = kernel.var(axis=(0, 1, 2))
    return gain * (kernel - mean) / np.sqrt(np.maximum(variance * fan_in, eps))


def randomize(layer, seed=0):
    random = np.random.default_rng(seed)
    for variable in layer.weights:
        variable.assign(random.normal(size=variable.shape))


@settings(max_examples=25)
@given(
    size=st.tuples(st.integers(5, 12), st.integers(5, 12)),
    kernel_size=st.sampled_from([1, 3, (5, 2)]),
    groups=st.sampled_from([1, 2, 4]),
    strides_and_dilation=st.sampled_from([(1, 1), (2, 1), ((1, 2), 1), (1, 2)]),
    padding=st.sampled_from(["same", "valid"]),
    activation=st.sampled_from([None, "relu"]),
)
def test_equals_a_plain_convolution_of_the_standardized_kernel(
    size, kernel_size, groups, strides_and_dilation, padding, activation
):
    strides, dilation_rate = strides_and_dilation
    options = {
        "strides": strides,
        "dilation_rate": dilation_rate,
        "groups": groups,
        "padding": padding,
        "activation": activation,
    }
    x = np.random.default_rng(1).normal(size=(2, *size, 8)).astype("float32")
    if padding == "valid" and dilation_rate == 2:
        options["padding"] = "same"
    layer = WSConv2D(12, kernel_size, **options)
    layer.build(x.shape)
    randomize(layer)
    twin = keras.layers.Conv2D(12, kernel_size, **options)
    twin.build(x.shape)
    twin.kernel.assign(standardized(layer.kernel, ops.convert_to_numpy(layer.gain)))
    twin.bias.assign(layer.bias)
    actual, expected = layer(x), twin(x)
    assert tuple(actual.shape) == tuple(layer.compute_output_shape(x.shape))
    assert_close(actual, expected, atol=2e-5)


def test_each_filter_has_zero_mean_and_unit_norm_at_initialization():
    layer = WSConv2D(16, 3, groups=2)
    layer.build((None, 8, 8, 6))
    kernel = ops.convert_to_numpy(layer.standardized_kernel())
    assert_close(kernel.mean(axis=(0, 1, 2)), 0, atol=1e-6)
    assert_close((kernel**2).sum(axis=(0, 1, 2)), 1, rtol=1e-5)


def test_eps_bounds_variance_times_fan_in():
    layer = WSConv2D(1, 3, eps=1e-2, kernel_initializer="zeros")
    layer.build((None, 8, 8, 4))
    kernel = np.zeros((3, 3, 4, 1), "float32")
    kernel[0, 0, 0, 0], kernel[0, 0, 1, 0] = 0.01, -0.01  # var * fan-in = 2e-4 < eps
    layer.kernel.assign(kernel)
    assert_close(layer.standardized_kernel(), kernel / 0.1, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_statistics_are_taken_in_float32(policy):
    layer = WSConv2D(8, 1, dtype=policy)
    layer.build((None, 4, 4, 512))
    # With a large mean, half precision would lose the variance to rounding.
    kernel = 100 + np.random.default_rng(0).normal(size=(1, 1, 512, 8))
    layer.kernel.assign(kernel)
    result = layer.standardized_kernel()
    assert keras.backend.standardize_dtype(result.dtype) == policy.removeprefix(
        "mixed_"
    )
    assert_close(
        ops.cast(result, "float32"),
        standardized(np.float32(kernel), 1.0),
        atol=2e-3,
    )
    outputs = layer(np.ones((1, 4, 4, 512)))
    assert keras.backend.standardize_dtype(outputs.dtype) == policy.removeprefix(
        "mixed_"
    )


def test_gain_and_bias_survive_saving(tmp_path):
    inputs = keras.Input((9, 9, 4))
    model = keras.Model(inputs, WSConv2D(6, 3, groups=2, padding="same")(inputs))
    randomize(model)
    model.save(tmp_path / "m.keras")
    model.save_weights(tmp_path / "m.weights.h5")
    x = np.random.default_rng(2).normal(size=(2, 9, 9, 4)).astype("float32")
    expected = model.predict(x, verbose=0)
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert_close(loaded.predict(x, verbose=0), expected, atol=1e-6)
    clone = keras.models.clone_model(model)
    clone.load_weights(tmp_path / "m.weights.h5")
    assert_close(clone.predict(x, verbose=0), expected, atol=1e-6)


def test_lora_trains_the_kernel_that_is_standardized():
    layer = WSConv2D(4, 3)
    layer.build((None, 6, 6, 2))
    x = np.random.default_rng(0).normal(size=(1, 6, 6, 2)).astype("float32")
    before = ops.convert_to_numpy(layer(x))
    layer.enable_lora(2)
    assert_close(layer(x), before, atol=1e-5)
    layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    assert np.abs(ops.convert_to_numpy(layer(x)) - before).max() > 1e-2


def test_lora_survives_saving(tmp_path):
    x = np.random.default_rng(0).normal(size=(1, 6, 6, 2)).astype("float32")
    inputs = keras.Input((6, 6, 2))
    model = keras.Model(inputs, WSConv2D(4, 3, lora_rank=2)(inputs))
    layer = model.layers[-1]
    assert layer.lora_enabled
    layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert_close(loaded(x), model(x), atol=1e-5)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="Received: use_bias=False"):
        WSConv2D(4, 3, use_bias=False)
    with pytest.raises(ValueError, match="Received: use_bias=False"):
        WSConv2D(4, 3, 2, "same", "channels_last", 1, 2, "relu", False)
    with pytest.raises(ValueError, match="Received: eps=-1"):
        WSConv2D(4, 3, eps=-1)
    with pytest.raises(ValueError, match="groups=3"):
        WSConv2D(4, 3, groups=3)
    with pytest.raises(ValueError, match="groups=4"):
        WSConv2D(4, 3, groups=4).build((None, 8, 8, 6))
    with pytest.raises(ValueError, match="ndim"):
        WSConv2D(4, 3)(np.ones((8, 8, 3)))


def compiled(layer):
    """Compile with XLA: TensorFlow itself has no channels-first convolution on CPUs."""
    if keras.backend.backend() != "tensorflow":
        return layer
    import tensorflow as tf

    return tf.function(layer, jit_compile=True)


def test_channels_first_is_the_transpose_of_channels_last():
    x = np.random.default_rng(0).normal(size=(2, 8, 9, 4)).astype("float32")
    last = WSConv2D(6, 3, groups=2, padding="same")
    first = WSConv2D(6, 3, groups=2, padding="same", data_format="channels_first")
    last.build(x.shape)
    first.build((2, 4, 8, 9))
    randomize(last)
    randomize(first)
    outputs = ops.convert_to_numpy(compiled(first)(x.transpose(0, 3, 1, 2)))
    assert_close(outputs.transpose(0, 2, 3, 1), last(x), atol=1e-5)


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("kernel_size, strides", [(3, 2), (7, 2), (3, 1), (5, 3)])
def test_symmetric_padding_equals_that_of_pytorch(size, kernel_size, strides):
    x = np.random.default_rng(0).normal(size=(2, size, size + 3, 4)).astype("float32")
    options = {"strides": strides, "gain_initializer": keras.initializers.Constant(2)}
    layer = WSConv2D(6, kernel_size, padding="symmetric", **options)
    y = layer(x)
    assert tuple(y.shape) == layer.compute_output_shape(x.shape)
    assert tuple(y.shape[1:3]) == (-(-size // strides), -(-(size + 3) // strides))
    # Equal to a valid convolution of an explicitly padded image.
    valid = WSConv2D(6, kernel_size, padding="valid", **options)
    half = kernel_size // 2
    padded = np.pad(x, [(0, 0), (half, half), (half, half), (0, 0)])
    valid.build(padded.shape)
    valid.set_weights(layer.get_weights())
    assert_close(y, valid(padded), rtol=1e-5, atol=1e-6)


def test_symmetric_padding_survives_saving_and_refuses_even_kernels():
    layer = WSConv2D(6, 3, strides=2, padding="symmetric", scale=1.5, variance_eps=0.1)
    config = layer.get_config()
    assert config["padding"] == "symmetric"
    assert WSConv2D.from_config(config).get_config() == config
    with pytest.raises(ValueError, match="kernel_size=4"):
        WSConv2D(6, 4, padding="symmetric")
    with pytest.raises(ValueError, match="scale=0"):
        WSConv2D(6, 3, scale=0)


def test_scale_and_variance_eps_equal_those_of_timm():
    layer = WSConv2D(5, 3, eps=0.0, variance_eps=1e-2, scale=1.7)
    layer.build((None, 8, 8, 4))
    kernel = np.random.default_rng(0).normal(size=layer.kernel.shape) * 0.05
    layer.kernel.assign(kernel)
    layer.gain.assign(np.arange(1.0, 6.0))
    mean, variance = kernel.mean(axis=(0, 1, 2)), kernel.var(axis=(0, 1, 2))
    expected = (
        (kernel - mean) / np.sqrt(variance + 1e-2) / 6 * 1.7 * np.arange(1.0, 6.0)
    )
    assert_close(layer.standardized_kernel(), expected, rtol=1e-5, atol=1e-6)
