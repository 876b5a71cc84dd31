import keras
import numpy as np
import pytest
import scipy.special
import transformers
from comparing import assert_close
from keras import layers, ops
from transformers import NETWORKS, inputs_of

from keras_nfnets import DynamicErf, DynamicTanh, fold, normalizer_free
from keras_nfnets.conversion.roles import NORMALIZATIONS
from keras_nfnets.models import SaturationLog, signal_propagation

KINDS = {kind.__name__ for kind in NORMALIZATIONS}
DYNAMIC = {"dynamic_tanh": DynamicTanh, "dynamic_erf": DynamicErf}


def measured_over_expected(model, x):
    expected = {
        name: step.variance_at_start
        for name, step in model.conversion.variances.items()
    }
    signal = signal_propagation(model, x, layers=list(expected))
    return signal["avg_var"] / list(expected.values())


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("normalization", ["constants", *DYNAMIC])
def test_variance_is_as_expected_on_other_inputs(network, normalization):
    keras.utils.set_random_seed(0)
    model = network()
    result = normalizer_free(
        model,
        inputs_of(model, 128),
        skip_gain_initializer="ones",
        normalization=normalization,
    )
    assert not any(isinstance(x, NORMALIZATIONS) for x in result._flatten_layers())
    ratios = measured_over_expected(result, inputs_of(model, 128, seed=2))
    assert len(ratios) > 4
    assert 0.75 < ratios.min() <= ratios.max() < 1.25


@pytest.mark.parametrize("name", ["ViT", "decoder"])
def test_variance_after_attention_is_predicted_from_the_tokens(name):
    keras.utils.set_random_seed(0)
    model = NETWORKS[name]()
    steps = normalizer_free(model, inputs_of(model, 64)).conversion.steps
    steps = [step for step in steps if "attention" in step.layer]
    assert len(steps) == 3
    for step in steps:
        assert "keeps" in step.action
        predicted = float(step.action.rpartition(" ")[2])
        assert 0.7 < step.variance / predicted < 1.4


class Block(layers.Layer):
    """Pre-norm block whose layers have the same names in each block, as in KerasHub."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.LayerNormalization(name="norm")
        self.attention = layers.MultiHeadAttention(2, 4, name="attention")
        self.dense = layers.Dense(8, "gelu", name="dense")

    def build(self, shape):
        self.norm.build(shape)
        self.attention.build(shape, shape)
        self.dense.build(shape)

    def call(self, x):
        y = self.norm(x)
        return x + self.dense(self.attention(y, y))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("normalization", ["constants", *DYNAMIC])
def test_layers_inside_blocks_may_have_the_same_names(normalization, trained):
    inputs = keras.Input((4, 8))
    x = Block()(Block()(Block()(layers.Rescaling(3.0)(inputs))))
    model = keras.Model(inputs, layers.Dense(3, name="predictions")(x))
    x = transformers.noise(64, 4, 8)
    result = normalizer_free(model, x, normalization=normalization, trained=trained)
    steps = [step for step in result.conversion.steps if step.kind in KINDS]
    names = [step.layer for step in steps if "removed" not in step.action]
    assert names == ["norm", "norm_1", "norm_2"]
    assert all(result.get_layer(name) for name in names)
    attention = [s.layer for s in result.conversion.steps if "attention" in s.layer]
    assert attention == ["attention", "attention_1", "attention_2"]


class Patches(layers.Layer):
    """Embedded patches with a class token, as in KerasHub."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(8, 4, 4)

    def build(self, shape):
        self.conv.build(shape)
        self.token = self.add_weight(name="token", shape=(1, 1, 8))

    def call(self, x):
        x = ops.reshape(self.conv(x), (-1, 4, 8))
        token = ops.broadcast_to(self.token, (ops.shape(x)[0], 1, 8))
        return ops.concatenate([token, x], axis=1)


class NotCopyable(Patches):
    def get_config(self):
        return {**super().get_config(), "size": 4}


@pytest.mark.parametrize("normalization", ["constants", "dynamic_tanh"])
def test_custom_layers_with_weights_of_their_own_stay_as_they_are(normalization):
    inputs = keras.Input((8, 8, 3))
    patches = Patches(name="patches")
    x = layers.LayerNormalization()(patches(inputs))
    model = keras.Model(inputs, layers.Dense(3, name="predictions")(x))
    x = transformers.noise(32, 8, 8, 3)
    result = normalizer_free(model, x, normalization=normalization)
    stays = result.get_layer("patches")
    assert isinstance(stays, Patches)
    for weight, original in zip(stays.weights, patches.weights, strict=True):
        assert weight is not original
        assert_close(weight, original)
    assert any(weight is stays.token for weight in result.trainable_weights)


def test_a_layer_that_cannot_be_copied_is_named():
    inputs = keras.Input((8, 8, 3))
    x = layers.LayerNormalization()(NotCopyable(name="odd")(inputs))
    with pytest.raises(
        ValueError, match=r"'odd' \(NotCopyable\) cannot be copied.*size"
    ):
        normalizer_free(keras.Model(inputs, x), transformers.noise(8, 8, 8, 3))


def test_layers_that_hide_no_normalization_may_hide_others():
    inputs = keras.Input((4, 8))
    x = layers.TimeDistributed(layers.Dense(8))(inputs)
    model = keras.Model(inputs, layers.LayerNormalization()(x))
    x = transformers.noise(16, 4, 8)
    result = normalizer_free(model, x, normalization="dynamic_tanh")
    assert [type(layer) for layer in result.layers][1:] == [
        layers.TimeDistributed,
        DynamicTanh,
    ]
    with pytest.raises(ValueError, match="inside another layer"):
        normalizer_free(model, x)


@pytest.mark.parametrize("normalization", DYNAMIC)
def test_only_normalization_becomes_a_dynamic_function(normalization):
    model = transformers.vit(depth=1)
    norm = next(x for x in model.layers if isinstance(x, layers.LayerNormalization))
    norm.gamma.assign(np.linspace(0.5, 2.0, transformers.WIDTH))
    norm.beta.assign(np.linspace(-1.0, 1.0, transformers.WIDTH))
    x = inputs_of(model)
    result = normalizer_free(model, x, normalization=normalization)
    kinds = {type(layer): layer.name for layer in result.layers}
    assert DYNAMIC[normalization] in kinds
    assert layers.Dense in kinds and layers.MultiHeadAttention in kinds
    assert len(result.layers) == len(model.layers)
    # Those that stay have their weights.
    kernel = model.get_layer("predictions").kernel
    assert_close(result.get_layer("predictions").kernel, kernel)
    # The function takes over gamma and beta, and gives outputs of the same variance.
    new = result.get_layer(norm.name)
    assert_close(new.beta, norm.beta)
    tokens = keras.Model(model.input, norm.input)(x)
    factor = ops.convert_to_numpy(new.gamma) / ops.convert_to_numpy(norm.gamma)
    assert np.ptp(factor) < 1e-5 * factor[0]
    outputs = [
        ops.convert_to_numpy((one(tokens) - norm.beta) / norm.gamma)
        for one in (norm, new)
    ]
    variances = [np.mean(np.var(x, axis=-1)) for x in outputs]
    assert_close(variances, [1.0, 1.0], rtol=0.01)
    # It is nearly linear.
    assert np.corrcoef(outputs[0].ravel(), outputs[1].ravel())[0, 1] > 0.95
    rms = np.sqrt(np.mean(np.square(ops.convert_to_numpy(tokens))))
    assert_close(new.alpha, 0.5 / rms, rtol=1e-5)


@pytest.mark.parametrize("network", ["ViT", "decoder"])
@pytest.mark.parametrize("normalization", ["constants", *DYNAMIC])
def test_trained_normalization_is_fitted(network, normalization):
    keras.utils.set_random_seed(0)
    model = NETWORKS[network]()
    x = inputs_of(model, 64)
    result = normalizer_free(model, x, trained=True, normalization=normalization)
    assert not any(isinstance(x, NORMALIZATIONS) for x in result._flatten_layers())
    steps = [step for step in result.conversion.steps if step.kind in KINDS]
    assert len(steps) == 7
    assert max(step.error for step in steps) < 0.9
    x = inputs_of(model, 64, seed=2)
    outputs = [ops.convert_to_numpy(one(x)).ravel() for one in (model, result)]
    assert np.corrcoef(*outputs)[0, 1] > 0.7


def test_fitted_constants_are_those_of_least_squares():
    inputs = keras.Input((5, 8))
    norm = layers.LayerNormalization(name="norm")
    model = keras.Model(inputs, norm(inputs))
    norm.gamma.assign(np.linspace(0.5, 2.0, 8))
    x = transformers.noise(16, 5, 8) * np.linspace(0.5, 2.0, 16)[:, None, None] + 0.3
    y = ops.convert_to_numpy(model(x)).reshape(-1, 8)
    columns = x.reshape(-1, 8).T

    def fit(inputs):
        """Return factors, offsets and the mean squared error by NumPy's solver."""
        found, squares = [], 0.0
        for a, b in zip(inputs, y.T):
            solution, error, *_ = np.linalg.lstsq(np.c_[a, np.ones_like(a)], b)
            found.append(solution)
            squares += error[0] / len(b) / len(y.T)
        return *np.transpose(found), squares

    [new] = normalizer_free(model, x, trained=True).layers[1:]
    factor, offset, error = fit(columns)
    assert_close(new.scale, factor, rtol=1e-3)
    assert_close(new.offset, offset, atol=1e-4)
    for kind, function in (
        ("dynamic_tanh", np.tanh),
        ("dynamic_erf", scipy.special.erf),
    ):
        [new] = normalizer_free(model, x, trained=True, normalization=kind).layers[1:]
        alpha = float(ops.convert_to_numpy(new.alpha))
        gamma, beta, least = fit(function(alpha * columns))
        assert_close(new.gamma, gamma, rtol=1e-3)
        assert_close(new.beta, beta, atol=1e-4)
        # Saturation fits tokens of different variance better, and this alpha best.
        assert least < 0.95 * error
        for other in (0.9 * alpha, 1.1 * alpha):
            assert fit(function(other * columns))[2] > least


@pytest.mark.parametrize("network", ["ViT", "decoder"])
def test_constants_are_folded_into_the_next_layers(network):
    keras.utils.set_random_seed(0)
    model = NETWORKS[network]()
    x = inputs_of(model, 16)
    for normalization in ("constants", "dynamic_tanh"):
        result = normalizer_free(model, x, trained=True, normalization=normalization)
        folded = fold(result)
        assert_close(folded(x), result(x), rtol=1e-4, atol=1e-5)
        per_channel = [
            layer
            for layer in folded.layers
            if isinstance(layer, layers.Rescaling) and np.ndim(layer.scale)
        ]
        # In the ViT, a slice lies between the last one and the classifier.
        assert len(per_channel) == (network == "ViT")


@pytest.mark.parametrize("cls", [layers.MultiHeadAttention, layers.GroupQueryAttention])
def test_constants_are_folded_into_any_argument_of_attention(cls):
    rng = np.random.default_rng(0)
    inputs = keras.Input((6, 8))
    one = layers.Rescaling(rng.normal(size=8).tolist(), 0.5, name="one")(inputs)
    other = DynamicTanh(2.0)(inputs)
    sizes = (4, 4, 2) if cls is layers.GroupQueryAttention else (2, 4)
    options = {"use_bias": False, "bias_initializer": "ones", "name": "attention"}
    queries, scores = cls(*sizes, **options)(
        one, value=inputs, key=other, return_attention_scores=True
    )
    shared = layers.Dense(3, name="shared")
    outputs = [queries, scores, shared(other), shared(inputs)]
    model = keras.Model(inputs, outputs)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    x = transformers.noise(2, 6, 8)
    folded = fold(model)
    for actual, expected in zip(folded(x), model(x), strict=True):
        assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    names = {layer.name for layer in folded.layers}
    assert {"attention", "shared"} <= names and "one" not in names


def folded_as_it_is(inputs, outputs, x):
    """Return the folded model, which must compute the same."""
    model = keras.Model(inputs, outputs)
    folded = fold(model)
    assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
    return folded


def test_fold_leaves_constants_where_they_cannot_go():
    x = transformers.noise(2, 6, 8)
    inputs = keras.Input((6, 8))
    half = layers.Rescaling(np.linspace(0.5, 2.0, 8).tolist(), 0.5)

    # A key that is not given is the value.
    attention = layers.MultiHeadAttention(2, 4)
    one = half(inputs)
    folded_as_it_is(inputs, attention(one, one, None), x)

    # Adapters inside attention are not lost silently.
    attention = layers.MultiHeadAttention(2, 4)
    outputs = attention(one, one)
    for dense in (attention.query_dense, attention.value_dense):
        dense.enable_lora(2)
        dense.lora_kernel_b.assign(0.1 * np.ones(dense.lora_kernel_b.shape))
    with pytest.raises(ValueError, match="cannot be copied.*such as those of LoRA"):
        fold(keras.Model(inputs, outputs))

    # Masks are no projected inputs.
    padding = keras.Input((6, 6))
    keep = layers.Rescaling(-1.0, 1.0)(padding)
    outputs = layers.MultiHeadAttention(2, 4)(inputs, inputs, attention_mask=keep)
    pads = np.tril(np.ones((2, 6, 6), "float32"), -1)
    folded_as_it_is([inputs, padding], outputs, [x, pads])


def test_folded_functions_pass_masks_on():
    ids = keras.Input((6,), dtype="int32")
    embedded = layers.Embedding(5, 8, mask_zero=True)(ids)
    x = np.array([[1, 2, 0, 0, 0, 0], [3, 4, 1, 2, 0, 0]])
    folded_as_it_is(ids, layers.GlobalAveragePooling1D()(DynamicTanh()(embedded)), x)
    masked = keras.Model(ids, layers.GlobalAveragePooling1D()(DynamicErf()(embedded)))
    with pytest.raises(ValueError, match="has a Keras mask cannot be folded"):
        fold(masked)


def test_masked_tokens_do_not_count_in_the_samples():
    """The report's variance of attention is that of the masked computation."""
    ids = keras.Input((6,), dtype="int32")
    x = layers.Embedding(5, 8, mask_zero=True, embeddings_initializer="normal")(ids)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    model = keras.Model(ids, layers.Dense(3)(layers.LayerNormalization(name="norm")(x)))
    tokens = np.random.default_rng(0).integers(1, 5, (64, 6)) * (np.arange(6) < 2)
    result = normalizer_free(model, tokens, normalization="dynamic_tanh", trained=True)
    inside = keras.Model(result.input, result.get_layer("norm").output)
    step = result.conversion.variances["norm"]
    assert step.variance == pytest.approx(
        float(np.mean(np.var(ops.convert_to_numpy(inside(tokens)), axis=(0, 1)))),
        rel=0.05,
    )


def test_cross_attention_of_other_widths_is_converted():
    tokens, context = keras.Input((4, 8)), keras.Input((6, 16))
    x = layers.LayerNormalization()(tokens)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, context)
    model = keras.Model([tokens, context], layers.Dense(3)(layers.Add()([tokens, x])))
    arrays = [transformers.noise(64, 4, 8), transformers.noise(64, 6, 16)]
    step = normalizer_free(model, arrays).conversion.variances["attention"]
    predicted = float(step.action.rpartition(" ")[2])
    assert 0.7 < step.variance / predicted < 1.4


def test_frozen_layers_stay_frozen():
    inputs = keras.Input((4, 8))
    attention = layers.MultiHeadAttention(2, 4, name="attention")
    x = layers.LayerNormalization()(attention(inputs, inputs))
    attention.trainable = False
    model = keras.Model(inputs, x)
    x = transformers.noise(8, 4, 8)
    result = normalizer_free(model, x, normalization="dynamic_tanh")
    names = {weight.path.split("/")[0] for weight in result.trainable_variables}
    assert "attention" not in names and len(names) == 1


def test_saturated_shares_of_layers_with_the_same_name_have_numbers():
    blocks = [
        keras.Sequential([keras.Input((4, 2)), DynamicTanh(name="norm")])
        for _ in range(2)
    ]
    inputs = keras.Input((4, 2))
    model = keras.Model(
        inputs, layers.Dense(1, name="end")(blocks[1](blocks[0](inputs)))
    )
    shares = signal_propagation(model, transformers.noise(2, 4, 2), layers=["end"])
    assert list(shares["saturated"]) == ["norm", "norm_1"]


def test_normalization_of_constant_inputs_is_refused_by_name():
    inputs = keras.Input((4, 8))
    model = keras.Model(inputs, layers.LayerNormalization(name="norm")(inputs))
    with pytest.raises(ValueError, match="not finite at 'norm'"):
        normalizer_free(model, np.ones((8, 4, 8)), normalization="dynamic_tanh")


@pytest.mark.parametrize("normalization", ["constants", *DYNAMIC])
def test_result_trains_and_can_be_saved_and_folded(normalization, tmp_path):
    keras.utils.set_random_seed(0)
    model = transformers.vit(depth=1)
    x, y = inputs_of(model, 32), np.arange(32) % 5
    model = normalizer_free(model, x, normalization=normalization)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-2), loss, clip_factor=0.1, agc_eps=0.1)
    losses = model.fit(x, y, batch_size=8, epochs=6, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    model.save(path := tmp_path / "model.keras")
    assert_close(keras.models.load_model(path)(x), model(x), atol=1e-5)
    assert_close(fold(model)(x), model(x), rtol=1e-4, atol=1e-4)


def test_saturated_shares_are_measured_and_logged():
    model = keras.Sequential(
        [
            keras.Input((4, 2)),
            DynamicTanh(1.0, name="tanh"),
            layers.Dense(2, kernel_initializer="ones"),
            DynamicErf(0.5, name="erf"),
        ]
    )
    model.get_layer("erf").shift.assign(3.0)
    x = np.array([[[0.0, 3.0], [1.0, -2.5], [0.0, 0.0], [5.0, 5.0]]], "float32")
    shares = signal_propagation(model, x, layers=["tanh"])["saturated"]
    # The sums of two tanh are between -2 and 2, and 0.5 * x + 3 above 2.
    assert shares == {"tanh": 0.5, "erf": 1.0}
    model.compile(keras.optimizers.SGD(0.0), "mse")
    log = SaturationLog(x)
    history = model.fit(x, 0 * x, verbose=0, callbacks=[log]).history
    assert history["saturated_share_tanh"] == [0.5]
    assert history["saturated_share"] == [0.75]


@pytest.mark.parametrize(
    ("axis", "options", "message"),
    [
        (
            (1, 2),
            {"normalization": "dynamic_tanh"},
            "cannot replace normalization over several",
        ),
        (-1, {"normalization": "dynamic"}, "`normalization` must be one of"),
    ],
)
def test_what_cannot_be_converted_is_refused(axis, options, message):
    inputs = keras.Input((4, 8))
    x = layers.LayerNormalization(axis=axis, name="norm")(inputs)
    model = keras.Model(inputs, layers.Dense(3)(x))
    with pytest.raises(ValueError, match=message):
        normalizer_free(model, transformers.noise(8, 4, 8), **options)
