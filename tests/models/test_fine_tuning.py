import keras
import numpy as np
import pytest
from comparing import assert_close
from keras import ops
from optimizer_maps import multi_optimizer

from keras_nfnets import (
    NFBlock,
    NFNet,
    NFNetTiny,
    NFRegNet,
    NFResNet,
    feature_pyramid,
    fold,
    freeze,
    intermediate_features,
    layerwise_optimizer,
    reset_classifier,
)


def small_network(**options):
    return NFNet((1, 1), (16, 32), group_size=8, **options)


def numpy_of(tensors):
    return [ops.convert_to_numpy(tensor) for tensor in tensors]


ONE = keras.optimizers.SGD()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype("float32")


@pytest.mark.parametrize("include_top", [True, False])
def test_a_new_classifier_classifies_the_features_of_the_network(include_top, images):
    model = small_network(include_top=include_top, drop_rate=0.3)
    new = reset_classifier(model, 3, activation=None)
    assert type(new) is type(model)
    assert all(new.get_layer(layer.name) is layer for layer in model.layers[:-3])
    [features] = intermediate_features(model, ["features"])(images).values()
    kernel, bias = numpy_of(new.get_layer("predictions").weights)
    pooled = ops.convert_to_numpy(features).mean(axis=(1, 2))
    assert_close(new(images), pooled @ kernel + bias, atol=1e-5)
    assert 0.005 < kernel.std() < 0.02
    assert new.get_layer("top_dropout").rate == (0.3 if include_top else 0)


def test_the_classifier_can_be_exchanged_more_than_once():
    model = reset_classifier(reset_classifier(small_network(), 5), 7, drop_rate=0.5)
    assert model.output.shape == (None, 7)
    assert model.get_layer("top_dropout").rate == 0.5
    assert {"pyramid_outputs"} <= set(dir(model))


@pytest.mark.parametrize(
    ("until", "frozen"),
    [
        (None, set()),
        ("stem", {"stem"}),
        ("stage1", {"stem", "stage1"}),
        ("features", {"stem", "stage1", "stage2", "final"}),
    ],
)
def test_the_first_layers_are_frozen_and_only_they(until, frozen):
    model = small_network()
    freeze(model, until="predictions")
    assert not model.trainable_variables
    freeze(model, until)
    started = {v.path.split("_")[0].split("/")[0] for v in model.variables}
    trained = {v.path.split("_")[0].split("/")[0] for v in model.trainable_variables}
    assert started - trained == frozen


def test_a_frozen_model_trains_the_layers_that_are_not_to_be_frozen():
    model = small_network()
    model.trainable = False
    freeze(model, "features")
    assert [v.name for v in model.trainable_variables] == ["kernel", "bias"]


@pytest.mark.parametrize("scheduled", [False, True])
def test_layers_learn_at_rates_that_decay_with_depth(scheduled, images):
    multi_optimizer(keras.optimizers.SGD())  # skips the test where Keras has none

    def changes(optimizer_of):
        keras.utils.set_random_seed(0)
        model = small_network(classes=4)
        for layer in model.layers:
            if hasattr(layer, "skip_gain"):
                layer.skip_gain.assign(0.7)
        before = numpy_of(model.weights)
        optimizer = optimizer_of(model)
        loss = "sparse_categorical_crossentropy"
        model.compile(optimizer, loss, clip_factor=None)
        model.train_on_batch(images, np.arange(8) % 4)
        paths = [variable.path for variable in model.weights]
        after = numpy_of(model.weights)
        return {p: b - a for p, a, b in zip(paths, before, after, strict=True)}

    rate = keras.optimizers.schedules.PiecewiseConstantDecay([9], [0.8, 0.0])
    rate = rate if scheduled else 0.8
    plain = changes(lambda _: keras.optimizers.SGD(0.8))
    decayed = changes(
        lambda model: layerwise_optimizer(model, keras.optimizers.SGD, rate, decay=0.25)
    )
    for path, change in plain.items():
        first = path.split("/")[0].split("_")[0]
        factor = {"stem": 1 / 64, "stage1": 1 / 16, "stage2": 1 / 4}.get(first, 1)
        np.testing.assert_allclose(decayed[path], factor * change, rtol=1e-3, atol=1e-7)
        assert np.any(change), path


def test_a_network_in_a_name_scope_learns_at_rates_that_decay_with_depth():
    multi_optimizer(keras.optimizers.SGD())
    with keras.name_scope("outer"):
        model = small_network()

    def create(learning_rate):
        return keras.optimizers.SGD(learning_rate, momentum=0.9)

    optimizer = layerwise_optimizer(model, create, 0.8, decay=0.5)
    optimizer.build(model.trainable_variables)
    blocks = [model.get_layer(f"stage{stage}_block1").weights for stage in (2, 1)]
    # Besides one momentum per weight, each has two variables.
    for inner, block in zip(optimizer.optimizers[1:3], blocks, strict=True):
        assert len(inner.variables) == len(block) + 2


def test_a_network_with_rates_by_depth_is_saved_and_goes_on(images, tmp_path):
    multi_optimizer(keras.optimizers.SGD())
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    model = small_network(classes=4)
    optimizer = layerwise_optimizer(model, keras.optimizers.Adam, schedule, decay=0.5)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    model.train_on_batch(images, np.arange(8) % 4)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for either in (model, loaded):
        either.train_on_batch(images, np.arange(8) % 4)
    for one, other in zip(model.weights, loaded.weights, strict=True):
        assert_close(one, other, atol=1e-6)


@pytest.mark.parametrize("folded", [False, True])
def test_features_of_any_layer_are_those_of_the_network(folded, images):
    model = small_network()
    names = ["stage1_block1", "stage2", "predictions"]
    features = intermediate_features(fold(model) if folded else model, names)(images)
    assert sorted(features) == sorted(names)
    assert_close(features["predictions"], model(images), atol=1e-5)
    assert_close(
        features["stage2"], feature_pyramid(model)(images)["stride8"], atol=1e-5
    )


def test_features_of_a_sequential_model_that_another_one_uses():
    model = keras.Sequential([keras.layers.Dense(2, name=name) for name in "ab"])
    model(keras.Input((3,)))
    x = np.ones((1, 3), "float32")
    features = intermediate_features(model, ["a"])(x)
    assert_close(features["a"], model.layers[0](x), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: freeze(model, "stage9"), "stage1.*Received: until='stage9'"),
        (lambda model: freeze(model, 2), "Received: until=2"),
        (lambda model: reset_classifier(model, 0), "classes"),
        (lambda model: reset_classifier(model, 2, drop_rate=1), "drop_rate"),
        (lambda model: intermediate_features(model, ["stage9"]), "stage1.*stage9"),
        (lambda model: intermediate_features(model, []), "Received: names"),
        (lambda model: intermediate_features(model, "stem"), "list.*names='stem'"),
        (lambda model: intermediate_features(keras.Model(), ["a"]), "functional"),
        (lambda model: layerwise_optimizer(model, "sgd", 0.1, 0), "decay"),
        (lambda model: layerwise_optimizer(model, "sgd", 0.1, 1.1), "at most 1"),
        (lambda model: layerwise_optimizer(model, "sgd", 0.1, 1), "create='sgd'"),
        (lambda model: layerwise_optimizer(model, lambda _: ONE, 0.1, 1), "same one"),
    ],
)
def test_invalid_arguments_are_errors(call, message):
    multi_optimizer(keras.optimizers.SGD())
    with pytest.raises(ValueError, match=message):
        call(small_network())


@pytest.mark.parametrize("change", [freeze, reset_classifier])
def test_other_models_are_refused(change):
    inputs = keras.Input((8, 8, 3))
    other = keras.Model(inputs, keras.layers.Flatten(name="flat")(inputs))
    with pytest.raises(ValueError, match=r"network of this package.*flat"):
        change(other, 2)


# A strided convolution computes some of the outputs of the same one without strides; with
# symmetric padding, these are the even ones. Without attention, no output depends on all.
@pytest.mark.parametrize(
    "make",
    [
        lambda **kw: NFNet((1, 2, 1, 2), (16, 16, 32, 32), group_size=8, **kw),
        lambda **kw: NFResNet((1, 1, 1, 2), 1, **kw),
        lambda **kw: NFRegNet((1, 1, 1, 2), (16, 24, 32, 48), **kw),
    ],
)
def test_a_dilated_network_computes_more_of_the_same_outputs(make, images):
    options = {"include_top": False, "attention": None, "convention": "timm"}
    strided, dilated = make(**options), make(**options, output_stride=16)
    for weight, value in zip(strided.weights, strided.get_weights(), strict=True):
        if weight.path.endswith("conv2/gain"):  # starts at zero
            value = value + 0.7
        weight.assign(value)
    dilated.set_weights(strided.get_weights())
    few, many = strided(images), dilated(images)
    assert (few.shape[1], many.shape[1]) == (1, 2)
    assert_close(many[:, ::2, ::2], few, atol=1e-5)
    assert list(dilated.pyramid_outputs) == ["P2", "P3", "P4"]
    last = dilated.get_layer("stage4_block2")
    assert (last.dilation_rate, last.first_dilation_rate) == (2, 2)


def test_two_stages_can_be_dilated(images):
    model = NFNetTiny(include_top=False, input_shape=(32, 32, 3), output_stride=8)
    assert model.output.shape == (None, 4, 4, 192)
    blocks = [layer for layer in model.layers if isinstance(layer, NFBlock)]
    rates = [(b.strides, b.first_dilation_rate, b.dilation_rate) for b in blocks]
    assert rates == [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)]
    for block in blocks:
        block.skip_gain.assign(0.7)
    assert_close(fold(model)(images), model(images), atol=1e-4)
    for wrong in (4, "8", 8.0):
        message = rf"8, 16, 32. Received: output_stride={wrong!r}"
        with pytest.raises(ValueError, match=message):
            NFNetTiny(output_stride=wrong)
