"""`inference_function`: the network's predictions, for its shapes only."""

import sys

import keras
import numpy as np
import pytest

import keras_nfnets
from keras_nfnets.deploy import inference

RNG = np.random.default_rng(0)


def images(*shape):
    return RNG.normal(size=shape).astype("float32")


def with_open_branches(model):
    """Set the skip gains, as gains of zero would hide the residual branches."""
    for variable in model.weights:
        if variable.path.endswith("skip_gain"):
            variable.assign(0.7)
    return model


def of_one_block(**options):
    network = keras_nfnets.NFNet((1,), (16,), group_size=8, classes=5, **options)
    return with_open_branches(network)


@pytest.fixture(scope="module")
def network():
    return of_one_block(input_shape=(32, 32, 3))


RUNTIMES = ("keras", "onnxruntime")


@pytest.fixture(scope="module", params=RUNTIMES)
def predict(network, request):
    return keras_nfnets.inference_function(network, request.param)


def close(outputs, expected):
    np.testing.assert_allclose(
        *map(keras.ops.convert_to_numpy, (outputs, expected)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("batch", [1, 3])
def test_predictions_are_those_of_the_network(network, predict, batch):
    x = images(batch, 32, 32, 3)
    close(predict(x), network(x))
    close(predict(keras.ops.convert_to_tensor(x)), network(x))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_other_image_sizes_where_the_network_takes_them(runtime):
    network = of_one_block(input_shape=(None, None, 3))
    predict = keras_nfnets.inference_function(keras_nfnets.fold(network), runtime)
    for size in (32, 48):
        x = images(2, size, size, 3)
        close(predict(x), network(x))


def grouped_convolution(shape, data_format):
    inputs = keras.Input(shape)
    options = {"strides": 2, "groups": 3, "activation": "gelu"}
    layer = keras_nfnets.WSConv2D(9, 3, data_format=data_format, **options)
    return keras.Model(inputs, layer(inputs))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_grouped_convolution_alone_and_channels_first(runtime):
    last = grouped_convolution((8, 8, 6), "channels_last")
    x = images(2, 8, 8, 6)
    close(keras_nfnets.inference_function(last, runtime)(x), last(x))
    first = grouped_convolution((6, 8, 8), "channels_first")
    first.set_weights(last.get_weights())
    outputs = keras_nfnets.inference_function(first, runtime)(np.moveaxis(x, -1, 1))
    # TensorFlow has no such convolution on CPUs to compare with.
    close(keras.ops.moveaxis(outputs, 1, -1), last(x))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_several_inputs_and_outputs(runtime):
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((4,), name="b")}
    joined = keras.layers.Add()(list(inputs.values()))
    outputs = {"x": keras_nfnets.WSDense(3)(joined), "y": inputs["a"] * 2}
    model = keras.Model(inputs, outputs)
    x = {"a": images(2, 4), "b": images(2, 4)}
    predict = keras_nfnets.inference_function(model, runtime)
    found, expected = predict(x), model(x)
    assert found.keys() == expected.keys()
    for name in expected:
        close(found[name], expected[name])
    for wrong in (list(x.values()), {"a": x["a"]}):
        with pytest.raises(ValueError, match=r"the model's inputs, \['a', 'b'\]"):
            predict(wrong)


def test_integers_become_the_dtype_of_the_input(network, predict):
    x = RNG.integers(0, 3, (1, 32, 32, 3))
    outputs = predict(x)
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"
    close(outputs, network(x.astype("float32")))


@pytest.mark.parametrize("shape", [(32, 32, 3), (1, 32, 32, 1), (1, 16, 32, 3)])
def test_other_shapes_are_refused(predict, shape):
    with pytest.raises(ValueError, match=r"must be a batch of shape.*Received: shape"):
        predict(images(*shape))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_images_may_be_in_lists(network, runtime):
    x = images(2, 32, 32, 3)
    for model in (network, keras.Model(network.inputs, network.outputs)):
        predict = keras_nfnets.inference_function(model, runtime)
        for given in (x, x.tolist(), [x]):
            close(predict(given), network(x))
        with pytest.raises(ValueError, match="Received: str"):
            predict("images")
        with pytest.raises(ValueError, match=r"Received: shape \(0, 32, 32, 3\)"):
            predict(x[:0])
        with pytest.raises(ValueError, match=r"Received: shape \(2, 2, 32, 32, 3\)"):
            predict([x, x])


def test_a_model_without_a_graph_is_refused():
    class Subclass(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="fold needs a functional"):
        keras_nfnets.inference_function(Subclass())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_weights_are_those_of_the_moment(network, runtime):
    model = keras.models.clone_model(network)
    model.set_weights(network.get_weights())
    predict = keras_nfnets.inference_function(model, runtime)
    x = images(1, 32, 32, 3)
    before = keras.ops.convert_to_numpy(model(x))
    model.set_weights([w * 0 for w in model.get_weights()])
    close(predict(x), before)


@pytest.mark.parametrize("only_cpus", [True, False])
def test_networks_too_large_for_constants_and_accelerators(
    network, monkeypatch, only_cpus
):
    monkeypatch.setattr(inference, "_MOST_CONSTANTS", 0)
    monkeypatch.setattr(inference, "has_only_cpus", lambda: only_cpus)
    x = images(2, 32, 32, 3)
    close(keras_nfnets.inference_function(network, "keras")(x), network(x))


def test_what_onnx_runtime_cannot_run_is_compiled_by_keras(monkeypatch):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.ops.cumsum(inputs, axis=1))
    x = images(2, 4)
    close(keras_nfnets.inference_function(model)(x), np.cumsum(x, axis=1))
    with pytest.raises(
        ValueError, match="ONNX Runtime cannot run this network: 'cumsum"
    ):
        keras_nfnets.inference_function(model, "onnxruntime")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # importing it fails
    with pytest.raises(ImportError, match="needs the package 'onnxruntime'"):
        keras_nfnets.inference_function(model, "onnxruntime")
    close(keras_nfnets.inference_function(model)(x), np.cumsum(x, axis=1))
    with pytest.raises(ValueError, match="`runtime` must be one of"):
        keras_nfnets.inference_function(model, "openvino")


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    network = of_one_block()
    x = images(2, 32, 32, 3)
    outputs = keras_nfnets.inference_function(network)(x)
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
    with pytest.raises(ValueError, match="it computes in bfloat16"):
        keras_nfnets.inference_function(network, "onnxruntime")
    expected, outputs = (
        keras.ops.convert_to_numpy(keras.ops.cast(y, "float32"))
        for y in (network(x), outputs)
    )
    np.testing.assert_allclose(outputs, expected, atol=0.02)
