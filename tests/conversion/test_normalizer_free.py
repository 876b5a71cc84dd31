"""Removal of normalization from any network: layers and signal propagation."""

import keras
import numpy as np
import pytest
from comparing import assert_close
from keras import layers, ops

from keras_nfnets import AGCModel, NFNet, fold, normalizer_free, signal_propagation

SIZE = 32


def noise(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def photos(count, size, seed=0):
    """Return standardized crops of photographs."""
    from sklearn.datasets import load_sample_images

    photographs, rng = load_sample_images().images, np.random.default_rng(seed)
    crops = []
    for i in range(count):
        photograph = photographs[i % 2].astype("float32")
        y, x = (rng.integers(0, n - 320 + 1) for n in photograph.shape[:2])
        crop = photograph[y : y + 320, x : x + 320]
        crops.append(ops.convert_to_numpy(ops.image.resize(crop, (size, size))))
    crops = np.stack(crops)
    return (crops - crops.mean()) / crops.std()


def norm_act(x, activation="relu"):
    return layers.Activation(activation)(layers.BatchNormalization()(x))


def conv(x, filters, size=3, **options):
    return layers.Conv2D(filters, size, padding="same", use_bias=False, **options)(x)


def squeeze_excite(x, ratio=4):
    filters = x.shape[-1]
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(filters // ratio, 1, activation="relu")(gate)
    gate = layers.Conv2D(filters, 1, activation="sigmoid")(gate)
    return x * gate


def regnet(size=SIZE, depths=(2, 4, 2)):
    """Build grouped bottlenecks with squeeze-and-excitation, added by `+`."""
    inputs = keras.Input((size, size, 3))
    x = norm_act(conv(inputs, 32, strides=2))
    for filters, depth in zip((48, 96, 192), depths):
        for block in range(depth):
            strides = 2 if block == 0 else 1
            shortcut = x
            if block == 0:
                shortcut = layers.BatchNormalization()(
                    conv(x, filters, 1, strides=strides)
                )
            x = norm_act(conv(x, filters, 1))
            x = norm_act(conv(x, filters, groups=filters // 16, strides=strides))
            x = squeeze_excite(x)
            x = layers.BatchNormalization()(conv(x, filters, 1))
            x = layers.ReLU()(x + shortcut)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, name="predictions")(x))


def unet(size=SIZE, normalization=layers.BatchNormalization):
    def double(x, filters):
        for _ in range(2):
            x = layers.Activation("relu")(normalization()(conv(x, filters)))
        return x

    inputs = keras.Input((size, size, 1))
    x, skips = inputs, []
    for filters in (16, 32, 64):
        skips.append(double(x, filters))
        x = layers.MaxPooling2D()(skips[-1])
    x = double(x, 128)
    for filters, skip in zip((64, 32, 16), reversed(skips)):
        x = layers.Conv2DTranspose(filters, 2, strides=2)(x)
        x = double(layers.Concatenate()([skip, x]), filters)
    return keras.Model(inputs, layers.Conv2D(1, 1, activation="sigmoid")(x))


def preactivation(activation="silu", depth=2):
    inputs = keras.Input((SIZE, SIZE, 3))
    x = conv(inputs, 32)
    for _ in range(depth):
        y = conv(norm_act(x, activation), 32)
        x = layers.Add()([x, conv(norm_act(y, activation), 32)])
    x = layers.GlobalAveragePooling2D()(norm_act(x, activation))
    return keras.Model(inputs, layers.Dense(10, name="predictions")(x))


def sequential():
    return keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            layers.Conv2D(32, 3, activation="gelu"),
            layers.GroupNormalization(8),
            layers.MaxPooling2D(),
            layers.SeparableConv2D(64, 3),
            layers.LayerNormalization(),
            layers.LeakyReLU(),
            layers.Flatten(),
            layers.Dense(32, activation="tanh"),
            layers.Dense(4, activation="softmax"),
        ]
    )


def branches():
    """Build sums of several branches, and of two branches without a shortcut."""
    inputs = keras.Input((SIZE, SIZE, 3))
    x = norm_act(conv(inputs, 32))
    for _ in range(3):
        parts = [layers.BatchNormalization()(conv(x, 32, size)) for size in (1, 3)]
        x = layers.Activation("relu")(
            layers.Add()([layers.BatchNormalization()(x), *parts])
        )
    left, right = (layers.BatchNormalization()(conv(x, 32)) for _ in range(2))
    x = layers.Activation("relu")(layers.Add()([left, right]))
    x = layers.BatchNormalization()(conv(x, 32))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalMaxPooling2D()(x)))


def of_residual_blocks():
    """Build a network of sequential blocks."""
    inputs = keras.Input((SIZE, SIZE, 3))
    x = conv(inputs, 32)
    for _ in range(4):
        branch = keras.Sequential(
            [
                layers.BatchNormalization(),
                layers.ReLU(6.0),
                layers.Conv2D(32, 3, padding="same"),
                layers.DepthwiseConv2D(3, padding="same"),
                layers.BatchNormalization(),
            ]
        )
        x = x + branch(x)
    return keras.Model(inputs, x)


def sequence():
    inputs = keras.Input((128, 4))
    x = inputs
    for dilation in (1, 2, 4, 8):
        x = layers.Conv1D(32, 3, padding="causal", dilation_rate=dilation)(x)
        x = norm_act(x)
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling1D()(x)))


NETWORKS = {
    "regnet": regnet,
    "unet": unet,
    "unet, group": lambda: unet(normalization=lambda: layers.GroupNormalization(4)),
    "preactivation": lambda: preactivation(depth=6),
    "sequential": sequential,
    "branches": branches,
    "of residual blocks": of_residual_blocks,
    "sequence": sequence,
    "MobileNetV3Small": lambda: keras.applications.MobileNetV3Small(
        input_shape=(96, 96, 3), weights=None, include_preprocessing=False
    ),
}


# They have additions of each kind, gates, transposed and one-dimensional convolutions.
QUICK = ("unet", "sequential", "branches", "of residual blocks", "sequence")


def measured_over_expected(model, x, variance="variance_at_start"):
    expected = {
        name: getattr(step, variance)
        for name, step in model.conversion.variances.items()
    }
    signal = signal_propagation(model, x, layers=list(expected))
    return signal["avg_var"] / list(expected.values()), signal


# With skip gains of one, the branches contribute from the start to all variances.
@pytest.mark.parametrize(
    "skip_gain", [pytest.param("zeros", marks=pytest.mark.slow), "ones"]
)
@pytest.mark.parametrize(
    "network",
    [
        pytest.param(
            network,
            id=name,
            marks=() if name in QUICK else pytest.mark.slow,
        )
        for name, network in NETWORKS.items()
    ],
)
def test_variance_is_as_expected_on_other_noise(network, skip_gain):
    keras.utils.set_random_seed(0)
    model = network()
    result = normalizer_free(model, skip_gain_initializer=skip_gain)
    assert isinstance(result, AGCModel)
    assert result.input_shape == model.input_shape
    assert result.output_shape == model.output_shape
    for layer in result._flatten_layers():
        assert not isinstance(
            layer,
            (
                layers.BatchNormalization,
                layers.GroupNormalization,
                layers.LayerNormalization,
            ),
        )
    ratios, signal = measured_over_expected(result, noise(16, *model.input_shape[1:]))
    assert len(ratios) > 4
    assert 0.75 < ratios.min() <= ratios.max() < 1.25
    # After a rectifier, the squared mean is about half of the variance.
    assert np.all(signal["avg_sq_mean"] < 1.5 * signal["avg_var"])
    if skip_gain == "ones":
        # Expected variances grow by alpha only; they do not drift.
        expected = [s.variance for s in result.conversion.variances.values()]
        assert 0.8 < min(expected) <= max(expected) < 1.8


def kinds(model):
    return [type(layer).__name__ for layer in model.layers]


def test_original_is_untouched():
    model = regnet(depths=(1, 2))
    weights, config = model.get_weights(), model.to_json()
    normalizer_free(model)
    assert model.to_json() == config
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    model(noise(2, SIZE, SIZE, 3))


def test_result_is_saved_and_trains(tmp_path):
    keras.utils.set_random_seed(0)
    model = normalizer_free(regnet(16, depths=(1, 1)))
    x, y = noise(16, 16, 16, 3), np.arange(16) % 4
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_factor=0.1,
        agc_eps=0.1,
    )
    losses = model.fit(x, y, batch_size=4, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    model.save(path := tmp_path / "model.keras")
    loaded = keras.models.load_model(path)
    assert isinstance(loaded, AGCModel)
    assert_close(loaded(x), model(x), atol=1e-5)
    folded = fold(model)
    assert_close(folded(x), model(x), atol=1e-4)
    assert not any("keras_nfnets" in type(la).__module__ for la in folded.layers)


def test_report_has_every_layer_and_says_what_is_left_alone():
    original = regnet(depths=(1, 2))
    model = normalizer_free(original)
    steps = model.conversion.steps
    assert {layer.name for layer in original.layers[1:]} <= {s.layer for s in steps}
    actions = {(s.kind, s.action) for s in steps if "left alone" in s.action}
    assert ("Dense", "left alone: computes an output of the model") in actions
    assert (
        "Conv2D",
        "left alone: in a gate, with no normalization after it",
    ) in actions
    # Two per block, in squeeze-and-excitation.
    assert kinds(model).count("Conv2D") == 2 * 3
    assert kinds(model).count("SkipGain") == 3
    printed = str(model.conversion).splitlines()
    kept = sum("left alone" in step.action for step in steps)
    removed = sum("removed" in step.action for step in steps)
    replaced = len(steps) - kept - removed
    assert kept and removed and replaced
    assert printed[0] == (
        f"layers: {replaced} replaced, {removed} removed, {kept} left alone"
    )
    assert len(printed) == 2 + len(steps)
    assert all(step.action in line for step, line in zip(steps, printed[2:]))


def test_residual_network_is_its_shortcuts_at_the_start():
    model = normalizer_free(preactivation())
    additions = [layer for layer in model.layers if isinstance(layer, layers.Add)]
    stem = model.layers[1]
    both = keras.Model(model.input, [stem.output, additions[-1].output])
    first, last = both(noise(2, SIZE, SIZE, 3))
    np.testing.assert_array_equal(first, last)


def test_images_decide_what_the_first_convolution_gives():
    model = preactivation("relu")
    of_noise = normalizer_free(model)
    of_images = normalizer_free(model, photos(32, SIZE))
    # Neighbouring pixels are similar, so a zero-mean filter outputs a smaller variance.
    assert of_images.layers[1].scale > 1.5 * of_noise.layers[1].scale
    ratios, _ = measured_over_expected(of_images, photos(32, SIZE, seed=1))
    assert 0.75 < ratios.min() <= ratios.max() < 1.25


def test_alpha_is_the_std_that_a_branch_adds():
    model = normalizer_free(preactivation(), alpha=0.5, skip_gain_initializer="ones")
    variances = [step.variance for step in model.conversion.steps if step.kind == "Add"]
    np.testing.assert_allclose(np.diff(variances), 0.25, atol=0.05)
    assert [s.layer for s in model.conversion.steps if s.kind == "Add"] == [
        layer.name for layer in model.layers if isinstance(layer, layers.Add)
    ]


class Subclassed(keras.Model):
    """Subclassed model with a custom block that is called with `training`."""

    class Block(layers.Layer):
        def __init__(self, filters):
            super().__init__()
            self.conv = layers.Conv2D(filters, 3, padding="same", use_bias=False)
            self.norm = layers.BatchNormalization()
            self.dropout = layers.Dropout(0.5)

        def call(self, x, training=None):
            y = ops.relu(self.norm(self.conv(x), training=training))
            return x + self.dropout(y, training=training)

    def __init__(self):
        super().__init__()
        self.stem = layers.Conv2D(16, 3)
        self.blocks = [self.Block(16) for _ in range(3)]
        self.head = layers.Dense(4)

    def call(self, x, training=None):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, training=training)
        return self.head(ops.mean(x, axis=(1, 2)))


def test_subclassed_model_is_traced():
    model = Subclassed()
    model(noise(1, SIZE, SIZE, 3))
    result = normalizer_free(model)
    assert kinds(result).count("WSConv2D") == 4
    assert kinds(result).count("SkipGain") == 3
    x = noise(8, SIZE, SIZE, 3)
    assert result(x).shape == (8, 4)
    ratios, _ = measured_over_expected(result, x)
    assert 0.75 < ratios.min() <= ratios.max() < 1.25
    # Dropout still acts in training only.
    keras.utils.set_random_seed(0)
    for layer in result.layers:
        if type(layer).__name__ == "SkipGain":
            layer.skip_gain.assign(1.0)
    first, second = (ops.convert_to_numpy(result(x, training=True)) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3


def test_structure_of_inputs_and_outputs_stays():
    inputs = {
        "left": keras.Input((SIZE, SIZE, 3), name="left"),
        "right": keras.Input((SIZE, SIZE, 3), name="right"),
    }
    shared = layers.Conv2D(16, 3)
    ways = [norm_act(shared(x)) for x in inputs.values()]
    x = conv(layers.Concatenate()(ways), 16)
    pooled = layers.GlobalAveragePooling2D()(norm_act(x))
    outputs = {"a": layers.Dense(2)(pooled), "map": x}
    model = normalizer_free(keras.Model(inputs, outputs))
    given = {name: noise(2, SIZE, SIZE, 3) for name in inputs}
    result = model(given)
    assert {name: tuple(y.shape) for name, y in result.items()} == {
        "a": (2, 2),
        "map": (2, SIZE - 2, SIZE - 2, 16),
    }
    # The shared convolution is still shared.
    assert kinds(model).count("WSConv2D") == 2


def test_new_kernels_are_drawn_as_the_original_draws_its_own():
    """The smaller standardized weights are, the faster they learn."""
    inputs = keras.Input((16, 16, 32))
    x = layers.DepthwiseConv2D(5, name="depthwise")(inputs)
    x = conv(norm_act(x), 64, kernel_initializer="glorot_uniform", name="glorot")
    large = keras.initializers.RandomNormal(stddev=3.0)
    x = conv(norm_act(x), 64, kernel_initializer=large, name="large")
    x = conv(norm_act(x), 64, kernel_initializer="zeros", name="zeros")
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(norm_act(x)))
    result = normalizer_free(model)
    for name in ("depthwise", "glorot", "large"):
        old, new = (
            ops.convert_to_numpy(m.get_layer(name).kernel) for m in (model, result)
        )
        assert new.std() == pytest.approx(old.std(), rel=0.1)
        assert not np.array_equal(old, new)
    # Standardized zeros would stay zero.
    assert result.conversion.variances["zeros"].variance == pytest.approx(1, abs=0.01)


def test_layers_left_alone_keep_their_weights():
    model = preactivation()
    result = normalizer_free(model)
    for before, after in zip(
        model.get_layer("predictions").get_weights(),
        result.get_layer("predictions").get_weights(),
    ):
        np.testing.assert_array_equal(before, after)
    x = noise(4, 8, 8, 3)
    adapted = layers.Normalization()
    adapted.adapt(3 * x + 2)
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, conv(adapted(inputs), 4, activation="relu"))
    result = normalizer_free(model, x)
    np.testing.assert_allclose(result.get_layer(adapted.name)(x), adapted(x), atol=1e-6)


def with_normalized_head(body):
    x = norm_act(conv(body.output, 8))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(body.input, layers.Dense(3, name="predictions")(x))


def test_a_normalizer_free_backbone_stays_as_it_is_and_its_head_is_converted():
    body = NFNet(
        (1, 1), (16, 32), group_size=8, include_top=False, input_shape=(32, 32, 3)
    )
    for block in body.layers:
        if hasattr(block, "skip_gain"):
            block.skip_gain.assign(0.7)
    result = normalizer_free(with_normalized_head(body))
    kinds = [type(layer).__name__ for layer in result.layers[-5:]]
    expected = ["WSConv2D", "ScaledActivation", "GlobalAveragePooling2D", "Dense"]
    assert kinds == ["ScaledActivation", *expected]
    x = noise(2, 32, 32, 3)
    same = keras.Model(result.input, result.get_layer("features").output)
    assert_close(same(x), body(x), atol=1e-6)


@pytest.mark.parametrize("trained", [False, True])
def test_what_was_converted_once_is_not_converted_again(trained):
    once = normalizer_free(preactivation(depth=2), skip_gain_initializer="ones")
    x = noise(2, 32, 32, 3)
    again = normalizer_free(once, x, trained=trained)
    assert_close(again(x), once(x), atol=1e-6)
    assert len(again.weights) == len(once.weights)


def of_layer(layer, shape=(16, 16, 4), before=()):
    inputs = keras.Input(shape)
    x = layers.BatchNormalization()(layer(inputs))
    return keras.Model(inputs, x)


class OddConv(layers.Conv2D):
    pass


class Hiding(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.BatchNormalization()

    def build(self, shape):
        self.norm.build(shape)

    def call(self, x):
        return ops.convert_to_tensor(np.asarray(x)) if len(x.shape) == 9 else bool(x)

    def compute_output_shape(self, shape):
        return shape


class Scaled(layers.Layer):
    """Residual block with a weight of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.LayerNormalization()

    def build(self, shape):
        self.scale = self.add_weight(name="scale", shape=(shape[-1],))

    def call(self, x):
        return x + self.scale * self.norm(x)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: "resnet50", "built"),
        (
            lambda: of_layer(Scaled(name="block")),
            r"'block' \(Scaled\) contains layers to convert.* Received: scale",
        ),
        (lambda: keras.Sequential([layers.Dense(3)]), "built"),
        (lambda: of_layer(OddConv(8, 3, name="strange")), "'strange', a OddConv"),
        (
            lambda: of_layer(layers.Conv1DTranspose(8, 3, name="up"), (16, 4)),
            "'up', a Conv1DTranspose",
        ),
        (
            lambda: of_layer(
                layers.TimeDistributed(layers.BatchNormalization(), name="each"),
                (4, 8, 8, 3),
            ),
            "'each', a TimeDistributed",
        ),
        (lambda: of_layer(Hiding(name="hiding")), "'hiding'"),
    ],
)
def test_what_cannot_be_handled_is_an_error_that_names_the_layer(make, message):
    with pytest.raises(ValueError, match=message):
        normalizer_free(make())


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((4, SIZE, SIZE, 3)), "not finite at 'conv2d"),
        (np.full((4, SIZE, SIZE, 3), np.nan), "not finite at 'conv2d"),
        (np.zeros((4, SIZE, SIZE)), "Received: shape"),
        (np.zeros((0, SIZE, SIZE, 3)), "one or more images"),
        ([noise(2, SIZE, SIZE, 3)] * 2, "1 in all"),
    ],
)
def test_images_of_which_nothing_can_be_found_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        normalizer_free(preactivation(), images)


@pytest.mark.parametrize("std", [1.0, 3.0])
def test_a_mean_that_normalization_took_away_is_taken_away(std):
    """With any variance, also with one, where only the mean needs a constant."""
    images = std * (noise(64, 8, 8, 4) + [[[[2, -1, 0, 3]]]])
    model = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            layers.BatchNormalization(name="norm"),
            layers.Activation("relu", name="relu"),
            layers.Conv2D(8, 3, name="conv"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2, name="predictions"),
        ]
    )
    result = normalizer_free(model, images.astype("float32"))
    seen = keras.Model(result.input, result.get_layer("relu").input)
    seen = seen.predict(images, verbose=0)
    np.testing.assert_allclose(seen.mean(axis=(0, 1, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(seen.var(axis=(0, 1, 2)), 1, rtol=0.1)


@pytest.mark.parametrize("size", [1, 4])
def test_variance_of_few_images_is_that_of_all(size):
    """The variance about the mean of four images is too small by a quarter."""
    keras.utils.set_random_seed(0)
    # All positions of an image are equal.
    x, others = (noise(n, 1, 1, 1024, seed=n).repeat(size, axis=1) for n in (4, 200))
    model = keras.Sequential(
        [
            keras.Input((size, 1, 1024)),
            layers.Conv2D(1024, 1, name="conv"),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2, name="predictions"),
        ]
    )
    result = normalizer_free(model, x)
    seen = keras.Model(result.input, result.get_layer("conv").output)
    seen = seen.predict(others, verbose=0)
    assert seen.var(axis=(0, 1, 2)).mean() == pytest.approx(1, abs=0.12)
    assert result.conversion.variances["conv"].variance == pytest.approx(1, abs=1e-3)


def test_depthwise_filters_start_without_a_mean_and_can_have_one():
    """Depthwise by layer type, or by groups of one channel each."""
    inputs = keras.Input((12, 12, 8))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(inputs)
    x = layers.Conv2D(32, 3, groups=16, name="by_groups")(norm_act(x))
    x = layers.SeparableConv2D(16, 3, name="separable")(norm_act(x))
    x = layers.Conv2D(16, 3, groups=4, name="wider")(norm_act(x))
    model = keras.Model(inputs, norm_act(x))
    result = normalizer_free(model)
    for name in ("depthwise", "by_groups", "separable"):
        layer = result.get_layer(name)
        kernel = getattr(layer, layer.KERNELS[0].name)
        initial = ops.convert_to_numpy(kernel)
        axes = (0, 1, 2) if name == "by_groups" else (0, 1)
        np.testing.assert_allclose(initial.mean(axes), 0, atol=1e-7)
        assert initial.std() > 0.01
        kernel.assign(initial + 0.5)
        used = layer.standardized_kernel()
        assert np.all(ops.convert_to_numpy(used).mean(axes) > 0)
    wider = result.get_layer("wider")
    used = ops.convert_to_numpy(wider.standardized_kernel())
    np.testing.assert_allclose(used.mean((0, 1, 2)), 0, atol=1e-6)
    assert ops.convert_to_numpy(wider.kernel).mean((0, 1, 2)).std() > 0.001


def test_a_mean_that_depthwise_filters_learn_moves_no_output():
    """Layers know the mean of their input, for images like those of the conversion."""
    inputs = keras.Input((24, 24, 4))
    x = layers.DepthwiseConv2D(3, name="of_zero_mean")(norm_act(conv(inputs, 32), None))
    x = layers.DepthwiseConv2D(3, name="rectified")(norm_act(x))
    x = layers.Conv2D(32, 3, groups=32, name="by_groups")(norm_act(x))
    model = keras.Model(inputs, layers.BatchNormalization()(x))
    result = normalizer_free(model, noise(32, 24, 24, 4))
    assert abs(result.get_layer("of_zero_mean").input_mean) < 0.1
    actions = {step.layer: step.action for step in result.conversion.steps}
    for name in ("rectified", "by_groups"):
        layer = result.get_layer(name)
        assert layer.input_mean == pytest.approx(0.68, abs=0.07)
        assert actions[name].endswith(f", input mean {layer.input_mean:.3g}")
        seen = keras.Model(result.input, layer.input)(noise(32, 24, 24, 4, seed=2))
        kernel = getattr(layer, layer.KERNELS[0].name)
        initial = ops.convert_to_numpy(kernel)
        kernel.assign(initial + 0.3 * initial.std())
        assert abs(ops.convert_to_numpy(layer(seen)).mean()) < 0.05
        mean, layer.input_mean = layer.input_mean, 0.0
        assert ops.convert_to_numpy(layer(seen)).mean() > 0.15
        layer.input_mean = mean


@pytest.mark.slow
@pytest.mark.own_process
@pytest.mark.parametrize("kind", ["noise", "photos"])
@pytest.mark.parametrize(
    "name",
    [
        "ResNet50",
        "ResNet50V2",
        "VGG16",
        "MobileNetV2",
        "MobileNetV3Small",
        "DenseNet121",
        "InceptionV3",
        "Xception",
        "EfficientNetB0",
        "EfficientNetV2B0",
        "ConvNeXtTiny",
    ],
)
def test_variance_in_networks_of_keras_is_as_expected(name, kind):
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None)
    size = model.input_shape[1] or 224
    rescales = any(
        isinstance(layer, (layers.Rescaling, layers.Normalization))
        for layer in model.layers[:2]
    )

    def images(seed):
        if kind == "noise":
            x = noise(8, size, size, 3, seed=seed)
        else:
            # Samples of crops of two photographs differ more than samples of noise do,
            # and gates propagate that, so networks with gates get more crops.
            gated = name.startswith(("MobileNetV3", "EfficientNet"))
            x = photos(96 if gated else 32, size, seed)
        return 120 + 60 * x if rescales else x

    for start in ("zeros", "ones"):
        result = normalizer_free(model, images(1), skip_gain_initializer=start)
        ratios, signal = measured_over_expected(result, images(2))
        assert 0.75 < ratios.min() <= ratios.max() < 1.25
        assert np.all(signal["avg_sq_mean"] < 1.5 * signal["avg_var"])
