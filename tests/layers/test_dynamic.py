import keras
import numpy as np
import pytest
from comparing import assert_close
from golden_case import GOLDEN
from keras import ops

import keras_nfnets
from keras_nfnets import DynamicErf, DynamicTanh

LAYERS = {"tanh": DynamicTanh, "erf": DynamicErf}


class Offset(keras.layers.Layer):
    """Layer that adds zeros, whose gradients are those of its output."""

    def build(self, input_shape):
        self.offset = self.add_weight(
            name="offset", shape=input_shape, initializer="zeros"
        )

    def call(self, inputs):
        return inputs + self.offset


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_are_those_of_x_transformers(name):
    with np.load(GOLDEN / "x_transformers.npz") as arrays:
        golden = {
            key.removeprefix(f"{name}/"): np.float32(array)
            for key, array in arrays.items()
            if key.startswith(f"{name}/")
        }
    layer, offset = LAYERS[name](), Offset(name="inputs")
    inputs = keras.Input(batch_shape=golden["inputs"].shape)
    model = keras.Model(inputs, layer(offset(inputs)))
    for weight in layer.weights:
        weight.assign(golden[weight.name])
    assert_close(model(golden["inputs"]), golden["outputs"], rtol=1e-6, atol=1e-6)

    model.compile(
        keras.optimizers.SGD(1.0),
        lambda upstream, outputs: ops.sum(upstream * outputs, axis=(-2, -1)),
    )
    model.train_on_batch(golden["inputs"], golden["upstream"])
    # The mean over two examples is the loss.
    for weight in layer.weights:
        gradient = 2 * (golden[weight.name] - ops.convert_to_numpy(weight))
        assert_close(gradient, golden[f"gradient/{weight.name}"], rtol=1e-6, atol=4e-6)
    gradient = -2 * ops.convert_to_numpy(offset.offset)
    assert_close(gradient, golden["gradient/inputs"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layer", LAYERS.values())
def test_channels_may_be_any_axis(layer):
    x = np.random.default_rng(0).normal(size=(2, 4, 5)).astype("float32")
    last, first = layer(initial_alpha=0.8), layer(0.8, axis=1)
    for one, shape in ((last, (2, 5, 4)), (first, x.shape)):
        one.build(shape)
        one.gamma.assign([1.0, 2.0, 3.0, 4.0])
        one.beta.assign([0.0, 0.1, 0.2, 0.3])
    expected = np.swapaxes(ops.convert_to_numpy(last(np.swapaxes(x, 1, 2))), 1, 2)
    assert_close(first(x), expected, rtol=1e-6)
    again = layer.from_config(first.get_config())
    assert (again.initial_alpha, again.axis) == (0.8, 1)


@pytest.mark.parametrize("layer", LAYERS.values())
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_saturates_and_stays_finite(layer, dtype):
    y = layer(dtype=dtype, initial_alpha=4.0)(np.array([[-6e4, 0.0, 6e4]]))
    assert keras.backend.standardize_dtype(y.dtype) == dtype.removeprefix("mixed_")
    assert_close(ops.cast(y, "float32"), [[-1.0, 0.0, 1.0]])


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"initial_alpha": 0}, (2, 3), "`initial_alpha` must be a finite number"),
        ({"axis": 0.5}, (2, 3), "`axis` must be an integer"),
        ({"axis": 2}, (2, 3), "Received: axis=2 of inputs of shape"),
        ({}, (2, None), "must have a known size"),
    ],
)
def test_errors(options, shape, message):
    with pytest.raises(ValueError, match=message):
        DynamicTanh(**options).build(shape)


@pytest.mark.parametrize("layer", LAYERS.values())
def test_a_saved_and_a_folded_model_compute_the_same(layer, tmp_path):
    inputs = keras.Input((6, 8))
    scaled = keras_nfnets.ScaledActivation("gelu")(inputs)
    x = layer(0.7, axis=1)(layer()(scaled))
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    x = rng.normal(size=(2, 6, 8)).astype("float32")
    folded = keras_nfnets.fold(model)
    assert not any(isinstance(one, layer) for one in folded.layers)
    assert_close(folded(x), model(x), rtol=1e-5, atol=1e-6)
    for saved in (model, folded):
        saved.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert_close(loaded(x), saved(x), rtol=1e-6, atol=1e-6)
