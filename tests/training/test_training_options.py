"""Options of `AGCModel.compile` besides clipping: SAM, averaged weights, skipping."""

import contextlib
import functools
import inspect
import json

import keras
import numpy as np
import pytest
from eager import eager_functions
from keras import ops

from keras_nfnets import AGC, SGDAGC, AGCModel, NFNetTiny
from keras_nfnets.training import (
    Checkpoints,
    TrainingLog,
    growing_image_sizes,
    warmup_cosine,
)

X = np.array([[2.0, 0.0], [0.0, 1.0]], "float32")
Y = np.zeros((2, 1), "float32")


def quadratic(w, **options):
    """Build a model of two weights, with the loss (4 w0^2 + w1^2) / 2 on X and Y."""
    inputs = keras.Input((2,))
    model = AGCModel(inputs, keras.layers.Dense(1, use_bias=False)(inputs))
    model.set_weights([np.reshape(w, (2, 1))])
    model.compile(loss="mse", **options)
    return model


def weights_of(model):
    return model.get_weights()[0][:, 0]


def gradient_at(w):
    return np.array([4.0, 1.0]) * w


@pytest.mark.parametrize("scaled", [False, True])
# On PyTorch this would use torch.compile, which needs a C++ compiler.
@pytest.mark.parametrize(
    "jit_compile", [False] if keras.backend.backend() == "torch" else [False, True]
)
def test_sam_by_hand(scaled, jit_compile):
    w = np.array([0.3, -2.0])
    optimizer = keras.optimizers.SGD(0.1)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model = quadratic(
        w, optimizer=optimizer, clip_factor=None, sam_rho=0.5, jit_compile=jit_compile
    )
    for _ in range(3):
        loss = model.train_on_batch(X, Y)
        assert loss == pytest.approx((4 * w[0] ** 2 + w[1] ** 2) / 2, rel=1e-5)
        g = gradient_at(w)
        w = w - 0.1 * gradient_at(w + 0.5 * g / np.linalg.norm(g))
        np.testing.assert_allclose(weights_of(model), w, rtol=1e-5)


def test_sam_is_clipped_at_the_weights_themselves():
    w = np.array([0.3, -2.0])
    model = quadratic(w, optimizer=keras.optimizers.SGD(0.1), sam_rho=0.5)
    model.train_on_batch(X, Y)
    g = gradient_at(w)
    worst = gradient_at(w + 0.5 * g / np.linalg.norm(g))
    # Both weights belong to one unit, as there is one output.
    worst *= 0.01 * np.linalg.norm(w) / np.linalg.norm(worst)
    np.testing.assert_allclose(weights_of(model), w - 0.1 * worst, rtol=1e-5)


@pytest.mark.parametrize("failing_call", [1, 2])
def test_sam_restores_the_weights_when_an_eager_step_fails(failing_call):
    calls = 0

    def fail(x):
        nonlocal calls
        calls += 1
        if calls == failing_call:
            raise ArithmeticError("at the worst point")
        return x

    w = np.array([0.3, -2.0], "float32")
    model = quadratic(
        w, optimizer=keras.optimizers.SGD(0.0), sam_rho=0.5, run_eagerly=True
    )
    model.train_on_batch(X, Y)  # Keras calls the layers once more to build the model
    model.layers[-1].activation = fail
    with pytest.raises(ArithmeticError, match="at the worst point"):
        model.train_on_batch(X, Y)
    assert calls == failing_call
    np.testing.assert_array_equal(weights_of(model), w)


class FailsAbove(keras.layers.Layer):
    """Layer with one weight, whose computation fails where that is above 1."""

    def build(self, shape):
        self.w = self.add_weight((), "zeros", name="w")

    def call(self, x):
        import tensorflow as tf

        with tf.control_dependencies([tf.debugging.assert_less(self.w.value, 1.0)]):
            return tf.identity(x * self.w)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="only there steps fail when they run",
)
@pytest.mark.parametrize(
    ("way", "replicas"),
    [
        *(("fit", 2), ("train_on_batch", 1)),
        pytest.param("fit", 1, marks=pytest.mark.slow),
        pytest.param("train_on_batch", 4, marks=pytest.mark.slow),
    ],
)
def test_a_compiled_step_that_fails_between_sams_passes_restores_the_weights(
    way, replicas
):
    import tensorflow as tf

    devices = [f"CPU:{i}" for i in range(replicas)]
    strategy = tf.distribute.MirroredStrategy(
        devices, tf.distribute.ReductionToOneDevice()
    )
    with strategy.scope() if replicas > 1 else contextlib.nullcontext():
        inputs = keras.Input((1,))
        hidden = keras.layers.Dense(1, use_bias=False)(inputs)
        model = AGCModel(inputs, FailsAbove()(hidden))
        model.set_weights([np.array([[0.5]]), np.array(0.7)])
        model.compile(keras.optimizers.SGD(0.0), "mse", sam_rho=0.2, jit_compile=False)
    x, above = np.ones((4, 1), "float32"), -100 * np.ones((4, 1), "float32")
    train = model.train_on_batch if way == "train_on_batch" else model.fit
    train(x, x)  # at the perturbed weights, w is 0.9 at most
    weights = [0.5, 0.95]
    model.set_weights([np.array([[0.5]]), np.array(0.95)])
    # The loss grows with w, so that the second pass is at a larger one.
    with pytest.raises(tf.errors.InvalidArgumentError):
        train(x, above)
    values = [v.item() for v in model.get_weights()]
    assert values == pytest.approx(weights, abs=1e-7)
    model.set_weights([np.array([[0.5]]), np.array(0.7)])
    train(x, x)


def test_sam_at_a_minimum_stays_there():
    model = quadratic([0.0, 0.0], optimizer="sgd", clip_factor=None, sam_rho=0.5)
    model.train_on_batch(X, Y)
    np.testing.assert_array_equal(weights_of(model), 0)


@pytest.mark.parametrize("steps", [None, 2])
def test_averages_by_hand(steps, tmp_path):
    w = average = np.array([0.3, -2.0])
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=steps)
    model = quadratic(w, optimizer=optimizer, clip_factor=None, ema_decay=0.3)
    for t in range(5):
        for _ in range(steps or 1):
            model.train_on_batch(X, Y)
        w = w - 0.1 * gradient_at(w)
        decay = min(0.3, (1 + t) / (10 + t))  # 0.1, 0.18, 0.25, 0.3, 0.3
        average = decay * average + (1 - decay) * w
    np.testing.assert_allclose(weights_of(model), w, rtol=1e-5)
    with model.averaged_weights():
        np.testing.assert_allclose(weights_of(model), average, rtol=1e-5)
        model.save(tmp_path / "averaged.keras")
    np.testing.assert_allclose(weights_of(model), w, rtol=1e-5)

    # Averages are evaluated in addition to the weights, and saved with them.
    logs = model.evaluate(X, Y, verbose=0, return_dict=True)
    for name, weights in (("loss", w), ("ema_loss", average)):
        loss = (4 * weights[0] ** 2 + weights[1] ** 2) / 2
        assert logs[name] == pytest.approx(loss, rel=1e-5)
    assert model.evaluate(X, Y, verbose=0) == [logs["loss"], logs["ema_loss"]]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(weights_of(loaded), w, rtol=1e-5)
    with loaded.averaged_weights():
        np.testing.assert_allclose(weights_of(loaded), average, rtol=1e-5)
    averaged = keras.saving.load_model(tmp_path / "averaged.keras")
    np.testing.assert_allclose(weights_of(averaged), average, rtol=1e-5)


@pytest.mark.parametrize(
    "jit_compile", [False] if keras.backend.backend() == "torch" else [False, True]
)
def test_averages_begin_where_training_begins(jit_compile):
    model = quadratic(
        [5.0, 5.0],
        optimizer="sgd",
        clip_factor=None,
        ema_decay=0.999,
        jit_compile=jit_compile,
    )
    with pytest.raises(ValueError, match="ema_decay"):
        model.averaged_weights()
    model.set_weights([np.array([[0.3], [-2.0]])])  # such as pretrained ones
    history = model.fit(X, Y, validation_data=(X, Y), verbose=0).history
    w = np.array([0.3, -2.0])
    new = w - 0.01 * gradient_at(w)
    with model.averaged_weights():
        np.testing.assert_allclose(weights_of(model), 0.1 * w + 0.9 * new, rtol=1e-5)
    assert {"val_loss", "val_ema_loss"} <= set(history)


def test_a_step_that_is_not_finite_changes_nothing():
    model = quadratic(
        [0.3, -2.0],
        optimizer=keras.optimizers.Adam(0.1),
        skip_nonfinite=True,
        ema_decay=0.9,
    )
    model.train_on_batch(X, Y)
    before = model.get_weights() + [
        ops.convert_to_numpy(v) for v in model.optimizer.variables
    ]
    for bad in (np.nan, np.inf, -np.inf):
        logs = model.train_on_batch(X + bad, Y, return_dict=True)
        assert logs["skipped"] == 1
        after = model.get_weights() + [
            ops.convert_to_numpy(v) for v in model.optimizer.variables
        ]
        for a, b in zip(after, before):
            np.testing.assert_array_equal(a, b)
    assert model.train_on_batch(X, Y, return_dict=True)["skipped"] == 0
    assert np.all(weights_of(model) != before[0][:, 0])


def test_skipped_steps_are_counted_by_epoch_and_not_in_evaluation():
    x, y = np.tile(X, (6, 1)), np.tile(Y, (6, 1))
    x[3] = np.nan
    model = quadratic([0.3, -2.0], optimizer="sgd", skip_nonfinite=True)
    history = model.fit(
        x, y, batch_size=2, epochs=2, shuffle=False, verbose=0, validation_data=(X, Y)
    ).history
    assert history["skipped"] == [1, 1]
    assert np.isfinite(history["loss"]).all()
    assert set(history) == {"loss", "clip_share", "skipped", "val_loss"}


@pytest.mark.parametrize("examples", [2, 22])
def test_ten_skipped_steps_in_a_row_end_training_with_an_explanation(examples):
    x, y = np.full((examples, 2), np.nan, "float32"), np.zeros((examples, 1), "float32")
    model = quadratic([0.3, -2.0], optimizer="sgd", skip_nonfinite=True)
    name = model.layers[-1].name
    expected = (
        f"last 10 steps .* those of {name}/kernel. The learning rate is 0.01; "
        "0% of units clipped. The weights are those before"
    )
    with pytest.raises(FloatingPointError, match=expected):
        model.fit(x, y, batch_size=2, epochs=20, verbose=0)
    np.testing.assert_allclose(weights_of(model), [0.3, -2.0], rtol=1e-6)
    # Nine steps in a row do not raise, and a finite step resets the count.
    x = np.concatenate([x[:2]] * 9 + [X] + [x[:2]] * 9)
    model = quadratic([0.3, -2.0], optimizer="sgd", skip_nonfinite=True)
    model.fit(x, np.zeros((len(x), 1)), batch_size=2, shuffle=False, verbose=0)


def test_loss_scaling_still_lowers_its_scale_when_steps_are_skipped():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    model = quadratic(
        [0.3, -2.0], optimizer=optimizer, skip_nonfinite=True, ema_decay=0.9
    )
    model.train_on_batch(X, Y)
    with model.averaged_weights():
        average = weights_of(model)
    w = weights_of(model)
    logs = model.train_on_batch(X * np.nan, Y, return_dict=True)
    assert logs["skipped"] == 1
    assert ops.convert_to_numpy(optimizer.dynamic_scale) == 2.0**14
    np.testing.assert_array_equal(weights_of(model), w)
    with model.averaged_weights():
        np.testing.assert_array_equal(weights_of(model), average)


# Keras cannot read float8 variables of PyTorch.
@pytest.mark.parametrize(
    "dtype",
    ["bfloat16", "float8_e4m3fn", "float8_e5m2"]
    if keras.backend.backend() != "torch"
    else ["bfloat16"],
)
def test_checkpoints_restore_types_unknown_to_numpy(dtype, tmp_path):
    def compiled_model(value):
        model = quadratic([0.3, -2.0], optimizer="sgd")
        layer = model.layers[-1]
        layer._tracker.unlock()
        layer.scale = layer.add_weight(
            (3,),
            # TensorFlow casts to float8 only from floating point.
            lambda shape, dtype: ops.cast(ops.full(shape, value, "float32"), dtype),
            dtype,
            trainable=False,
        )
        layer._tracker.lock()
        return model, layer.scale

    model, _ = compiled_model(1.0)
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.set_model(model)
    checkpoints.save(1)
    other, other_scale = compiled_model(0.0)
    assert Checkpoints(tmp_path, {}).restore(other) == (1, {})
    np.testing.assert_array_equal(
        ops.convert_to_numpy(other_scale).astype("float32"), np.ones(3)
    )


def test_options_survive_saving(tmp_path):
    options = {"sam_rho": 0.05, "ema_decay": 0.99, "skip_nonfinite": True}
    model = quadratic([0.3, -2.0], optimizer="adam", **options)
    model.train_on_batch(X, Y)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for _ in range(2):
        logs = model.train_on_batch(X, Y, return_dict=True)
        assert loaded.train_on_batch(X, Y, return_dict=True) == pytest.approx(logs)
    np.testing.assert_allclose(weights_of(loaded), weights_of(model), rtol=1e-6)
    config = loaded.get_compile_config()
    assert {name: config[name] for name in options} == options


@pytest.mark.parametrize("suffix", [".h5", ".hdf5"])
def test_the_old_format_is_refused(suffix, tmp_path):
    model = quadratic([1, 1], optimizer="sgd")
    with pytest.raises(ValueError, match=r"old format .* \.keras, or .*save_weights"):
        model.save(tmp_path / f"model{suffix}")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"old format .* \.keras, or .*save_weights"):
        keras.saving.save_model(model, tmp_path / f"model{suffix}")
    model.save_weights(tmp_path / "model.weights.h5")


@pytest.fixture
def _eagerly():
    with eager_functions():
        yield


@pytest.mark.usefixtures("_eagerly")
def test_clip_shares_of_the_stages_of_a_network():
    model = NFNetTiny(input_shape=(8, 8, 1), classes=3, attention=None)
    loss = "sparse_categorical_crossentropy"
    model.compile(
        keras.optimizers.SGD(1e-9), loss, clip_factor=1e-6, agc_exclude="stage2_*"
    )
    x, y = np.ones((2, 8, 8, 1)), np.array([0, 1])
    log = TrainingLog(images_per_epoch=2)
    options = {"validation_data": (x, y), "callbacks": [log], "verbose": 0}
    history = model.fit(x, y, **options).history
    shares = {name: history[name][0] for name in model.clip_shares}
    stages = [f"clip_share_stage{i}" for i in (1, 2, 3, 4)]
    assert list(shares) == ["clip_share_stem", *stages]
    assert shares["clip_share_stage2"] == 0
    assert shares["clip_share_stem"] > 0.9
    assert 0.1 < history["clip_share"][0] < 1
    assert history["learning_rate"] == [pytest.approx(1e-9)]
    assert history["images_per_second"][0] > 0


def test_schedule_of_the_papers():
    # Batch size 4096: warmup to 0.1 * 16 in 5 epochs, then a cosine to 0 at epoch 360.
    schedule = warmup_cosine(0.1, 4096, steps_per_epoch=312, epochs=360)
    for epoch, expected in (
        (0, 0),
        (2.5, 0.8),
        (5, 1.6),
        (5 + 355 / 2, 0.8),
        (5 + 355 / 3, 1.2),
        (360, 0),
        (400, 0),
    ):
        rate = ops.convert_to_numpy(schedule(round(epoch * 312)))
        assert rate == pytest.approx(expected, abs=1e-3)
    # A short run warms up for at most a tenth of its epochs.
    schedule = warmup_cosine(0.1, 256, steps_per_epoch=10, epochs=10)
    assert ops.convert_to_numpy(schedule(10)) == pytest.approx(0.1)
    for wrong in ({"epochs": 0}, {"steps_per_epoch": 0}, {"warmup_epochs": 10}):
        arguments = {"steps_per_epoch": 10, "epochs": 10, **wrong}
        with pytest.raises(ValueError, match=next(iter(wrong))):
            warmup_cosine(0.1, 256, **arguments)


def test_image_sizes_grow_in_quarters_of_a_run():
    assert growing_image_sizes(128, 224, 360) == [
        (128, 0, 90),
        (160, 90, 180),
        (192, 180, 270),
        (224, 270, 360),
    ]
    assert growing_image_sizes(8, 32, 3) == [(8, 0, 1), (20, 1, 2), (32, 2, 3)]
    assert growing_image_sizes(8, 32, 1) == [(32, 0, 1)]
    assert growing_image_sizes(31, 32, 9) == [(31, 0, 4), (32, 4, 9)]
    assert growing_image_sizes(32, 32, 9) == [(32, 0, 9)]
    with pytest.raises(ValueError, match="first=33, last=32"):
        growing_image_sizes(33, 32, 10)
    with pytest.raises(ValueError, match="epochs=0"):
        growing_image_sizes(8, 32, 0)


class WithItsOwnMetrics(AGCModel):
    """The pattern of Keras's documentation of `compute_loss`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.total = keras.metrics.Mean(name="total_loss")

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        loss = ops.mean((y_pred - y) ** 2)
        self.total.update_state(loss)
        return loss

    def reset_metrics(self):
        self.total.reset_state()

    @property
    def metrics(self):
        return [self.total]


@pytest.mark.parametrize("sam_rho", [None, 1e-6])
def test_a_model_may_list_its_own_metrics_only(sam_rho):
    """The other metrics still count steps, once each and anew in each epoch."""
    inputs = keras.Input((2,))
    outputs = keras.layers.Dense(1, use_bias=False)(inputs)
    model, plain = WithItsOwnMetrics(inputs, outputs), AGCModel(inputs, outputs)
    weights = model.get_weights()
    histories = []
    for each in (model, plain):
        each.set_weights(weights)
        each.compile(
            keras.optimizers.SGD(0.1), "mse", sam_rho=sam_rho, skip_nonfinite=True
        )
        fit = each.fit(X, Y, batch_size=1, epochs=3, shuffle=False, verbose=0)
        histories.append(fit.history)
    ours, expected = histories
    assert set(ours) == {"total_loss", "clip_share", "skipped"}
    np.testing.assert_allclose(ours["total_loss"], expected["loss"], rtol=1e-5)
    assert ours["clip_share"] == expected["clip_share"]
    assert model.clip_share.result() == plain.clip_share.result()
    np.testing.assert_allclose(model.get_weights()[0], plain.get_weights()[0])


def with_statistics(**options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2,))
    x = keras.layers.BatchNormalization(momentum=0.5)(inputs)
    model = AGCModel(inputs, keras.layers.Dense(1)(x))
    model.compile(loss="mse", metrics=["mae"], **options)
    return model


def test_a_skipped_step_changes_neither_statistics_nor_metrics():
    data = np.random.default_rng(0).normal(size=(12, 2)).astype("float32")
    targets = data[:, :1]
    bad = data.copy()
    bad[5] = np.nan  # in the second of three steps
    model, expected = (
        with_statistics(optimizer=keras.optimizers.SGD(0.1), skip_nonfinite=True)
        for _ in range(2)
    )
    fit = {"batch_size": 4, "shuffle": False, "verbose": 0}
    history = model.fit(bad, targets, **fit).history
    good = np.r_[0:4, 8:12]
    expected_history = expected.fit(data[good], targets[good], **fit).history
    assert (history.pop("skipped"), expected_history.pop("skipped")) == ([1], [0])
    for name, values in expected_history.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-6, err_msg=name)
    for value, other in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-6)


def test_sam_updates_statistics_once():
    data = np.random.default_rng(0).normal(size=(12, 2)).astype("float32")
    statistics = []
    for sam_rho in (None, 1e-9):
        model = with_statistics(optimizer=keras.optimizers.SGD(0.1), sam_rho=sam_rho)
        model.fit(data, data[:, :1], batch_size=4, shuffle=False, verbose=0)
        statistics.append(
            [ops.convert_to_numpy(v) for v in model.non_trainable_weights]
        )
    np.testing.assert_allclose(statistics[1], statistics[0], rtol=1e-5)


class WithItsOwnStep(AGCModel):
    def train_step(self, *args):
        return keras.Model.train_step(self, *args)


@pytest.mark.parametrize(
    "settings",
    [
        {"sam_rho": 0.05},
        {"ema_decay": 0.9},
        {"skip_nonfinite": True},
        {"clip_factor": 1},
    ],
    ids=str,
)
def test_settings_that_a_train_step_ignores_are_an_error(settings):
    inputs = keras.Input((2,))
    model = WithItsOwnStep(inputs, keras.layers.Dense(1)(inputs))
    [(name, value)] = settings.items()
    for train in (
        lambda: model.fit(X, Y, verbose=0),
        lambda: model.train_on_batch(X, Y),
    ):
        model.compile("sgd", "mse", **settings)
        match = rf"{name}={value}.*super\(\)\.train_step"
        with pytest.raises(ValueError, match=match):
            train()


def test_a_train_step_that_does_not_clip_says_so():
    inputs = keras.Input((2,))
    model = WithItsOwnStep(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match=r"no effect: clip_factor=0\.01\."):
        history = model.fit(X, Y, verbose=0).history
    assert set(history) == {"loss"} and model.clip_shares == {}
    for options in ({"clip_factor": None}, {"optimizer": AGC("sgd")}):
        model.compile(**{"optimizer": "sgd", "loss": "mse", **options})
        model.fit(X, Y, verbose=0)


@pytest.mark.parametrize(
    "options",
    [
        *({}, {"sam_rho": 0.05}, {"ema_decay": 0.9}),
        pytest.param({"skip_nonfinite": True}, marks=pytest.mark.slow),
        {"optimizer": AGC("sgd")},
        pytest.param({"optimizer": SGDAGC()}, marks=pytest.mark.slow),
    ],
    ids=["clipping", "SAM", "averages", "skipping", "AGC", "SGDAGC"],
)
def test_a_model_without_trainable_weights_trains_as_in_keras(options):
    inputs = keras.Input((2,))
    outputs = keras.layers.Dense(1, trainable=False)(inputs)
    model, plain = AGCModel(inputs, outputs), keras.Model(inputs, outputs)
    model.compile(**{"optimizer": "sgd", "loss": "mse", **options})
    with pytest.warns(UserWarning, match="no trainable weights"):
        [loss] = model.fit(X, Y, verbose=0).history["loss"]
    plain.compile("sgd", "mse")
    assert loss == pytest.approx(plain.evaluate(X, Y, verbose=0))


@pytest.mark.parametrize(
    "settings",
    [
        *({"skip_nonfinite": "yes"}, {"skip_nonfinite": 1}, {"skip_nonfinite": None}),
        *({name: ops.ones(()) / 2} for name in ("clip_factor", "sam_rho", "ema_decay")),
        *({name: "0.5"} for name in ("clip_factor", "agc_eps", "sam_rho", "ema_decay")),
        {"clip_factor": np.array([0.5])},
        {"clip_factor": True},
    ],
    ids=lambda settings: "-".join(
        f"{k}-{type(v).__name__}" for k, v in settings.items()
    ),
)
def test_settings_are_numbers_and_bools(settings):
    [name] = settings
    with pytest.raises(ValueError, match=f"`{name.removeprefix('agc_')}` must be"):
        quadratic([1, 1], optimizer="sgd", **settings)


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), 1])
def test_numbers_of_numpy_are_settings(number):
    model = quadratic([1, 1], optimizer="sgd", clip_factor=number)
    stored = model.get_compile_config()["clip_factor"]
    assert type(stored) is float and stored == number


# A classifier of another name.


def classifier(cls, name="head"):
    inputs = keras.Input((2,))
    x = keras.layers.Dense(4, name="hidden")(inputs)
    return cls(inputs, keras.layers.Dense(3, name=name)(x))


LABELS = np.array([0, 1])


@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        keras.losses.sparse_categorical_crossentropy,
    ],
    ids=["name", "object", "function"],
)
def test_a_clipped_classifier_is_said_once(loss):
    model = classifier(AGCModel)
    model.compile("sgd", loss)
    with pytest.warns(UserWarning, match='agc_exclude="head/kernel"') as caught:
        model.fit(X, LABELS, epochs=2, verbose=0)
    assert len([w for w in caught if "classifier" in str(w.message)]) == 1
    model.fit(X, LABELS, verbose=0)


@pytest.mark.usefixtures("_eagerly")
@pytest.mark.parametrize("make", [lambda **o: AGC("sgd", **o), lambda **o: SGDAGC(**o)])
def test_optimizers_say_that_a_classifier_is_clipped(make):
    model = classifier(keras.Model)
    model.compile(make(), "sparse_categorical_crossentropy")
    with pytest.warns(UserWarning, match=' exclude="head/kernel"'):
        model.fit(X, LABELS, verbose=0)
    for exclude in ("head/kernel", "head", None):
        model.compile(make(exclude=exclude), "sparse_categorical_crossentropy")
        model.fit(X, LABELS, verbose=0)


@pytest.mark.usefixtures("_eagerly")
@pytest.mark.parametrize(
    "names, losses, choice",
    [
        (("classes", "values"), ("cross", "mse"), '"classes/kernel"'),
        (("values", "predictions", "z"), ("mse", "cross", "cross"), '"z/kernel"'),
        (("a", "b", "c"), ("cross", "mse", "cross"), r'\["a/kernel", "c/kernel"\]'),
    ],
)
def test_classifiers_are_those_of_the_outputs_with_a_cross_entropy(
    names, losses, choice
):
    inputs = keras.Input((2,))
    heads = [keras.layers.Dense(3, name=name)(inputs) for name in names]
    outputs = [
        keras.layers.Activation("softmax", name=f"{n}_softmax")(h)
        for n, h in zip(names, heads)
    ]
    losses = ["categorical_crossentropy" if x == "cross" else x for x in losses]
    for structure, losses_of in (
        (outputs, list),
        (dict(zip(names, outputs)), lambda x: dict(zip(names, x))),
    ):
        model = AGCModel(inputs, structure)
        model.compile("sgd", losses_of(losses))
        y = keras.tree.map_structure(lambda _: np.full((2, 3), 1 / 3), structure)
        with pytest.warns(UserWarning, match=f"agc_exclude={choice}"):
            model.fit(X, y, verbose=0)


@pytest.mark.usefixtures("_eagerly")
def test_outputs_may_be_nested():
    inputs = keras.Input((2,))
    a, b, c = (
        keras.layers.Dense(3, "softmax", name=name)(inputs) for name in ("a", "b", "c")
    )
    cross = "categorical_crossentropy"
    for outputs, losses in (
        ([a, [b, c]], ["mse", ["mse", cross]]),
        ({"p": a, "q": {"r": b, "s": c}}, {"p": "mse", "q": {"r": "mse", "s": cross}}),
    ):
        model = AGCModel(inputs, outputs)
        model.compile("sgd", losses)
        y = keras.tree.map_structure(lambda _: np.full((2, 3), 1 / 3), outputs)
        with pytest.warns(UserWarning, match='agc_exclude="c/kernel"'):
            model.fit(X, y, verbose=0)


@pytest.mark.usefixtures("_eagerly")
def test_no_classifier_is_said_where_none_is_clipped():
    for name, loss, options in (
        ("predictions", "sparse_categorical_crossentropy", {}),
        ("head", "mse", {}),
        ("head", "sparse_categorical_crossentropy", {"agc_exclude": None}),
        ("head", "sparse_categorical_crossentropy", {"agc_exclude": "head"}),
        ("head", "sparse_categorical_crossentropy", {"clip_factor": None}),
    ):
        model = classifier(AGCModel, name)
        model.compile("sgd", loss, **options)
        model.fit(X, LABELS if "cat" in loss else np.zeros((2, 3)), verbose=0)


# The parts of a network.


def test_clip_shares_of_layers_of_any_network():
    class Subclassed(AGCModel):
        def __init__(self):
            super().__init__(name="mine")
            self.hidden = keras.layers.Dense(4, name="hidden")
            self.inner = keras.Sequential([keras.layers.Dense(1)], name="inner")

        def call(self, x):
            return self.inner(self.hidden(x))

    functional = AGCModel(
        inputs := keras.Input((2,)),
        keras.Sequential([keras.layers.Dense(1)], name="inner")(
            keras.layers.Dense(4, name="hidden")(inputs)
        ),
    )
    for model in (Subclassed(), functional):
        model.compile(keras.optimizers.SGD(1e-9), "mse", clip_factor=1e-9)
        model.fit(X, 1 + Y, verbose=0)
        assert model.clip_shares.keys() == {"clip_share_hidden", "clip_share_inner"}
        assert 0 < model.clip_shares["clip_share_inner"] <= 1


@pytest.mark.usefixtures("_eagerly")
def test_clip_shares_of_a_network_in_another():
    backbone = NFNetTiny(input_shape=(8, 8, 1), weights=None, include_top=False)
    nested = AGCModel(
        inputs := keras.Input((8, 8, 1)),
        keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(backbone(inputs))),
    )
    nested.compile("sgd", "mse")
    nested.fit(np.ones((2, 8, 8, 1)), np.zeros((2, 3)), verbose=0)
    stages = [f"clip_share_stage{i}" for i in (1, 2, 3, 4)]
    assert list(nested.clip_shares) == ["clip_share_stem", *stages]


# Models that change.


def test_layers_may_be_added_after_training():
    model = quadratic([1, 1], optimizer="sgd", skip_nonfinite=True)
    model.fit(X, 1 + Y, verbose=0)
    model.layers[-1].enable_lora(1)
    model.compile("sgd", "mse", skip_nonfinite=True)
    history = model.fit(X, 1 + Y, verbose=0).history
    assert 0 < history["clip_share"][0] <= 1
    with pytest.raises(FloatingPointError, match="lora_kernel"):
        model.fit(X * np.nan, Y, epochs=12, verbose=0)


def test_a_head_may_be_replaced():
    class Stack(AGCModel, keras.Sequential):
        pass

    model = Stack([keras.Input((2,)), keras.layers.Dense(4), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0)
    model.pop()
    model.add(keras.layers.Dense(3))
    model.compile("sgd", "mse")
    history = model.fit(X, np.ones((2, 3)), verbose=0).history
    assert 0 < history["clip_share"][0] <= 1


def test_a_model_without_optimizer_is_evaluated():
    model = quadratic([1, 2], optimizer="sgd")
    loss = model.evaluate(X, Y, verbose=0)
    model.compile(optimizer=None, loss="mse", ema_decay=0.9)
    assert model.evaluate(X, Y, verbose=0) == loss


def test_a_model_may_list_the_metrics_of_training():
    class Lists(AGCModel):
        @property
        def metrics(self):
            return [*super().metrics, self.clip_share]

    inputs = keras.Input((2,))
    model = Lists(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse")
    history = model.fit(X, 1 + Y, epochs=2, verbose=0).history
    assert set(history) == {"loss", "clip_share"}
    assert 0 < history["clip_share"][0] <= 1
    # Once each: a step on JAX may not be given the same array twice.
    listed = [*map(id, model.metrics_variables)]
    assert len(listed) == len(set(listed))


def test_callbacks_reach_what_replaces_fit_as_they_were_given(monkeypatch):
    calls, original = [], keras.Model.fit

    @functools.wraps(original)
    def fit(self, *args, **kwargs):
        calls.append((args, kwargs))
        return original(self, *args, **kwargs)

    # As MLflow does, which looks for callbacks among the keywords.
    monkeypatch.setattr(keras.Model, "fit", fit)
    model = quadratic([1.0, 1.0], optimizer="sgd", skip_nonfinite=True)
    own = keras.callbacks.Callback()
    model.fit(X, Y, verbose=0, callbacks=[own])
    model.fit(X, Y, None, 1, 0, [own])
    # Without `functools.wraps`, the signature is that of this function.
    monkeypatch.setattr(keras.Model, "fit", lambda *args, **kw: original(*args, **kw))
    model.fit(X, Y, None, 1, 0, [own])
    (by_keyword, keywords), (by_position, rest) = calls
    assert len(by_keyword) == 2 and keywords["callbacks"][0] is own
    assert by_position[5][0] is own and not rest
    assert len(keywords["callbacks"]) == len(by_position[5]) == 2


def own_choice(variable):
    return "gain" in variable.path


def test_settings_for_logs_are_plain_values_and_say_whether_the_model_clips():
    model = quadratic([1.0, 1.0], optimizer="sgd", agc_exclude=own_choice, sam_rho=0.1)
    settings = model.training_settings
    assert settings["agc_exclude"] == "own_choice"
    assert settings["clip_factor"] == 0.01 and settings["sam_rho"] == 0.1
    assert json.loads(json.dumps(settings)) == settings
    own = inspect.signature(AGCModel.compile).parameters.values()
    assert set(settings) == {p.name for p in own if p.kind is p.KEYWORD_ONLY}
    model.compile("sgd", "mse", agc_exclude=functools.partial(own_choice))
    assert "own_choice" in model.training_settings["agc_exclude"]
    model.compile(AGC("sgd", clip_factor=0.5), "mse", clip_factor=0.02)
    assert model.training_settings["clip_factor"] is None
    inputs = keras.Input((2,))
    with pytest.raises(ValueError, match="call `compile` first"):
        _ = AGCModel(inputs, keras.layers.Dense(1)(inputs)).training_settings
