"""Optimizers inside of `AGC`, `LossScaleOptimizer` and `MultiOptimizer`."""

import functools

import keras
import numpy as np
import pytest
from keras import ops
from optimizer_maps import multi_optimizer
from quick import quick
from versions import since_keras

from keras_nfnets import AGC, SGDAGC, AGCModel
from keras_nfnets.training import TrainingLog

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(24, 6)).astype("float32")
Y = 30 * X[:, :3]


def network(cls=AGCModel):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(5, name="hidden")(inputs)
    return cls(inputs, keras.layers.Dense(3, name="out")(hidden))


def fit(model, batch_size=4, **options):
    options = {"epochs": 2, "shuffle": False, "verbose": 0, **options}
    return model.fit(X, Y, batch_size=batch_size, **options).history


def sgd(**options):
    return keras.optimizers.SGD(0.1, momentum=0.9, **options)


def multi(make):
    return multi_optimizer(make(), {"hidden/.*": make()})


def by_function(make):
    made = {"hidden": make(), "out": make()}
    return multi_optimizer(lambda variable: made[variable.path.split("/")[0]])


def trained(optimizer, cls=AGCModel, batch_size=4, scaled=False, **options):
    model = network(cls)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    # (Keras does not find "mse" when it loads an .h5 file.)
    model.compile(optimizer, keras.losses.MeanSquaredError(), **options)
    fit(model, batch_size)
    return model


def assert_same_weights(a, b):
    for v, w in zip(a.get_weights(), b.get_weights()):
        np.testing.assert_allclose(v, w, rtol=0, atol=1e-5 * np.abs(w).max())


@functools.cache
def trained_by_one(batch_size):
    return trained(sgd(), batch_size=batch_size)


@pytest.mark.parametrize("scaled", quick([False, True], False))
@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize(
    "make, cls",
    [
        (lambda o: multi(lambda: sgd(**o)), AGCModel),
        (lambda o: by_function(lambda: sgd(**o)), AGCModel),
        (lambda o: AGC(multi(lambda: sgd(**o))), keras.Model),
        pytest.param(
            *(lambda o: multi(lambda: AGC(sgd(**o))), keras.Model),
            marks=pytest.mark.slow,
        ),
        (lambda o: multi(lambda: AGC(sgd(**o))), AGCModel),
        (
            lambda o: multi(lambda: SGDAGC(0.1, nesterov=False, weight_decay=0, **o)),
            AGCModel,
        ),
    ],
    ids=["map", "function", "AGC of map", "map of AGC", "map of AGC, model", "SGDAGC"],
)
def test_a_map_of_equal_optimizers_is_one_optimizer(make, cls, steps, scaled):
    options = {"gradient_accumulation_steps": steps} if steps else {}
    expected = trained_by_one(4 * (steps or 1))
    assert_same_weights(trained(make(options), cls, scaled=scaled), expected)


@pytest.mark.parametrize("make", [multi, by_function])
def test_a_map_of_some_optimizers_that_clip_is_refused(make):
    optimizers = iter([AGC(sgd()), sgd()])
    optimizer = make(lambda: next(optimizers))
    model = network()
    with pytest.raises(ValueError, match="Some optimizers .* clip by AGC"):
        model.compile(optimizer, "mse")
        fit(model)


def test_an_optimizer_of_a_map_that_updates_nothing_does_not_matter():
    optimizer = multi_optimizer(sgd(gradient_accumulation_steps=2), {".*": AGC(sgd())})
    model = trained(optimizer)
    assert_same_weights(model, trained(AGC(sgd())))


def test_what_a_function_chooses_is_not_clipped_twice():
    clipping = AGC(sgd())
    optimizer = AGC(multi_optimizer(lambda variable: clipping))
    with pytest.raises(ValueError, match="clips by itself"):
        optimizer.build(network().trainable_variables)


def test_subclasses_of_the_wrapper_may_have_properties():
    class Doubling(AGC):
        @property
        def rate(self):
            return self.inner_optimizer.learning_rate

        @rate.setter
        def rate(self, value):
            self.inner_optimizer.learning_rate = 2 * value

    optimizer = Doubling(sgd())
    optimizer.rate = 0.25
    assert float(optimizer.learning_rate) == float(optimizer.rate) == 0.5


@pytest.mark.parametrize("inside", ["adam", AGC("sgd")], ids=["name", "AGC"])
def test_layers_may_have_an_attribute_called_optimizer(inside):
    class Learned(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.optimizer = inside
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = keras.Sequential([keras.Input((6,)), Learned()])
    model.compile(AGC("sgd"), "mse")
    model.fit(X, Y[:, :2], verbose=0)


def test_optimizers_of_a_map_accumulate_alike():
    steps = iter([2, 3])
    optimizer = multi(lambda: sgd(gradient_accumulation_steps=next(steps)))
    model = network()
    model.compile(optimizer, "mse")
    with pytest.raises(ValueError, match="gradient_accumulation_steps of 2, 3"):
        fit(model)


def test_averages_follow_the_updates_of_a_map():
    def averages(optimizer, batch_size):
        model = trained(optimizer, batch_size=batch_size, ema_decay=0.9)
        with model.averaged_weights():
            return model.get_weights()

    accumulating = multi(lambda: sgd(gradient_accumulation_steps=3))
    for a, b in zip(averages(accumulating, 4), averages(multi(sgd), 12)):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_learning_rates_of_a_map_are_logged_by_name():
    def make(name):
        return keras.optimizers.SGD(0.1, name=name)

    model = network()
    model.compile(multi_optimizer(make("one"), {"hidden/.*": make("two")}), "mse")
    history = fit(model, callbacks=[TrainingLog(images_per_epoch=24)])
    rates = {k: v for k, v in history.items() if k.startswith("learning_rate")}
    assert rates.keys() == {"learning_rate_one", "learning_rate_two"}
    np.testing.assert_allclose(list(rates.values()), 0.1)


# What Keras, its callbacks and users do with an optimizer.

OPTIMIZERS = [
    lambda: keras.optimizers.Adam(0.01, amsgrad=True, global_clipnorm=1.0),
    lambda: keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=2),
    lambda: multi(lambda: keras.optimizers.AdamW(0.01)),
]


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_the_wrapper_has_the_attributes_of_what_it_wraps(make):
    inner = make()
    optimizer = AGC(inner)
    optimizer.build(network().trainable_variables)
    own = {"clip_factor", "eps", "exclude", "inner_optimizer", "name"}
    names = {n for n in dir(inner) if not n.startswith("_")} - own
    values = {n for n in names if not callable(getattr(inner, n, None))}
    assert {"weight_decay", "built", "use_ema", "variables"} <= values
    for name in values:
        mine, theirs = (getattr(o, name, "none") for o in (optimizer, inner))
        if isinstance(theirs, list):
            assert [id(v) for v in mine] == [id(v) for v in theirs], name
        elif ops.is_tensor(theirs):  # `iterations`, computed when gradients accumulate
            assert int(mine) == int(theirs), name
        else:
            assert mine is theirs or mine == theirs, name
    optimizer.weight_decay = 0.125
    optimizer.of_a_callback = [1]
    assert inner.weight_decay == 0.125 and inner.of_a_callback == [1]
    with pytest.raises(AttributeError, match="nonsense"):
        optimizer.nonsense  # noqa: B018


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_state_that_is_set_is_the_state(make, tmp_path):
    model = trained(AGC(make()), keras.Model)
    state = [np.asarray(ops.convert_to_numpy(v)) for v in model.optimizer.variables]
    again = network(keras.Model)
    again.compile(AGC(make()), "mse")
    again.optimizer.build(again.trainable_variables)
    again.optimizer.set_weights(state)
    again.set_weights(model.get_weights())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    for k in (again, loaded):
        for v, value in zip(k.optimizer.variables, state, strict=True):
            np.testing.assert_array_equal(ops.convert_to_numpy(v), value)
    for k in (model, again, loaded):
        fit(k)
        assert_same_weights(k, model)


def test_models_are_saved_as_h5_as_in_keras(tmp_path):
    model = trained(AGC(keras.optimizers.Adam(0.01)), keras.Model)
    model.save(tmp_path / "model.h5")
    loaded = keras.saving.load_model(tmp_path / "model.h5")
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    # (Of the optimizer, Keras loads only these two from such a file.)
    assert int(loaded.optimizer.iterations) == int(model.optimizer.iterations) == 12
    assert loaded.optimizer.learning_rate == model.optimizer.learning_rate


def test_optimizer_state_is_stored_once(tmp_path):
    sizes = {}
    for name, optimizer in (("plain", sgd()), ("AGC", AGC(sgd()))):
        inputs = keras.Input((300,))
        model = keras.Model(inputs, keras.layers.Dense(300)(inputs))
        model.compile(optimizer, "mse")
        optimizer.build(model.trainable_variables)
        path = tmp_path / f"{name}.keras"
        model.save(path)
        sizes[name] = path.stat().st_size
    assert sizes["AGC"] < 1.05 * sizes["plain"]


@pytest.mark.parametrize("wrap", [AGC, lambda optimizer: optimizer])
def test_calls_of_an_optimizer_answer_as_in_keras(wrap):
    variables = network().trainable_variables
    gradients = [ops.ones(v.shape) for v in variables]
    optimizer = wrap(sgd())
    with pytest.raises(ValueError, match="must already be built"):
        optimizer.apply(gradients)
    assert optimizer.apply([], []) is None and not optimizer.built
    iterations = optimizer.apply_gradients(zip(gradients, variables))
    assert int(iterations) == 1
    optimizer.apply(gradients)
    assert int(optimizer.iterations) == 2
    optimizer.apply([])
    assert int(optimizer.iterations) == 2
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([ops.ones(2)], [keras.Variable(np.ones(2, "float32"))])


@since_keras("3.10")
def test_loss_scaling_disables_the_factor_of_the_inner_optimizer():
    inner = sgd(loss_scale_factor=16.0)
    optimizer = AGC(inner)
    keras.optimizers.LossScaleOptimizer(optimizer)
    assert inner.loss_scale_factor is None and optimizer.loss_scale_factor is None


def test_callbacks_change_the_learning_rate():
    model = network(keras.Model)
    model.compile(AGC(sgd()), "mse")
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    fit(model, callbacks=[halve], epochs=3)
    np.testing.assert_allclose(float(model.optimizer.learning_rate), 0.0125)


@pytest.mark.parametrize("make", [lambda: AGC(sgd()), SGDAGC])
@pytest.mark.parametrize("setting", ["clip_factor", "eps", "exclude"])
def test_settings_cannot_change_after_the_first_step(make, setting):
    optimizer = make()
    before, after = ("out", "hidden") if setting == "exclude" else (0.5, 0.25)
    setattr(optimizer, setting, before)  # still possible
    optimizer.build(network().trainable_variables)
    with pytest.raises(AttributeError, match=f"`{setting}` cannot change .* built"):
        setattr(optimizer, setting, after)
    assert getattr(optimizer, setting) == before


# Variables whose "gradient" is their new value.


class Scaled(keras.layers.Layer):
    """Layer with a weight that the optimizer overwrites with its gradient, 0.25."""

    def build(self, shape):
        self.scale = self.add_weight(name="scale", initializer="ones")
        self.scale.overwrite_with_gradient = True

    def call(self, x):
        @ops.custom_gradient
        def identity(x, scale):
            def gradients(*args, upstream=None):
                upstream = args[0] if upstream is None else upstream
                return upstream, ops.full((), 0.25)

            return x + 0 * scale, gradients

        return identity(x, self.scale.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sam_rho": 0.05},
        pytest.param({"ema_decay": 0.9}, marks=pytest.mark.slow),
        {"skip_nonfinite": True},
        {"optimizer": lambda: sgd(gradient_accumulation_steps=2)},
        {"optimizer": lambda: AGC(sgd())},
        {"optimizer": SGDAGC},
        pytest.param(
            {"optimizer": lambda: keras.optimizers.LossScaleOptimizer(sgd())},
            marks=[since_keras("3.10"), pytest.mark.slow],
        ),
    ],
    ids=["model", "SAM", "averages", "skip", "accumulation", "AGC", "SGDAGC", "scaled"],
)
def test_a_scale_is_replaced_by_its_gradient(options):
    options = dict(options)
    optimizer = options.pop("optimizer", sgd)()
    inputs = keras.Input((6,))
    model = AGCModel(inputs, Scaled(name="s")(keras.layers.Dense(3)(inputs)))
    model.compile(optimizer, "mse", clip_factor=0.01, **options)
    fit(model)
    assert ops.convert_to_numpy(model.get_layer("s").scale) == 0.25


@pytest.mark.slow
def test_float8_training_has_the_scales_of_keras():
    scales = []
    for cls in (AGCModel, keras.Model):
        model = network(cls)
        for name in ("hidden", "out"):
            model.get_layer(name).quantize("float8")
        model.compile(keras.optimizers.SGD(0.0), "mse")
        fit(model)
        scales.append(
            [float(v) for v in model.trainable_variables if v.path.endswith("_scale")]
        )
    assert len(scales[0]) == 6
    np.testing.assert_allclose(scales[0], scales[1], rtol=1e-6)
