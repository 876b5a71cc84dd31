"""Initialization of normalizer-free networks from trained batch-normalized ones."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from quick import quick

from keras_nfnets import WSConv2D, fold, normalizer_free
from keras_nfnets.conversion import trained_weights

SIZE = 12


def noise(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def norm(x, **options):
    return layers.BatchNormalization(**options)(x)


def norm_act(x, activation="relu", **options):
    return layers.Activation(activation)(norm(x, **options))


def conv(x, filters, size=3, use_bias=False, **options):
    return layers.Conv2D(filters, size, padding="same", use_bias=use_bias, **options)(x)


def as_trained(model, zero_mean=True, seed=0):
    """Set random statistics, and kernels of mean zero that can be standardized."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            n = layer.moving_mean.shape[0]
            layer.moving_mean.assign(rng.normal(0, 0.5, n))
            layer.moving_variance.assign(rng.uniform(0.3, 3, n))
            if layer.scale:
                layer.gamma.assign(rng.uniform(0.5, 1.5, n) * rng.choice([-1, 1], n))
            if layer.center:
                layer.beta.assign(rng.normal(0, 0.5, n))
            continue
        for name in ("kernel", "depthwise_kernel", "pointwise_kernel"):
            kernel = getattr(layer, name, None)
            # (Units of a single weight would become zero: such layers are named "own".)
            if kernel is None or not zero_mean or layer.name.startswith("own"):
                continue
            if isinstance(layer, layers.DepthwiseConv2D) or name.startswith("depth"):
                continue  # the conversion keeps the mean of these
            axes = list(range(len(kernel.shape) - 1))
            if isinstance(layer, layers.Conv2DTranspose):
                axes = [0, 1, 3]
            value = ops.convert_to_numpy(kernel)
            kernel.assign(value - value.mean(tuple(axes), keepdims=True))
        if getattr(layer, "bias", None) is not None:
            layer.bias.assign(rng.normal(0, 0.5, layer.bias.shape))
    return model


def residual():
    """Build residual additions (one with a shortcut convolution), a gate and groups."""
    inputs = keras.Input((SIZE, SIZE, 3))
    x = norm_act(conv(inputs, 8), scale=False)
    for filters, strides in ((8, 1), (16, 2)):
        shortcut = x
        if strides == 2:
            shortcut = norm(conv(x, filters, 1, strides=2))
        y = norm_act(conv(x, filters, strides=strides, use_bias=True), "silu")
        y = norm(conv(y, filters, groups=4), center=False)
        gate = layers.GlobalAveragePooling2D(keepdims=True)(y)
        gate = layers.Conv2D(filters, 1, activation="sigmoid", name=f"own{filters}")(
            gate
        )
        x = layers.Activation("relu")(y * gate + shortcut)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(5, name="own_end")(x))


def preactivation():
    inputs = keras.Input((SIZE, SIZE, 3))
    x = conv(inputs, 8)
    for _ in range(2):
        y = conv(norm_act(x), 8)
        x = layers.Add()([x, conv(norm_act(y), 8)])
    return keras.Model(inputs, layers.GlobalMaxPooling2D()(norm_act(x)))


def mobile():
    inputs = keras.Input((SIZE, SIZE, 3))
    x = norm_act(layers.SeparableConv2D(8, 3, strides=2, depth_multiplier=2)(inputs))
    x = norm_act(layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x))
    x = norm_act(layers.DepthwiseConv2D(1, name="own")(x), "relu6")
    return keras.Model(inputs, norm(conv(x, 6, 1)))


def several():
    """Build convolutions that each see several channels."""
    inputs = keras.Input((SIZE, SIZE, 3))
    x = norm_act(conv(inputs, 8, strides=2))
    x = norm_act(conv(x, 8, groups=2), "relu6")
    return keras.Model(inputs, norm(conv(x, 6, 1)))


def unet():
    inputs = keras.Input((SIZE, SIZE, 3))
    skip = norm_act(conv(inputs, 6, dilation_rate=2))
    x = norm_act(conv(layers.MaxPooling2D()(skip), 8))
    x = norm_act(layers.Conv2DTranspose(6, 3, strides=2, padding="same")(x))
    x = norm_act(conv(layers.Concatenate()([skip, x]), 6), "leaky_relu")
    return keras.Model(inputs, layers.Conv2D(1, 1, activation="sigmoid", name="own")(x))


def of_others():
    """Build normalization without a convolution before it, or with an unusual one."""
    inputs = keras.Input((SIZE, SIZE, 3))
    x = norm(inputs)
    x = norm(conv(x, 8, activation="gelu"))
    x = norm(norm(layers.Activation("linear")(x)))
    y = conv(x, 8)  # also used without its normalization
    x = layers.Concatenate()([y, norm(y)])
    x = layers.Flatten()(layers.AveragePooling2D(4)(x))
    x = norm_act(layers.Dense(6)(x), "tanh")
    return keras.Model(inputs, layers.Dense(3, name="own")(x))


def shared():
    """Build a convolution shared with its normalization, and one with several."""
    inputs = keras.Input((SIZE, SIZE, 3))
    first, both = layers.Conv2D(3, 3, padding="same"), layers.BatchNormalization()
    x = both(first(both(first(inputs))))
    second = layers.Conv2D(3, 3, padding="same")
    x = norm_act(second(norm_act(second(x))))
    return keras.Model(inputs, x)


def sequence():
    return keras.Sequential(
        [
            keras.Input((20, 4)),
            layers.Conv1D(8, 3, padding="causal", dilation_rate=2),
            layers.BatchNormalization(),
            layers.ReLU(),
            keras.Sequential([layers.Conv1D(8, 3), layers.BatchNormalization()]),
            layers.Dense(6),
            layers.BatchNormalization(),
        ]
    )


def volume():
    inputs = keras.Input((6, 6, 6, 2))
    x = norm_act(layers.Conv3D(6, 3, strides=2, padding="same")(inputs))
    return keras.Model(inputs, norm(layers.Conv3D(4, 2)(x)))


class Subclassed(keras.Model):
    class Block(layers.Layer):
        def __init__(self):
            super().__init__()
            self.conv = layers.Conv2D(3, 3, padding="same")
            self.norm = layers.BatchNormalization()

        def call(self, x, training=None):
            return x + ops.relu(self.norm(self.conv(x), training=training))

    def __init__(self):
        super().__init__()
        self.blocks = [self.Block() for _ in range(2)]

    def call(self, x, training=None):
        for block in self.blocks:
            x = block(x, training=training)
        return ops.mean(x, axis=(1, 2))


def subclassed():
    model = Subclassed()
    model(noise(1, SIZE, SIZE, 3))
    model.input_like = (SIZE, SIZE, 3)
    return model


# (constructor, expected number of standardized layers, of per-channel constants).
EXACT = {
    "residual": (residual, 6, 0),
    "preactivation": (preactivation, 5, 3),
    "mobile": (mobile, 4, 0),
    "unet": (unet, 4, 0),
    "of others": (of_others, 3, 5),
    "shared": (shared, 2, 2),
    "sequence": (sequence, 3, 0),
    "volume": (volume, 2, 0),
    "subclassed": (subclassed, 2, 0),
}


def assert_same(model, original, x, rtol=1e-4):
    expected = ops.convert_to_numpy(original(x, training=False))
    given = ops.convert_to_numpy(model(x, training=False))
    np.testing.assert_allclose(given, expected, atol=rtol * np.abs(expected).max())


def count(model, prefix):
    return sum(type(layer).__name__.startswith(prefix) for layer in model.layers)


@pytest.mark.parametrize(
    "name",
    quick(EXACT, "residual", "mobile", "of others", "shared", "sequence", "subclassed"),
)
def test_filters_of_mean_zero_give_the_same_outputs(name):
    make, standardized, constants = EXACT[name]
    keras.utils.set_random_seed(0)
    original = as_trained(make())
    shape = getattr(original, "input_like", None) or original.input_shape[1:]
    model = normalizer_free(original, noise(4, *shape), trained=True)
    # Noise of another standard deviation and mean: any images give the same outputs.
    assert_same(model, original, 2 * noise(4, *shape, seed=2) + 1)
    for x in model._flatten_layers():
        assert not isinstance(x, layers.BatchNormalization)
    assert count(model, "WS") == standardized
    assert count(model, "Rescaling") == constants
    assert all(step.error == 0 for step in model.conversion.steps)
    assert model.conversion.error < 1e-5


def test_result_is_saved_and_folded_and_the_original_is_left(tmp_path):
    keras.utils.set_random_seed(0)
    original = as_trained(residual(), zero_mean=False)
    weights = original.get_weights()
    x = noise(16, SIZE, SIZE, 3)
    model = normalizer_free(original, x, trained=True, tolerance=0.5)
    assert 0 < model.conversion.error
    assert count(model, "WS") > 3
    model.save(path := tmp_path / "model.keras")
    assert_same(keras.models.load_model(path), model, x, 1e-5)
    assert_same(fold(model), model, x)
    # As in new layers: the norm of the weights determines how fast they learn.
    for layer in model.layers:
        if type(layer).__name__ == "WSConv2D":
            kernel = ops.convert_to_numpy(layer.kernel)
            norms = np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), axis=0)
            np.testing.assert_allclose(norms, 1, rtol=1e-4)
            gain = ops.convert_to_numpy(layer.gain)
            np.testing.assert_allclose(np.mean(gain**2), 1, rtol=1e-4)
    for before, after in zip(weights, original.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def of_dense(inputs, units=8):
    keras.utils.set_random_seed(0)
    given = keras.Input((inputs,))
    x = norm_act(layers.Dense(units)(given))
    return as_trained(
        keras.Model(given, layers.Dense(2, name="own")(x)), zero_mean=False
    )


def with_constant_channel(count, seed):
    x = noise(count, SIZE, SIZE, 4, seed=seed)
    x[..., 1:3] = 1.5  # one per group
    return x


@pytest.mark.parametrize("most_numbers", [1024, 1])
@pytest.mark.parametrize("groups", [1, 2])
def test_any_filter_is_exact_beside_a_channel_that_never_changes(
    groups, most_numbers, monkeypatch
):
    monkeypatch.setattr(trained_weights, "_MOST_NUMBERS", most_numbers)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE, SIZE, 4))
    x = norm_act(layers.Conv2D(8, 3, groups=groups)(inputs))
    original = as_trained(keras.Model(inputs, x), zero_mean=False)
    model = normalizer_free(original, with_constant_channel(32, 1), trained=True)
    assert count(model, "WS") == 1
    assert model.conversion.error < 1e-4
    x = with_constant_channel(8, 2)
    assert_same(model, original, x, 1e-3)
    x[..., 1:3] = 3.0  # the channel must be constant
    with pytest.raises(AssertionError):
        assert_same(model, original, x, 1e-2)


def test_any_weights_are_exact_if_what_they_see_sums_to_one():
    def shares(seed):
        x = np.exp(noise(256, 6, seed=seed))
        return x / x.sum(axis=1, keepdims=True)

    original = of_dense(6)
    model = normalizer_free(original, shares(1), trained=True)
    assert count(model, "WS") == 1
    assert_same(model, original, shares(2), 1e-3)


def test_nearest_is_that_of_least_squares():
    mixing = 0.2 * noise(6, 6, seed=5) + np.diag([0.5, 0.7, 0.9, 1, 1.5, 2])
    x = (np.abs(noise(4000, 6)) @ mixing + 1).astype("float32")
    inputs = keras.Input((6,))
    keras.utils.set_random_seed(0)
    original = as_trained(
        keras.Model(inputs, layers.ReLU()(norm(layers.Dense(5)(inputs)))), False
    )
    dense = original.layers[1]
    dense.kernel.assign(dense.kernel + 0.3)
    linear = keras.Model(original.input, original.layers[-2].output)
    y = ops.convert_to_numpy(linear(x, training=False))
    model = normalizer_free(original, x, trained=True, tolerance=10)
    # Least squares over all zero-mean weights, spanned by a basis, and a bias.
    basis = np.linalg.svd(np.ones((1, 6)))[2][1:].T
    seen = np.concatenate([x @ basis, np.ones((len(x), 1))], axis=1)
    fitted = seen @ np.linalg.lstsq(seen, y, rcond=None)[0]
    error = np.sqrt(np.mean((fitted - y) ** 2) / np.mean(y.var(axis=0)))
    assert error > 0.1  # (otherwise the comparison is trivial)
    [step] = [step for step in model.conversion.steps if step.error]
    np.testing.assert_allclose(step.error, error, rtol=0.1)
    given = ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(given, np.maximum(fitted, 0), atol=1e-2 * y.std())


LINEAR = {
    "Conv2D": (lambda: layers.Conv2D(8, 3, padding="same", groups=2), (SIZE, SIZE, 4)),
    "strided": (lambda: layers.Conv2D(8, (3, 2), strides=2), (SIZE, SIZE, 4)),
    "transposed": (lambda: layers.Conv2DTranspose(6, 3, strides=2), (SIZE, SIZE, 4)),
    "causal": (lambda: layers.Conv1D(8, 3, padding="causal"), (SIZE, 4)),
    "Conv3D": (lambda: layers.Conv3D(8, 2), (5, 5, 5, 4)),
    "Dense": (lambda: layers.Dense(8), (7, 4)),
}


def of_unequal_variances(*shape, seed):
    """Return noise whose standard deviation varies over channels and positions."""
    x = noise(*shape, seed=seed) * np.array([0.2, 1, 2, 0.3])
    if len(shape) > 3:
        x[:, ::3] *= 0.3
    return x + 1


@pytest.mark.parametrize("fewer", [False, True], ids=["windows", "channels"])
@pytest.mark.parametrize("name", quick(LINEAR, "Conv2D", "transposed", "Dense"))
def test_error_is_what_is_measured_and_less_than_without_means(
    name, fewer, monkeypatch
):
    make, shape = LINEAR[name]
    if fewer:
        monkeypatch.setattr(trained_weights, "_MOST_NUMBERS", 1)
    monkeypatch.setattr(trained_weights, "_HELD", 50_000)  # several chunks
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    original = as_trained(keras.Model(inputs, norm(make()(inputs))), zero_mean=False)
    x = of_unequal_variances(64, *shape, seed=1)
    model = normalizer_free(original, x, trained=True, tolerance=10)

    def error_of(model):
        x = of_unequal_variances(64, *shape, seed=2)
        y, expected = (
            ops.convert_to_numpy(m(x, training=False)) for m in (model, original)
        )
        axes = tuple(range(y.ndim - 1))
        difference = (y - expected).var(axis=axes)
        return np.sqrt(np.mean(difference) / np.mean(expected.var(axis=axes)))

    [step] = [step for step in model.conversion.steps if step.error]
    np.testing.assert_allclose(step.error, error_of(model), rtol=0.15)
    without_means = keras.models.clone_model(original)
    without_means.set_weights(original.get_weights())
    as_trained(without_means)
    assert error_of(model) < 0.9 * error_of(without_means)


def test_depthwise_filters_keep_their_means():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE, SIZE, 4))
    x = norm_act(layers.DepthwiseConv2D(3, depth_multiplier=2)(inputs))
    x = norm_act(layers.SeparableConv2D(8, 3)(x))
    x = norm_act(conv(x, 16, groups=8, name="own"))
    original = as_trained(keras.Model(inputs, x))
    x = of_unequal_variances(8, SIZE, SIZE, 4, seed=1)
    model = normalizer_free(original, x, trained=True, tolerance=0)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds.count("WSDepthwiseConv2D") == kinds.count("WSConv2D") == 2
    assert all(step.error == 0 for step in model.conversion.steps)
    assert_same(model, original, of_unequal_variances(8, SIZE, SIZE, 4, seed=2))


def smooth(count, seed):
    x = noise(count, 4, 4, 3, seed=seed)
    return ops.convert_to_numpy(ops.image.resize(x, (SIZE, SIZE))) + 1


def test_report_names_layers_that_are_off_and_tolerance_leaves_them_plain():
    keras.utils.set_random_seed(0)
    original = as_trained(several(), zero_mean=False)
    x = smooth(64, 1)
    loose = normalizer_free(original, x, trained=True, tolerance=10)
    off = {step.layer: step.error for step in loose.conversion.steps if step.error}
    assert len(off) >= 3
    assert set(off) <= {
        layer.name for layer in loose.layers if type(layer).__name__.startswith("WS")
    }
    printed = str(loose.conversion).splitlines()
    for name, error in off.items():
        [line] = [line for line in printed if line.split()[0] == name]
        assert f" {error:.2g} " in line
    assert printed[-1].split()[:2] == ["outputs", f"{loose.conversion.error:.2g}"]
    # Errors on new images agree with those of the report.
    expected, given = (
        ops.convert_to_numpy(m(smooth(64, 2), training=False))
        for m in (original, loose)
    )
    std = np.sqrt(np.mean(expected.var(axis=(0, 1, 2))))
    error = np.sqrt(np.mean((given - expected) ** 2)) / std
    assert 0.7 < error / loose.conversion.error < 1.4
    # The two layers with the largest errors stay unconverted.
    limit = sorted(off.values())[-2]
    some = normalizer_free(original, x, trained=True, tolerance=0.99 * limit)
    assert some.conversion.error < loose.conversion.error
    left = {s.layer for s in some.conversion.steps if "the error would be" in s.action}
    assert left and all(off[name] > 0.5 * limit for name in left)
    none = normalizer_free(original, x, trained=True, tolerance=0)
    standardized = [x for x in none.layers if type(x).__name__.startswith("WS")]
    for layer in standardized:  # only where an input channel is all zeros after ReLU
        before = keras.Model(none.input, layer.input)(x)
        assert np.std(ops.convert_to_numpy(before), axis=(0, 1, 2)).min() == 0
    assert len(standardized) <= 1
    assert all(step.error == 0 for step in none.conversion.steps)
    assert_same(none, original, smooth(8, 2))


def test_filters_of_zeros_do_nothing_and_can_learn():
    original = as_trained(preactivation())
    stem = original.layers[1]
    kernel = ops.convert_to_numpy(stem.kernel).copy()
    kernel[..., :3] = 0
    stem.kernel.assign(kernel)
    for layer in original.layers:
        if layer.name.startswith("batch"):
            layer.gamma.assign(layer.gamma * (np.arange(8) > 1))
    x = noise(4, SIZE, SIZE, 3)
    model = normalizer_free(original, x, trained=True)
    assert_same(model, original, x)
    new = model.layers[1]
    np.testing.assert_array_equal(ops.convert_to_numpy(new.gain)[:3], 0)
    assert np.all(np.std(ops.convert_to_numpy(new.kernel), axis=(0, 1, 2)) > 0)


def digits_network():
    inputs = keras.Input((8, 8, 1))
    x = norm_act(conv(inputs, 16), momentum=0.9)
    for filters in (16, 32):
        shortcut = x
        strides = 1
        if filters == 32:
            shortcut = norm(conv(x, 32, 1, strides=2), momentum=0.9)
            strides = 2
        y = norm_act(conv(x, filters, strides=strides), momentum=0.9)
        y = norm(conv(y, filters), momentum=0.9)
        x = layers.Activation("relu")(layers.Add()([shortcut, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, name="predictions")(x))


@pytest.mark.slow
def test_trained_network_keeps_its_accuracy():
    from sklearn.datasets import load_digits

    keras.utils.set_random_seed(0)
    x, y = load_digits(return_X_y=True)
    x = (x.reshape(-1, 8, 8, 1) / 16).astype("float32")
    original = digits_network()
    original.compile(
        # As the learning rate decays to zero, running statistics match the final weights.
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(5e-3, 8 * 19)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    original.fit(x[:1200], y[:1200], batch_size=64, epochs=8, verbose=0)

    def accuracy(logits):
        return np.mean(np.argmax(logits, axis=1) == y[1200:])

    before = ops.convert_to_numpy(original(x[1200:]))
    assert accuracy(before) > 0.9
    for tolerance, layers_at_least, most_lost in ((0.1, 2, 0.02), (0.2, 4, 0.04)):
        model = normalizer_free(original, x[:128], trained=True, tolerance=tolerance)
        after = ops.convert_to_numpy(model(x[1200:]))
        assert accuracy(after) >= accuracy(before) - most_lost
        assert count(model, "WS") >= layers_at_least
        report = model.conversion
        assert any(step.error for step in report.steps)
        assert all(step.error <= tolerance for step in report.steps)
        error = np.sqrt(np.mean((after - before) ** 2) / np.mean(before.var(axis=0)))
        assert error < 2 * tolerance
        assert 0.5 < error / report.error < 2
    # Training continues from there, on the training set and on the test set.
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    losses = model.fit(x[:1200], y[:1200], batch_size=64, epochs=3, verbose=0)
    assert losses.history["loss"][-1] < 0.5 * losses.history["loss"][0] < 0.2
    assert accuracy(ops.convert_to_numpy(model(x[1200:]))) > accuracy(before) - 0.03


def of_normalization(layer):
    inputs = keras.Input((SIZE, SIZE, 4))
    return keras.Model(inputs, layer(conv(inputs, 8)))


@pytest.mark.parametrize(
    "layer",
    [
        layers.LayerNormalization(name="own"),
        layers.GroupNormalization(4, name="own"),
        layers.RMSNormalization(name="own"),
    ],
)
def test_constants_are_fitted_to_what_has_no_statistics(layer):
    x = noise(16, SIZE, SIZE, 4)
    model = of_normalization(layer)
    result = normalizer_free(model, x, trained=True)
    step = next(step for step in result.conversion.steps if step.layer == "own")
    assert "constant factor and offset per channel, fitted" in step.action
    assert 0 < step.error == result.conversion.error < 0.5
    outputs = [ops.convert_to_numpy(one(x)) for one in (result, model)]
    means, expected = (y.mean(axis=(0, 1, 2)) for y in outputs)
    np.testing.assert_allclose(means, expected, atol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"images": None}, "needs `images`"),
        ({"tolerance": -1.0}, "`tolerance` must be"),
        ({"images": np.full((4, SIZE, SIZE, 3), np.nan)}, "variance there is nan"),
    ],
)
def test_wrong_arguments(options, message):
    options = {"images": noise(2, SIZE, SIZE, 3), **options}
    with pytest.raises(ValueError, match=message):
        normalizer_free(preactivation(), trained=True, **options)


def test_normalization_after_a_layer_of_this_package_is_not_lost():
    inputs = keras.Input((8, 8, 3))
    x = WSConv2D(4, 3)(norm_act(inputs))
    original = as_trained(keras.Model(inputs, norm_act(x)))
    x = noise(8, 8, 8, 3)
    model = normalizer_free(original, x, trained=True)
    assert_same(model, original, x)
    assert [type(layer).__name__ for layer in model.layers][-3] == "WSConv2D"


def test_layer_without_counterpart_is_refused_by_name():
    inputs = keras.Input((SIZE, 3))
    model = keras.Model(inputs, norm(layers.Conv1DTranspose(4, 3, name="up")(inputs)))
    with pytest.raises(ValueError, match="'up', a Conv1DTranspose"):
        normalizer_free(model, noise(2, SIZE, 3), trained=True)
