"""`fold`: equal outputs from Keras layers only."""

import keras
import numpy as np
import pytest
from keras import ops
from quick import quick
from versions import not_on_torch, since_keras

import keras_nfnets
from keras_nfnets import fold
from keras_nfnets.backend import convolution, device
from keras_nfnets.layers import Dropout, SymmetricMaxPooling2D

TIMM = {"convention": "timm"}
# One network of each family, with all kinds of its blocks.
FAMILIES = {
    "NFNetTiny": keras_nfnets.NFNetTiny,
    "NFNetTest": keras_nfnets.NFNetTest,
    "ECA-NFNet": lambda **kw: keras_nfnets.NFNet(
        (1, 2),
        (32, 48),
        bottleneck_widths=(8, 16),
        group_size=8,
        attention="eca",
        activation="silu",
        final_width=72,
        stochastic_depth_rate=0.25,
        drop_rate=0.2,
        **TIMM,
        **kw,
    ),
    "NF-RegNet": lambda **kw: keras_nfnets.NFRegNet(
        (1, 2), (24, 40), stochastic_depth_rate=0.1, drop_rate=0.2, **kw
    ),
    "NF-ResNet": lambda **kw: keras_nfnets.NFResNet(
        (1, 2), 1, stochastic_depth_rate=0.1, **kw
    ),
    "NF-SE-ResNet": lambda **kw: keras_nfnets.NFResNet(
        (1, 2), 1, attention="se", se_ratio=1 / 16, **TIMM, **kw
    ),
    "NF-ECA-ResNet": lambda **kw: keras_nfnets.NFResNet(
        (1, 2), 1, attention="eca", **TIMM, **kw
    ),
}
OTHERS = sorted(
    name
    for name in keras_nfnets.__all__
    if hasattr(getattr(keras_nfnets, name), "architecture") and name not in FAMILIES
)


def with_random_weights(model, seed=0):
    """Set random weights, as gains and classifiers of zero would hide other errors."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if str(variable.dtype).startswith(("float", "bfloat")):
            value = ops.convert_to_numpy(variable.value).astype("float32")
            noise = rng.normal(size=value.shape) * (0.3 if value.ndim < 2 else 0.02)
            variable.assign(value + noise)
    return model


def images(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def difference(model, folded, x):
    """Return the largest difference relative to the largest original output."""
    expected, actual = (
        ops.convert_to_numpy(ops.cast(f(x, training=False), "float32"))
        for f in (model, folded)
    )
    assert np.abs(expected).max() > 0
    return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.fixture
def _no_products(monkeypatch):
    """Let 1 x 1 convolutions run as convolutions, not as matrix products.

    Folded layers are convolutions. A matrix product may sum half-precision values in
    another order, which some CPUs round differently.
    """
    monkeypatch.setattr(convolution, "_is_product", lambda *_: False)


def assert_plain(model):
    """Assert that a model has only Keras layers, and no dropout."""
    for layer in model._flatten_layers():
        assert type(layer).__module__.partition(".")[0] == "keras", layer
        assert not isinstance(layer, keras.layers.Dropout)


def assert_folds(model, *sizes):
    before = [np.array(weight) for weight in model.get_weights()]
    folded = fold(model)
    assert_plain(folded)
    for size in sizes:
        assert difference(model, folded, images(2, *size, 3)) < 1e-5
    for a, b in zip(before, model.get_weights()):
        np.testing.assert_array_equal(a, b)
    return folded


@pytest.mark.parametrize(
    "name", quick(FAMILIES, "ECA-NFNet", "NF-RegNet", "NF-SE-ResNet")
)
def test_networks_of_the_zoo(name):
    model = FAMILIES[name](classifier_activation=None)
    assert_folds(with_random_weights(model), (33, 47), (64, 32))


@pytest.mark.slow
@pytest.mark.own_process
@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_of_the_zoo(name):
    model = getattr(keras_nfnets, name)(classifier_activation=None)
    assert_folds(with_random_weights(model), (33, 47))


# Blocks that change the resolution, the channels, or neither.
SMALL = {"depths": (1, 2), "widths": (16, 32)}


# JAX has no float64 by default.
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64")
@pytest.mark.parametrize(
    "policy",
    quick(
        ["mixed_bfloat16", "mixed_float16", "bfloat16", "float64"],
        *("mixed_bfloat16", "float64"),
    ),
)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"attention": "eca", "convention": "timm", "activation": "silu"},
        {"attention": None, "activation": "leaky_relu"},
    ],
)
@pytest.mark.usefixtures("_no_products")
def test_dtype_policies(policy, options, nfnet_tiny):
    keras.config.set_dtype_policy(policy)
    model = with_random_weights(nfnet_tiny(**SMALL, **options))
    folded = fold(model)
    assert folded.compute_dtype == model.compute_dtype
    assert difference(model, folded, images(2, 17, 16, 3)) < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"include_top": False}, marks=pytest.mark.slow),
        {"include_top": False, "pooling": "max"},
        pytest.param(
            {"include_top": False, "pooling": "avg", "activation": "tanh"},
            marks=pytest.mark.slow,
        ),
        {"activation": keras.activations.elu, "drop_rate": 0.5},
        {"input_shape": (32, 24, 3), "stochastic_depth_rate": 0.5},
    ],
)
def test_heads_and_activations(options, nfnet_tiny):
    model = with_random_weights(nfnet_tiny(**SMALL, **options))
    folded = assert_folds(model, (32, 24))
    if "input_shape" in options:
        assert folded.input_shape == (None, 32, 24, 3)


@pytest.mark.slow
@pytest.mark.own_process
def test_graphs_of_the_deepest_networks_can_be_built_and_loaded():
    """Keras traverses graphs by recursion; NFNet-F7 has 96 blocks."""
    # (Without attention, the graph would not be deep enough to fail.)
    model = keras_nfnets.NFNet((100,), (8,), group_size=4, classes=10)
    folded = fold(model)
    loaded = keras.models.model_from_json(folded.to_json())
    assert loaded.count_params() == folded.count_params()


def test_blocks_with_attention_in_the_bottleneck(nfnet_tiny):
    inputs = keras.Input((None, None, 3))
    x = keras_nfnets.WSConv2D(16, 3)(inputs)
    for attention in ("se", "eca"):
        x = keras_nfnets.NFBlock(
            32,
            strides=2,
            group_size=8,
            attention=attention,
            attention_on="bottleneck",
            avg_pool_shortcut=False,
        )(x)
    assert_folds(with_random_weights(keras.Model(inputs, x)), (31, 20))


def test_custom_models():
    """Models may be nested, with several inputs and outputs and shared layers."""
    inner = keras.Sequential(
        [
            keras.Input((None, None, 8)),
            keras_nfnets.ScaledActivation("relu"),
            keras_nfnets.WSConv2D(
                8, 3, padding="symmetric", strides=2, dilation_rate=1
            ),
            SymmetricMaxPooling2D(3, strides=2),
            Dropout(0.5),
        ]
    )
    a, b = keras.Input((None, None, 3), name="a"), keras.Input((None, None, 3))
    shared = keras_nfnets.WSConv2D(8, 1, activation="relu")
    scaled = keras_nfnets.ScaledActivation("gelu")
    x, y = shared(a), shared(scaled(b))
    z = inner(x + scaled(y)) * 2
    z = keras_nfnets.SqueezeExcite()(keras.layers.BatchNormalization()(z))
    z = keras_nfnets.StochasticDepth(0.5)(scaled(z))
    outputs = {"z": z, "mean": keras.layers.GlobalAveragePooling2D()(scaled(x))}
    model = with_random_weights(keras.Model([a, b], outputs))
    folded = fold(model)
    assert_plain(folded)
    x = [images(2, 21, 18, 3), images(2, 21, 18, 3, seed=2)]
    expected, actual = model(x), folded(x)
    assert set(actual) == set(expected)
    for name in expected:
        a, b = map(ops.convert_to_numpy, (actual[name], expected[name]))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_sequential_models():
    model = keras.Sequential(
        [keras.Input((None, None, 3)), keras_nfnets.WSConv2D(4, 3, activation="relu")]
    )
    assert_folds(with_random_weights(model), (12, 9))


HALF = ["mixed_bfloat16", "mixed_float16", "bfloat16"]
FIRST = {
    "block": lambda: keras_nfnets.NFBlock(8, group_size=2),
    "gelu": lambda: keras_nfnets.ScaledActivation("gelu"),
    "dropout": lambda: Dropout(0.5),
    "Keras's dropout": lambda: keras.layers.Dropout(0.5),
}


@pytest.mark.parametrize("policy", quick(HALF, "mixed_float16"))
@pytest.mark.parametrize("name", FIRST)
@pytest.mark.usefixtures("_no_products")
def test_inputs_are_cast_as_by_the_layer(name, policy):
    keras.config.set_dtype_policy(policy)
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, FIRST[name]()(inputs))
    folded = fold(model)
    assert folded.output.dtype == model.output.dtype
    assert difference(model, folded, images(2, 8, 8, 3)) == 0


@pytest.mark.parametrize(
    "layer",
    [
        lambda: keras_nfnets.WSConv2D(4, 3),
        lambda: keras.layers.AveragePooling2D(2),
        lambda: keras_nfnets.NFBlock(8, group_size=2),
    ],
)
@pytest.mark.usefixtures("_no_products")
def test_constants_are_not_merged_into_another_precision(layer):
    inputs = x = keras.Input((8, 8, 3))
    keras.config.set_dtype_policy("mixed_bfloat16")
    x = keras_nfnets.WSConv2D(4, 3)(x)
    x = keras_nfnets.ScaledActivation("gelu", dtype="float32")(x)
    model = keras.Model(inputs, layer()(x))
    assert difference(model, fold(model), images(2, 8, 8, 3)) == 0


def test_what_layers_have_adapted_comes_along():
    normalization = keras.layers.Normalization()
    normalization.adapt(5 + 7 * images(4, 8, 8, 3))
    inputs = keras.Input((8, 8, 3))
    x = keras_nfnets.WSConv2D(4, 3)(normalization(inputs))
    assert_folds(keras.Model(inputs, x), (8, 8))


def test_nothing_is_random():
    inputs = keras.Input((8, 8, 3))
    x = keras_nfnets.WSConv2D(4, 3)(keras.layers.RandomFlip()(inputs))
    model = keras.Model(inputs, x)
    folded, x = fold(model), images(4, 8, 8, 3)
    for _ in range(5):
        assert difference(model, folded, x) < 1e-5


def test_layers_may_be_called_by_keyword():
    inputs = keras.Input((8, 8, 3))
    x = Dropout(0.5)(inputs=keras_nfnets.WSConv2D(4, 3)(inputs=inputs))
    assert_folds(keras.Model(inputs, x), (8, 8))


@since_keras("3.15")
def test_activations_that_are_layers_or_change_shapes():
    inputs = keras.Input((None, None, 3))
    x = keras_nfnets.ScaledActivation("glu")(keras_nfnets.WSConv2D(8, 3)(inputs))
    activation = keras_nfnets.ScaledActivation("gelu")
    x = keras_nfnets.WSConv2D(4, 3, activation=activation)(x)
    model = keras.Model(inputs, x)
    assert_folds(with_random_weights(model), (12, 9))


def test_names_are_kept_apart():
    inputs = keras.Input((8, 8, 4))
    x = keras.layers.ZeroPadding2D(name="conv_pad")(inputs)
    x = keras.layers.Conv2D(4, 1, name="conv_pad_1")(x)
    x = keras_nfnets.WSConv2D(
        4, 3, strides=2, padding="symmetric", groups=2, name="conv"
    )(x)
    model = keras.Model(inputs, x)
    assert difference(model, fold(model), images(2, 8, 8, 4)) < 1e-5


@not_on_torch("Keras cannot list its devices")
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_folded_models_do_not_depend_on_the_device(data_format, monkeypatch):
    shape = (8, 8, 4) if data_format == "channels_last" else (4, 8, 8)
    inputs = keras.Input(shape)
    x = keras_nfnets.WSConv2D(6, 3, groups=2, data_format=data_format)(inputs)
    model, configs = keras.Model(inputs, x), []
    for name in ("cpu:0", "gpu:0"):
        device.has_only_cpus.cache_clear()
        monkeypatch.setattr(keras.distribution, "list_devices", lambda n=name: [n])
        assert device.has_only_cpus() == (name == "cpu:0")
        configs.append(fold(model).to_json())
    device.has_only_cpus.cache_clear()
    assert configs[0] == configs[1]
    assert '"groups": 2' in configs[0]


def test_a_model_loaded_anew_folds(tmp_path):
    """Keras restarts its automatic names after loading, so names may collide."""
    inputs = x = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(x)
    x = keras_nfnets.NFNet(
        (1,), (16,), group_size=8, include_top=False, input_tensor=x
    ).output
    x = keras.layers.GlobalAveragePooling2D()(x + x)
    keras.Model(inputs, x).save(tmp_path / "m.keras")
    keras.backend.clear_session()
    assert_folds(keras.models.load_model(tmp_path / "m.keras"), (32, 32))


@pytest.mark.parametrize("base", [keras.Model, keras.Sequential])
def test_a_custom_call_is_refused(base):
    class Doubled(base):
        def call(self, x, training=False):
            return 2 * super().call(x, training=training)

    inputs = keras.Input((8, 8, 3))
    conv = keras_nfnets.WSConv2D(4, 3)
    if base is keras.Sequential:
        model = Doubled([inputs, conv])
    else:
        model = Doubled(inputs, conv(inputs))
    with pytest.raises(ValueError, match="functional or sequential"):
        fold(model)


def test_loads_without_this_package(tmp_path, nfnet_tiny):
    model = with_random_weights(nfnet_tiny(**SMALL))
    fold(model).save(tmp_path / "plain.keras")
    with open(tmp_path / "plain.keras", "rb") as file:
        assert b"keras_nfnets" not in file.read()
    loaded = keras.saving.load_model(tmp_path / "plain.keras")
    assert difference(model, loaded, images(2, 32, 32, 3)) < 1e-5


def test_trained_skip_gain_of_zero():
    """In a block at initialization, the branch adds nothing."""
    model = keras_nfnets.NFNet((1, 1), (16, 32), group_size=8, classes=3)
    assert_folds(model, (32, 32))


def test_refuses_what_has_no_graph():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.convolution = keras_nfnets.WSConv2D(4, 3)

        def call(self, inputs):
            return self.convolution(inputs)

    with pytest.raises(
        ValueError, match="Fold the functional parts of other models.*Subclassed"
    ):
        fold(Subclassed())
    with pytest.raises(ValueError, match="functional or sequential"):
        fold("model.keras")


def test_refuses_layers_hidden_in_others():
    inputs = keras.Input((4, 16, 16, 3))
    hidden = keras.layers.TimeDistributed(keras_nfnets.WSConv2D(4, 3))
    with pytest.raises(ValueError, match="WSConv2D.*cannot be folded.*TimeDistributed"):
        fold(keras.Model(inputs, hidden(inputs)))


def test_a_configuration_that_cannot_be_read_is_refused():
    layer = keras.layers.Conv2D(2, 3, activation=lambda x: 2 * x, name="doubling")
    with pytest.raises(ValueError, match="name=doubling.* must have a name and be reg"):
        fold(keras.Sequential([keras.Input((8, 8, 3)), layer]))
