import json
import zipfile

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_nfnets
from keras_nfnets import data, runs
from keras_nfnets.data.preprocessing import IMAGENET
from keras_nfnets.deploy.onnx_model import onnx_model
from keras_nfnets.deploy.preprocessing import preprocessing_model

# Of one level of the pixels, divided by ImageNet's standard deviations.
LEVEL = 1 / (255 * min(IMAGENET["deviation"]))


def error(images, preparation):
    """Return the largest difference from `data.prepare`, in Keras and as ONNX."""
    model = preprocessing_model(preparation)
    written = onnx_model(model, ["x"], ["y"], opset=15).SerializeToString()
    [of_onnx] = onnxruntime.InferenceSession(written).run(None, {"x": images})
    expected = np.stack([data.prepare(image, **preparation) for image in images])
    errors = []
    for actual in (np.asarray(model(images)), of_onnx):
        assert actual.shape == expected.shape
        errors.append(np.abs(actual - expected).max())
    return max(errors)


@settings(max_examples=40)
@given(
    size=st.integers(1, 40),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    channels=st.sampled_from([1, 3]),
    interpolation=st.sampled_from(["bicubic", "antialiased_bicubic", "bilinear"]),
    mode=st.sampled_from(
        ["crop_resize", "whole", "resize_crop_8", "resize_crop_3", "center", "squash"]
    ),
    crop=st.sampled_from([0.5, 0.875, 1.0]),
)
def test_images_are_prepared_as_for_training(
    size, height, width, channels, interpolation, mode, crop
):
    preparation = {"size": size, "channels": channels, "interpolation": interpolation}
    preparation |= {"crop_mode": mode, "crop": crop, **IMAGENET}
    images = np.random.default_rng(height).integers(64, 192, (2, height, width, 3))
    # Pillow rounds to levels, twice; TensorFlow looks up its kernel without antialiasing.
    limit = {"center": 2.1, "squash": 2.1}.get(mode, 0.01)
    limit = max(limit, 0.4 if interpolation == "bicubic" else 0)
    assert error(images.astype("uint8"), preparation) < limit * LEVEL


def test_images_can_be_standardized_by_their_own_mean():
    preparation = {"size": 8, "crop_mode": "whole", "interpolation": "bilinear"}
    preparation |= {"mean": None, "deviation": None}
    images = np.random.default_rng(0).integers(0, 256, (2, 30, 20, 3), "uint8")
    images[1] = 7  # of standard deviation zero
    for channels in (1, 3):
        assert error(images, {**preparation, "channels": channels}) < 1e-3


def test_interpolation_by_the_nearest_pixel_is_refused():
    preparation = {"size": 8, "crop_mode": "squash", "interpolation": "nearest"}
    with pytest.raises(ValueError, match="'nearest' cannot be exported"):
        preprocessing_model({**preparation, **IMAGENET})


@pytest.fixture(scope="module")
def classifier():
    return runs.load_classifier("digits")


@pytest.fixture(scope="module")
def pixels():
    return data.load_digits()[1][0][:40]


def of_onnx(file):
    session = onnxruntime.InferenceSession(file)
    [given], [result] = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type) == ("image", "tensor(uint8)")
    assert given.shape == ["batch", "height", "width", 3]
    assert result.name == "predictions"
    metadata = session.get_modelmeta().custom_metadata_map
    names = json.loads(metadata["class_names"])
    return lambda x: session.run(None, {"image": x})[0], {
        **metadata,
        "class_names": names,
    }


def of_saved_model(folder):
    model = tf.saved_model.load(folder)
    metadata = (folder / "assets" / "keras_nfnets.json").read_text()
    return lambda x: model.serve(x).numpy(), json.loads(metadata)


def of_litert(file):
    interpreter = Interpreter(str(file))
    [given], [result] = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )

    def predict(x):
        interpreter.resize_tensor_input(given["index"], x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(result["index"])

    return predict, json.loads(zipfile.ZipFile(file).read("keras_nfnets.json"))


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("a.onnx", of_onnx),
        pytest.param("a", of_saved_model, marks=pytest.mark.slow),
        ("a.tflite", of_litert),
    ],
)
def test_a_file_with_preprocessing_takes_images_as_they_are(
    name, load, classifier, pixels, tmp_path
):
    path = tmp_path / name
    classifier.export(path, preprocessing=True)
    predict, metadata = load(path)
    expected = classifier.predict(list(pixels))
    np.testing.assert_allclose(predict(pixels), expected, atol=0.05)
    larger = np.kron(pixels[:1], np.ones((1, 9, 5, 1), "uint8"))
    expected = classifier.predict(list(larger))
    np.testing.assert_allclose(predict(larger), expected, atol=0.05)
    assert metadata == {"class_names": list("0123456789"), "licence": "apache-2.0"}
    classifier.export(path, overwrite=True, preprocessing=True)
    assert load(path)[1] == metadata


def test_the_network_after_the_preprocessing_can_be_quantized(
    classifier, pixels, tmp_path
):
    examples = np.stack([classifier.preprocess(image) for image in pixels])
    path = tmp_path / "int8.onnx"
    classifier.export(path, preprocessing=True, quantize="int8", examples=examples)
    predict, _ = of_onnx(path)
    expected = classifier.predict(list(pixels)).argmax(axis=1)
    assert (predict(pixels).argmax(axis=1) == expected).mean() > 0.9
    with pytest.raises(ValueError, match="LiteRT file cannot be quantized"):
        path = tmp_path / "int8.tflite"
        classifier.export(path, preprocessing=True, quantize="int8", examples=examples)


def test_without_preprocessing_a_file_says_how_to_preprocess(classifier, tmp_path):
    classifier.export(tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    preparation = json.loads(metadata["preparation"])
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), "uint8")
    np.testing.assert_array_equal(
        data.prepare(image, **preparation), classifier.preprocess(image)
    )


def test_logits_become_probabilities(tmp_path):
    model = keras_nfnets.NFNetTest(classes=3, classifier_activation=None)
    preparation = {"size": 32, "crop_mode": "whole", "interpolation": "bilinear"}
    preparation |= IMAGENET
    path = tmp_path / "a.onnx"
    options = {"preparation": preparation, "class_names": ["a", "b", "c"]}
    keras_nfnets.export(model, path, preprocessing=True, batch_size=2, **options)
    session = onnxruntime.InferenceSession(path)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), "uint8")
    [probabilities] = session.run(None, {"image": images})
    x = np.stack([data.prepare(image, **preparation) for image in images])
    expected = keras.ops.softmax(model(x))
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)


def dense(*heads, **names):
    inputs = keras.Input((32, 32, 3), name=names.get("inputs"))
    x = keras.layers.Flatten(name=names.get("flatten"))(inputs)
    outputs = [head(x) for head in heads]
    outputs = outputs if len(outputs) > 1 else outputs[0]
    return keras.Model(inputs, outputs, name=names.get("model"))


PREPARATION = {
    "size": 32,
    "crop_mode": "whole",
    "interpolation": "bilinear",
    **IMAGENET,
}


def test_a_single_logit_becomes_a_probability(tmp_path, pixels):
    model = dense(keras.layers.Dense(1))
    path = tmp_path / "a.onnx"
    keras_nfnets.export(model, path, preprocessing=True, preparation=PREPARATION)
    x = np.stack([data.prepare(image, **PREPARATION) for image in pixels])
    [found] = onnxruntime.InferenceSession(path).run(None, {"image": pixels})
    np.testing.assert_allclose(found, keras.ops.sigmoid(model(x)), atol=1e-4)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([keras.layers.Dense(2), keras.layers.Dense(2)], "one input and one output"),
        ([keras.layers.Dense(2, "tanh")], "must be linear, a softmax or a sigmoid"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(heads, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        keras_nfnets.export(
            dense(*heads), tmp_path / "a", preprocessing=True, preparation=PREPARATION
        )


@pytest.mark.parametrize(("name", "load"), [("a.onnx", of_onnx), ("a", of_saved_model)])
def test_layers_can_have_the_names_of_ours(name, load, pixels, tmp_path):
    names = {"inputs": "image", "model": "image", "flatten": "preprocessing"}
    model = dense(keras.layers.Dense(3, name="probabilities"), **names)
    options = {"preparation": PREPARATION, "class_names": ["a", "b", "c"]}
    keras_nfnets.export(model, tmp_path / name, preprocessing=True, **options)
    found = load(tmp_path / name)[0](pixels)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_wrong_metadata_are_refused(tmp_path):
    model = keras_nfnets.NFNetTest(classes=3, input_shape=(32, 32, 3))
    preparation = {"size": 16, "crop_mode": "whole", "interpolation": "bilinear"}
    for options, message in [
        ({"preprocessing": True}, "needs `preparation`"),
        ({"preparation": {"size": -1}}, "`size` must be"),
        ({"preprocessing": True, "preparation": {"size": 32}}, "must have crop_mode"),
        (
            {"preprocessing": True, "preparation": {**preparation, **IMAGENET}},
            "must take the images that `preparation` gives",
        ),
        ({"class_names": "abc"}, "`class_names` must be a list"),
        ({"class_names": ["a", "b"]}, "one name for each output"),
        ({"licence": 1}, "`licence` must be text"),
        ({"licence": "\udc80"}, "`licence` must be text"),
        ({"class_names": ["a", "b", 3]}, "`class_names` must be text"),
    ]:
        with pytest.raises(ValueError, match=message):
            keras_nfnets.export(model, tmp_path / "a.onnx", **options)
    assert not list(tmp_path.iterdir())
