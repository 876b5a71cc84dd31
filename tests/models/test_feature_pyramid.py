import keras
import numpy as np
import pytest
from keras import ops
from quick import quick

import keras_nfnets
from keras_nfnets import (
    NFNet,
    NFNetTiny,
    NFRegNet,
    NFResNet,
    feature_pyramid,
    fold,
    pretrained,
    reset_classifier,
)
from keras_nfnets.models import PreActResNet
from keras_nfnets.models.registered import FAMILIES


@pytest.mark.parametrize(
    "make",
    [
        NFNetTiny,
        lambda **kw: NFResNet((1, 1, 1, 1), 1, **kw),
        lambda **kw: NFResNet((1, 1, 1, 1), 1, convention="timm", **kw),
        lambda **kw: NFRegNet((1, 2, 1, 1), (16, 24, 32, 48), **kw),
        lambda **kw: NFRegNet((1, 1, 1, 1), (16, 24, 32, 48), convention="timm", **kw),
        lambda **kw: PreActResNet((1, 1, 1, 1), 1, **kw),
    ],
)
def test_every_stride_from_2_to_32_is_there(make):
    model = make(include_top=False)
    x = np.random.default_rng(0).normal(size=(1, 75, 97, 3)).astype("float32")
    maps = feature_pyramid(model)(x)
    assert {name: tuple(output.shape[1:3]) for name, output in maps.items()} == {
        f"stride{stride}": (-(-75 // stride), -(-97 // stride))
        for stride in (2, 4, 8, 16, 32)
    }
    assert all(ops.convert_to_numpy(output).std() > 0 for output in maps.values())
    listed = [(f"stride{f.stride}", f.channels) for f in model.features]
    assert listed == [(name, output.shape[-1]) for name, output in maps.items()]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_the_stem_of_every_family_is_known(family):
    smallest = min(family.VARIANTS, key=lambda name: sum(family.VARIANTS[name].depths))
    with pretrained.without_memory():
        model = pretrained.create(smallest, include_top=False, input_shape=(64, 64, 3))
        pyramid = feature_pyramid(model)
    for name, output in pyramid.output.items():
        assert output.shape[1] == 64 // int(name.removeprefix("stride"))


def test_copies_of_a_network_have_its_features(tmp_path):
    model = NFRegNet((1, 1, 1), (16, 24, 32), include_top=False, output_stride=8)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for copy in (loaded, keras.models.clone_model(model), reset_classifier(model, 2)):
        assert copy.features == model.features
    names = [(feature.name, feature.stride) for feature in model.features]
    assert names == [("stem", 2), ("stage1", 4), ("stage3", 8)]


def test_networks_of_earlier_files_which_record_nothing_have_features():
    model = NFNetTiny(include_top=False, output_stride=16)
    config = model.get_config()
    for layer in config["layers"]:
        if layer["class_name"] == "Endpoint":
            layer |= {"class_name": "Identity", "module": "keras.layers"}
            layer["registered_name"] = None
            layer["config"] = {"name": layer["name"]}
    assert type(model).from_config(config).features == model.features


def test_the_pyramid_has_the_weights_of_its_network():
    model = NFNetTiny()
    pyramid = feature_pyramid(model)
    assert {v.path for v in pyramid.weights} < {v.path for v in model.weights}
    assert all(any(v is w for w in model.weights) for v in pyramid.weights)


@pytest.mark.parametrize("convention", quick(["authors", "timm"], "timm"))
@pytest.mark.parametrize(
    "make",
    [
        lambda **kw: NFNet((1, 1), (16, 32), group_size=8, **kw),
        lambda **kw: NFResNet((1, 1), 1, **kw),
        lambda **kw: NFRegNet((1, 2), (16, 24), **kw),
        lambda convention, **kw: PreActResNet((1, 1), 1, **kw),
    ],
)
def test_the_pyramid_of_a_folded_network_is_the_same(make, convention, tmp_path):
    model = make(include_top=False, convention=convention)
    fold(model).save(tmp_path / "folded.keras")
    x = np.random.default_rng(0).normal(size=(1, 45, 33, 3)).astype("float32")
    expected = feature_pyramid(model)(x)
    for folded in (fold(model), keras.models.load_model(tmp_path / "folded.keras")):
        maps = feature_pyramid(folded)(x)
        assert list(maps) == list(expected)
        for name, output in maps.items():
            np.testing.assert_allclose(output, expected[name], atol=1e-5)


def test_other_models_are_refused():
    inputs = keras.Input((8, 8, 3))
    other = keras.Model(inputs, keras.layers.Flatten(name="flat")(inputs))
    with pytest.raises(ValueError, match="flat"):
        keras_nfnets.feature_pyramid(other)
