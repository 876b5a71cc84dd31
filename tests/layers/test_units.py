"""Units of the weights of all Keras layers, and of custom ones."""

import gc
import inspect

import keras
import numpy as np
import pytest

from keras_nfnets import (
    AGC,
    SGDAGC,
    AGCModel,
    WSConv2D,
    WSDepthwiseConv2D,
    adaptive_clip,
)
from keras_nfnets.layers.units import mark_units, mark_units_of

L = keras.layers
IMAGE, VOLUME, SEQUENCE = (8, 8, 5), (4, 4, 4, 5), (6, 5)
ALL = "everything"


def einsum(equation, output_shape, **options):
    return lambda: L.EinsumDense(equation, output_shape, **options)


# Constructor, shape of an input, and for each variable (the end of its path) the axes of
# the norm of a unit: those that index the weights of one output.
KERAS = {
    "Dense": (lambda: L.Dense(3), (5,), {"kernel": (0,)}),
    "Dense, LoRA": (
        lambda: L.Dense(3, lora_rank=2),
        (5,),
        {"lora_kernel_a": (0,), "lora_kernel_b": (0,)},
    ),
    "Conv1D": (lambda: L.Conv1D(3, 2), SEQUENCE, {"kernel": (0, 1)}),
    "Conv2D": (lambda: L.Conv2D(3, 2), IMAGE, {"kernel": (0, 1, 2)}),
    "Conv3D": (lambda: L.Conv3D(3, 2), VOLUME, {"kernel": (0, 1, 2, 3)}),
    "Conv2D, LoRA": (
        lambda: L.Conv2D(3, 2, lora_rank=2),
        IMAGE,
        {"lora_kernel_a": (0, 1, 2), "lora_kernel_b": (0,)},
    ),
    "Conv1DTranspose": (lambda: L.Conv1DTranspose(3, 2), SEQUENCE, {"kernel": (0, 2)}),
    "Conv2DTranspose": (lambda: L.Conv2DTranspose(3, 2), IMAGE, {"kernel": (0, 1, 3)}),
    "Conv3DTranspose": (
        lambda: L.Conv3DTranspose(3, 2),
        VOLUME,
        {"kernel": (0, 1, 2, 4)},
    ),
    "DepthwiseConv1D": (
        lambda: L.DepthwiseConv1D(2, depth_multiplier=2),
        SEQUENCE,
        {"kernel": (0,)},
    ),
    "DepthwiseConv2D": (lambda: L.DepthwiseConv2D(2), IMAGE, {"kernel": (0, 1)}),
    "SeparableConv1D": (
        lambda: L.SeparableConv1D(3, 2),
        SEQUENCE,
        {"depthwise_kernel": (0,), "pointwise_kernel": (0, 1)},
    ),
    "SeparableConv2D": (
        lambda: L.SeparableConv2D(3, 2),
        IMAGE,
        {"depthwise_kernel": (0, 1), "pointwise_kernel": (0, 1, 2)},
    ),
    "Embedding": (lambda: L.Embedding(7, 3), (4,), {"embeddings": (1,)}),
    "Embedding, LoRA": (
        lambda: L.Embedding(7, 3, lora_rank=2),
        (4,),
        {"lora_embeddings_a": (1,), "lora_embeddings_b": (0,)},
    ),
    "EinsumDense": (einsum("abc,cd->abd", (None, 3)), SEQUENCE, {"kernel": (0,)}),
    "EinsumDense, kernel transposed": (
        einsum("abc,dc->abd", (None, 3), bias_axes="d"),
        SEQUENCE,
        {"kernel": (1,), "bias": ALL},
    ),
    "EinsumDense, one matrix per position": (
        einsum("abc,bcd->abd", (6, 3), bias_axes="bd"),
        SEQUENCE,
        {"kernel": (1,), "bias": ALL},
    ),
    "EinsumDense, ellipsis": (einsum("...x,xy->...y", 3), SEQUENCE, {"kernel": (0,)}),
    "EinsumDense, elementwise": (
        einsum("abc,bc->abc", (6, 5)),
        SEQUENCE,
        {"kernel": ALL},
    ),
    "EinsumDense, LoRA": (
        einsum("abc,cde->abde", (None, 2, 3), lora_rank=2),
        SEQUENCE,
        {"lora_kernel_a": (0,), "lora_kernel_b": (0,)},
    ),
    "MultiHeadAttention": (
        lambda: L.MultiHeadAttention(2, 3),
        SEQUENCE,
        {
            **{f"{name}/kernel": (0,) for name in ("query", "key", "value")},
            **{f"{name}/bias": ALL for name in ("query", "key", "value")},
            "attention_output/kernel": (0, 1),
        },
    ),
    "GroupQueryAttention": (
        lambda: L.GroupQueryAttention(3, 2, 1),
        SEQUENCE,
        {
            **{f"{name}/kernel": (0,) for name in ("query", "key", "value")},
            **{f"{name}/bias": ALL for name in ("query", "key", "value")},
            "attention_output/kernel": (0, 1),
        },
    ),
    "Attention": (lambda: L.Attention(use_scale=True), SEQUENCE, {}),
    "AdditiveAttention": (lambda: L.AdditiveAttention(), SEQUENCE, {}),
    "SimpleRNN": (
        lambda: L.SimpleRNN(3),
        SEQUENCE,
        {"kernel": (0,), "recurrent_kernel": (0,)},
    ),
    "LSTM": (lambda: L.LSTM(3), SEQUENCE, {"kernel": (0,), "recurrent_kernel": (0,)}),
    "GRU": (
        lambda: L.GRU(3),
        SEQUENCE,
        {"kernel": (0,), "recurrent_kernel": (0,), "bias": ALL},
    ),
    "RNN": (
        lambda: L.RNN(L.LSTMCell(3)),
        SEQUENCE,
        {"kernel": (0,), "recurrent_kernel": (0,)},
    ),
    "Bidirectional": (
        lambda: L.Bidirectional(L.GRU(3)),
        SEQUENCE,
        {
            f"{direction}_gru/gru_cell/{name}": (0,)
            for direction in ("forward", "backward")
            for name in ("kernel", "recurrent_kernel")
        },
    ),
    "ConvLSTM1D": (
        lambda: L.ConvLSTM1D(3, 2),
        (4, 6, 5),
        {"kernel": (0, 1), "recurrent_kernel": (0, 1)},
    ),
    "ConvLSTM2D": (
        lambda: L.ConvLSTM2D(3, 2),
        (4, 6, 6, 5),
        {"kernel": (0, 1, 2), "recurrent_kernel": (0, 1, 2)},
    ),
    "ConvLSTM3D": (
        lambda: L.ConvLSTM3D(3, 2),
        (2, 4, 4, 4, 5),
        {"kernel": (0, 1, 2, 3), "recurrent_kernel": (0, 1, 2, 3)},
    ),
    "TimeDistributed": (
        lambda: L.TimeDistributed(L.DepthwiseConv2D(2)),
        (4, *IMAGE),
        {"kernel": (0, 1)},
    ),
    "SpectralNormalization": (
        lambda: L.SpectralNormalization(L.Conv2DTranspose(3, 2)),
        IMAGE,
        {"kernel": (0, 1, 3)},
    ),
    "PReLU": (L.PReLU, IMAGE, {"alpha": ALL}),
    "LayerNormalization": (
        lambda: L.LayerNormalization(axis=[1, 2, 3]),
        IMAGE,
        {"gamma": ALL, "beta": ALL},
    ),
    "RMSNormalization": (
        lambda: L.RMSNormalization(axis=[1, 2]),
        SEQUENCE,
        {"scale": ALL},
    ),
    "BatchNormalization": (L.BatchNormalization, IMAGE, {"gamma": ALL, "beta": ALL}),
    "GroupNormalization": (
        lambda: L.GroupNormalization(1),
        IMAGE,
        {"gamma": ALL, "beta": ALL},
    ),
    "STFTSpectrogram": (
        lambda: L.STFTSpectrogram("real", 4, 2, fft_length=4, trainable=True),
        (16, 1),
        {"real_kernel": (0, 1)},
    ),
    "WSConv2D": (lambda: WSConv2D(3, 2), IMAGE, {"kernel": (0, 1, 2), "gain": ALL}),
    "WSDepthwiseConv2D": (
        lambda: WSDepthwiseConv2D(2, depth_multiplier=2),
        IMAGE,
        {"kernel": (0, 1), "gain": ALL},
    ),
}
if hasattr(L, "ReversibleEmbedding"):  # Keras has it since 3.12.
    KERAS["ReversibleEmbedding"] = (
        lambda: L.ReversibleEmbedding(7, 3, tie_weights=False),
        (4,),
        {"embeddings": (1,), "reverse_embeddings": (0,)},
    )


def model_of(kind, cls=AGCModel):
    make, shape, axes_of = KERAS[kind]
    layer, inputs = make(), keras.Input(shape)
    # A name that says nothing.
    layer.name = "some_layer"
    calls = {
        "MultiHeadAttention": (inputs, inputs),
        "GroupQueryAttention": (inputs, inputs),
        "Attention": ([inputs, inputs],),
        "AdditiveAttention": ([inputs, inputs],),
    }
    return cls(inputs, layer(*calls.get(kind, (inputs,)))), axes_of


def assert_units(model, axes_of):
    seen = set()
    for variable in model.trainable_variables:
        rank = len(variable.shape)
        name = next((n for n in axes_of if variable.path.endswith(f"/{n}")), None)
        axes = axes_of.get(name, ALL)  # biases, and the like
        axes = tuple(range(rank)) if axes == ALL else axes
        assert variable.unit_norm_axes == axes, variable.path
        seen.add(name)
    assert seen >= set(axes_of)


@pytest.mark.parametrize("kind", KERAS)
def test_units_of_a_layer_with_any_name(kind):
    model, axes_of = model_of(kind)
    mark_units(model)
    assert_units(model, axes_of)


@pytest.mark.parametrize("kind", ["DepthwiseConv2D", "Bidirectional", "WSConv2D"])
@pytest.mark.parametrize("optimizer", [AGC, SGDAGC])
def test_optimizers_find_the_layers_of_a_plain_model(kind, optimizer):
    model, axes_of = model_of(kind, keras.Model)
    optimizer = AGC("sgd") if optimizer is AGC else SGDAGC()
    optimizer.build(model.trainable_variables)
    assert_units(model, axes_of)


def test_each_keras_layer_with_weights_is_tried():
    tried = {kind.partition(",")[0] for kind in KERAS}
    # Cells are inside of the layers above; the others take a network of the user.
    tried |= {"SimpleRNNCell", "LSTMCell", "GRUCell", "StackedRNNCells"}
    tried |= {"FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper", "Wrapper"}
    # Their weights are statistics and counts, not trained.
    tried |= {"Normalization"}
    classes = {
        cls
        for cls in vars(keras.layers).values()
        if inspect.isclass(cls)
        and issubclass(cls, keras.Layer)
        and any(
            ".add_weight(" in inspect.getsource(base)
            for base in cls.__mro__
            if base.__module__.startswith("keras.")
            and base.__name__ not in ("Layer", "Operation", "BackendLayer")
        )
    }
    assert len(classes) > 20
    assert {cls.__name__ for cls in classes} - tried == set()


class Mixing(keras.layers.Layer):
    """Custom layer: `outputs[b, i, o] = sum_c inputs[b, i, c] * kernel[o, i, c]`."""

    def __init__(self, axes=None):
        super().__init__()
        self.unit_norm_axes = axes or {"mixing": (2,)}

    def build(self, shape):
        self.mixing = self.add_weight(shape=(3, *shape[1:]), name="mixing")
        self.dense = keras.layers.Dense(2, name="dense")
        self.dense.build((None, 3))

    def call(self, x):
        return self.dense(keras.ops.einsum("bic,oic->bio", x, self.mixing))


def test_a_custom_layer_says_what_its_units_are():
    inputs = keras.Input(SEQUENCE)
    model = AGCModel(inputs, Mixing()(inputs))
    model.compile(keras.optimizers.SGD(1.0), "mse", clip_factor=0.02)
    before = model.get_weights()[0]
    x = np.random.default_rng(0).normal(size=(4, *SEQUENCE)).astype("float32")
    model.train_on_batch(x, 100 * np.ones((4, 6, 2)))
    step = np.linalg.norm(model.get_weights()[0] - before, axis=2)
    np.testing.assert_allclose(step, 0.02 * np.linalg.norm(before, axis=2), rtol=1e-3)
    assert model.trainable_variables[1].unit_norm_axes == (0,)


@pytest.mark.parametrize(
    "axes, message",
    [
        # The kernel is that of the layer inside.
        ({"kernel": (0,)}, "names of its own variables: mixing.*'kernel'"),
        ({"other": (0,)}, "names of its own variables: mixing.*'other'"),
        ({"mixing": (3,)}, r"axes of the variable, of shape \(3, 6, 5\).*\(3,\)"),
        ({"mixing": 0}, "tuple of integers.*'mixing': 0"),
        ({"mixing": ()}, "tuple of integers"),
    ],
)
def test_units_that_do_not_fit_a_layer_are_refused(axes, message):
    inputs = keras.Input(SEQUENCE)
    model = AGCModel(inputs, Mixing(axes)(inputs))
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=message):
        model.train_on_batch(np.ones((4, *SEQUENCE)), np.ones((4, 6, 2)))


def test_a_variable_of_no_layer_is_known_by_its_path():
    layer = keras.layers.DepthwiseConv2D(2)
    layer.build((None, *IMAGE))
    kernel = layer.kernel
    del layer
    gc.collect()
    mark_units_of([kernel])
    assert kernel.unit_norm_axes == (0, 1)


def test_variables_of_options_may_be_missing():
    layer = Mixing({"mixing": (2,), "of_an_option": (0,)})
    layer.build((None, *SEQUENCE))
    mark_units_of([layer.mixing])
    assert layer.mixing.unit_norm_axes == (2,)


def test_frozen_layers_say_what_their_units_are():
    layer = Mixing()
    layer.build((None, *SEQUENCE))
    layer.trainable = False
    mark_units_of([layer.mixing])
    assert layer.mixing.unit_norm_axes == (2,)


def test_weights_that_are_added_later_are_marked():
    inputs = keras.Input((5,))
    model = AGCModel(inputs, keras.layers.Dense(3)(inputs))
    mark_units(model)
    model.layers[-1].enable_lora(2)
    mark_units(model)
    assert {v.unit_norm_axes for v in model.trainable_variables} == {(0,)}


# Layers that LoRA adapts, and the shape of an input.
LORA = {
    "Dense": (lambda: L.Dense(3), (5,)),
    "Conv2D": (lambda: L.Conv2D(3, 2), IMAGE),
    "WSConv2D": (lambda: WSConv2D(3, 2), IMAGE),
    "EinsumDense": (einsum("abc,cde->abde", (None, 2, 3)), SEQUENCE),
    "Embedding": (lambda: L.Embedding(7, 3), (4,)),
}


def outputs_of_kernel(weights, a=None, b=None, alpha=1, rank=2):
    """Norms in float64 of what LoRA adapts, `weights + alpha / rank * a @ b`, by column."""
    weights = np.float64(weights)
    if a is not None:
        weights = weights + alpha / rank * np.tensordot(np.float64(a), b, axes=1)
    return np.linalg.norm(weights.reshape(-1, weights.shape[-1]), axis=0)


@pytest.mark.parametrize("kind", LORA)
def test_the_second_factor_of_lora_is_clipped_like_the_kernel_it_adapts(kind):
    make, shape = LORA[kind]
    layer = make()
    layer.build((None, *shape))
    # Keras has `lora_alpha` since 3.10.
    alpha = (
        {"lora_alpha": 5}
        if "lora_alpha" in inspect.signature(L.Dense).parameters
        else {}
    )
    name = "embeddings" if kind == "Embedding" else "kernel"
    weights = keras.ops.convert_to_numpy(getattr(layer, name))
    layer.enable_lora(2, **alpha)
    a, b = (getattr(layer, f"lora_{name}_{factor}") for factor in "ab")
    gradient = 100 * np.random.default_rng(0).normal(size=b.shape).astype("float32")

    def clipped_norms():
        [clipped] = adaptive_clip([keras.ops.array(gradient)], [b], clip_factor=0.02)
        return np.linalg.norm(keras.ops.convert_to_numpy(clipped), axis=0)

    expected = 0.02 * outputs_of_kernel(weights)
    assert expected.min() > 1e-3  # 50 times what eps gives
    np.testing.assert_allclose(clipped_norms(), expected, rtol=1e-5)
    b.assign(gradient / 100)
    factors = keras.ops.convert_to_numpy(a), gradient / 100
    expected = 0.02 * outputs_of_kernel(weights, *factors, *(alpha.values() or [2]))
    np.testing.assert_allclose(clipped_norms(), expected, rtol=1e-5)


def dense_with_lora(cls, optimizer, **options):
    inputs = keras.Input((5,))
    model = cls(inputs, L.Dense(3, lora_rank=2)(inputs))
    model.compile(optimizer, "mse", **options)
    return model


def first_step(model):
    """Return the norms of the columns of LoRA's second factor after a huge first step."""
    model.fit(np.ones((4, 5)), 1e4 * np.ones((4, 3)), verbose=0)
    return np.linalg.norm(
        keras.ops.convert_to_numpy(model.layers[-1].lora_kernel_b), axis=0
    )


# `pytest.warns` hides that they are of Keras.
ignore_keras = pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")


@ignore_keras
@pytest.mark.parametrize("where", ["AGCModel", "AGC", "SGDAGC"])
def test_a_fresh_factor_of_lora_moves_by_default(where):
    sgd = keras.optimizers.SGD(1.0)
    if where == "AGCModel":
        model = dense_with_lora(AGCModel, sgd, clip_factor=0.02)
    else:
        own = SGDAGC(1.0, momentum=0, weight_decay=0, clip_factor=0.02)
        model = dense_with_lora(
            keras.Model, own if where == "SGDAGC" else AGC(sgd, 0.02)
        )
    expected = 0.02 * outputs_of_kernel(
        keras.ops.convert_to_numpy(model.layers[-1]._kernel)
    )
    if where != "AGCModel" and keras.backend.backend() == "jax":
        # Keras does not pass frozen weights to an optimizer.
        with pytest.warns(UserWarning, match="use an `AGCModel`"):
            moved = first_step(model)
        expected = 0.02 * 1e-3 * np.ones(3)
    else:
        moved = first_step(model)
    np.testing.assert_allclose(moved, expected, rtol=1e-3)


@ignore_keras
def test_what_adapts_a_quantized_kernel_is_limited_by_eps_alone_and_a_warning_says_so():
    model = dense_with_lora(AGCModel, keras.optimizers.SGD(1.0), agc_eps=0.5)
    model.layers[-1].quantize("int8")
    with pytest.warns(UserWarning, match="lora_kernel_b adapts .* pass an `eps`"):
        moved = first_step(model)
    np.testing.assert_allclose(moved, 0.01 * 0.5 * np.ones(3), rtol=1e-3)
