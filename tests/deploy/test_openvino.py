"""OpenVINO files: OpenVINO computes what the network does."""

import json
import os

import keras
import numpy as np
import openvino
import pytest
from test_folding import FAMILIES, difference, images, with_random_weights

from keras_nfnets import export
from keras_nfnets.data import load_digits
from keras_nfnets.deploy import openvino_files
from keras_nfnets.runs import load_classifier


def runs(path):
    network = openvino.Core().compile_model(
        str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return lambda x, training=False: network(x)[0]


@pytest.fixture(name="model")
def _model(nfnet_tiny):
    options = {"depths": (1, 1), "widths": (16, 32), "classifier_activation": None}
    return with_random_weights(nfnet_tiny(**options))


def test_openvino_computes_what_the_network_does(model, tmp_path):
    path = tmp_path / "a folder" / "m.xml"
    export(model, path, input_name="x", output_name="y")
    assert sorted(os.listdir(path.parent)) == ["m.bin", "m.xml"]
    for shape in [(1, 64, 64, 3), (2, 33, 47, 3)]:
        assert difference(model, runs(path), images(*shape)) < 1e-5
    network = openvino.Core().read_model(path)
    assert network.input().names == {"x"}
    assert network.output().names == {"y"}
    # Float32, not compressed to float16.
    assert os.path.getsize(tmp_path / "a folder/m.bin") > 3.9 * model.count_params()


@pytest.mark.slow
def test_preprocessing_and_metadata_are_in_the_file(tmp_path):
    classifier = load_classifier("digits")
    classifier.export(tmp_path / "m.xml", preprocessing=True)
    info = openvino.Core().read_model(tmp_path / "m.xml").get_rt_info("model_info")
    assert info["licence"] == "apache-2.0"
    assert json.loads(info["class_names"]) == list("0123456789")
    digits = load_digits()[1][0][:4]
    expected = classifier.predict(list(digits))
    actual = runs(tmp_path / "m.xml")(digits)
    np.testing.assert_allclose(actual, expected, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_networks_of_the_zoo(name, tmp_path):
    model = with_random_weights(FAMILIES[name](classifier_activation=None))
    export(model, tmp_path / "m.xml")
    for shape in [(1, 64, 64, 3), (2, 33, 47, 3)]:
        assert difference(model, runs(tmp_path / "m.xml"), images(*shape)) < 1e-5


def test_both_files_are_replaced_only_when_told(model, tmp_path):
    (tmp_path / "m.bin").write_text("old")
    with pytest.raises(ValueError, match="m.bin exists already"):
        export(model, tmp_path / "m.xml")
    assert os.listdir(tmp_path) == ["m.bin"]
    export(model, tmp_path / "m.xml", overwrite=True)
    x = images(1, 64, 64, 3)
    assert difference(model, runs(tmp_path / "m.xml"), x) < 1e-5
    (tmp_path / "n.bin").mkdir()
    with pytest.raises(ValueError, match="n.bin is a folder"):
        export(model, tmp_path / "n.xml", overwrite=True)


def test_files_that_compute_something_else_are_not_kept(tmp_path, monkeypatch):
    for name in ("m.xml", "m.bin"):
        (tmp_path / name).write_text("old")
    convert = openvino_files.convert

    def convert_another(model, *args):
        weights = [w + 1 for w in model.get_weights()]
        model.set_weights(weights)
        return convert(model, *args)

    monkeypatch.setattr(openvino_files, "convert", convert_another)
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs))
    with pytest.raises(ValueError, match="does not compute the outputs"):
        export(model, tmp_path / "m.xml", overwrite=True)
    for name in ("m.xml", "m.bin"):
        assert (tmp_path / name).read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["m.bin", "m.xml"]


def test_openvino_files_are_not_quantized(model, tmp_path):
    with pytest.raises(ValueError, match="'openvino' cannot be"):
        export(model, tmp_path / "m.xml", quantize="int8")
