"""AGCModel, AGC and SGDAGC: three ways to the same clipping."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from keras_nfnets import AGC, SGDAGC, AGCModel, pretrained

CLIP = {"clip_factor": 0.02, "eps": 1e-3}


def small_model(cls=AGCModel, seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, activation="tanh", name="hidden")(inputs)
    return cls(inputs, keras.layers.Dense(3, name="predictions")(x))


def small_data(scale=30):
    """Return a regression task with gradients so large that all units are clipped."""
    random = np.random.default_rng(0)
    x = random.normal(size=(32, 6)).astype("float32")
    return x, scale * random.normal(size=(32, 3)).astype("float32")


def train(model, steps=4, data=None, **compile_options):
    model.compile(loss="mse", **compile_options)
    x, y = data or small_data()
    history = model.fit(x, y, batch_size=len(x), epochs=steps, shuffle=False, verbose=0)
    return history.history


def sgd(**options):
    return keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, **options)


WAYS = {
    "model": lambda **options: {"optimizer": sgd(**options), "clip_factor": 0.02},
    "wrapper": lambda **options: {"optimizer": AGC(sgd(**options), **CLIP)},
    "optimizer": lambda **options: {
        "optimizer": SGDAGC(0.1, weight_decay=0, **CLIP, **options)
    },
}


def assert_same_weights(a, b, rtol=1e-5):
    for v, w in zip(a.trainable_variables, b.trainable_variables):
        v, w = (ops.convert_to_numpy(ops.cast(x, "float32")) for x in (v, w))
        scale = np.abs(w).max()
        np.testing.assert_allclose(v, w, rtol=0, atol=rtol * scale)


@pytest.mark.parametrize(
    "case", ["train_agc_0.01", pytest.param("train_agc_none", marks=pytest.mark.slow)]
)
def test_sgdagc_reproduces_the_authors_training(case, golden, nfnet_tiny):
    train_case = golden(case)
    hyper = train_case.spec["hyperparameters"]
    model = nfnet_tiny()
    pretrained.load_deepmind(model, golden("haiku_nfnet_tiny").parameters)
    model.compile(
        SGDAGC(
            hyper["lr"],
            momentum=hyper["momentum"],
            nesterov=hyper["nesterov"],
            weight_decay=hyper["wd"],
            clip_factor=hyper["clipping"],
            eps=hyper["eps"],
        ),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
        run_eagerly=True,
    )
    x = train_case.images
    y = np.eye(10, dtype="float32")[train_case.outputs["labels"]]
    losses = []
    for _ in range(hyper["steps"]):
        losses.append(model.train_on_batch(x, y))
        model.reset_metrics()  # before Keras 3.15, it returns the mean of all calls
    losses.append(model.evaluate(x, y, verbose=0))
    np.testing.assert_allclose(losses, train_case.outputs["losses"], rtol=1e-3)

    reference = nfnet_tiny()
    final = {
        key.removeprefix("final/"): value
        for key, value in train_case.outputs.items()
        if key.startswith("final/")
    }
    pretrained.load_deepmind(reference, final)
    for variable, expected in zip(
        model.trainable_variables, reference.trainable_variables
    ):
        difference = ops.convert_to_numpy(variable - expected)
        size = np.linalg.norm(ops.convert_to_numpy(expected))
        assert np.linalg.norm(difference) <= 1e-3 * size, variable.path


def test_model_wrapper_and_optimizer_give_the_same_weights():
    by_model, by_wrapper, by_optimizer = small_model(), small_model(), small_model()
    history = train(by_model, optimizer=sgd(), clip_factor=0.02)
    train(by_wrapper, optimizer=AGC(sgd(), **CLIP))
    train(by_optimizer, optimizer=SGDAGC(0.1, weight_decay=None, **CLIP))
    assert min(history["clip_share"]) > 0.9
    assert_same_weights(by_model, by_wrapper)
    assert_same_weights(by_model, by_optimizer)
    # A run without clipping gives other weights.
    unclipped = small_model()
    train(unclipped, optimizer=sgd(), clip_factor=None)
    kernels = (by_model.weights[0], unclipped.weights[0])
    assert np.abs(ops.convert_to_numpy(kernels[0] - kernels[1])).max() > 0.1


def test_wrapper_works_in_any_model_and_with_any_optimizer():
    for make in (
        lambda: keras.optimizers.Adam(0.01),
        lambda: keras.optimizers.RMSprop(0.01, weight_decay=0.01),
        lambda: keras.optimizers.SGD(0.1, loss_scale_factor=1024.0),
    ):
        by_model, by_wrapper = small_model(), small_model(keras.Model)
        train(by_model, optimizer=make(), clip_factor=0.02)
        train(by_wrapper, optimizer=AGC(make(), **CLIP))
        assert_same_weights(by_model, by_wrapper)


def test_one_step_by_hand():
    # One weight of 2 and a gradient of -4 * (10 - 2 * 1) / 1: clipped to 0.01 * 2.
    inputs = keras.Input((1,))
    model = AGCModel(inputs, keras.layers.Dense(1, use_bias=False)(inputs))
    model.set_weights([np.array([[2.0]])])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    logs = model.train_on_batch(
        np.ones((1, 1)), np.full((1, 1), 10.0), return_dict=True
    )
    assert logs["clip_share"] == 1
    np.testing.assert_allclose(model.get_weights()[0], 2 + 0.5 * 0.02, rtol=1e-6)


def test_weight_decay_of_sgdagc_is_not_clipped_and_skips_gains_and_biases():
    class Affine(keras.layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(
                shape=(2, 2), name="kernel", initializer="ones"
            )
            self.gain = self.add_weight(shape=(2, 2), name="gain", initializer="ones")
            self.bias = self.add_weight(shape=(2,), name="bias", initializer="ones")

        def call(self, x):  # all gradients are exactly zero
            total = self.kernel + self.gain + self.bias
            return ops.sum(x) * 0 * ops.sum(total) + x

    model = keras.Sequential([keras.Input((2,)), Affine()])
    optimizer = SGDAGC(0.1, momentum=0.9, nesterov=False, weight_decay=0.5)
    model.compile(optimizer, "mse")
    for _ in range(2):
        model.train_on_batch(np.ones((1, 2)), np.ones((1, 2)))
    kernel, gain, bias = model.get_weights()
    # v = 0.5, w = 1 - 0.05; then v = 0.9 * 0.5 + 0.5 * 0.95, w = 0.95 - 0.1 v.
    np.testing.assert_allclose(kernel, 0.95 - 0.1 * (0.45 + 0.475), rtol=1e-6)
    np.testing.assert_array_equal(gain, 1)
    np.testing.assert_array_equal(bias, 1)


def test_learning_rate_of_sgdagc_is_outside_the_momentum():
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(1, use_bias=False)(inputs))
    model.set_weights([np.array([[0.0]])])
    optimizer = SGDAGC(
        1.0, momentum=0.5, nesterov=True, weight_decay=0, clip_factor=None
    )
    model.compile(optimizer, loss=lambda y, p: p)  # gradient 1
    x = np.ones((1, 1))
    model.train_on_batch(x, x)  # v = 1, w = -(1 + 0.5)
    optimizer.learning_rate = 0.1
    model.train_on_batch(x, x)  # v = 1.5, w -= 0.1 * (1 + 0.75)
    np.testing.assert_allclose(model.get_weights()[0], -1.5 - 0.175, rtol=1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: {"optimizer": sgd(), "clip_factor": 0.03, "agc_exclude": "hidden"},
        lambda: {"optimizer": AGC("adam", 0.03, exclude=["*/bias"])},
        lambda: {"optimizer": SGDAGC(0.05, clip_factor=0.03, exclude=None)},
    ],
)
def test_training_continues_identically_after_saving(optimizer, tmp_path):
    model = small_model()
    train(model, steps=2, **optimizer())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, AGCModel)
    assert_same_weights(loaded, model, rtol=0)
    x, y = small_data()
    for _ in range(3):
        logs = model.train_on_batch(x, y, return_dict=True)
        again = loaded.train_on_batch(x, y, return_dict=True)
    assert logs.keys() == again.keys()
    assert_same_weights(loaded, model, rtol=1e-6)


def trained_with_momentum(cls, nesterov, dtype, **options):
    keras.config.set_dtype_policy(dtype)
    model = small_model(cls)
    rate = keras.optimizers.schedules.ExponentialDecay(0.05, 1, 0.5)
    optimizer = keras.optimizers.SGD(
        rate, momentum=0.8, nesterov=nesterov, weight_decay=0.01, clipvalue=0.5
    )
    train(model, optimizer=optimizer, **options)
    return model, optimizer


# `torch.compile` refuses gradients of variables.
CAN_COMPILE = keras.backend.backend() != "torch"
# Trained by Keras itself, once for all cases.
trained_by_keras = functools.cache(
    functools.partial(trained_with_momentum, keras.Model, jit_compile=False)
)


@pytest.mark.parametrize(
    "nesterov, jit_compile, dtype, rtol",
    [
        pytest.param(False, False, "float32", 1e-5, marks=pytest.mark.slow),
        (True, CAN_COMPILE, "float32", 1e-5),
        (False, CAN_COMPILE, "bfloat16", 0.05),
        pytest.param(True, False, "bfloat16", 0.05, marks=pytest.mark.slow),
    ],
)
def test_momentum_is_that_of_keras(nesterov, jit_compile, dtype, rtol):
    """`AGCModel` uses another momentum operation on TensorFlow."""
    ours, our_sgd = trained_with_momentum(
        AGCModel, nesterov, dtype, jit_compile=jit_compile, clip_factor=None
    )
    keras_model, keras_sgd = trained_by_keras(nesterov, dtype)
    assert_same_weights(ours, keras_model, rtol)
    for velocity, expected in zip(our_sgd.momentums, keras_sgd.momentums):
        velocity, expected = (
            ops.convert_to_numpy(ops.cast(x, "float32")) for x in (velocity, expected)
        )
        scale = np.abs(expected).max()
        np.testing.assert_allclose(velocity, expected, rtol=0, atol=rtol * scale)


def test_excluded_variables_are_not_clipped():
    x, y = small_data()
    steps = {}
    for exclude in (None, "predictions/kernel", "hidden", lambda v: v.name == "kernel"):
        model = small_model()
        before = model.get_weights()
        model.compile(keras.optimizers.SGD(1.0), "mse", agc_exclude=exclude)
        model.train_on_batch(x, y)
        moved = [np.abs(a - b).max() for a, b in zip(model.get_weights(), before)]
        key = exclude if exclude is None or isinstance(exclude, str) else "function"
        steps[key] = [bool(step > 0.1) for step in moved]
    # In order: hidden kernel and bias, predictions kernel and bias.
    assert steps[None] == [False, False, False, False]
    assert steps["predictions/kernel"] == [False, False, True, False]
    assert steps["hidden"] == [True, True, False, False]
    assert steps["function"] == [True, False, True, False]


def test_classifier_kernel_is_excluded_by_default():
    x, y = small_data()
    for options in (
        {"optimizer": keras.optimizers.SGD(1.0)},
        {"optimizer": AGC(keras.optimizers.SGD(1.0))},
        {"optimizer": SGDAGC(1.0)},
    ):
        model = small_model()
        before = model.get_weights()
        model.compile(loss="mse", **options)
        model.train_on_batch(x, y)
        moved = [np.abs(a - b).max() for a, b in zip(model.get_weights(), before)]
        assert [bool(step > 0.1) for step in moved] == [False, False, True, False]


def test_exclude_that_matches_nothing_is_refused():
    model = small_model()
    model.compile("sgd", "mse", agc_exclude="predictoins")
    x, y = small_data()
    with pytest.raises(ValueError, match="'predictoins'; perhaps .*predictions"):
        model.train_on_batch(x, y)


@pytest.mark.parametrize(
    "optimizer", [lambda e: AGC("sgd", exclude=e), lambda e: SGDAGC(exclude=e)]
)
def test_optimizers_warn_of_an_exclude_that_matches_nothing(optimizer):
    # They cannot know which variables are frozen, so this is not an error.
    model = small_model(keras.Model)
    with pytest.warns(UserWarning, match="'predictoins'"):
        optimizer("predictoins").build(model.trainable_variables)


def test_wrapper_forwards_exclusions_from_weight_decay():
    model = small_model(keras.Model)
    optimizer = AGC(keras.optimizers.SGD(0.0, weight_decay=0.5))
    optimizer.inner_optimizer.learning_rate = 1.0
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    before = model.get_weights()
    optimizer.build(model.trainable_variables)
    model.get_layer("hidden").bias.assign(np.ones(8))
    optimizer.apply(
        [keras.ops.zeros(v.shape) for v in model.trainable_variables],
        model.trainable_variables,
    )
    np.testing.assert_allclose(model.get_weights()[0], 0.5 * before[0], rtol=1e-6)
    np.testing.assert_array_equal(model.get_weights()[1], 1)


def test_compute_loss_may_be_overridden_without_training_argument():
    class Doubled(AGCModel):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            return 2 * super().compute_loss(x, y, y_pred, sample_weight)

    x, y = small_data()
    losses = []
    for cls in (AGCModel, Doubled):
        model = small_model(cls)
        model.compile("sgd", "mse")
        losses.append(model.train_on_batch(x, y, return_dict=True)["loss"])
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-6)


def test_frozen_layers_may_be_excluded():
    model = small_model()
    model.get_layer("hidden").trainable = False
    history = train(model, optimizer="sgd", agc_exclude=["hidden"])
    assert history["clip_share"][0] == 1


class Subclassed(AGCModel):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(8, activation="tanh")
        self.out = keras.layers.Dense(3, name="predictions")

    def call(self, inputs):
        return self.out(self.hidden(inputs))


class Sequential(AGCModel, keras.Sequential):
    pass


class FunctionalSubclass(AGCModel):
    def compute_loss(self, *args, **kwargs):
        return -super().compute_loss(*args, **kwargs) * -1


class FunctionalInside(FunctionalSubclass):
    def __init__(self, units, outputs):
        inputs = keras.Input((6,))
        x = keras.layers.Dense(units, activation="tanh")(inputs)
        super().__init__(inputs, keras.layers.Dense(outputs, name="predictions")(x))


@functools.cache
def trained_functional():
    model = small_model()
    train(model, optimizer=sgd(), clip_factor=0.02)
    return model


@pytest.mark.parametrize(
    "kind, built",
    [
        *(("subclassed", False), ("sequential", False)),
        *(
            pytest.param(kind, True, marks=pytest.mark.slow)
            for kind in ("subclassed", "sequential", "functional subclass")
        ),
        ("functional inside", True),  # they are always built
    ],
)
def test_functional_sequential_and_subclassed_models_train_alike(kind, built):
    initial = small_model()
    if kind == "subclassed":
        model = Subclassed()
    elif kind == "sequential":
        model = Sequential(
            [
                keras.layers.Dense(8, activation="tanh"),
                keras.layers.Dense(3, name="predictions"),
            ]
        )
    elif kind == "functional inside":
        model = FunctionalInside(8, 3)
        assert [layer.name for layer in model.layers][-1] == "predictions"
    else:
        model = small_model(FunctionalSubclass)
        assert isinstance(model, FunctionalSubclass)
        assert isinstance(model, AGCModel)
    x, y = small_data()
    if built:
        model(x)
        model.set_weights(initial.get_weights())
    model.compile(sgd(), "mse", clip_factor=0.02)
    if not built:
        model.train_on_batch(x, y)
        model.optimizer.build(model.trainable_variables)
        model.set_weights(initial.get_weights())
        model.compile(sgd(), "mse", clip_factor=0.02)
    history = model.fit(x, y, batch_size=32, epochs=4, shuffle=False, verbose=0).history
    assert min(history["clip_share"]) > 0.9
    assert_same_weights(model, trained_functional(), rtol=1e-4)


def test_functional_use_does_not_break_subclassing():
    # Keras changes the bases of a class that is used as a functional model.
    small_model()
    small_model(FunctionalSubclass)
    FunctionalInside(8, 3)
    x, _ = small_data()
    assert Subclassed()(x).shape == (32, 3)
    assert type(small_model()).__mro__.index(AGCModel) > 0


def test_clones_and_summaries_are_agc_models():
    assert isinstance(keras.models.clone_model(small_model()), AGCModel)
    lines = []
    small_model().summary(print_fn=lambda line, **_: lines.append(line))
    assert "predictions" in "\n".join(lines)


def test_a_clone_that_could_not_clip_is_refused():
    class Sequential(AGCModel, keras.Sequential):
        pass

    model = Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    assert len(keras.models.clone_model(model).layers) == 1
    model.compile("sgd", "mse")
    with pytest.raises(
        ValueError, match=r"clip_factor.*use `type\(model\).from_config"
    ):
        keras.models.clone_model(model)
    again = Sequential.from_config(model.get_config())
    again.compile_from_config(model.get_compile_config())
    assert again.get_compile_config() == model.get_compile_config()


def test_clip_share_is_logged_in_training_only_and_is_a_mean():
    x, y = small_data()
    model = small_model()
    model.compile("sgd", "mse", metrics=["mae"], clip_factor=0.02)
    history = model.fit(x, y, 8, epochs=2, validation_data=(x, y), verbose=0).history
    assert set(history) == {"loss", "mae", "clip_share", "val_loss", "val_mae"}
    assert all(0 < share <= 1 for share in history["clip_share"])
    assert set(model.evaluate(x, y, return_dict=True, verbose=0)) == {"loss", "mae"}
    # Only models compiled with clipping log `clip_share`.
    model.compile("sgd", "mse", clip_factor=None)
    assert "clip_share" not in model.fit(x, y, verbose=0).history
    model.compile("sgd", "mse")
    assert "clip_share" in model.fit(x, y, verbose=0).history


def test_logged_loss_weighs_batches_by_their_size():
    model = small_model()
    model.compile(keras.optimizers.SGD(1e-9), "mse")
    x, y = small_data()
    y[30:] += 1000
    history = model.fit(x, y, batch_size=30, shuffle=False, verbose=0).history
    expected = model.evaluate(x, y, batch_size=32, verbose=0)
    assert history["loss"][0] == pytest.approx(expected, rel=1e-4)


def test_sample_weights_class_weights_and_several_outputs_train():
    inputs = keras.Input((6,), name="x")
    outputs = {
        "a": keras.layers.Dense(1, name="a")(inputs),
        "b": keras.layers.Dense(1, name="b")(inputs),
    }
    model = AGCModel(inputs, outputs)
    model.compile("sgd", {"a": "mse", "b": "mae"})
    x, y = small_data()
    targets = {"a": y[:, :1], "b": y[:, 1:2]}
    history = model.fit(x, targets, verbose=0).history
    assert "clip_share" in history

    single = small_model()
    single.compile("sgd", "mse")
    weights = np.arange(32) / 32
    expected = np.mean(
        weights * np.mean((single.predict(x, verbose=0) - y) ** 2, axis=1)
    )
    logs = single.train_on_batch(x, y, sample_weight=weights, return_dict=True)
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_loss_scaling_changes_nothing(way):
    options = WAYS[way]
    plain, scaled = small_model(), small_model()
    train(plain, **options())
    arguments = options()
    arguments["optimizer"] = keras.optimizers.LossScaleOptimizer(arguments["optimizer"])
    history = train(scaled, **arguments)
    if way == "model":
        assert min(history["clip_share"]) > 0.9
    assert_same_weights(plain, scaled)


def test_mixed_float16_clips_the_unscaled_gradient():
    # The scale is small enough for the loss not to overflow at the initial loss scale.
    options = {"clip_factor": 2e-3, "data": small_data(scale=0.3)}
    full = small_model()
    history = train(full, optimizer=sgd(), **options)
    keras.config.set_dtype_policy("mixed_float16")
    half = small_model()
    half_history = train(half, optimizer=sgd(), **options)
    assert isinstance(half.optimizer, keras.optimizers.LossScaleOptimizer)
    assert min(history["clip_share"]) > 0.7
    np.testing.assert_allclose(half_history["loss"], history["loss"], rtol=1e-2)
    np.testing.assert_allclose(
        half_history["clip_share"], history["clip_share"], atol=0.1
    )
    assert_same_weights(full, half, rtol=1e-2)


def test_loss_scaling_skips_a_step_that_overflows():
    model = small_model()
    optimizer = keras.optimizers.LossScaleOptimizer(sgd())
    model.compile(optimizer, "mse")
    x, y = small_data()
    model.train_on_batch(x, y)
    before, scale = model.get_weights(), float(optimizer.dynamic_scale)
    model.train_on_batch(x * np.inf, y)
    for a, b in zip(model.get_weights(), before):
        np.testing.assert_array_equal(a, b)
    assert float(optimizer.dynamic_scale) == scale / 2


@pytest.mark.skipif(not CAN_COMPILE, reason="see CAN_COMPILE")
def test_jit_compiled_steps_are_the_same():
    plain, compiled = small_model(), small_model()
    train(plain, optimizer=sgd(), clip_factor=0.02, jit_compile=False)
    train(compiled, optimizer=sgd(), clip_factor=0.02, jit_compile=True)
    assert compiled.jit_compile
    assert_same_weights(plain, compiled)


def test_settings_are_checked_when_they_are_given():
    with pytest.raises(ValueError, match="clip_factor=-0.01"):
        small_model().compile("sgd", "mse", clip_factor=-0.01)
    with pytest.raises(ValueError, match="clip_factor=0"):
        AGC("sgd", clip_factor=0)
    with pytest.raises(ValueError, match="eps=-1"):
        SGDAGC(eps=-1)
    with pytest.raises(ValueError, match="momentum"):
        SGDAGC(momentum=1.5)
    with pytest.raises(ValueError, match="weight_decay"):
        SGDAGC(weight_decay=-1e-4)
    with pytest.raises(ValueError, match="clips by itself"):
        AGC(SGDAGC())
    with pytest.raises(ValueError, match="clips by itself"):
        AGC(AGC("sgd"))
    with pytest.raises(ValueError, match=r"LossScaleOptimizer\(AGC"):
        AGC(keras.optimizers.LossScaleOptimizer(sgd()))
    for options, message in (
        ({"sam_rho": -0.05}, "sam_rho=-0.05"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"ema_decay": 0}, "ema_decay=0"),
    ):
        with pytest.raises(ValueError, match=message):
            small_model().compile("sgd", "mse", **options)


@pytest.mark.parametrize(
    "scaled, steps", [(False, 3), pytest.param(True, 2, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("way", WAYS)
def test_the_mean_of_accumulated_gradients_is_clipped(way, scaled, steps):
    x, y = small_data()
    x, y = x[:30], y[:30]
    whole, parts = small_model(), small_model()
    for model, accumulated in ((whole, None), (parts, steps)):
        options = WAYS[way](gradient_accumulation_steps=accumulated)
        if scaled:
            options["optimizer"] = keras.optimizers.LossScaleOptimizer(
                options["optimizer"]
            )
        model.compile(loss="mse", **options)
    size = 30 // steps
    for _ in range(3):
        whole.train_on_batch(x, y)
        for i in range(0, 30, size):
            logs = parts.train_on_batch(
                x[i : i + size], y[i : i + size], return_dict=True
            )
    if way == "model":
        assert logs["clip_share"] == 1
    assert_same_weights(whole, parts, rtol=3e-5)


def test_wrapper_shows_the_inner_optimizers_state():
    model = small_model(keras.Model)
    optimizer = AGC(keras.optimizers.Adam(0.25))
    train(model, steps=3, optimizer=optimizer)
    assert int(optimizer.iterations) == 3
    assert float(optimizer.learning_rate) == 0.25
    optimizer.learning_rate = 0.5
    assert float(optimizer.inner_optimizer.learning_rate) == 0.5
    again = AGC.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
