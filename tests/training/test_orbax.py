"""Orbax checkpoints, which Keras reads by names, are loaded completely or not at all."""

import keras
import numpy as np
import pytest
from versions import since_keras

from keras_nfnets import AGCModel

pytestmark = [
    since_keras("3.15"),
    # On JAX: there is no distribution, so arrays are read onto the devices of the file.
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),
]


def network(name="hidden"):
    inputs = keras.Input((2,))
    x = keras.layers.Dense(3, name=name)(inputs)
    return AGCModel(inputs, keras.layers.Dense(1, name="predictions")(x))


def compiled(model, optimizer="sgd"):
    model.compile(optimizer, "mse", ema_decay=0.9)
    return model


@pytest.fixture
def saved(tmp_path):
    """Folder with a checkpoint, and the weights in it."""
    model = compiled(network())
    model.build_training_state()
    callback = keras.callbacks.OrbaxCheckpoint(str(tmp_path), save_on_background=False)
    callback.set_model(model)
    callback.on_epoch_end(0, {})
    callback.on_train_end()
    return tmp_path, model.get_weights()


def with_another_name():
    return compiled(network("other"))


def with_frozen_weights():
    model = network()
    model.get_layer("hidden").trainable = False
    return compiled(model)


@pytest.mark.parametrize("create", [with_another_name, with_frozen_weights])
def test_weights_that_would_be_ignored_are_an_error(create, saved):
    model = create()
    before = model.get_weights()
    with pytest.raises(
        ValueError, match=r"names.*Received.*without (other|hidden)/kern"
    ):
        model.load_weights(saved[0])
    with model.averaged_weights():
        for weights, expected in zip(model.get_weights(), before):
            np.testing.assert_array_equal(weights, expected)


def test_a_relative_path_will_do(saved, monkeypatch):
    folder, weights = saved
    keras.utils.clear_session(free_memory=False)
    model = compiled(network())
    monkeypatch.chdir(folder.parent)
    model.load_weights(folder.name)
    for loaded, expected in zip(model.get_weights(), weights):
        np.testing.assert_array_equal(loaded, expected)


def test_state_of_an_optimizer_that_is_ignored_is_a_warning(saved):
    keras.utils.clear_session(free_memory=False)
    model = compiled(network(), keras.optimizers.SGD(name="second"))
    with pytest.warns(UserWarning, match="optimizer was not loaded.*sgd for second"):
        model.load_weights(saved[0])
    for weights, expected in zip(model.get_weights(), saved[1]):
        np.testing.assert_array_equal(weights, expected)


def test_a_model_without_an_optimizer_or_weights_cannot_be_loaded_into(saved):
    with pytest.raises(ValueError, match="that is built and not compiled"):
        network().load_weights(saved[0])
    unbuilt = type("Subclassed", (AGCModel, keras.Sequential), {})(
        [keras.layers.Dense(1)]
    )
    with pytest.raises(ValueError, match="that is not built and compiled"):
        compiled(unbuilt).load_weights(saved[0])
