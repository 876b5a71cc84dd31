"""Averaged weights: evaluated in the same pass, and kept by compile and by files."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_nfnets import AGC, AGCModel

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(20, 6)).astype("float32")
Y = (X[:, :3] > 0).astype("float32")


def network(cls=AGCModel, units=5):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(units, activity_regularizer="l2")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dense(3, "sigmoid", kernel_regularizer="l2", name="predictions")(x)
    return cls(inputs, x)


def compiled(cls=AGCModel, optimizer=None, **options):
    model = network(cls)
    model.compile(
        optimizer or keras.optimizers.SGD(0.5, momentum=0.9),
        keras.losses.BinaryCrossentropy(),
        metrics=[keras.metrics.AUC(name="auc"), "binary_accuracy"],
        **{"ema_decay": 0.9, **options},
    )
    return model


def fit(model, **options):
    options = {"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0, **options}
    return model.fit(X, Y, **options)


def trained(**options):
    model = compiled(**options)
    fit(model)
    return model


def evaluate(model, x=X, y=Y, **options):
    return model.evaluate(x, y, verbose=0, return_dict=True, **options)


def averages(model):
    with model.averaged_weights():
        return model.get_weights()


def assert_equal(a, b, **tolerance):
    for v, w in zip(a, b, strict=True):
        np.testing.assert_allclose(v, w, **{"rtol": 0, "atol": 0, **tolerance})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"run_eagerly": True},
        {"optimizer": AGC("sgd")},
        {"steps_per_execution": 2},
    ],
    ids=["default", "eager", "AGC", "two steps"],
)
def test_results_are_those_of_two_evaluations(options):
    if keras.backend.backend() == "torch" and "steps_per_execution" in options:
        pytest.skip("PyTorch has no steps_per_execution")
    model = trained(**options)
    plain = network(keras.Model)
    plain.compile(
        loss=keras.losses.BinaryCrossentropy(),
        metrics=[keras.metrics.AUC(name="auc"), "binary_accuracy"],
    )
    plain.set_weights(model.get_weights())
    expected = evaluate(plain, batch_size=8)
    plain.set_weights(averages(model))
    expected |= {f"ema_{k}": v for k, v in evaluate(plain, batch_size=8).items()}
    for _ in range(2):  # the second one begins anew
        results = evaluate(model, batch_size=8)
        assert results.keys() == expected.keys()
        for name in expected:
            assert results[name] == pytest.approx(expected[name], rel=1e-5), name
    assert expected["loss"] != pytest.approx(expected["ema_loss"], rel=1e-4)


def test_the_data_are_read_once():
    model = trained()
    expected = evaluate(model, batch_size=4)
    read = []

    def batches():
        for i in range(0, len(X), 4):
            read.append(i)
            yield X[i : i + 4], Y[i : i + 4]

    assert evaluate(model, batches(), None) == pytest.approx(expected, rel=1e-6)
    assert sorted(set(read)) == read == [0, 4, 8, 12, 16]


def test_callbacks_see_one_evaluation():
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            seen.append("begin")

        def on_test_end(self, logs=None):
            seen.append({"loss", "ema_loss", "auc", "ema_auc"} <= logs.keys())

    history = fit(compiled(), validation_data=(X, Y), callbacks=[Watch()]).history
    assert seen == ["begin", True] * 2
    assert {"val_auc", "val_ema_auc"} <= history.keys()


def test_metrics_names_are_those_of_the_results():
    model = trained()
    results = model.evaluate(X, Y, verbose=0)
    named = dict(zip(model.metrics_names, results, strict=True))
    assert named == pytest.approx(evaluate(model))
    assert len(named) == 6


def test_compiling_again_keeps_averages_and_state(tmp_path):
    model, twice = trained(), trained()
    for _ in range(2):
        expected = averages(twice)
        twice.compile(
            twice.optimizer,
            keras.losses.BinaryCrossentropy(),
            metrics=["binary_accuracy"],
            ema_decay=0.9,
        )
        twice.build_training_state()
        assert_equal(averages(twice), expected)
    for m in (model, twice):
        fit(m)
    assert_equal(averages(twice), averages(model))
    assert len(twice.optimizer.variables) == len(model.optimizer.variables)
    twice.save(tmp_path / "twice.keras")
    loaded = keras.saving.load_model(tmp_path / "twice.keras")
    assert int(loaded.optimizer.iterations) == 20
    assert_equal(averages(loaded), averages(model))


def test_compiling_again_without_averages_deletes_them(tmp_path):
    model = trained()
    model.compile(model.optimizer, keras.losses.BinaryCrossentropy())
    fit(model)
    assert "ema_loss" not in evaluate(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert int(loaded.optimizer.iterations) == 20
    assert_equal(
        *[map(ops.convert_to_numpy, m.optimizer.variables) for m in (loaded, model)]
    )


@pytest.mark.parametrize("steps", [0, 1], ids=["new", "trained otherwise"])
def test_load_weights_loads_averages(steps, tmp_path):
    model = trained()
    model.save_weights(tmp_path / "best.weights.h5")
    other = compiled()
    if steps:
        fit(other, epochs=1)
    other.load_weights(tmp_path / "best.weights.h5")
    assert_equal(other.get_weights(), model.get_weights())
    assert_equal(averages(other), averages(model))
    for m in (model, other):
        fit(m)
    assert_equal(averages(other), averages(model), atol=1e-6)


def test_backup_and_restore_continues_exactly_after_an_epoch(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    backup = keras.callbacks.BackupAndRestore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(compiled(), epochs=3, callbacks=[backup, Stop()])
    resumed, model = compiled(), compiled()
    fit(resumed, epochs=3, callbacks=[keras.callbacks.BackupAndRestore(tmp_path)])
    fit(model, epochs=3)
    assert int(resumed.optimizer.iterations) == int(model.optimizer.iterations) == 15
    assert_equal(resumed.get_weights(), model.get_weights(), atol=1e-6)
    assert_equal(averages(resumed), averages(model), atol=1e-6)


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
def test_averages_begin_at_weights_that_are_loaded_without_them(tmp_path):
    plain = network()
    plain.set_weights([w + 1 for w in plain.get_weights()])
    plain.save_weights(tmp_path / "plain.weights.h5")
    model = trained()
    model.load_weights(tmp_path / "plain.weights.h5")
    assert_equal(averages(model), plain.get_weights())


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_averages_stay_if_weights_cannot_be_loaded(tmp_path):
    model = trained()
    before = averages(model)
    network(units=7).save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(ValueError, match="could not be loaded"):
        model.load_weights(tmp_path / "other.weights.h5")
    assert_equal(averages(model), before)


class WithItsOwnTestStep(AGCModel):
    def test_step(self, *args):
        return keras.Model.test_step(self, *args)


class WithMoreLogs(AGCModel):
    def test_step(self, *args):
        return super().test_step(*args)


def test_a_test_step_without_averages_says_so():
    model = trained(cls=WithItsOwnTestStep)
    with pytest.warns(UserWarning, match=r"no results .* Call `super\(\)\.test_step"):
        assert "ema_loss" not in evaluate(model)
    assert evaluate(trained(cls=WithMoreLogs)) == pytest.approx(evaluate(trained()))
