import pathlib

import keras
import numpy as np
import pytest
from comparing import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import ops

from keras_nfnets import AGCModel, adaptive_clip
from keras_nfnets.layers.units import mark_units
from keras_nfnets.training.adaptive_clip import Count, clip_units

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
AGC_TENSORS = dict(np.load(GOLDEN / "agc_tensors.npz"))


def norm(x, axes):
    return np.sqrt(np.sum(np.float64(x) ** 2, axis=axes, keepdims=True))


def expected_clip(gradient, weights, axes, clip_factor, eps=1e-3):
    """Clip by equation 3 of the paper in float64, with norms over `axes`."""
    largest = clip_factor * np.maximum(norm(weights, axes), eps)
    size = norm(gradient, axes)
    return gradient * np.where(size > largest, largest / np.maximum(size, 1e-6), 1)


def clip_one(gradient, variable, **options):
    [clipped] = adaptive_clip([gradient], [variable], **options)
    return ops.convert_to_numpy(clipped)


@pytest.mark.parametrize(
    "case", sorted({key.split("/")[0] for key in AGC_TENSORS if "/" in key})
)
def test_agrees_with_optax(case):
    weights, gradient, clipped = (
        AGC_TENSORS[f"{case}/{k}"] for k in ("w", "g", "clipped")
    )
    options = {k: float(AGC_TENSORS[k]) for k in ("clip_factor", "eps")}
    variable = keras.Variable(weights)
    assert_close(clip_one(gradient, variable, **options), clipped, rtol=1e-6, atol=0)


LAYERS = {
    "dense": (lambda: keras.layers.Dense(3), (None, 5), {"kernel": (0,)}),
    "conv 1-D": (lambda: keras.layers.Conv1D(3, 2), (None, 8, 5), {"kernel": (0, 1)}),
    "conv 2-D": (
        lambda: keras.layers.Conv2D(3, 2),
        (None, 8, 8, 5),
        {"kernel": (0, 1, 2)},
    ),
    "conv 3-D": (
        lambda: keras.layers.Conv3D(3, 2),
        (None, 4, 4, 4, 5),
        {"kernel": (0, 1, 2, 3)},
    ),
    "depthwise 1-D": (
        lambda: keras.layers.DepthwiseConv1D(2),
        (None, 8, 5),
        {"kernel": (0,)},
    ),
    "depthwise 2-D": (
        lambda: keras.layers.DepthwiseConv2D(2, depth_multiplier=2),
        (None, 8, 8, 5),
        {"kernel": (0, 1)},
    ),
    "separable 2-D": (
        lambda: keras.layers.SeparableConv2D(3, 2),
        (None, 8, 8, 5),
        {"depthwise_kernel": (0, 1), "pointwise_kernel": (0, 1, 2)},
    ),
    "transposed 1-D": (
        lambda: keras.layers.Conv1DTranspose(3, 2),
        (None, 8, 5),
        {"kernel": (0, 2)},
    ),
    "transposed 2-D": (
        lambda: keras.layers.Conv2DTranspose(3, 2),
        (None, 8, 8, 5),
        {"kernel": (0, 1, 3)},
    ),
    "embedding": (
        lambda: keras.layers.Embedding(7, 3),
        (None, 4),
        {"embeddings": (1,)},
    ),
    "attention": (
        lambda: keras.layers.MultiHeadAttention(2, 3),
        (None, 5, 4),
        {
            "query/kernel": (0,),
            "key/kernel": (0,),
            "value/kernel": (0,),
            "query/bias": (0, 1),
            "attention_output/kernel": (0, 1),
        },
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_unit_is_what_computes_one_output(kind):
    make, shape, axes_of = LAYERS[kind]
    layer = make()
    layer.build(*[shape] * (2 if kind == "attention" else 1))
    random = np.random.default_rng(0)
    seen = set()
    for variable in layer.trainable_variables:
        weights = random.normal(size=variable.shape).astype("float32")
        # Units have gradients from far below to far above the threshold.
        gradient = weights * random.lognormal(-4, 2, size=variable.shape)
        gradient = gradient.astype("float32")
        variable.assign(weights)
        name = next(
            (name for name in axes_of if variable.path.endswith(f"/{name}")), None
        )
        seen.add(name)
        axes = axes_of[name] if name else tuple(range(weights.ndim))
        assert_close(
            clip_one(gradient, variable, clip_factor=0.02),
            expected_clip(gradient, weights, axes, 0.02),
            rtol=1e-5,
        )
    assert seen >= set(axes_of)


# Arithmetic on CPUs may flush subnormal numbers to zero.
FLOATS = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)


NAMED_LAYERS = {
    "dw": (lambda n: keras.layers.DepthwiseConv2D(2, name=n), (None, 8, 8, 5), (0, 1)),
    "up": (
        lambda n: keras.layers.Conv2DTranspose(3, 2, name=n),
        (None, 8, 8, 5),
        (0, 1, 3),
    ),
    "depthwise_conv_not": (
        lambda n: keras.layers.Conv2D(3, 2, name=n),
        (None, 8, 8, 5),
        (0, 1, 2),
    ),
    "conv2d_transpose_not": (
        lambda n: keras.layers.Conv2D(3, 2, name=n),
        (None, 8, 8, 5),
        (0, 1, 2),
    ),
}


@pytest.mark.parametrize("name", NAMED_LAYERS)
def test_a_model_knows_its_layers_by_class_not_by_name(name):
    make, shape, axes = NAMED_LAYERS[name]
    inputs = keras.Input(shape[1:])
    outputs = keras.layers.GlobalAveragePooling2D()(make(name)(inputs))
    model = AGCModel(inputs, outputs)
    model.compile(keras.optimizers.SGD(1.0), "mse", clip_factor=0.02)
    weights = ops.convert_to_numpy(model.trainable_variables[0])
    x = np.random.default_rng(0).normal(size=(4, *shape[1:])).astype("float32")
    model.train_on_batch(x, 100 * np.ones((4, *model.output_shape[1:])))
    step = weights - ops.convert_to_numpy(model.trainable_variables[0])
    np.testing.assert_allclose(norm(step, axes), 0.02 * norm(weights, axes), rtol=1e-3)


def test_both_kernels_of_a_layer_are_known_by_its_class():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 5)),
            keras.layers.SeparableConv2D(3, 2, name="conv2d_transpose"),
        ]
    )
    mark_units(model)
    depthwise, pointwise, bias = model.trainable_variables
    assert depthwise.unit_norm_axes == (0, 1)
    assert pointwise.unit_norm_axes == (0, 1, 2)
    assert bias.unit_norm_axes == (0,)


def test_names_that_merely_contain_a_kind_do_not_mislead():
    for name in ("transposed_out", "depthwise_pointwise", "query"):
        layer = keras.layers.Conv2D(3, 2, name=name)
        if name == "query":
            layer = keras.layers.Conv1D(3, 2, name=name)
        layer.build((None, 8, 5) if name == "query" else (None, 8, 8, 5))
        kernel = layer.kernel
        gradient = np.random.default_rng(0).normal(size=kernel.shape)
        axes = tuple(range(len(kernel.shape) - 1))
        expected = expected_clip(gradient, ops.convert_to_numpy(kernel), axes, 0.02)
        clipped = clip_one(np.float32(gradient), kernel, clip_factor=0.02)
        assert_close(clipped, expected, rtol=1e-5)


@settings(max_examples=50)
@given(
    weights=hnp.arrays("float32", (3, 4), elements=FLOATS),
    gradient=hnp.arrays("float32", (3, 4), elements=FLOATS),
    clip_factor=st.floats(1e-3, 1),
)
def test_clipped_norm_is_bounded_and_direction_kept(weights, gradient, clip_factor):
    clipped = clip_one(gradient, keras.Variable(weights), clip_factor=clip_factor)
    largest = clip_factor * np.maximum(norm(weights, 0), 1e-3)
    assert (norm(clipped, 0) <= largest * (1 + 1e-5) + 1e-12).all()
    small = norm(gradient, 0) <= largest * (1 - 1e-5)
    np.testing.assert_array_equal(
        clipped[:, small[0]], gradient[:, small[0]]
    )  # bit-identical
    assert (clipped * gradient >= 0).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gradients_get_float32_norms(dtype):
    # 300^2 * 1000 overflows float16, and bfloat16 sums it to a few digits only.
    gradient = ops.cast(np.full((1000, 2), 300.0), dtype)
    variable = keras.Variable(np.ones((1000, 2), "float32"))
    [clipped] = adaptive_clip([gradient], [variable], clip_factor=0.01)
    assert keras.backend.standardize_dtype(clipped.dtype) == dtype
    assert_close(ops.cast(clipped, "float32"), 0.01, rtol=4e-3)


def test_none_gradients_stay_none():
    v = keras.Variable(np.ones((2, 2)))
    clipped = adaptive_clip([None, np.ones((2, 2), "float32")], [v, v])
    assert clipped[0] is None
    assert clipped[1] is not None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gradients_that_are_not_finite_are_never_hidden(bad):
    gradient = np.ones((3, 2), "float32")
    gradient[1, 0] = bad
    clipped = clip_one(gradient, keras.Variable(np.ones((3, 2), "float32")))
    assert not np.isfinite(clipped[1, 0])
    # The other unit is clipped as usual.
    assert_close(clipped[:, 1], 0.01, rtol=1e-6)


def test_gradients_whose_norm_overflows_become_zero_not_nan():
    clipped = clip_one(
        np.full((3, 2), 1e30, "float32"), keras.Variable(np.ones((3, 2), "float32"))
    )
    np.testing.assert_array_equal(clipped, 0)


@pytest.mark.parametrize("shape", [(3, 2), (3,)])  # units of a kernel; one of a bias
def test_nothing_passes_unclipped_where_norms_overflow(shape):
    huge, large, small = (np.full(shape, x, "float32") for x in (1e30, 1e18, 1.0))
    np.testing.assert_array_equal(clip_one(huge, keras.Variable(huge)), 0)
    np.testing.assert_array_equal(
        clip_one(huge, keras.Variable(small), clip_factor=1e38), 0
    )
    # The norm of the weights counts as the largest that does not overflow.
    limit = np.finfo("float32").max ** 0.5
    clipped = clip_one(large, keras.Variable(huge), clip_factor=0.01)
    norms = np.linalg.norm(clipped.astype("float64"), axis=0)
    assert_close(norms, 0.01 * limit, rtol=1e-5)
    np.testing.assert_array_equal(clip_one(small, keras.Variable(huge)), small)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3)])
def test_empty_variables_have_nothing_to_clip(shape):
    gradient = np.zeros(shape, "float32")
    variable = keras.Variable(gradient)
    assert clip_one(gradient, variable).shape == shape
    _, [count] = clip_units([gradient], [variable], 0.01, 1e-3, None)
    assert count == Count()


def test_exclude_takes_layers_patterns_and_predicates():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4, name="first")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(4, name="predictions")(x))
    gradients = [np.ones(v.shape, "float32") for v in model.trainable_variables]

    def untouched(exclude):
        clipped = adaptive_clip(gradients, model.trainable_variables, exclude=exclude)
        return [
            v.path
            for v, c in zip(model.trainable_variables, clipped)
            if (ops.convert_to_numpy(c) == 1).all()
        ]

    assert untouched(None) == []
    assert untouched("first") == ["first/kernel", "first/bias"]
    assert untouched("predictions/kernel") == ["predictions/kernel"]
    assert untouched(["*/bias"]) == ["first/bias", "predictions/bias"]
    assert untouched(("f*st/k*", "predictions")) == [
        "first/kernel",
        "predictions/kernel",
        "predictions/bias",
    ]
    assert untouched(lambda v: len(v.shape) == 1) == ["first/bias", "predictions/bias"]
    assert untouched("kernel") == ["first/kernel", "predictions/kernel"]


def test_units_are_counted_under_any_loss_scale():
    weights = np.ones((10, 4), "float32")
    gradient = np.ones((10, 4), "float32") * np.float32([1e-3, 1e-3, 1, 1])
    bias = keras.Variable(np.ones(4, "float32"))
    for scale in (1.0, 2.0**15, 0.5):
        clipped, counts = clip_units(
            [gradient * scale, np.ones(4, "float32") * scale, None],
            [keras.Variable(weights), bias, bias],
            0.01,
            1e-3,
            None,
            loss_scale=scale,
        )
        assert [float(count.clipped) for count in counts] == [2, 1, 0]
        assert [count.units for count in counts] == [4, 1, 0]
        assert_close(
            ops.convert_to_numpy(clipped[0]) / scale,
            expected_clip(gradient, weights, 0, 0.01),
            rtol=1e-6,
        )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"clip_factor": -0.01}, "clip_factor=-0.01"),
        ({"clip_factor": 0}, "clip_factor=0"),
        ({"clip_factor": float("nan")}, "clip_factor=nan"),
        ({"eps": -1}, "eps=-1"),
        ({"clip_factor": "0.1"}, "clip_factor='0.1'"),
        ({"eps": None}, "eps=None"),
        ({"exclude": 3}, "exclude=3"),
        ({"exclude": [3]}, r"exclude=\[3\]"),
    ],
)
def test_bad_settings_are_refused(options, message):
    v = keras.Variable(np.ones((2, 2)))
    with pytest.raises(ValueError, match=f"Received: {message}"):
        adaptive_clip([np.ones((2, 2))], [v], **options)


def test_lists_that_do_not_match_are_refused():
    v = keras.Variable(np.ones((2, 2)), name="kernel")
    assert adaptive_clip([], []) == []
    with pytest.raises(ValueError, match="0 gradients, 1 variables"):
        adaptive_clip([], [v])
    with pytest.raises(ValueError, match="2 gradients, 1 variables"):
        adaptive_clip([None, None], [v])
    with pytest.raises(
        ValueError, match=r"shape \(3, 2\) for kernel of shape \(2, 2\)"
    ):
        adaptive_clip([np.ones((3, 2))], [v])
