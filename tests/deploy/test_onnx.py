"""ONNX files: ONNX Runtime computes what the network does, by few and plain nodes."""

import collections
import hashlib
import os
import subprocess
import sys

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from keras import layers, ops
from quick import quick
from test_folding import FAMILIES, difference, images, with_random_weights

import keras_nfnets
from keras_nfnets import export, fold
from keras_nfnets.backend import device
from keras_nfnets.deploy import onnx_files, onnx_layers
from keras_nfnets.deploy.onnx_layers import UnknownOperation
from keras_nfnets.deploy.onnx_model import onnx_model
from keras_nfnets.deploy.preprocessing import preprocessing_model


def direct(model, **options):
    """Fold a model of one input and output, and write it without Keras's converter."""
    written = onnx_model(fold(model), ["image"], ["predictions"], **options)
    onnx.checker.check_model(written, full_check=True)
    return written


def runs(written):
    """Return a function that computes what an ONNX model or file does."""
    if not isinstance(written, str):
        written = written.SerializeToString()
    session = onnxruntime.InferenceSession(written)
    names = [x.name for x in session.get_inputs()]

    def run(*inputs, training=False):
        outputs = session.run(None, dict(zip(names, inputs, strict=True)))
        return outputs[0] if len(outputs) == 1 else outputs

    return run


def kinds(written):
    return collections.Counter(node.op_type for node in written.graph.node)


@pytest.mark.parametrize("name", quick(FAMILIES, "ECA-NFNet", "NF-SE-ResNet"))
def test_networks_have_one_convolution_per_layer_and_one_transpose(name):
    model = with_random_weights(FAMILIES[name](classifier_activation=None))
    written = direct(model)
    for shape in [(1, 64, 64, 3), (2, 33, 47, 3)]:
        assert difference(model, runs(written), images(*shape)) < 1e-5
    found = kinds(written)
    count = sum(
        isinstance(layer, (layers.Conv1D, layers.Conv2D))
        for layer in fold(model)._flatten_layers()
    )
    assert found["Conv"] == count
    assert found["Transpose"] == 1
    assert {"Split", "Concat", "Pad", "Identity"}.isdisjoint(found)
    # Only gates, scaled after a sigmoid, are multiplied by constants.
    constants = {x.name for x in written.graph.initializer}
    products = [n for n in written.graph.node if n.op_type == "Mul"]
    scaled = [n for n in products if constants & set(n.input)]
    assert len(scaled) <= found["GlobalAveragePool"] - 1


@pytest.mark.slow
@pytest.mark.own_process
def test_a_network_of_the_paper():
    model = with_random_weights(keras_nfnets.NFNetF0(classifier_activation=None))
    written = direct(model)
    assert difference(model, runs(written), images(1, 96, 64, 3)) < 1e-5
    assert kinds(written)["Transpose"] == 1
    assert kinds(written)["Gelu"] == 3 + 12 * 4 + 1


def sequential(*parts, shape=(None, None, 4), dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *parts])


@keras.saving.register_keras_serializable()
def mixture(x):
    return (2 * ops.relu(x) + 1) * x - x


# Of `BatchNormalization`.
random_statistics = {
    f"{name}_initializer": keras.initializers.RandomUniform(0.5, 2, seed=seed)
    for seed, name in enumerate(("gamma", "beta", "moving_mean", "moving_variance"))
}


def convolution(*args, **kwargs):
    """Return a convolution with a bias that is not zero."""
    return layers.Conv2D(*args, bias_initializer="normal", **kwargs)


# Models, and the numbers of nodes of some kinds.
CASES = {
    "strided same": (
        lambda: sequential(convolution(6, 3, strides=2, padding="same")),
        {},
    ),
    "strided same, size known": (
        lambda: sequential(
            convolution(6, (3, 4), strides=(2, 3), padding="same"), shape=(33, 47, 4)
        ),
        {"Conv": 1},
    ),
    "groups and dilation": (
        lambda: sequential(
            convolution(6, 3, dilation_rate=2, padding="same", groups=2)
        ),
        {"Conv": 1},
    ),
    "activation": (
        lambda: sequential(
            convolution(6, 2, activation="relu"), convolution(3, 1, activation="gelu")
        ),
        {"Relu": 1, "Gelu": 1},
    ),
    "depthwise": (
        lambda: sequential(
            layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")
        ),
        {"Conv": 1},
    ),
    "padding of a convolution": (
        lambda: sequential(
            layers.ZeroPadding2D(((1, 2), (3, 0))), convolution(6, 3, padding="same")
        ),
        {"Pad": 0},
    ),
    "padding of other layers": (
        lambda: sequential(
            layers.ZeroPadding2D(1),
            convolution(6, 3, strides=2, padding="same"),
            layers.ZeroPadding2D(1),
            layers.ReLU(),
            layers.ZeroPadding2D(2),
            layers.AveragePooling2D(3),
            layers.ZeroPadding2D(1),
        ),
        {"Pad": 4},
    ),
    "average pooling": (
        lambda: sequential(layers.AveragePooling2D(3, 2, padding="same")),
        {},
    ),
    "average pooling, size known": (
        lambda: sequential(
            layers.AveragePooling2D(2, padding="same"), shape=(33, 47, 4)
        ),
        {},
    ),
    "subsampled maximum": (
        lambda: sequential(
            convolution(6, 1),
            layers.MaxPooling2D(3, 1, padding="same"),
            layers.MaxPooling2D(1, 2),
        ),
        {"MaxPool": 1},
    ),
    "maximum that is used twice": (
        lambda: twice(layers.MaxPooling2D(2, 1), layers.MaxPooling2D(1, 1)),
        {"MaxPool": 2},
    ),
    "rescaled afterwards": (
        lambda: sequential(
            convolution(6, 1, use_bias=False),
            layers.Rescaling(3.0, 0.5),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5),
            layers.Rescaling(0.0, 0.5),
            layers.Dense(5),
        ),
        {"Mul": 0, "Add": 0},
    ),
    "rescaled convolution that is used twice": (
        lambda: twice(convolution(6, 1), layers.Rescaling(2.0)),
        {"Mul": 1},
    ),
    "rescaled before": (
        lambda: sequential(
            layers.Rescaling(1 / 3, -2.0), convolution(6, 3, padding="same")
        ),
        {"Mul": 0, "Add": 1},
    ),
    "rescaled by channel": (
        lambda: sequential(
            layers.MaxPooling2D(1),
            layers.Rescaling([1.0, 2.0, 0.0, -1.0], [0.0, 1.0, 2.0, 3.0]),
        ),
        {},
    ),
    "integers": (
        lambda: sequential(layers.Rescaling(1 / 255), convolution(6, 3), dtype="uint8"),
        {"Cast": 1, "Mul": 0},
    ),
    "negative factor": (
        lambda: sequential(
            layers.Rescaling(-2.0), layers.ReLU(), layers.MaxPooling2D(2)
        ),
        {},
    ),
    "dense pixels": (lambda: sequential(layers.Dense(3)), {"MatMul": 1, "Add": 1}),
    "flat": (
        lambda: sequential(
            convolution(6, 3),
            layers.Rescaling(3),
            layers.Flatten(),
            layers.Dense(5),
            shape=(9, 7, 4),
        ),
        {"Transpose": 2, "Mul": 0},
    ),
    "reshaped": (
        lambda: sequential(
            convolution(6, 3),
            layers.Reshape((-1, 3)),
            layers.Rescaling(2),
            shape=(9, 7, 4),
        ),
        {"Transpose": 2},
    ),
    "sequence": (
        lambda: sequential(
            layers.Conv1D(6, 3, padding="causal", dilation_rate=2),
            layers.GlobalMaxPooling1D(),
            shape=(20, 3),
        ),
        {"Transpose": 1},
    ),
    "volume": (
        lambda: sequential(
            layers.Conv3D(6, 3, strides=2),
            layers.AveragePooling3D(2),
            shape=(12, 14, 16, 3),
        ),
        {"Conv": 1},
    ),
    "batch-normalized": (
        lambda: sequential(
            layers.BatchNormalization(**random_statistics),
            convolution(6, 3),
            layers.BatchNormalization(**random_statistics),
            layers.SeparableConv2D(5, 3, 2, "same", depth_multiplier=2, use_bias=False),
            layers.BatchNormalization(scale=False, **random_statistics),
            layers.DepthwiseConv2D(3, activation="hard_silu"),
            layers.BatchNormalization(center=False, **random_statistics),
            layers.LayerNormalization(),
            layers.Dense(3),
            layers.BatchNormalization(**random_statistics),
        ),
        {"BatchNormalization": 2, "Conv": 4, "HardSwish": 1},
    ),
    "normalized by layer": (
        lambda: sequential(
            layers.LayerNormalization(scale=False, center=False),
            layers.ZeroPadding2D(1),
            layers.Rescaling(2.0),
            layers.SeparableConv2D(3, 3),
        ),
        {"LayerNormalization": 1, "Pad": 0},
    ),
    "kept dimensions": (
        lambda: sequential(
            layers.GlobalAveragePooling2D(keepdims=True), convolution(6, 1)
        ),
        {"Flatten": 0},
    ),
    "softmax of pixels": (
        lambda: sequential(convolution(6, 1), layers.Softmax(axis=1)),
        {},
    ),
    "custom activation": (
        lambda: sequential(convolution(6, 1), layers.Activation(mixture)),
        {"Mul": 2, "Relu": 1},
    ),
    "limited by integers": (
        lambda: sequential(layers.ReLU(6), layers.ReLU(max_value=1)),
        {"Clip": 2},
    ),
    "normalized": (
        lambda: sequential(
            layers.Normalization(mean=[1.0, 2, 3, 4], variance=[1.0, 4, 0.5, 9]),
            convolution(6, 3),
            dtype="uint8",
        ),
        {"Cast": 1, "Sub": 1, "Div": 1},
    ),
    "subsampled": (
        lambda: sequential(layers.MaxPooling2D(1, 2, padding="same")),
        {"MaxPool": 1},
    ),
    "nothing but an offset": (
        lambda: sequential(layers.Rescaling(0.0), layers.Rescaling(2.0, 3.0)),
        {},
    ),
    "constant of another dtype": (
        lambda: of_function(lambda x: x * np.array([1.0, 2, 3, 4])),
        {},
    ),
    "operations": (lambda: with_operations(), {}),
    "input as output": (lambda: sequential(layers.Identity()), {"Identity": 1}),
}


def of_function(function, shape=(None, None, 4), batch=None):
    inputs = keras.Input(shape, batch)
    return keras.Model(inputs, function(inputs))


def twice(first, second):
    inputs = keras.Input((None, None, 4))
    x = first(inputs)
    return keras.Model(inputs, layers.Add()([x, second(x)]))


def with_operations():
    inputs = keras.Input((None, None, 4))
    x = layers.MaxPooling2D(1)(inputs) * np.array([1, 2, 3, 4], "float32")
    x = ops.maximum(x - 0.5, 3 * inputs) + ops.minimum(1.5, inputs)
    x = layers.Concatenate()([x, layers.Multiply()([2 * x, inputs, x])])
    return keras.Model(inputs, layers.Subtract()([x, layers.MaxPooling2D(1)(x)]))


def inputs_of(model):
    _, *shape = [33 if size is None else size for size in model.input_shape]
    if model.inputs[0].dtype == "uint8":
        return np.random.default_rng(0).integers(0, 256, (2, *shape)).astype("uint8")
    return images(2, *shape)


def assert_equal(model, run, x=None):
    x = inputs_of(model) if x is None else x
    expected = ops.convert_to_numpy(model(x))
    # Sums of large values may be small.
    atol = max(1e-5, 3e-7 * np.abs(expected).max())
    np.testing.assert_allclose(run(x), expected, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("case", CASES)
def test_layers(case):
    create, counts = CASES[case]
    model = create()
    written = direct(model)
    assert_equal(model, runs(written))
    found = kinds(written)
    assert {kind: found[kind] for kind in counts} == counts
    assert found["Transpose"] <= max(counts.get("Transpose", 0), 4)


def test_networks_of_keras_are_written_directly():
    model = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None)
    written = direct(keras_nfnets.fold(model))
    assert_equal(model, runs(written))
    found = kinds(written)
    # Batch normalization is in the convolutions.
    assert (found["Conv"], found["Transpose"], found["BatchNormalization"]) == (
        52,
        1,
        0,
    )


ACTIVATIONS = [
    *("elu", "gelu", "hard_sigmoid", "leaky_relu", "linear", "log_sigmoid"),
    *("log_softmax", "relu", "relu6", "selu", "sigmoid", "silu", "softmax"),
    *("softplus", "softsign", "tanh"),
]


@pytest.mark.parametrize("opset", [15, 20, 22])
@pytest.mark.parametrize("activation", [*ACTIVATIONS, "celu", "scaled gelu", "layers"])
def test_activations(activation, opset):
    if activation == "scaled gelu":
        parts = [keras_nfnets.ScaledActivation("gelu")]
    elif activation == "layers":
        limited = layers.ReLU(max_value=1.5)
        parts = [layers.ReLU(negative_slope=0.2), layers.ELU(0.5), limited]
    else:
        parts = [layers.Activation(activation)]
    model = sequential(convolution(6, 1), *parts)
    written = direct(model, opset=opset)
    assert_equal(model, runs(written), 3 * inputs_of(model))
    assert written.opset_import[0].version == opset


def test_channels_first():
    """TensorFlow has no such convolutions on the CPU, so compare with channels last."""
    parts = {}
    for data_format, shape in [
        ("channels_first", (4, None, None)),
        ("channels_last", (None, None, 4)),
    ]:
        options = {"data_format": data_format}
        parts[data_format] = sequential(
            layers.ZeroPadding2D(1, **options),
            convolution(6, 3, strides=2, **options),
            layers.MaxPooling2D(2, **options),
            layers.GlobalAveragePooling2D(**options),
            layers.Dense(5),
            shape=shape,
        )
    first, last = parts.values()
    last.set_weights(first.get_weights())
    written = direct(first)
    assert kinds(written)["Transpose"] == 0
    x = images(2, 33, 47, 4)
    assert_equal(last, lambda x: runs(written)(np.moveaxis(x, -1, 1).copy()), x)


def test_mixed_precision_has_no_more_nodes(nfnet_tiny):
    options = {"depths": (1, 1), "widths": (16, 32), "attention": None}
    found = []
    for policy in ("float32", "mixed_bfloat16"):
        keras.config.set_dtype_policy(policy)
        folded = fold(nfnet_tiny(**options))
        keras.config.set_dtype_policy("float32")
        model = keras_nfnets.deploy.exporting._cloned(folded, "float32")
        found.append(kinds(onnx_model(model, ["image"], ["predictions"])))
    assert found[0] == found[1]


class Conv2D(layers.Conv2D):
    """Layer of another kind that has the name of one of Keras's."""

    def call(self, x):
        return 2 * super().call(x)


def integer_sum():
    inputs = keras.Input((None, None, 4), dtype="int32")
    return keras.Model(inputs, inputs + inputs)


@pytest.mark.parametrize(
    ("create", "named"),
    [
        (lambda: sequential(layers.GroupNormalization(2, name="norm")), "'norm'"),
        (
            lambda: sequential(
                layers.BatchNormalization(2, name="rows"), shape=(8, 8, 4)
            ),
            "'rows'",
        ),
        (
            lambda: of_function(
                lambda x: layers.BatchNormalization()(
                    convolution(2, 1)(x), training=True
                )
            ),
            "BatchNormalization",
        ),
        (
            lambda: sequential(
                layers.LayerNormalization(2, name="rows"), shape=(8, 8, 4)
            ),
            "'rows'",
        ),
        (lambda: sequential(Conv2D(3, 1, name="double")), "'double'"),
        (lambda: sequential(layers.Activation("glu", name="gates")), "'gates'"),
        (lambda: sequential(layers.Activation("mish", name="mish")), "'mish'"),
        (lambda: sequential(layers.ReLU(threshold=1.0, name="high")), "'high'"),
        (integer_sum, "Add"),
        (lambda: sequential(convolution(2, 1, activation=layers.ReLU())), "ReLU"),
        (lambda: sequential(layers.MaxPooling2D(2, 3, "same", name="max")), "'max'"),
        (lambda: of_function(lambda x: layers.Softmax()(x, mask=x)), "Softmax"),
        (lambda: of_function(lambda x: ops.reshape(x, (-1, 4))), "Reshape"),
        (
            lambda: of_function(
                lambda x: ops.concatenate([x, np.ones((2, 1), "float32")], axis=1),
                shape=(3,),
                batch=2,
            ),
            "Concatenate",
        ),
    ],
)
def test_what_is_unknown_is_named(create, named):
    with pytest.raises(UnknownOperation, match=named):
        direct(create())


def test_layers_that_keras_converts_on_tensorflow_alone(tmp_path):
    model = sequential(layers.UnitNormalization(name="unit"))
    path = str(tmp_path / "m.onnx")
    if keras.backend.backend() == "tensorflow":
        with pytest.raises(ValueError, match="'unit'.* up to 18. Received: opset=20"):
            export(model, path, opset=20)
        export(model, path)
        assert_equal(model, runs(path))
    else:
        with pytest.raises(ValueError, match="'unit'.* runs on its TensorFlow backend"):
            export(model, path)
        assert not os.listdir(tmp_path)


def test_preprocessing_needs_no_converter(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_files, "_converted", None)
    model = sequential(layers.Flatten(), layers.Dense(3, "softmax"), shape=(8, 8, 1))
    preparation = {"size": 8, "channels": 1, "crop_mode": "resize_crop_2"}
    preparation |= {"interpolation": "bicubic", "mean": [0.5], "deviation": [0.2]}
    path, options = tmp_path / "m.onnx", {"preprocessing": True}
    export(model, path, opset=15, preparation=preparation, **options)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), "uint8")
    [found] = onnx_files.runtime_outputs(path, [[pixels]])
    expected = model(preprocessing_model(preparation)(pixels))
    np.testing.assert_allclose(found[0], ops.convert_to_numpy(expected), atol=1e-5)


@pytest.mark.parametrize("keras_converts", [False, True])
def test_names_and_sizes(keras_converts, tmp_path):
    path = str(tmp_path / "m.onnx")
    # (The converter writes that layer.)
    extra = [layers.UnitNormalization()] if keras_converts else []
    head = [layers.GlobalAveragePooling2D(), layers.Dense(5)]
    model = sequential(*extra, convolution(6, 3), *head)

    def ends():
        loaded = onnx.load(path).graph
        return [
            (x.name, [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim])
            for x in (*loaded.input, *loaded.output)
        ]

    export(model, path)
    assert ends() == [
        ("image", ["batch", "height", "width", 4]),
        ("predictions", ["batch", 5]),
    ]
    options = {"input_name": "tensor3", "output_name": "tensor1", "opset": 17}
    export(model, path, overwrite=True, batch_size=2, **options)
    assert ends() == [("tensor3", [2, "height", "width", 4]), ("tensor1", [2, 5])]
    assert onnx.load(path).opset_import[0].version == 17
    assert_equal(model, runs(path))


def test_several_inputs_and_outputs(tmp_path):
    a, b = keras.Input((8, 8, 3), name="left:0"), keras.Input((8, 8, 3), name="mean")
    shared = keras_nfnets.WSConv2D(4, 1, name="shared")
    x, y = shared(a), shared(b)
    mean = layers.GlobalAveragePooling2D()(x)
    model = keras.Model([a, b], {"z": x + y, "mean": mean, "again": mean})
    path = str(tmp_path / "m.onnx")
    export(model, path)
    graph = onnx.load(path).graph
    assert [x.name for x in graph.input] == ["left_0", "mean"]
    inputs = [images(2, 8, 8, 3), images(2, 8, 8, 3, seed=2)]
    assert [x.name for x in graph.output] == ["again", "mean_1", "z"]
    expected = model(inputs)
    for name, actual in zip(["again", "mean", "z"], runs(path)(*inputs), strict=True):
        wanted = ops.convert_to_numpy(expected[name])
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(
        ValueError, match="`input_name` needs a model with only one input.* of 2"
    ):
        export(model, path, overwrite=True, input_name="x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 14}, "from 15 to .*Received: opset=14"),
        ({"opset": 1000}, "from 15 to .*Received: opset=1000"),
        ({"opset": "20"}, "from 15 to .*Received: opset='20'"),
        ({"input_name": ""}, "`input_name` must be text"),
        ({"output_name": 5}, "`output_name` must be text"),
        ({"input_name": "x", "output_name": "x"}, "different names.*'x'"),
        ({"batch_size": 0}, "`batch_size` must be an integer"),
        ({"batch_size": 3, "fixed": 2}, "takes batches of 2.*batch_size=3"),
    ],
)
def test_refuses(options, message, tmp_path):
    inputs = keras.Input((8, 8, 3), batch_size=options.pop("fixed", None))
    model = keras.Model(inputs, convolution(2, 1)(inputs))
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / "m.onnx", **options)
    assert not os.listdir(tmp_path)


_EXPORT = """
import sys, keras, keras_nfnets
[keras.layers.Add() for _ in range(int(sys.argv[3]))]  # of the numbers in names
model = keras.models.load_model(sys.argv[1])
keras_nfnets.export(model, sys.argv[2])
"""


@pytest.mark.parametrize("keras_converts", quick([False, True], False))
def test_files_are_the_same_whenever_written(keras_converts, tmp_path, nfnet_tiny):
    model = nfnet_tiny(depths=(1, 1), widths=(16, 32), activation="gelu")
    if keras_converts:
        x = layers.UnitNormalization()(model.output)
        model = keras.Model(model.input, [x * 2 + 1, x])
    paths = [tmp_path / f"{i}.onnx" for i in range(3)]
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    export(loaded, paths[0])
    export(loaded, paths[1])
    arguments = [str(tmp_path / "m.keras"), str(paths[2]), "5"]
    subprocess.run([sys.executable, "-c", _EXPORT, *arguments], check=True)
    digests = {hashlib.sha256(path.read_bytes()).digest() for path in paths}
    assert len(digests) == 1


@pytest.mark.parametrize("keras_converts", [False, True])
def test_files_do_not_depend_on_the_device(keras_converts, tmp_path, monkeypatch):
    """Keras computes grouped convolutions in another way on accelerators."""
    extra = [layers.UnitNormalization()] if keras_converts else []
    model = sequential(
        keras_nfnets.WSConv2D(8, 3, groups=2), convolution(8, 3, groups=4), *extra
    )
    contents = []
    for name in ("cpu:0", "gpu:0"):
        device.has_only_cpus.cache_clear()
        monkeypatch.setattr(keras.distribution, "list_devices", lambda n=name: [n])
        assert device.has_only_cpus() == (name == "cpu:0")
        path = tmp_path / f"{len(contents)}.onnx"
        export(model, path)
        contents.append(path.read_bytes())
    device.has_only_cpus.cache_clear()
    assert contents[0] == contents[1]


def test_a_file_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(onnx_layers.WRITERS, "Tanh", onnx_layers.WRITERS["Sigmoid"])
    model = sequential(convolution(2, 1, activation="tanh"))
    path = tmp_path / "m.onnx"
    path.write_text("old")
    with pytest.raises(ValueError, match="does not compute the outputs"):
        export(model, path, overwrite=True)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["m.onnx"]


# `pytest.warns` repeats the warnings of other modules as those of this one.
@pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")
def test_a_network_that_fails_on_other_sizes_is_written(tmp_path):
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(2, 3, strides=5, padding="same")(inputs)
    x = layers.Reshape((-1, 20, 2))(x)  # 96 * 128 pixels give 20 * 26 * 2 values
    with pytest.warns(UserWarning, match="not compared .* of shape .*fails there"):
        export(keras.Model(inputs, x + 1), tmp_path / "m.onnx")


def test_files_of_more_than_two_gigabytes_are_refused(monkeypatch):
    model = sequential(convolution(2, 1))
    monkeypatch.setattr(keras.Model, "count_params", lambda self: 2**29)
    with pytest.raises(ValueError, match="more than 2 GB.*2.1 GB of weights"):
        onnx_files.check_size(model)
