"""`inference_function`: the network's predictions, for its shapes only."""

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


@pytest.fixture(scope="module")
def network():
    return with_open_branches(
        keras_nfnets.NFNetTiny(classes=5, input_shape=(32, 32, 3))
    )


@pytest.fixture(scope="module")
def predict(network):
    return keras_nfnets.inference_function(network)


def close(outputs, expected):
    np.testing.assert_allclose(
        *map(keras.ops.convert_to_numpy, (outputs, expected)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("batch", [1, 3])
def test_predictions_are_those_of_the_network(network, predict, batch):
    x = images(batch, 32, 32, 3)
    close(predict(x), network(x))
    close(predict(keras.ops.convert_to_tensor(x)), network(x))


def test_other_image_sizes_where_the_network_takes_them():
    network = with_open_branches(
        keras_nfnets.NFNetTiny(classes=5, input_shape=(None, None, 3))
    )
    predict = keras_nfnets.inference_function(keras_nfnets.fold(network))
    for size in (32, 48):
        x = images(2, size, size, 3)
        close(predict(x), network(x))


def test_a_grouped_convolution_alone_and_channels_first(network):
    for data_format, shape in (
        ("channels_last", (8, 8, 6)),
        ("channels_first", (6, 8, 8)),
    ):
        inputs = keras.Input(shape)
        outputs = keras_nfnets.WSConv2D(
            9, 3, strides=2, groups=3, data_format=data_format, activation="gelu"
        )(inputs)
        model = keras.Model(inputs, outputs)
        x = images(2, *shape)
        if data_format == "channels_first" and keras.backend.backend() == "tensorflow":
            expected = keras_nfnets.fold(model).predict(x, verbose=0)
        else:
            expected = model(x)
        close(keras_nfnets.inference_function(model)(x), expected)


def test_several_inputs_and_outputs():
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((4,), name="b")}
    joined = keras.layers.Add()(list(inputs.values()))
    outputs = {"x": keras_nfnets.WSDense(3)(joined), "y": inputs["a"] * 2}
    model = keras.Model(inputs, outputs)
    x = {"a": images(2, 4), "b": images(2, 4)}
    found, expected = keras_nfnets.inference_function(model)(x), model(x)
    assert found.keys() == expected.keys()
    for name in expected:
        close(found[name], expected[name])


def test_integers_become_the_dtype_of_the_input(network, predict):
    x = RNG.integers(0, 3, (1, 32, 32, 3))
    outputs = predict(x)
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"
    close(outputs, network(x.astype("float32")))


@pytest.mark.parametrize("shape", [(32, 32, 3), (1, 32, 32, 1), (1, 16, 32, 3)])
def test_other_shapes_are_refused(predict, shape):
    with pytest.raises(ValueError, match=r"takes images of shape.*Received: shape"):
        predict(images(*shape))


def test_a_model_without_a_graph_is_refused():
    class Subclass(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="fold takes functional"):
        keras_nfnets.inference_function(Subclass())


def test_weights_are_those_of_the_moment(network):
    model = keras.models.clone_model(network)
    model.set_weights(network.get_weights())
    predict = keras_nfnets.inference_function(model)
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
    close(keras_nfnets.inference_function(network)(x), network(x))


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    network = with_open_branches(keras_nfnets.NFNetTiny(classes=5))
    x = images(2, 32, 32, 3)
    outputs = keras_nfnets.inference_function(network)(x)
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
    expected, outputs = (
        keras.ops.convert_to_numpy(keras.ops.cast(y, "float32"))
        for y in (network(x), outputs)
    )
    np.testing.assert_allclose(outputs, expected, atol=0.02)
