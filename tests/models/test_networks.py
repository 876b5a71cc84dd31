import functools
import importlib
import inspect
import pkgutil

import keras
import numpy as np
import pytest
from comparing import assert_close
from golden_case import GOLDEN
from keras import ops
from quick import quick

import keras_nfnets
from keras_nfnets import (
    AGCModel,
    NFBlock,
    NFNet,
    NFNetTiny,
    NFRegNet,
    NFResNet,
    models,
    pretrained,
)
from keras_nfnets.models.costs import variants
from keras_nfnets.models.nf_regnet import VARIANTS
from keras_nfnets.models.registered import FAMILIES

SLOW = pytest.mark.slow

GOLDEN_NETWORKS = {
    "haiku_nfnet_tiny": {},
    "haiku_nfnet_tiny_odd": {},
    "haiku_nfnet_tiny_silu": {"activation": "silu", "alpha": 0.25, "se_ratio": 0.25},
    "haiku_nfnet_f0": keras_nfnets.NFNetF0,
    "haiku_nf_resnet26_se": lambda **kw: NFResNet(
        (2, 2, 2, 2), width=1, attention="se", classes=10, **kw
    ),
    "haiku_nf_resnet50": keras_nfnets.NFResNet50,
    "haiku_nf_regnet_b0": keras_nfnets.NFRegNetB0,
}
# Largest difference relative to the largest value. dm_nfnet_f0 is the authors' network,
# with the tanh form of GELU where timm has the exact one.
TIMM_NETWORKS = {
    "test_nfnet": 1e-4,
    "nfnet_l0": 1e-4,
    "eca_nfnet_l0": 1e-4,
    "nf_regnet_b1": 1e-4,
    "nf_resnet50": 1e-4,
    "dm_nfnet_f0": 1e-3,
}


# Large networks of which there are small ones of the same kind, and F0 by timm. (ECA-NFNet-L0
# differs from NFNet-L0 in its attention, and the test network has that of NFNet-L0.)
LARGE = {"haiku_nfnet_f0", "haiku_nf_resnet50", "dm_nfnet_f0", "nfnet_l0"}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=SLOW if case in LARGE else ())
        for case in GOLDEN_NETWORKS
    ],
)
def test_network_computes_what_the_authors_code_does(
    case, golden, nfnet_tiny, relative_error
):
    expected = golden(case)
    make = GOLDEN_NETWORKS[case]
    if isinstance(make, dict):
        model = nfnet_tiny(**make)
    else:
        model = make(classifier_activation=None)
    parameters = expected.parameters
    assert model.count_params() == sum(
        np.size(array) for module in parameters.values() for array in module.values()
    )
    keras_nfnets.pretrained.load_deepmind(model, parameters)
    pool = model.get_layer("avg_pool").output
    pool, logits = keras.Model(model.input, [pool, model.output])(expected.images)
    pool, logits = map(ops.convert_to_numpy, (pool, logits))
    assert relative_error(logits, expected.outputs["out/logits"]) < 2e-5
    assert relative_error(pool, expected.outputs["out/pool"]) < 2e-5
    signal = keras_nfnets.signal_propagation(model, expected.images)
    assert set(signal) == {"avg_sq_mean", "avg_var", "res_avg_var"}
    for name, values in signal.items():
        assert relative_error(values, expected.series(name)) < 2e-5, name


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=SLOW if name in LARGE else ()) for name in TIMM_NETWORKS],
)
def test_network_computes_what_timm_does(name, golden, relative_error):
    expected = golden(f"timm_{name}")
    model = pretrained.create(name, classifier_activation=None)
    pretrained.load_timm(model, expected.parameters)
    pool = model.get_layer("avg_pool").output
    pool, logits = keras.Model(model.input, [pool, model.output])(expected.images)
    pool, logits = map(ops.convert_to_numpy, (pool, logits))
    assert relative_error(logits, expected.outputs["logits"]) < TIMM_NETWORKS[name]
    assert relative_error(pool, expected.outputs["pool"]) < TIMM_NETWORKS[name]


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_network_computes_what_timm_does(output_stride, golden, relative_error):
    given = golden("timm_test_nfnet")
    model = pretrained.create(
        "test_nfnet", include_top=False, output_stride=output_stride
    )
    pretrained.load_timm(model, given.parameters)
    features = ops.convert_to_numpy(model(given.images[:1]))
    # One channel of four is stored.
    with np.load(GOLDEN / "timm_output_stride.npz") as outputs:
        expected = outputs[f"features_{output_stride}"]
    assert relative_error(features[..., ::4], expected) < TIMM_NETWORKS["test_nfnet"]


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("NFNetF0", 71.489284),  # exactly
        # arXiv 2102.06171, table 3
        pytest.param("NFNetF1", 132.6, marks=SLOW),
        pytest.param("NFNetF2", 193.8, marks=SLOW),
        pytest.param("NFNetF3", 254.9, marks=SLOW),
    ],
)
def test_parameter_counts_are_the_published_ones(name, millions):
    tolerance = 0 if name == "NFNetF0" else 0.06
    assert count(name) / 1e6 == pytest.approx(millions, abs=tolerance, rel=0)


# Counted in timm 1.0.31.
TIMM_PARAMETERS = {
    "nf_regnet_b0": 8_764_288,
    "nf_regnet_b2": 14_314_608,
    "nf_regnet_b5": 49_741_728,
    "nf_seresnet26": 17_395_976,
    "nf_seresnet50": 28_088_024,
    "nf_ecaresnet26": 15_995_220,
    "nf_ecaresnet101": 44_549_331,
    "nf_resnet26": 15_995_176,
    "nfnet_f0": 71_489_272,
    "eca_nfnet_l1": 41_407_728,
    "eca_nfnet_l3": 72_036_968,
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "NFRegNetB0" else SLOW)
        for name in VARIANTS
    ],
)
def test_parameter_counts_of_nf_regnets_follow_from_their_table(name):
    # Block by block as in the authors' nf_regnet.py: three convolutions with gain and
    # bias, squeeze-and-excitation of half the width, a gain, and a shortcut if needed.
    def convolution(size, inputs, outputs):
        return size * size * inputs * outputs + 2 * outputs

    variant = VARIANTS[name]
    channels = int(variant.widths[0] * 0.75)
    expected = convolution(3, 3, channels)
    first = True
    for nominal, depth in zip(variant.widths, variant.depths):
        for block in range(depth):
            outputs = int(nominal * 0.75)
            inner = int(channels * (1 if first else 2.25)) // 8 * 8
            expected += convolution(1, channels, inner) + 1
            expected += convolution(3, 8, inner) + convolution(1, inner, outputs)
            expected += inner // 2 * (2 * inner + 1) + inner
            if block == 0 or channels != outputs:
                expected += convolution(1, channels, outputs)
            channels, first = outputs, False
    features = 1280 * channels // 440
    expected += convolution(1, channels, features) + 1000 * (features + 1)
    assert count(name) == expected


@pytest.mark.parametrize(
    "name",
    quick(
        TIMM_PARAMETERS,
        *("nf_regnet_b0", "nf_seresnet26", "nf_ecaresnet26", "nf_resnet26", "nfnet_f0"),
    ),
)
def test_parameter_counts_are_those_of_timm(name):
    assert count(name) == TIMM_PARAMETERS[name]


def count(name):
    with pretrained.without_memory():
        return pretrained.create(name).count_params()


def test_every_name_of_timm_creates_a_network():
    names = [
        *(f"nfnet_f{n}" for n in range(8)),
        *(f"dm_nfnet_f{n}" for n in range(7)),
        *("nfnet_l0", "eca_nfnet_l0", "eca_nfnet_l1", "eca_nfnet_l2", "eca_nfnet_l3"),
        *(f"nf_regnet_b{n}" for n in range(6)),
        *(f"nf_{k}resnet{n}" for k in ("", "se", "eca") for n in (26, 50, 101)),
        "test_nfnet",
    ]
    for name in names:
        assert pretrained.find_network(name).architecture
    with pytest.raises(ValueError, match="'eca_nfnet_l9'; perhaps eca_nfnet_l"):
        pretrained.create("eca_nfnet_l9")
    with pytest.raises(ValueError, match="no network None"):
        pretrained.create(None)
    with pytest.raises(TypeError, match="NFNetTest: .*'clases'"):
        pretrained.create("test_nfnet", clases=10)


def test_constructors_have_the_manners_of_keras_applications():
    theirs = list(inspect.signature(keras.applications.ResNet50).parameters)
    for name in variants():
        constructor = getattr(keras_nfnets, name)
        parameters = inspect.signature(constructor).parameters
        assert list(parameters)[: len(theirs)] == theirs
        assert parameters["name"].default == name.lower()
        for extra in ("drop_rate", "stochastic_depth_rate", "activation", "alpha"):
            assert extra in parameters
        assert constructor.__name__ == name
        assert name in constructor.__doc__


def test_every_family_is_registered():
    modules = pkgutil.iter_modules(models.__path__, "keras_nfnets.models.")
    for module in [importlib.import_module(found.name) for found in modules]:
        assert module in FAMILIES or not hasattr(module, "VARIANTS")


def test_every_network_is_exported():
    for name in variants():
        for exported in (name, pretrained.find_network(name).architecture.builder):
            assert exported in models.__all__
            assert exported in keras_nfnets.__all__
        assert getattr(keras_nfnets, name).__name__ == name
    for name in keras_nfnets.__all__:
        assert hasattr(keras_nfnets, name)


@pytest.mark.parametrize(
    "make",
    [
        lambda **kw: NFNet((1, 1), (16, 32), group_size=8, **kw),
        pytest.param(lambda **kw: NFResNet((1, 1), 1, **kw), marks=SLOW),
        lambda **kw: NFRegNet((1, 1), (16, 24), convention="timm", **kw),
    ],
)
def test_top_and_pooling(make):
    x = np.random.default_rng(0).normal(size=(2, 40, 33, 3)).astype("float32")
    top = make(classes=7)
    assert top.output_shape == (None, 7)
    assert_close(ops.sum(top(x), axis=1), 1, rtol=1e-5)
    maps = make(include_top=False)
    channels = maps.output_shape[-1]
    assert maps.output_shape == (None, None, None, channels)
    features = ops.convert_to_numpy(maps(x))
    for pooling, reduce in (("avg", np.mean), ("max", np.max)):
        pooled = make(include_top=False, pooling=pooling)
        pooled.set_weights(maps.get_weights())
        assert_close(pooled(x), reduce(features, axis=(1, 2)), rtol=1e-4)


def test_endpoints_halve_the_resolution_stage_by_stage():
    model = NFNetTiny(input_shape=(64, 96, 3), include_top=False)
    shapes = {
        name: model.get_layer(name).output.shape[1:3]
        for name in ("stem", "stage1", "stage2", "stage3", "stage4", "features")
    }
    assert shapes == {
        "stem": (16, 24),
        "stage1": (16, 24),
        "stage2": (8, 12),
        "stage3": (4, 6),
        "stage4": (2, 3),
        "features": (2, 3),
    }


def test_input_tensor_and_input_shape():
    image = keras.Input((48, 48, 1))
    rgb = keras.layers.Concatenate()([image, image, image])
    make = functools.partial(NFNet, (1,), (16,), group_size=8)
    model = make(input_tensor=rgb, classes=3)
    assert isinstance(model, AGCModel)
    assert model.input_shape == (None, 48, 48, 1)
    assert make(input_shape=(20, None, 5)).input_shape == (None, 20, None, 5)
    assert make().input_shape == (None, None, None, 3)


def test_beta_is_one_over_the_expected_std():
    model = NFNet((2, 3), (16, 32), group_size=8, alpha=0.5)
    betas = [layer.beta for layer in model.layers if isinstance(layer, NFBlock)]
    # Variance grows by alpha^2 per block and restarts after each transition block.
    assert_close(betas, 1 / np.sqrt([1, 1.25, 1.5, 1.25, 1.5]), rtol=1e-12)


def test_stochastic_depth_grows_with_depth():
    model = NFNet((2, 2), (16, 32), group_size=8, stochastic_depth_rate=0.4)
    blocks = [layer for layer in model.layers if isinstance(layer, NFBlock)]
    rates = [block.stochastic_depth.rate for block in blocks]
    assert_close(rates, [0, 0.1, 0.2, 0.3])


def test_signal_keeps_its_variance_at_initialization():
    model = NFResNet((2, 2, 2), 1, activation="relu", include_top=False)
    for variable in model.weights:
        if variable.name == "skip_gain":
            variable.assign(1.0)
    x = np.random.default_rng(0).normal(size=(8, 64, 64, 3)).astype("float32")
    signal = keras_nfnets.signal_propagation(model, x)
    assert_close(signal["res_avg_var"], 1, atol=0.35)


@pytest.mark.parametrize(
    ("options", "policies"),
    [
        ({"depths": (1,), "widths": (16,)}, ("float32", "mixed_float16")),
        (
            {
                "depths": (1,),
                "widths": (16,),
                "convention": "timm",
                "attention": "eca",
            },
            ("mixed_bfloat16",),
        ),
    ],
)
def test_networks_save_clone_and_train_in_every_policy(options, policies, tmp_path):
    x = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype("float32")
    y = np.array([0, 1, 2, 0])
    for policy in policies:
        keras.config.set_dtype_policy(policy)
        model = NFNet(group_size=8, classes=3, drop_rate=0.2, **options)
        model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
        history = model.fit(x, y, verbose=0).history
        assert np.isfinite(history["loss"][0])
        expected = model(x)
        if policy == "float32":
            assert_close(model.predict(x, verbose=0), expected, atol=1e-5)
        model.save(tmp_path / "network.keras")
        loaded = keras.saving.load_model(tmp_path / "network.keras")
        assert isinstance(loaded, AGCModel)
        assert_close(loaded(x), expected, atol=1e-3)
        clone = keras.models.clone_model(model)
        clone.set_weights(model.get_weights())
        assert_close(clone(x), expected, atol=1e-3)


def test_networks_that_were_never_compiled_are_saved(tmp_path):
    model = NFNet((1,), (16,), group_size=8, classes=3)
    assert "NFBlock" in model.to_json()
    model.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    assert not loaded.compiled
    for a, b in zip(loaded.get_weights(), model.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_numpy_integers_are_integers():
    model = NFNet(
        np.array([1, 1]),
        np.array([16, 32]),
        group_size=np.int32(8),
        classes=np.int64(3),
        input_shape=tuple(np.array([16, 16, 3])),
    )
    assert model.output_shape == (None, 3)
    assert isinstance(model.to_json(), str)


def test_preprocess_input_is_the_authors():
    images = (
        np.random.default_rng(0).integers(0, 256, size=(2, 3, 3, 3)).astype("uint8")
    )
    expected = (images - np.array([0.485, 0.456, 0.406]) * 255) / (
        np.array([0.229, 0.224, 0.225]) * 255
    )
    assert_close(keras_nfnets.preprocess_input(images), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError):
        keras_nfnets.decode_predictions(np.zeros((1, 10)))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"input_shape": (32, 32)}, r"input_shape=\(32, 32\)"),
        ({"input_shape": (32, -1, 3)}, r"input_shape=\(32, -1, 3\)"),
        ({"input_shape": (32, 32, None)}, r"input_shape=\(32, 32, None\)"),
        ({"input_shape": 32}, "input_shape=32"),
        ({"input_tensor": np.ones((1, 8, 8, 3))}, "symbolic"),
        ({"pooling": "mean"}, "pooling='mean'"),
        ({"classes": 0}, "classes=0"),
        ({"classes": 2.5}, "classes=2.5"),
        ({"drop_rate": 1.0}, "drop_rate=1"),
        ({"stochastic_depth_rate": -0.1}, "stochastic_depth_rate=-0.1"),
        ({"alpha": -0.2}, "alpha=-0.2"),
        ({"attention": "eca2"}, "attention='eca2'"),
        ({"convention": "torch"}, "convention='torch'"),
        ({"activation": "geluu"}, "activation='geluu'"),
        ({"weights": "imagenet"}, "dm_nfnet_f6(.|\n)*weights='imagenet' for NFNet"),
        ({"weights": 3}, "weights='3'"),
        ({"classes": True}, "classes=True"),
        ({"drop_rate": None}, "drop_rate=None"),
        ({"stochastic_depth_rate": "0.1"}, "stochastic_depth_rate='0.1'"),
        ({"se_ratio": None}, "se_ratio=None"),
        ({"alpha": None}, "alpha=None"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        NFNetTiny(**arguments)


def test_bad_shapes_of_a_network_are_refused():
    with pytest.raises(ValueError, match="`depths` and `widths`"):
        NFNet((1, 2), (16, 32, 64), group_size=8)
    with pytest.raises(ValueError, match=r"depths=\(0,\)"):
        NFNet((0,), (16,), group_size=8)
    with pytest.raises(ValueError, match=r"widths=\(\)"):
        NFNet((1,), (), group_size=8)
    with pytest.raises(ValueError, match="group_size=7"):
        NFNet((1,), (16,), group_size=7)
    for wrong in ({"width_multiplier": 1e308}, {"expansion": 1e308}, {"expansion": 0}):
        with pytest.raises(ValueError, match="Received: "):
            NFRegNet((1,), (16,), **wrong)
    with pytest.raises(ValueError, match="convention=array"):
        NFRegNet((1,), (16,), convention=np.array(["timm", "authors"]))
    assert pretrained.create("test_nfnet", name="mine").name == "mine"
    with pytest.raises(ValueError, match="width=0"):
        NFResNet((1,), width=0)
    with pytest.raises(ValueError, match=r"depths=\(1.5,\)"):
        NFResNet((1.5,))
    with pytest.raises(ValueError, match="depths=3"):
        NFNet(3, (16,))
    with pytest.raises(TypeError, match="NFNetF0: .*'clases'"):
        keras_nfnets.NFNetF0(clases=10)
    with pytest.raises(ValueError, match="expected shape"):
        NFNetTiny(input_shape=(32, 32, 3))(np.ones((1, 16, 16, 1)))
