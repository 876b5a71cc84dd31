import keras
import numpy as np
import pytest
from comparing import assert_close
from keras import ops

import keras_nfnets
from keras_nfnets import (
    EfficientChannelAttention,
    NFBlock,
    SqueezeExcite,
    StochasticDepth,
)

LAYERS = {
    "plain": lambda **kw: NFBlock(16, group_size=8, **kw),
    "strided": lambda **kw: NFBlock(24, 16, strides=2, group_size=8, **kw),
    "resnet": lambda **kw: NFBlock(
        32,
        8,
        strides=2,
        group_size=None,
        extra_conv=False,
        avg_pool_shortcut=False,
        attention=None,
        activation="relu",
        **kw,
    ),
    "own activation": lambda **kw: NFBlock(
        16, group_size=8, activation=keras.activations.mish, **kw
    ),
    "dilated": lambda **kw: NFBlock(
        16, group_size=8, dilation_rate=2, first_dilation_rate=1, **kw
    ),
    "rematerialized": lambda **kw: NFBlock(16, group_size=8, rematerialize=True, **kw),
    "squeeze_excite": lambda **kw: SqueezeExcite(0.25, **kw),
    "efficient_attention": lambda **kw: EfficientChannelAttention(**kw),
    "stochastic_depth": lambda **kw: StochasticDepth(0.5, **kw),
}


def set_gains(model):
    """Set skip gains, as their initial zeros would hide the residual branch."""
    for variable in model.weights:
        if variable.name == "skip_gain":
            variable.assign(0.7)


@pytest.mark.parametrize("name", LAYERS)
def test_layer_survives_saving_and_cloning(name, tmp_path):
    inputs = keras.Input((None, None, 16))
    model = keras.Model(inputs, LAYERS[name]()(inputs))
    set_gains(model)
    x = np.random.default_rng(0).normal(size=(2, 7, 5, 16)).astype("float32")
    expected = model(x)
    model.save(tmp_path / "layer.keras")
    loaded = keras.saving.load_model(tmp_path / "layer.keras")
    assert_close(loaded(x), expected, atol=1e-6)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert_close(clone(x), expected, atol=1e-6)
    assert clone.layers[-1].get_config() == model.layers[-1].get_config()


@pytest.mark.parametrize("name", LAYERS)
def test_a_frozen_layer_is_frozen_in_copies_of_its_model(name, tmp_path):
    inputs = keras.Input((None, None, 16))
    frozen = LAYERS[name]()
    model = keras.Model(inputs, keras.layers.Dense(1)(frozen(inputs)))
    frozen.trainable = False
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for copy in (loaded, keras.models.clone_model(model)):
        assert [v.name for v in copy.trainable_variables] == ["kernel", "bias"]
        copy.layers[1].trainable = True
        assert len(copy.trainable_variables) == len(frozen.weights) + 2


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer_runs_in_mixed_precision(name, policy):
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 16)).astype("float32")
    full = LAYERS[name]()
    full.build(x.shape)
    set_gains(full)
    half = LAYERS[name](dtype=policy)
    half.build(x.shape)
    half.set_weights(full.get_weights())
    outputs = half(x)
    assert keras.backend.standardize_dtype(outputs.dtype) == policy.removeprefix(
        "mixed_"
    )
    assert {
        keras.backend.standardize_dtype(v.dtype) for v in half.trainable_weights
    } <= {"float32"}
    assert_close(ops.cast(outputs, "float32"), full(x), atol=0.1)


def test_layers_of_a_block_are_all_built():
    block = NFBlock(24, 16, strides=2, group_size=8)
    block.build((None, 8, 8, 16))
    assert all(layer.built for layer in block._flatten_layers())


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 7), (8, 5)])
@pytest.mark.parametrize("name", ["plain", "strided", "resnet"])
def test_block_takes_any_size(name, size):
    block = LAYERS[name]()
    outputs = block(np.ones((1, *size, 16), "float32"))
    assert tuple(outputs.shape) == tuple(block.compute_output_shape((1, *size, 16)))
    assert np.isfinite(ops.convert_to_numpy(outputs)).all()


def test_block_starts_as_its_shortcut():
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 16)).astype("float32")
    assert_close(NFBlock(16, group_size=8)(x), x, rtol=0)


def test_residual_is_scaled_by_alpha_and_skip_gain():
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 16)).astype("float32")
    block = NFBlock(16, group_size=8, alpha=0.3, skip_gain_initializer="ones")
    expected = x + 0.3 * ops.convert_to_numpy(block(x) * 0 + block.residual(x))
    assert_close(block(x), expected, atol=1e-5)


def test_block_has_the_predicted_variance():
    # Unit input variance grows by alpha^2 in the residual sum, and a transition
    # restarts from one (arXiv 2101.08692, section 3).
    x = np.random.default_rng(0).normal(size=(16, 16, 16, 64)).astype("float32")
    options = {"attention": None, "skip_gain_initializer": "ones", "group_size": 32}
    same = NFBlock(64, alpha=0.5, **options)
    variance = ops.convert_to_numpy(same(x)).var(axis=(0, 1, 2)).mean()
    assert variance == pytest.approx(1 + 0.5**2, rel=0.1)
    wider = NFBlock(128, alpha=0.5, **options)
    variance = ops.convert_to_numpy(wider(x)).var(axis=(0, 1, 2)).mean()
    assert variance == pytest.approx(1 + 0.5**2, rel=0.1)


def test_beta_scales_the_input_down_to_one():
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 16)).astype("float32")
    plain, scaled = (
        NFBlock(16, group_size=8, activation="relu", beta=b) for b in (1, 0.5)
    )
    plain.build(x.shape)
    scaled.build(x.shape)
    scaled.set_weights(plain.get_weights())
    assert_close(scaled.residual(2 * x), plain.residual(x), atol=1e-5)


def test_squeeze_excite_doubles_and_gates():
    layer = SqueezeExcite(0.5)
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype("float32")
    layer.build(x.shape)
    random = np.random.default_rng(1)
    for variable in layer.weights:
        variable.assign(random.normal(size=variable.shape))
    w0, b0, w1, b1 = (ops.convert_to_numpy(v) for v in layer.weights)
    hidden = np.maximum(x.mean(axis=(1, 2)) @ w0 + b0, 0)
    gate = 1 / (1 + np.exp(-(hidden @ w1 + b1)))
    assert_close(layer(x), 2 * gate[:, None, None] * x, atol=1e-5)


def test_squeeze_excite_means_do_not_overflow_in_float16():
    x = np.full((1, 64, 64, 2), 60_000.0, "float16")  # the sum is far above 65504
    layer = SqueezeExcite(dtype="mixed_float16")
    layer.build(x.shape)
    layer.fc0.kernel.assign(np.zeros((2, 1)))
    layer.fc1.bias.assign([-10.0, -10.0])
    assert np.isfinite(ops.convert_to_numpy(layer(x))).all()


def test_stochastic_depth_drops_complete_examples_at_its_rate():
    x = np.ones((4000, 2, 3, 1), "float32")
    layer = StochasticDepth(0.3, seed=1)
    y = ops.convert_to_numpy(layer(x, training=True)).reshape(4000, -1)
    assert (y.min(axis=1) == y.max(axis=1)).all()
    assert y.mean() == pytest.approx(0.7, abs=0.03)
    assert set(np.unique(y)) == {0.0, 1.0}  # no rescaling
    assert_close(layer(x, training=False), x, rtol=0)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="Possible group sizes: .*1, 2, 5, 10, 25"):
        NFBlock(100, group_size=16)
    with pytest.raises(ValueError, match="group_size=128"):
        NFBlock(64)
    with pytest.raises(ValueError, match="attention='sse'"):
        NFBlock(64, group_size=8, attention="sse")
    with pytest.raises(ValueError, match="alpha=0"):
        NFBlock(64, group_size=8, alpha=0)
    with pytest.raises(ValueError, match="beta=nan"):
        NFBlock(64, group_size=8, beta=float("nan"))
    with pytest.raises(ValueError, match="filters='16'"):
        NFBlock("16")
    with pytest.raises(ValueError, match="group_size='8'"):
        NFBlock(16, group_size="8")
    with pytest.raises(ValueError, match=r"strides=\(2, 1\)"):
        NFBlock(16, group_size=8, strides=(2, 1))
    with pytest.raises(ValueError, match="one must be 1.*first_dilation_rate=2"):
        NFBlock(16, group_size=8, strides=2, dilation_rate=2)
    with pytest.raises(ValueError, match="channels of the input"):
        NFBlock(16, group_size=8).build((None, 8, 8, None))
    with pytest.raises(ValueError, match="data_format='channels'"):
        SqueezeExcite(data_format="channels")
    with pytest.raises(ValueError, match="rate=1"):
        StochasticDepth(1)
    with pytest.raises(ValueError, match="se_ratio"):
        SqueezeExcite(0)
    with pytest.raises(ValueError, match="rank 4"):
        SqueezeExcite()(np.ones((2, 3)))


@pytest.mark.parametrize("pooled", [False, True])
def test_a_dilated_block_computes_every_second_output_of_a_strided_one(pooled):
    options = {
        "group_size": 8,
        "attention": None,
        "avg_pool_shortcut": pooled,
        "convention": "timm",  # its padding is symmetric
    }
    strided = NFBlock(16, strides=2, **options)
    dilated = NFBlock(16, first_dilation_rate=1, dilation_rate=2, **options)
    x = np.random.default_rng(0).normal(size=(2, 12, 12, 8)).astype("float32")
    few, _ = strided(x), dilated(x)
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=w.shape) for w in strided.weights]
    for block in (strided, dilated):
        block.set_weights(weights)
    few, many = strided(x), dilated(x)
    assert many.shape == (2, 12, 12, 16)
    assert_close(many[:, ::2, ::2], few, atol=1e-4)


@pytest.mark.parametrize(
    ("strides", "policy"), [(1, "float32"), (2, "float32"), (2, "mixed_bfloat16")]
)
def test_a_rematerialized_block_learns_the_same(strides, policy):
    """Also which examples stochastic depth drops."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 6, 6, 16)).astype("float32")
    y = rng.normal(size=(8, 1)).astype("float32")
    updates = []
    for rematerialize in (False, True):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input(x.shape[1:]),
                NFBlock(
                    16,
                    group_size=8,
                    strides=strides,
                    stochastic_depth_rate=0.5,
                    skip_gain_initializer="ones",
                    rematerialize=rematerialize,
                    dtype=policy,
                ),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(1),
            ]
        )
        before = model.get_weights()
        model.compile(keras.optimizers.SGD(1.0), "mse")
        for _ in range(2):  # the second step draws others
            model.train_on_batch(x, y)
        updates.append([a - b for a, b in zip(model.get_weights(), before)])
    assert all(np.abs(update).max() > 1e-4 for update in updates[0])
    for plain, rematerialized in zip(*updates):
        assert_close(rematerialized, plain, atol=1e-5 if policy == "float32" else 1e-2)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX lists what is saved")
def test_a_rematerialized_network_saves_a_fraction_for_the_gradient():
    import jax

    def saved_bytes(rematerialize):
        with keras_nfnets.pretrained.without_memory():
            model = keras_nfnets.NFNetF0(
                input_shape=(64, 64, 3), rematerialize=rematerialize
            )
        state = [
            [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in variables]
            for variables in (model.trainable_variables, model.non_trainable_variables)
        ]
        images = jax.ShapeDtypeStruct((16, 64, 64, 3), "float32")

        def for_the_gradient(trainable, non_trainable, images):
            def call(trainable):
                return model.stateless_call(
                    trainable, non_trainable, images, training=True
                )

            _, gradient, _ = jax.vjp(call, trainable, has_aux=True)
            return gradient

        saved = jax.tree.leaves(jax.eval_shape(for_the_gradient, *state, images))
        return sum(x.size * x.dtype.itemsize for x in saved if x.shape[:1] == (16,))

    assert saved_bytes(True) < 0.3 * saved_bytes(False)
