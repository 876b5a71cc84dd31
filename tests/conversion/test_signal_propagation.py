import keras
import numpy as np
import pytest
from comparing import assert_close
from keras import ops

import keras_nfnets
from keras_nfnets.models import PreActResNet
from keras_nfnets.models.costs import count_flops


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(6, 32, 32, 3)).astype("float32")


def moments(x):
    flat = ops.convert_to_numpy(x).reshape(-1, x.shape[-1]).astype("float64")
    return np.mean(flat.mean(axis=0) ** 2), np.mean(flat.var(axis=0))


def set_skip_gains(model):
    for variable in model.weights:
        if variable.name == "skip_gain":
            variable.assign(0.7)
    return model


def test_folded_network_has_the_same_signal(images):
    model = set_skip_gains(keras_nfnets.NFResNet((2, 2), 1, classes=3))
    signal = keras_nfnets.signal_propagation(model, images)
    folded = keras_nfnets.signal_propagation(keras_nfnets.fold(model), images)
    for name in ("avg_sq_mean", "avg_var"):
        assert_close(folded[name], signal[name], rtol=1e-4)
    # The variance of residual branches includes alpha and the learned gain.
    factor = (0.2 * 0.7) ** 2
    assert_close(folded["res_avg_var"], factor * signal["res_avg_var"], rtol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_blocks_of_plain_layers_are_where_their_ends_are_added(images, training):
    model = PreActResNet((2, 1), 1, classes=3)
    before = model.get_weights()
    signal = keras_nfnets.signal_propagation(model, images, training=training)
    for a, b in zip(model.get_weights(), before):
        np.testing.assert_array_equal(a, b)
    names = ["stage1_block1", "stage1_block2", "stage2_block1"]
    ends = ["stem", *names, *[f"{name}_conv2" for name in names]]
    outputs = keras.Model(model.input, [model.get_layer(n).output for n in ends])(
        images, training=training
    )
    expected = np.array([moments(x) for x in outputs])
    assert_close(signal["avg_sq_mean"], expected[:4, 0], rtol=1e-4)
    assert_close(signal["avg_var"], expected[:4, 1], rtol=1e-4)
    assert_close(signal["res_avg_var"], expected[4:, 1], rtol=1e-4)


class Block(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.convolution = keras.layers.Conv2D(8, 3, padding="same")
        self.add = keras.layers.Add()

    def call(self, x):
        return self.add([x, ops.relu(self.convolution(x))])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = keras.layers.Conv2D(8, 3, strides=2)
        self.blocks = [Block(), Block()]

    def call(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


def test_custom_models_are_measured(images):
    model = Subclassed()
    signal = keras_nfnets.signal_propagation(model, images)
    x = model.first(images)
    expected = [moments(x)]
    residuals = []
    for block in model.blocks:
        residual = ops.relu(block.convolution(x))
        residuals.append(moments(residual)[1])
        x = x + residual
        expected.append(moments(x))
    assert_close(signal["avg_sq_mean"], np.array(expected)[:, 0], rtol=1e-4)
    assert_close(signal["avg_var"], np.array(expected)[:, 1], rtol=1e-4)
    assert_close(signal["res_avg_var"], residuals, rtol=1e-4)


def test_blocks_may_be_called_by_keyword(images):
    class ByKeyword(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = keras_nfnets.WSConv2D(16, 3)
            self.blocks = [keras_nfnets.NFBlock(16, group_size=8) for _ in range(2)]

        def call(self, x):
            x = self.first(x)
            for block in self.blocks:
                x = block(inputs=x)
            return x

    model = ByKeyword()
    signal = keras_nfnets.signal_propagation(model, images)
    x, residuals = model.first(images), []
    for block in model.blocks:
        residuals.append(moments(block.residual(x))[1])
        x = block(x)
    assert_close(signal["res_avg_var"], residuals, rtol=1e-4)
    assert_close(signal["avg_var"][-1], moments(x)[1], rtol=1e-4)


def test_a_plus_ends_a_block_and_nested_models_are_looked_into(images):
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 1, name="first")(inputs)
    x = x + keras.layers.Conv2D(4, 3, padding="same", name="branch")(x)
    inner = keras.Model(inputs, x)
    outer = keras.Sequential([keras.Input((32, 32, 3)), inner, keras.layers.Dense(2)])
    signal = keras_nfnets.signal_propagation(outer, images)
    first = inner.get_layer("first")(images)
    branch = inner.get_layer("branch")(first)
    assert_close(
        signal["avg_var"], [moments(first)[1], moments(first + branch)[1]], 1e-4
    )
    assert_close(signal["res_avg_var"], [moments(branch)[1]], rtol=1e-4)


def test_the_residual_branch_is_the_one_with_the_kernels_not_the_longer_one(images):
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 1)(inputs)
    branch = keras.layers.Conv2D(4, 3, padding="same", name="branch")(x)
    shortcut = keras.layers.ReLU()(keras.layers.ReLU()(keras.layers.ReLU()(x)))
    model = keras.Model(inputs, keras.layers.Add()([shortcut, branch]))
    signal = keras_nfnets.signal_propagation(model, images)
    branch = keras.Model(inputs, model.get_layer("branch").output)(images)
    assert_close(signal["res_avg_var"], [moments(branch)[1]], rtol=1e-4)


def test_without_blocks_every_layer_with_a_kernel_is_measured():
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(4), keras.layers.ReLU()]
        + [keras.layers.Dense(4), keras.layers.Dense(2)]
    )
    x = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
    signal = keras_nfnets.signal_propagation(model, x)
    first = x @ ops.convert_to_numpy(model.layers[0].kernel)
    assert signal["avg_var"].shape == (3,)
    assert signal["res_avg_var"].shape == (0,)
    assert_close(signal["avg_var"][0], moments(first)[1], rtol=1e-4)
    assert_close(signal["avg_sq_mean"][0], moments(first)[0], rtol=1e-4)
    # The instrumentation is removed.
    assert "call" not in vars(model.layers[0])


def test_random_layers_draw_as_if_nothing_had_been_measured(images):
    model = keras_nfnets.NFNet((1,), (16,), group_size=8, classes=3, drop_rate=0.5)
    states = [
        ops.convert_to_numpy(v)
        for v in model.non_trainable_variables
        if "seed" in v.path
    ]
    assert states
    keras_nfnets.signal_propagation(model, images, training=True)
    after = [
        ops.convert_to_numpy(v)
        for v in model.non_trainable_variables
        if "seed" in v.path
    ]
    for a, b in zip(after, states):
        np.testing.assert_array_equal(a, b)


def test_nothing_to_measure_is_an_error():
    model = keras.Sequential([keras.Input((4,)), keras.layers.ReLU()])
    with pytest.raises(ValueError, match=r"two or more convolutions.*Received:.*ReLU"):
        keras_nfnets.signal_propagation(model, np.zeros((2, 4)))


def test_plot_draws_one_signal_or_several(images, tmp_path):
    from matplotlib import image

    model = keras_nfnets.NFNet((1, 1), (16, 16), group_size=8, classes=3)
    signal = keras_nfnets.signal_propagation(model, images)
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    keras_nfnets.plot_signal_propagation(signal, one)
    keras_nfnets.plot_signal_propagation({"a": signal, "b": signal}, two, "Title")
    for path in (one, two):
        assert image.imread(path).std() > 0.05


def test_preact_resnet_has_the_shape_of_nf_resnet():
    def kernels(model):
        return sorted(tuple(v.shape) for v in model.weights if v.name == "kernel")

    normalizer_free = keras_nfnets.NFResNet((2, 1, 2), 2, classes=7)
    for normalization in ("batch", None):
        model = PreActResNet((2, 1, 2), 2, classes=7, normalization=normalization)
        assert kernels(model) == kernels(normalizer_free)
        x = np.ones((2, 37, 45, 3))
        for name in ("stem", "stage1", "stage2", "stage3"):
            shapes = [
                keras.Model(m.input, m.get_layer(name).output)(x).shape
                for m in (model, normalizer_free)
            ]
            assert tuple(shapes[0]) == tuple(shapes[1])
    with pytest.raises(ValueError, match=r"normalization.*'batch'.*Received.*'layer'"):
        PreActResNet((1,), normalization="layer")


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("MobileNetV2", 0.300),  # arXiv 1801.04381, table 4
        # arXiv 1905.11946, table 2
        pytest.param("EfficientNetB0", 0.39, marks=pytest.mark.slow),
    ],
)
def test_flops_of_other_networks_are_the_published_ones(name, billions):
    model = getattr(keras.applications, name)(weights=None)
    assert count_flops(model) / 1e9 == pytest.approx(billions, rel=0.02)
