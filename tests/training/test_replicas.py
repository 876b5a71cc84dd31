"""Several replicas give the same training as one (TensorFlow)."""

import contextlib
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from optimizer_maps import multi_optimizer
from quick import quick

from keras_nfnets import AGC, SGDAGC, AGCModel
from keras_nfnets.training import Checkpoints, replicas_tensorflow

CLIP = {"clip_factor": 0.02, "eps": 1e-3}


def sgd(**options):
    return keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, **options)


# Class of the model, and arguments of `compile`, for each way to clip.
WAYS = {
    "model": lambda **o: (AGCModel, {"optimizer": sgd(**o), "clip_factor": 0.02}),
    "wrapper": lambda **o: (keras.Model, {"optimizer": AGC(sgd(**o), **CLIP)}),
    "optimizer": lambda **o: (
        keras.Model,
        {"optimizer": SGDAGC(0.1, weight_decay=1e-3, **CLIP, **o)},
    ),
    "optimizer in a model": lambda **o: (
        AGCModel,
        {"optimizer": SGDAGC(0.1, weight_decay=1e-3, **CLIP, **o)},
    ),
    "wrapper in a model": lambda **o: (AGCModel, {"optimizer": AGC(sgd(**o), **CLIP)}),
}
# The same with a `MultiOptimizer` whose optimizers are alike.
MAPS = {
    "map in a model": lambda **o: (
        AGCModel,
        {"optimizer": multi(sgd(**o), sgd(**o)), "clip_factor": 0.02},
    ),
    "wrapped map": lambda **o: (
        keras.Model,
        {"optimizer": AGC(multi(sgd(**o), sgd(**o)), **CLIP)},
    ),
    "map of wrappers": lambda **o: (
        keras.Model,
        {"optimizer": multi(AGC(sgd(**o), **CLIP), AGC(sgd(**o), **CLIP))},
    ),
    "map of wrappers in a model": lambda **o: (
        AGCModel,
        {"optimizer": multi(AGC(sgd(**o), **CLIP), AGC(sgd(**o), **CLIP))},
    ),
}


def multi(default, other):
    return multi_optimizer(default, {"hidden/.*": other})


def scope(replicas):
    if replicas == 1:
        return contextlib.nullcontext()
    if replicas == "a strategy of one":
        return tf.distribute.OneDeviceStrategy("CPU:0").scope()
    devices = [f"CPU:{i}" for i in range(replicas)]
    # Two replicas use TensorFlow's default, collective operations, which a process can use
    # with only one number of devices; others reduce to one device.
    operations = None if replicas == 2 else tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(devices, operations).scope()


def small_model(cls):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, activation="tanh", name="hidden")(inputs)
    return cls(inputs, keras.layers.Dense(3, name="predictions")(x))


def small_data(scale, size=32):
    random = np.random.default_rng(0)
    x = random.normal(size=(size, 6)).astype("float32")
    # Targets of unequal size, so that slices of a batch have unequal gradients.
    y = scale * random.normal(size=(size, 3)) * np.linspace(0.1, 3, size)[:, None]
    return x, y.astype("float32")


def train(
    replicas,
    way,
    *,
    accumulate=None,
    scale=30,
    size=64,
    batch_size=8,
    epochs=1,
    **options,
):
    """Train for several steps; return the history and the model."""
    with scope(replicas):
        cls, compiled = {**WAYS, **MAPS}[way](gradient_accumulation_steps=accumulate)
        model = small_model(cls)
        model.compile(loss="mse", metrics=["mae"], **compiled, **options)
    x, y = small_data(scale, size)
    history = model.fit(
        x,
        y,
        batch_size=batch_size,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        # (Evaluation depends neither on accumulation nor on the optimizer.)
        validation_data=(x, y) if way == "model" and not accumulate else None,
    )
    return history.history, model


def assert_same(result, expected, rtol):
    (history, model), (one_history, one) = result, expected
    assert set(history) == set(one_history)
    for name in history:
        np.testing.assert_allclose(history[name], one_history[name], rtol, err_msg=name)
    for v, w in zip(model.variables, one.variables):
        v, w = v.numpy(), w.numpy()
        np.testing.assert_allclose(v, w, rtol=0, atol=rtol * np.abs(w).max())
    for v in model.trainable_variables:  # all replicas have the same values
        for copy in model.distribute_strategy.experimental_local_results(v.value):
            np.testing.assert_array_equal(copy.numpy(), v.numpy())


@functools.cache
def trained_on_one(way, accumulate=None, **options):
    return train(1, way, accumulate=accumulate, **options)


@pytest.mark.parametrize("way", quick(WAYS, "model"))
def test_a_strategy_of_one_device_changes_nothing(way):
    assert_same(train("a strategy of one", way), trained_on_one(way, None), 1e-6)


@pytest.mark.parametrize(
    "way, replicas, accumulate",
    [
        *((way, 2, 2) for way in ("model", "optimizer", "map in a model")),
        *(
            pytest.param(way, 2, 2, marks=pytest.mark.slow)
            for way in WAYS
            if way not in ("model", "optimizer")
        ),
        *(pytest.param(way, 4, 2, marks=pytest.mark.slow) for way in MAPS),
        *(pytest.param(way, 4, None, marks=pytest.mark.slow) for way in MAPS),
        # Without accumulation, and with reduction to one device.
        ("model", 2, None),
        ("wrapper", 4, None),
        *(
            pytest.param(way, 2, None, marks=pytest.mark.slow)
            for way in WAYS
            if way != "model"
        ),
        pytest.param("optimizer", 4, 2, marks=pytest.mark.slow),
        pytest.param("model", 4, 2, marks=pytest.mark.slow),
    ],
)
def test_replicas_train_as_one(way, replicas, accumulate):
    expected = trained_on_one(way, accumulate)
    result = train(replicas, way, accumulate=accumulate)
    assert_same(result, expected, rtol=2e-5)
    if way == "model":
        assert min(result[0]["clip_share"]) > 0.5


@pytest.mark.parametrize(
    "batch_size, replicas", [pytest.param(8, 4, marks=pytest.mark.slow), (3, 2)]
)
def test_replicas_may_have_unequal_shares_of_a_batch(batch_size, replicas):
    # 31 examples: the last batch has 7, or 1, which leaves replicas without examples.
    options = {"size": 31, "batch_size": batch_size, "epochs": 2}
    result = train(replicas, "model", **options)
    assert_same(result, trained_on_one("model", **options), rtol=2e-5)


class WithAnUnusedVariable(AGCModel):
    """Model with a variable without gradient, and an embedding with a sparse one."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.embedding = keras.layers.Embedding(50, 4)
        self.flatten = keras.layers.Flatten()
        self.outputs_ = keras.layers.Dense(3)
        self.unused = self.add_weight(shape=(2,), name="unused")

    def call(self, x):
        indices = keras.ops.cast(abs(10 * x), "int32")
        return self.outputs_(self.flatten(self.embedding(indices)))


EVERYTHING = {
    "sam_rho": 0.05,
    "skip_nonfinite": True,
    "accumulate": 2,
    "ema_decay": 0.9,
}
KERAS_AVERAGES = {"use_ema": True, "ema_overwrite_frequency": 2}


@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables")
@pytest.mark.parametrize(
    "options",
    [
        EVERYTHING,
        {"run_eagerly": True, "skip_nonfinite": True},
        pytest.param(KERAS_AVERAGES, marks=pytest.mark.slow),
    ],
    ids=["everything", "eager", "averages"],
)
def test_gradients_may_be_missing_or_sparse_and_batches_empty(options):
    x, y = small_data(30, 10)  # on three replicas: 2 + 2 + 2, and 2 + 2 + 0 examples
    # Where gradients accumulate, each epoch is one step.
    epochs = 2 if "accumulate" in options else 1
    options = dict(options)
    optimizer = {
        "gradient_accumulation_steps": options.pop("accumulate", None),
        "use_ema": options.pop("use_ema", False),
        "ema_overwrite_frequency": options.pop("ema_overwrite_frequency", None),
    }
    trained = {}
    for replicas in (1, 3):
        with scope(replicas):
            keras.utils.set_random_seed(1)
            model = WithAnUnusedVariable()
            model.compile(sgd(**optimizer), "mse", clip_factor=0.02, **options)
        fit = {"batch_size": 6, "epochs": epochs, "shuffle": False, "verbose": 0}
        trained[replicas] = model.fit(x, y, **fit).history, model
    assert_same(trained[3], trained[1], rtol=2e-5)


def collective_elements(strategy, model):
    """Return the number of elements that each collective operation of a step sends."""
    x, y = small_data(1, 8)

    @tf.function
    def step(x, y):
        return strategy.run(model.train_step, args=((x, y),))

    graph = step.get_concrete_function(x, y).graph.as_graph_def(add_shapes=True)
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    return [
        np.prod([d.size for d in node.attr["_output_shapes"].list.shape[0].dim])
        for node in nodes
        if "CollectiveReduce" in node.op
    ]


@pytest.mark.parametrize(
    ("way", "accumulate"),
    [
        *(("model", 2), ("wrapper", None), ("optimizer", 2)),
        *(
            pytest.param(way, accumulate, marks=pytest.mark.slow)
            for way, accumulate in (
                *(("model", None), ("wrapper", 2), ("optimizer", None)),
                *(("wrapper in a model", None), ("wrapper in a model", 2)),
                *(("optimizer in a model", None), ("optimizer in a model", 2)),
            )
        ),
    ],
)
def test_gradients_are_all_reduced_once_per_step(way, accumulate):
    with scope(2):
        strategy = tf.distribute.get_strategy()
        cls, compiled = WAYS[way](gradient_accumulation_steps=accumulate)
        model = small_model(cls)
        model.compile(loss="mse", **compiled)
        model.optimizer.build(model.trainable_variables)
    elements = collective_elements(strategy, model)
    # Each of the two devices sends all gradients in one operation. Others send a single
    # element, such as the count of steps.
    large = [count for count in elements if count != 1]
    assert large == [model.count_params()] * 2
    assert len(elements) - len(large) <= 2


@pytest.mark.parametrize("way", quick(WAYS, "model"))
def test_loss_scaling_does_not_depend_on_the_number_of_replicas(way):
    keras.config.set_dtype_policy("mixed_float16")
    options = {"scale": 0.3}  # does not overflow under the initial loss scale
    expected = train(1, way, **options)
    history, model = train(2, way, **options)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    # The tolerance is that of half precision, also in validation (of "model").
    assert_same((history, model), expected, rtol=1e-2)


@pytest.mark.parametrize(
    ("way", "accumulate"),
    [
        *(("model", None), ("wrapper in a model", 2)),
        pytest.param("wrapper", None, marks=pytest.mark.slow),
        pytest.param("model", 2, marks=pytest.mark.slow),
        pytest.param("wrapper in a model", None, marks=pytest.mark.slow),
        pytest.param("wrapper", 2, marks=pytest.mark.slow),
    ],
)
def test_an_overflow_on_any_replica_skips_the_step(way, accumulate):
    x, y = (np.tile(array, (4, 1)) for array in small_data(0.3, 16))
    x[16 + 12] = np.inf  # in the second step, in the second replica's half
    trained = {}
    for replicas in (1, 2):
        with scope(replicas):
            cls, compiled = WAYS[way](gradient_accumulation_steps=accumulate)
            model = small_model(cls)
            optimizer = keras.optimizers.LossScaleOptimizer(compiled.pop("optimizer"))
            model.compile(loss="mse", optimizer=optimizer, **compiled)
        model.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(16), verbose=0)
        assert np.isfinite(model.trainable_variables[0].numpy()).all()
        trained[replicas] = {}, model
    if way == "wrapper":  # Keras checks only the first replica
        return
    assert_same(trained[2], trained[1], rtol=2e-5)
    assert model.optimizer.dynamic_scale.numpy() == 2.0**14


@functools.cache
def trained_with_a_nan(replicas):
    x, y = small_data(30, 32)
    x[[13, 14, 21]] = np.nan
    with scope(replicas):
        model = small_model(AGCModel)
        model.compile(
            sgd(), "mse", metrics=["mae"], skip_nonfinite=True, ema_decay=0.99
        )
    history = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    # Two of four batches have a NaN.
    assert history.history["skipped"] == [2, 2]
    assert np.isfinite(history.history["loss"]).all()
    assert model.optimizer.iterations.numpy() == 4
    del history.history["mae"]  # NaN, as it is without clipping
    return history.history, model


@pytest.mark.parametrize("replicas", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_steps_with_a_nan_change_nothing_on_any_replica(replicas):
    result, expected = trained_with_a_nan(replicas), trained_with_a_nan(1)
    assert_same(result, expected, rtol=2e-5)
    for a, b in zip(result[1].optimizer.variables, expected[1].optimizer.variables):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=2e-5, atol=1e-8)


def test_sam_and_averages_do_not_depend_on_the_number_of_replicas():
    options = {"sam_rho": 0.05, "ema_decay": 0.9, "scale": 3}
    expected = train(1, "model", **options)
    result = train(2, "model", **options)
    assert "val_ema_loss" in result[0]
    assert_same(result, expected, rtol=2e-5)
    for a, b in zip(result[1].optimizer.variables, expected[1].optimizer.variables):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=2e-5, atol=1e-6)


def test_training_is_restored_on_all_replicas_outside_of_the_scope(tmp_path):
    _, one = train(1, "model", ema_decay=0.9)
    saved = Checkpoints(tmp_path, {})
    saved.set_model(one)
    saved.save(1)
    one.save_weights(tmp_path / "one.weights.h5")
    for restore in (
        lambda model: Checkpoints(tmp_path, {}).restore(model),
        lambda model: model.load_weights(tmp_path / "one.weights.h5"),
    ):
        with scope(2):
            model = small_model(AGCModel)
            model.compile(sgd(), "mse", ema_decay=0.9)
        restore(model)
        for trained, expected in ((model, one), (model.optimizer, one.optimizer)):
            for variable, other in zip(trained.variables, expected.variables):
                first, second = variable.value.values
                np.testing.assert_array_equal(first, other.numpy())
                np.testing.assert_array_equal(second, other.numpy())


def with_statistics():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, activation="tanh")(inputs)
    x = keras.layers.BatchNormalization(momentum=0.5)(x)
    return AGCModel(inputs, keras.layers.Dense(3, name="predictions")(x))


def trained_with_statistics(x, y, **options):
    with scope(4):
        model = with_statistics()
        model.compile(sgd(), "mse", metrics=["mae"], **options)
    history = model.fit(x, y, batch_size=8, shuffle=False, verbose=0).history
    return {k: v[0] for k, v in history.items() if k != "skipped"}, model


def assert_same_variables(a, b, rtol=2e-5):
    for v, w in zip(a.variables, b.variables):
        np.testing.assert_allclose(v.numpy(), w.numpy(), rtol=rtol, atol=1e-6)


def test_a_skipped_step_changes_no_statistics_on_replicas():
    x, y = small_data(30, 32)
    good = np.r_[0:8, 16:32]
    expected = trained_with_statistics(x[good], y[good], skip_nonfinite=True)
    x[[13]] = np.nan  # in the second batch, on the third replica
    history, model = trained_with_statistics(x, y, skip_nonfinite=True)
    assert history == pytest.approx(expected[0], rel=1e-5)
    assert_same_variables(model, expected[1])


def test_sam_updates_statistics_once_on_replicas():
    x, y = small_data(30, 32)
    expected = trained_with_statistics(x, y)
    history, model = trained_with_statistics(x, y, sam_rho=1e-9)
    assert history == pytest.approx(expected[0], rel=1e-4)
    assert_same_variables(model, expected[1], rtol=1e-3)


def test_replicas_agree_on_the_largest_new_value_of_a_float8_scale():
    with scope(4):
        scale, kernel = keras.Variable(1.0), keras.Variable([1.0, 1.0])
        scale.overwrite_with_gradient = True
        strategy = tf.distribute.get_strategy()

        @tf.function
        def step():
            context = tf.distribute.get_replica_context()
            value = tf.cast(context.replica_id_in_sync_group, "float32")
            gradients = [4 - value, tf.fill([2], value), None]
            return replicas_tensorflow.sum_over_replicas(
                gradients, [scale, kernel, kernel]
            )

        new, summed, missing = strategy.run(step)
    for value in strategy.experimental_local_results(new):
        assert value.numpy() == 4.0
    for value in strategy.experimental_local_results(summed):
        np.testing.assert_array_equal(value.numpy(), [6.0, 6.0])
    assert missing is None


def test_sample_weights_on_replicas_are_those_on_one():
    x, y = small_data(30, 32)
    weights = np.linspace(0, 2, 32)
    trained = []
    for replicas in (1, 2):
        with scope(replicas):
            model = small_model(AGCModel)
            model.compile(sgd(), "mse", weighted_metrics=["mae"])
        history = model.fit(
            *(x, y, 8), sample_weight=weights, shuffle=False, verbose=0
        ).history
        trained.append((history, model))
    assert_same(trained[1], trained[0], rtol=2e-5)
