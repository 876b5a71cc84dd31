"""Models with divided kernels are saved, and their training goes on on any mesh (JAX)."""

import keras
import numpy as np
import pytest
from comparing import assert_close
from divided import (
    OPTIONS,
    compiled_block,
    compiled_network,
    divided,
    examples,
    most_parts,
)
from versions import since_keras

from keras_nfnets.training import Checkpoints

SAVED_ON = (2, 4), "alternating"
LOADED_ON = [((1, 8), "inputs"), ((8, 1), "outputs"), (None, None)]


def variables_of_training(model):
    return [*model.variables, *model.optimizer.variables, *model.metrics_variables]


def state(model):
    """Return the values of which Keras's files have all."""
    variables = [*model.variables, *model.optimizer.variables]
    return [v.numpy() for v in variables if "seed" not in v.path]


def assert_same_state(model, expected, atol=0.0):
    values = state(model)
    assert len(values) == len(expected)
    for value, other in zip(values, expected):
        scale = max(np.abs(other).max(), 1e-3)  # gains and biases start at zero
        assert_close(value / scale, other / scale, rtol=0, atol=atol)


def with_random_state(model):
    rng = np.random.default_rng(0)
    model.build_training_state()
    for variable in variables_of_training(model):
        shape = variable.shape
        is_float = "float" in variable.dtype
        values = rng.normal(size=shape) if is_float else rng.integers(1, 9, shape)
        variable.assign(values)
    model.optimizer.learning_rate = 0.1  # `load_weights` takes none from other files
    return model


@pytest.mark.parametrize("mesh", LOADED_ON)
def test_files_of_divided_weights_are_loaded_on_any_mesh(mesh, tmp_path):
    with divided(*SAVED_ON):
        model = with_random_state(compiled_block("all at once"))
        expected = state(model)
        model.save(tmp_path / "model.keras")
        model.save_weights(tmp_path / "model.weights.h5")
        with model.averaged_weights():
            averages = [v.numpy() for v in model.trainable_variables]
            model.save_weights(tmp_path / "averaged.weights.h5")
        assert_same_state(model, expected)
        assert most_parts(model) == 4
    with divided(*mesh):
        models = [
            keras.saving.load_model(tmp_path / "model.keras"),
            compiled_block("all at once"),
        ]
        models[1].load_weights(tmp_path / "model.weights.h5")
        for model in models:
            assert_same_state(model, expected)
            assert most_parts(model) == (mesh[0] or [1, 1])[1]
        model.load_weights(tmp_path / "averaged.weights.h5")
        for variable, average in zip(model.trainable_variables, averages):
            assert_close(variable, average)
            assert np.abs(average).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("mesh", LOADED_ON[:2])
def test_training_goes_on_from_a_file_as_on_one_device(mesh, tmp_path):
    x, y = examples()
    with divided(*SAVED_ON):
        model = compiled_network("momentum")
        model.fit(x, y, 16, verbose=0, shuffle=False)
        prediction = model.predict(x, 16, verbose=0)
        model.save(tmp_path / "model.keras")

    def go_on():
        keras.utils.set_random_seed(0)  # the file has no state of random generators
        model = keras.saving.load_model(tmp_path / "model.keras")
        assert_close(model.predict(x, 16, verbose=0), prediction, atol=1e-6)
        model.fit(x, y, 16, verbose=0, shuffle=False)
        return state(model), model

    with divided(None, None):
        expected, _ = go_on()
    with divided(*mesh):
        assert_same_state(go_on()[1], expected, atol=2e-6)


def orbax_checkpoint(folder):
    return keras.callbacks.OrbaxCheckpoint(str(folder))


def restored_by_checkpoints(create, folder):
    model = create("all at once")
    assert Checkpoints(folder, {}).restore(model)[0] == 1
    return model


def restored_by_load_weights(create, folder):
    model = create("all at once")
    model.load_weights(folder)
    return model


def restored_by_load_model(create, folder):
    return keras.saving.load_model(folder)


WAYS = {
    "our checkpoints": (
        lambda folder: Checkpoints(folder, {}),
        restored_by_checkpoints,
    ),
    "load_weights": (orbax_checkpoint, restored_by_load_weights),
    "load_model": (orbax_checkpoint, restored_by_load_model),
}


# Three steps per epoch: gradients are accumulated over two steps, so a checkpoint has
# some. The last step is skipped.
@since_keras("3.15")
@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("create", [compiled_block, compiled_network])
def test_a_run_goes_on_on_another_mesh_as_on_one_device(way, create, tmp_path):
    x, y = examples(48)
    x[40] = np.nan
    fit = {"batch_size": 16, "verbose": 0, "shuffle": False}
    callback, restored = WAYS[way]
    with divided(*SAVED_ON):
        model = create("all at once")
        model.fit(x, y, callbacks=[callback(tmp_path)], **fit)
        saved = state(model)
    with divided((1, 8), "inputs"):
        model = restored(create, tmp_path)
        assert_same_state(model, saved)
        assert model.skipped.in_a_row() == 1
        history = model.fit(x, y, initial_epoch=1, epochs=2, **fit).history
        assert most_parts(model) == 8
    with divided(None, None):
        one = create("all at once")
        expected = one.fit(x, y, epochs=2, **fit).history
        assert expected["skipped"] == [1, 1]
        for name, values in history.items():
            np.testing.assert_allclose(values, expected[name][1:], 1e-5, err_msg=name)
        assert_same_state(model, state(one), atol=2e-6)


def saved_by_orbax(model, folder, **options):
    callback = keras.callbacks.OrbaxCheckpoint(str(folder), **options)
    callback.set_model(model)
    callback.on_epoch_end(0, {})
    callback.on_train_end()


@since_keras("3.15")
@pytest.mark.parametrize("options", OPTIONS)
def test_orbax_restores_all_state_of_a_new_model_on_another_mesh(options, tmp_path):
    with divided(*SAVED_ON):
        model = with_random_state(compiled_block(options))
        model.optimizer.learning_rate = 0.05
        saved_by_orbax(model, tmp_path)
        expected = {v.path: v.numpy() for v in variables_of_training(model)}
    with divided((1, 8), "inputs"):
        model = compiled_block(options)
        model.load_weights(tmp_path)
        for variable in variables_of_training(model):
            np.testing.assert_array_equal(variable.numpy(), expected.pop(variable.path))
        assert not expected
        assert most_parts(model) == 8


@since_keras("3.15")
def test_averages_begin_at_weights_that_are_loaded_without_them(tmp_path):
    with divided((2, 4), "outputs"):
        model = with_random_state(compiled_block("all at once"))
        saved_by_orbax(model, tmp_path, save_weights_only=True)
        expected = model.trainable_variables[0].numpy()
    with divided((2, 4), "outputs"):
        model = compiled_block("all at once")
        model.load_weights(tmp_path)
        with model.averaged_weights():
            assert_close(model.trainable_variables[0], expected)


@since_keras("3.15")
def test_averages_of_keras_have_other_names(tmp_path):
    with divided((2, 4), "outputs"):
        model = compiled_block("momentum")
        optimizer = keras.optimizers.SGD(0.1, use_ema=True)
        model.compile(optimizer, model.loss, ema_decay=0.9)
        model.build_training_state()
        paths = [variable.path for variable in model.optimizer.variables]
        assert len(set(paths)) == len(paths)
        model.get_state_tree()  # of what an Orbax checkpoint has
