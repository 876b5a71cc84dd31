"""Averaged weights: evaluated in the same pass, and kept by compile and by files."""

import warnings

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
        pytest.param({"run_eagerly": True}, marks=pytest.mark.slow),
        pytest.param({"optimizer": AGC("sgd")}, marks=pytest.mark.slow),
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


class Smallest(keras.metrics.Metric):
    """Smallest error of a batch, which begins at a value other than zero."""

    def __init__(self, name="smallest", **kwargs):
        super().__init__(name=name, **kwargs)
        self.value = self.add_variable((), keras.initializers.Constant(1e9))

    def update_state(self, y_true, y_pred, sample_weight=None):
        error = ops.mean(ops.abs(y_true - y_pred))
        self.value.assign(ops.minimum(self.value, error))

    def result(self):
        return ops.convert_to_tensor(self.value)

    def reset_state(self):
        self.value.assign(1e9)


def test_metrics_need_not_begin_at_zero(tmp_path):
    model = network()
    model.compile("sgd", "mse", metrics=[Smallest()], ema_decay=0.9)
    model.fit(X, Y, verbose=0)
    expected = evaluate(model)
    assert 0.1 < expected["ema_smallest"] < 10
    model.save(tmp_path / "model.keras")
    custom = {"Smallest": Smallest}
    loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects=custom)
    assert evaluate(loaded) == pytest.approx(expected)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="Keras keeps no states of RNNs on JAX, and on PyTorch it cannot train with them",
)
def test_a_stateful_network_has_its_own_state_in_each_evaluation():
    x = RANDOM.normal(size=(12, 3, 2)).astype("float32")
    y = x[:, :1, 0]
    inputs = keras.Input(batch_shape=(4, 3, 2))
    rnn = keras.layers.GRU(3, stateful=True)
    model = AGCModel(inputs, keras.layers.Dense(1)(rnn(inputs)))
    model.compile(keras.optimizers.SGD(0.5), "mse", ema_decay=0.9)
    model.fit(x, y, batch_size=4, epochs=3, shuffle=False, verbose=0)

    def evaluated():
        rnn.reset_states()
        return evaluate(model, x, y, batch_size=4)

    both = evaluated()
    with model.averaged_weights():
        averaged = evaluated()["loss"]
    assert both["ema_loss"] == pytest.approx(averaged, rel=1e-5)
    plain = keras.Model(model.inputs, model.outputs)
    plain.compile(loss="mse")
    rnn.reset_states()
    assert both["loss"] == pytest.approx(evaluate(plain, x, y, batch_size=4)["loss"])
    assert abs(both["loss"] - averaged) > 1e-4 * averaged


class Counter(keras.layers.Layer):
    """Layer that adds the number of its calls."""

    def build(self, input_shape):
        self.calls = self.add_weight(name="calls", initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign_add(1)
        return x + self.calls


def test_the_state_of_layers_counts_each_batch_once():
    inputs = keras.Input((6,))
    counter = Counter()
    model = AGCModel(inputs, keras.layers.Dense(3)(counter(inputs)))
    model.compile("sgd", "mse", ema_decay=0.9)
    model.fit(X, Y, batch_size=4, verbose=0)

    def evaluated():
        counter.calls.assign(0)
        return evaluate(model, batch_size=4)

    both = evaluated()
    assert float(counter.calls) == 5
    with model.averaged_weights():
        averaged = evaluated()["loss"]
    assert both["ema_loss"] == pytest.approx(averaged, rel=1e-5)
    assert evaluated() == pytest.approx(both)


def test_results_are_in_the_order_of_keras_and_then_the_averages():
    inputs = keras.Input((6,))
    outputs = {n: keras.layers.Dense(3, name=n)(inputs) for n in ("u", "v")}
    results = {}
    for decay in (None, 0.9):
        model = AGCModel(inputs, outputs)
        losses = {"u": "mse", "v": "mse"}
        model.compile("sgd", losses, metrics={"u": "mae"}, ema_decay=decay)
        model.fit(X, {"u": Y, "v": Y}, verbose=0)
        results[decay] = model.metrics_names
        values = model.evaluate(X, {"u": Y, "v": Y}, verbose=0)
        named = evaluate(model, y={"u": Y, "v": Y})
        assert dict(zip(model.metrics_names, values, strict=True)) == named
    assert results[0.9] == results[None] + [f"ema_{n}" for n in results[None]]


def test_averages_begin_at_the_weights_of_the_first_step():
    model = compiled()
    for _ in range(2):
        assert "ema_loss" not in evaluate(model)
    new = [w + 1 for w in model.get_weights()]
    model.set_weights(new)
    fit(model, epochs=1, batch_size=20)
    other = compiled()
    other.set_weights(new)
    fit(other, epochs=1, batch_size=20)
    assert_equal(averages(model), averages(other))


@pytest.mark.skipif(
    keras.backend.backend() == "jax",
    reason="an optimizer on JAX wants all the variables it was built for",
)
def test_averages_follow_what_is_trained():
    """Halves of a network are trained in turns, with one optimizer."""
    model = network()
    first, last = model.layers[1], model.layers[-1]
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    for i in range(3):
        first.trainable, last.trainable = i % 2 == 0, i % 2 == 1
        model.compile(optimizer, "mse", ema_decay=0.5)
        fit(model, epochs=1)
    before = first.get_weights()[0]
    with model.averaged_weights():
        assert np.abs(first.get_weights()[0] - before).max() > 0


def test_load_weights_changes_the_learning_rate_no_more_than_keras(tmp_path):
    trained().save_weights(tmp_path / "model.weights.h5")
    for decay, iterations in ((None, 0), (0.9, 10)):
        model = compiled(optimizer=keras.optimizers.SGD(1e-4, 0.9), ema_decay=decay)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # there is no place for the averages
            model.load_weights(tmp_path / "model.weights.h5")
        assert float(model.optimizer.learning_rate) == np.float32(1e-4)
        assert int(model.optimizer.iterations) == iterations


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
