"""Properties of all layers with standardized kernels."""

import math

import keras
import numpy as np
import pytest
from comparing import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from quick import quick

import keras_nfnets
from keras_nfnets import (
    ScaledActivation,
    WSConv1D,
    WSConv2D,
    WSConv2DTranspose,
    WSConv3D,
    WSDense,
    WSDepthwiseConv2D,
    WSSeparableConv2D,
)
from keras_nfnets.layers.units import axes_by_path

# `{name: (our class, Keras class, arguments, input shape without batch)}`.
LAYERS = {
    "1-D": (WSConv1D, keras.layers.Conv1D, (6, 3), (40, 8)),
    "2-D": (WSConv2D, keras.layers.Conv2D, (6, 3), (9, 8, 8)),
    "3-D": (WSConv3D, keras.layers.Conv3D, (6, (3, 2, 3)), (5, 6, 7, 4)),
    "depthwise": (WSDepthwiseConv2D, keras.layers.DepthwiseConv2D, (3,), (9, 8, 6)),
    "separable": (
        *(WSSeparableConv2D, keras.layers.SeparableConv2D),
        *((10, 3), (9, 8, 6)),
    ),
    "transposed": (
        *(WSConv2DTranspose, keras.layers.Conv2DTranspose),
        *((6, (3, 4)), (7, 8, 4)),
    ),
    "dense": (WSDense, keras.layers.Dense, (7,), (20,)),
}

each_layer = pytest.mark.parametrize("name", LAYERS)


def unit_axes(name, weight):
    """Return the axes of a kernel that index the weights of one unit."""
    rank = weight.ndim
    if name == "transposed":
        return (*range(rank - 2), rank - 1)
    if name == "depthwise" or weight.name == "depthwise_kernel":
        return tuple(range(rank - 2))
    return tuple(range(rank - 1))


def kernels(layer):
    return [weight for weight in layer.weights if weight.name.endswith("kernel")]


def plain_kernel(
    name,
    kernel,
    gain,
    strides=1,
    eps=1e-4,
    variance_eps=0.0,
    scale=1.0,
    center=True,
):
    """Standardize in float64 by the papers' formula; `center=False` keeps the mean."""
    weights = ops.convert_to_numpy(kernel).astype("float64")
    axes = unit_axes(name, kernel)
    fan_in = math.prod(weights.shape[axis] for axis in axes)
    if name == "transposed":
        fan_in /= strides**2
    mean = weights.mean(axes, keepdims=True)
    if not center:
        mean = np.zeros_like(mean)
    variance = np.mean((weights - mean) ** 2, axes, keepdims=True)
    units = [size for axis, size in enumerate(weights.shape) if axis not in axes]
    gain = np.array(gain, "float64").reshape(units)
    gain = np.expand_dims(gain, axes)
    bounded = np.maximum((variance + variance_eps) * fan_in, eps)
    return scale * gain * (weights - mean) / np.sqrt(bounded)


def made_of_ones(name, layer, strides):
    """Return outputs of a Keras layer for inputs of one, without bias, away from edges.

    For a transposed convolution, return the average over output positions.
    """
    _, keras_layer, arguments, shape = LAYERS[name]
    plain = keras_layer(*arguments, use_bias=False)
    plain.build((1, *shape))
    plain.set_weights([ops.convert_to_numpy(kernel) for kernel in kernels(layer)])
    outputs = ops.convert_to_numpy(plain(np.ones((1, *shape))))[0]
    middle = outputs[tuple(size // 2 for size in outputs.shape[:-1])]
    return middle / (strides**2 if name == "transposed" else 1)


def randomize(layer, seed=0):
    random = np.random.default_rng(seed)
    for weight in layer.weights:
        weight.assign(random.normal(0.3, 1.0, size=weight.shape))


def some_inputs(shape, batch=2, seed=1):
    return np.random.default_rng(seed).normal(size=(batch, *shape)).astype("float32")


def gain_of(kernel, layer):
    return getattr(layer, kernel.name.replace("kernel", "gain"))


OPTIONS = {
    "as usual": {},
    "scaled": {"eps": 0.0, "variance_eps": 0.1, "scale": 1.7},
    "bounded": {"eps": 100.0},
    "not centered": {"center": False},
    "of inputs with a mean": {"center": False, "input_mean": 0.7},
}


@each_layer
@pytest.mark.parametrize(
    ("strides", "options"),
    [
        (1, "as usual"),
        *((2, options) for options in OPTIONS),
        *(
            pytest.param(1, options, marks=pytest.mark.slow)
            for options in OPTIONS
            if options != "as usual"
        ),
    ],
)
def test_equals_keras_with_the_formulas_kernel(name, options, strides):
    ours, keras_layer, arguments, shape = LAYERS[name]
    shared = {} if name == "dense" else {"strides": strides, "padding": "same"}
    options = OPTIONS[options]
    layer = ours(*arguments, **shared, **options, activation="tanh")
    x = some_inputs(shape)
    layer.build(x.shape)
    randomize(layer)
    twin = keras_layer(*arguments, **shared, activation="tanh")
    twin.build(x.shape)
    for i, (kernel, plain) in enumerate(zip(kernels(layer), kernels(twin))):
        last = i == len(kernels(twin)) - 1
        scale = options.get("scale", 1.0) if last else 1.0
        center = options.get("center", True) or i > 0
        gain = ops.convert_to_numpy(gain_of(kernel, layer))
        settings = {**options, "scale": scale, "center": center}
        input_mean = settings.pop("input_mean", 0.0)
        plain.assign(plain_kernel(name, kernel, gain, strides, **settings))
        assert_close(layer.standardized_kernel(kernel.name), plain, 1e-4, 1e-5)
    twin.bias.assign(layer.bias)
    twin.bias.assign_sub(input_mean * made_of_ones(name, twin, strides))
    assert tuple(layer(x).shape) == tuple(layer.compute_output_shape(x.shape))
    assert_close(layer(x), twin(x), atol=1e-4)
    assert_close(layer(x, training=True), twin(x), atol=1e-4)


@each_layer
@pytest.mark.parametrize("strides", quick([1, 2, 3], 1, 3))
def test_outputs_start_with_unit_variance_and_no_mean(name, strides):
    ours, _, arguments, shape = LAYERS[name]
    if name in ("depthwise", "separable"):
        arguments = (*arguments[:-1], 5)
    options = {} if name == "dense" else {"strides": strides}
    keras.utils.set_random_seed(0)
    # An input mean, as after an activation, must not reach the outputs.
    x = 3.0 + some_inputs(
        (*(20,) * (len(shape) - 1), shape[-1]), batch=64 // len(shape)
    )
    outputs = ops.convert_to_numpy(ours(*arguments, **options)(x)).astype("float64")
    if name == "transposed":
        # The subset of a filter that a stride uses has a nonzero mean; edges use fewer
        # weights.
        outputs = ops.convert_to_numpy(ours(*arguments, **options)(x - 3.0))
        outputs = outputs[:, 5:-5, 5:-5]
    assert np.mean(outputs**2) == pytest.approx(1, abs=0.3)
    if name != "transposed":
        assert abs(outputs.mean()) < 0.1


@each_layer
def test_new_kernels_have_the_variance_of_the_formula(name):
    ours, _, arguments, shape = LAYERS[name]
    layer = ours(*arguments)
    layer.build((None, *(64 for _ in shape)))
    for kernel in kernels(layer):
        weights = ops.convert_to_numpy(kernel)
        fan_in = math.prod(weights.shape[axis] for axis in unit_axes(name, kernel))
        assert weights.var() * fan_in == pytest.approx(1, rel=0.15)


@each_layer
@pytest.mark.parametrize("center", [True, False])
def test_gradients_are_those_of_the_formula(name, center):
    """Compared with finite differences of the loss along a random direction."""
    ours, _, arguments, shape = LAYERS[name]
    options = {"center": center, "input_mean": 0.7}
    options |= {} if name == "dense" else {"strides": 2}
    inputs = keras.Input(shape)
    outputs = ours(*arguments, **options)(inputs)
    model = keras.Model(inputs, outputs)
    randomize(model)
    x = some_inputs(shape)
    y = some_inputs(tuple(model.output_shape[1:]), seed=2)
    rate = 1e-3
    model.compile(keras.optimizers.SGD(rate), "mse", run_eagerly=True)
    before = model.get_weights()
    losses, random = {}, np.random.default_rng(0)
    directions = [random.normal(size=w.shape) for w in before]
    for step in (-1e-2, 1e-2):
        model.set_weights([w + step * d for w, d in zip(before, directions)])
        losses[step] = model.evaluate(x, y, verbose=0)
    expected = (losses[1e-2] - losses[-1e-2]) / 2e-2
    model.set_weights(before)
    model.train_on_batch(x, y)
    moved = [(a - b) / -rate for a, b in zip(model.get_weights(), before)]
    actual = sum(np.sum(m * d) for m, d in zip(moved, directions))
    assert actual == pytest.approx(expected, rel=0.02, abs=1e-3)


@each_layer
@pytest.mark.parametrize("activation", quick([None, "relu", "scaled"], None, "scaled"))
def test_survives_saving_and_folding(name, activation, tmp_path):
    ours, _, arguments, shape = LAYERS[name]
    if activation == "scaled":
        activation = ScaledActivation("gelu")
    inputs = keras.Input(shape)
    x = ScaledActivation("relu")(inputs)
    options = {"activation": activation, "scale": 1.5, "center": activation is None}
    options["input_mean"] = 0.7
    model = keras.Model(inputs, ours(*arguments, **options)(x))
    randomize(model)
    x = some_inputs(shape)
    expected = model(x)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert_close(loaded(x), expected, atol=1e-6)
    model.save_weights(tmp_path / "m.weights.h5")
    clone = keras.models.clone_model(model)
    clone.load_weights(tmp_path / "m.weights.h5")
    assert_close(clone(x), expected, atol=1e-6)
    folded = keras_nfnets.fold(model)
    for layer in folded._flatten_layers():
        assert type(layer).__module__.startswith("keras.")
    assert_close(folded(x), expected, rtol=1e-4, atol=1e-4)


@each_layer
def test_units_of_clipping_are_those_of_standardization(name):
    ours, _, arguments, shape = LAYERS[name]
    inputs = keras.Input(shape)
    named_by_hand = ours(*arguments, name="head")(inputs)
    model = keras_nfnets.AGCModel(inputs, named_by_hand)
    model.compile("sgd", "mse", clip_factor=0.1)
    by_name = ours(*arguments)
    by_name.build((None, *shape))
    for kernel in kernels(by_name):
        assert axes_by_path(kernel.shape, kernel.path) == unit_axes(name, kernel)
    # Weights of zero may move by at most clip_factor * eps per unit.
    randomize(model)
    for kernel in kernels(model):
        kernel.assign(np.ones(kernel.shape))
    before = [ops.convert_to_numpy(kernel) for kernel in kernels(model)]
    x = 1e3 * some_inputs(shape)
    model.train_on_batch(x, 1e3 * some_inputs(tuple(model.output_shape[1:])))
    for kernel, old in zip(kernels(model), before):
        axes = unit_axes(name, kernel)
        moved = np.sqrt(np.sum((ops.convert_to_numpy(kernel) - old) ** 2, axis=axes))
        norms = np.sqrt(np.sum(old**2, axis=axes))
        assert (moved < 0.01 * 0.1 * norms * 1.001).all()


@each_layer
@pytest.mark.parametrize(
    "policy", quick(["mixed_bfloat16", "mixed_float16"], "mixed_bfloat16")
)
def test_statistics_are_taken_in_float32(name, policy):
    ours, _, arguments, shape = LAYERS[name]
    layer = ours(*arguments, dtype=policy)
    layer.build((None, *shape))
    for kernel in kernels(layer):
        # With a large mean, half precision would lose the variance to rounding.
        kernel.assign(100 + np.random.default_rng(0).normal(size=kernel.shape))
        actual = layer.standardized_kernel(kernel.name)
        dtype = keras.backend.standardize_dtype(actual.dtype)
        assert dtype == policy.removeprefix("mixed_")
        expected = plain_kernel(name, kernel, np.ones(gain_of(kernel, layer).shape))
        assert_close(ops.cast(actual, "float32"), expected, atol=1e-2)
    outputs = layer(some_inputs(shape))
    assert keras.backend.standardize_dtype(outputs.dtype) == policy.removeprefix(
        "mixed_"
    )


@each_layer
def test_positional_arguments_are_those_of_keras(name):
    ours, keras_layer, arguments, _ = LAYERS[name]
    config, plain = ours(*arguments).get_config(), keras_layer(*arguments).get_config()
    initializers = {key for key in plain if key.endswith("_initializer")}
    for key in set(plain) - initializers - {"name"}:
        assert config[key] == plain[key]
    given = ours(*arguments, bias_initializer="ones", trainable=False, name="n")
    assert ours.from_config(given.get_config()).get_config() == given.get_config()
    with pytest.raises(ValueError, match=rf"{ours.__name__} .*use_bias=False"):
        ours(*arguments, use_bias=False)
    with pytest.raises(ValueError, match="Received: eps=-1"):
        ours(*arguments, eps=-1)
    with pytest.raises(ValueError, match="finite number. Received: input_mean=-inf"):
        ours(*arguments, input_mean=-math.inf)
    with pytest.raises(ValueError, match="nonsense"):
        ours(*arguments, nonsense=1)


@pytest.mark.parametrize(
    "layer, shape",
    [
        (WSDepthwiseConv2D(1), (None, 8, 8, 3)),
        (WSSeparableConv2D(4, 3), (None, 8, 8, 1)),
        (WSConv2D(4, 1, groups=2), (None, 8, 8, 2)),
        (WSDense(3), (None, 1)),
        (WSDense(3, center=False), (None, 1)),
    ],
)
def test_a_single_weight_cannot_be_standardized(layer, shape):
    with pytest.raises(ValueError, match="needs at least two weights"):
        layer.build(shape)


@settings(max_examples=20)
@given(
    length=st.integers(6, 20),
    kernel_size=st.integers(1, 4),
    dilation_rate=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
)
def test_causal_convolutions_see_no_future(length, kernel_size, dilation_rate, groups):
    options = {"dilation_rate": dilation_rate, "groups": groups, "padding": "causal"}
    layer = WSConv1D(4, kernel_size, **options)
    x = some_inputs((length, 4))
    y = ops.convert_to_numpy(layer(x))
    twin = keras.layers.Conv1D(4, kernel_size, **options)
    twin.build(x.shape)
    twin.kernel.assign(layer.standardized_kernel())
    assert_close(y, twin(x), atol=1e-5)
    x[:, length // 2 :] += 1.0
    assert_close(layer(x)[:, : length // 2], y[:, : length // 2], atol=1e-6)


def test_lora_of_a_dense_layer(tmp_path):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, WSDense(4, lora_rank=2)(inputs))
    layer = model.layers[-1]
    layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    x = some_inputs((6,))
    model.save(tmp_path / "m.keras")
    assert_close(keras.saving.load_model(tmp_path / "m.keras")(x), model(x), atol=1e-5)
    assert_close(keras_nfnets.fold(model)(x), model(x), atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float32"])
def test_the_statistics_of_lora_are_taken_in_float32_too(policy):
    layer = WSDense(4, dtype=policy)
    layer.build((None, 64))
    kernel = 100 + np.random.default_rng(0).normal(size=(64, 4))
    layer.kernel.assign(kernel)
    layer.enable_lora(2)
    expected = plain_kernel("dense", layer._kernel, np.ones(4))
    assert_close(layer.precise_kernel(), expected, atol=1e-4)


def test_a_dense_layer_is_not_quantized_without_its_standardization():
    layer = WSDense(4)
    layer.build((None, 6))
    with pytest.raises(NotImplementedError, match="fold the model first"):
        layer.quantize("int8")
    with pytest.raises(NotImplementedError, match="fold the model first"):
        WSDense(4, dtype="int8_from_float32").build((None, 6))


@each_layer
def test_is_saved_before_it_is_built(name, tmp_path):
    ours, _, arguments, shape = LAYERS[name]
    with pytest.warns(UserWarning, match="not yet been built"):
        keras.Sequential([ours(*arguments)]).save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    loaded(some_inputs(shape))
    assert loaded.built


@pytest.mark.parametrize("name", sorted(set(LAYERS) - {"dense"}))
def test_channels_first_is_the_transpose(name):
    ours, _, arguments, shape = LAYERS[name]
    last = ours(*arguments)
    first = ours(*arguments, data_format="channels_first")
    x = some_inputs(shape)
    turned = np.moveaxis(x, -1, 1)
    last.build(x.shape)
    first.build(turned.shape)
    randomize(last)
    first.set_weights(last.get_weights())
    call = first
    if keras.backend.backend() == "tensorflow":  # which lacks it on CPUs
        import tensorflow as tf

        call = tf.function(first, jit_compile=True)
    outputs = ops.convert_to_numpy(call(turned))
    assert_close(np.moveaxis(outputs, 1, -1), last(x), 1e-4, 1e-4)


def test_a_folded_layer_has_no_training_settings():
    @keras.saving.register_keras_serializable("tests")
    class OfMyOwn(keras.regularizers.Regularizer):
        def __call__(self, x):
            return ops.sum(x)

        def get_config(self):
            return {}

    inputs = keras.Input((8,))
    model = keras.Model(inputs, WSDense(4, kernel_regularizer=OfMyOwn())(inputs))
    assert "OfMyOwn" not in keras_nfnets.fold(model).to_json()


def test_an_unknown_kernel_is_an_error():
    layer = WSSeparableConv2D(4, 3)
    layer.build((None, 8, 8, 3))
    with pytest.raises(ValueError, match="'depthwise_kernel', 'pointwise_kernel'"):
        layer.standardized_kernel("kernel")
