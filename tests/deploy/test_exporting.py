"""`export`: the runtime of each format loads the file."""

import configparser
import os
import pathlib
import sys

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from full_disk import full_disk
from quick import quick
from sklearn.datasets import load_digits
from tensorflow.core.protobuf import saved_model_pb2

import keras_nfnets
from keras_nfnets import data, export, pretrained
from keras_nfnets.backend import device
from keras_nfnets.cli.main import COMMANDS
from keras_nfnets.deploy import exporting
from keras_nfnets.deploy.formats import BY_NAME

ROOT = pathlib.Path(__file__).parents[2]


def run_saved_model(path, x):
    loaded = tf.saved_model.load(str(path))
    return loaded.serve(x).numpy()


def run_onnx(path, x):
    session = onnxruntime.InferenceSession(str(path))
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def run_litert(path, x):
    interpreter = Interpreter(model_path=str(path))
    [inputs], [outputs] = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )
    interpreter.resize_tensor_input(inputs["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(inputs["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(outputs["index"])


RUNTIMES = {"model": run_saved_model, "m.onnx": run_onnx, "m.tflite": run_litert}


@pytest.fixture(scope="module", name="digits")
def _digits():
    """Bundled network, a third of the digits preprocessed for it, and their labels."""
    model = pretrained.create("digits")
    preparation = pretrained.find_checkpoint("digits").preparation
    images, labels = (array[::3] for array in load_digits(return_X_y=True))
    images = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype("uint8")
    prepared = data.prepare
    x = np.stack([prepared(np.stack([i] * 3, -1), **preparation) for i in images])
    return model, x, labels


@pytest.fixture(scope="module", name="classes")
def _classes(digits):
    """Classes that the bundled network predicts for the digits."""
    model, x, _ = digits
    return np.argmax(model.predict(x, verbose=0), -1)


@pytest.fixture(scope="module", name="litert_file")
def _litert_file(digits, tmp_path_factory):
    """LiteRT file of the bundled network, in a folder that `export` creates."""
    path = tmp_path_factory.mktemp("litert") / "a folder" / "m.tflite"
    export(digits[0], path)
    return path


def small(classes=10):
    """Build a network that is quick to export, for tests of files, paths and arguments."""
    inputs = keras.Input((None, None, 3))
    x = keras_nfnets.WSConv2D(4, 3, activation="relu")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(classes)(x))


IMAGES = np.zeros((4, 8, 8, 3), "float32")


def one_block():
    """Build a network with every kind of layer that networks of the package have."""
    inputs = keras.Input((None, None, 3))
    x = keras_nfnets.WSConv2D(16, 3, strides=2)(inputs)
    x = keras_nfnets.NFBlock(32, strides=2, group_size=8)(x)
    x = keras_nfnets.WSConv2D(48, 1)(keras_nfnets.ScaledActivation("gelu")(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras_nfnets.layers.Dropout(0.2)(x)
    return keras.Model(inputs, keras.layers.Dense(10, dtype="float32")(x))


def test_the_formats_are_those_that_can_be_written():
    assert tuple(BY_NAME) == exporting.FORMATS


@pytest.mark.parametrize("name", exporting.FORMATS)
def test_every_format_is_explained_and_run(name):
    known = BY_NAME[name]
    ending, packages = known.ending, known.packages
    # (test_openvino.py)
    assert ending in [".xml", *(pathlib.Path(path).suffix for path in RUNTIMES)]
    assert f'`"{name}"`' in export.__doc__
    if ending:  # a SavedModel is a folder
        assert f"`{ending}`" in export.__doc__
        assert f" {ending} (" in COMMANDS["export"].help
        assert f"| `{ending}` |" in (ROOT / "docs/guides/deploy.md").read_text("utf-8")
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = setup["options"]["install_requires"].split()
    for extra in (known.extra, "test"):
        named = [*required, *setup["options.extras_require"][extra].split()]
        assert all(package.replace("_", "-") in named for package in packages)


@pytest.mark.parametrize("name", RUNTIMES)
def test_agrees_with_keras(name, tmp_path, digits, request):
    model, x, _ = digits
    if name == "m.tflite":
        path = request.getfixturevalue("litert_file")
    else:
        path = tmp_path / "a folder" / name
        model = one_block()
        rng = np.random.default_rng(0)
        model.set_weights([rng.normal(0, 0.3, w.shape) for w in model.get_weights()])
        export(model, path)
    for batch in (x[:3], x[5:6]):
        outputs = RUNTIMES[name](path, batch)
        np.testing.assert_allclose(outputs, model(batch), atol=1e-4)
    assert os.listdir(path.parent) == [name]


# (test_onnx.py writes these layers as ONNX.)
@pytest.mark.parametrize("name", quick(RUNTIMES, "m.tflite"))
def test_groups_and_symmetric_padding(name, tmp_path, nfnet_tiny):
    options = {"convention": "timm", "activation": "silu", "attention": "eca"}
    model = nfnet_tiny(depths=(1, 1), widths=(16, 32), **options)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
    export(model, tmp_path / name)
    x = rng.normal(size=(2, 37, 32, 3)).astype("float32")
    expected = np.array(model(x))
    outputs = RUNTIMES[name](tmp_path / name, x)
    assert np.abs(outputs - expected).max() <= 1e-4 * np.abs(expected).max()


def grouped():
    """Build a network of grouped convolutions, most of them not of this package."""
    inputs = keras.Input((8, 8, 8))
    x = keras_nfnets.WSConv2D(8, 3, groups=2, padding="same")(inputs)
    x = keras.Sequential([keras.layers.Conv2D(8, 3, groups=4, activation="relu")])(x)
    x = keras.layers.Permute((3, 1, 2))(x)
    x = keras.layers.Conv2D(8, 3, groups=2, data_format="channels_first")(x)
    x = keras.layers.Reshape((4, 4, 4, 2))(x)
    x = keras.layers.Conv3D(4, 3, groups=2)(x)
    x = keras.layers.Reshape((8, 4))(x)
    return keras.Model(inputs, keras.layers.Conv1D(6, 3, groups=2, padding="causal")(x))


@pytest.mark.parametrize("device_name", quick(["cpu:0", "gpu:0"], "gpu:0"))
@pytest.mark.parametrize("name", RUNTIMES)
def test_files_do_not_depend_on_the_device(name, device_name, tmp_path, monkeypatch):
    """Keras's grouped convolutions are compiled, which runtimes cannot read."""
    model = grouped()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 8, 8)).astype("float32")
    # Without XLA, TensorFlow has no convolutions with channels first on CPUs.
    model.compile(jit_compile=True)
    expected = model.predict_on_batch(x)
    device.has_only_cpus.cache_clear()
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: [device_name])
    export(model, tmp_path / name)
    device.has_only_cpus.cache_clear()
    outputs = RUNTIMES[name](tmp_path / name, x)
    assert np.abs(outputs - expected).max() <= 1e-5 * np.abs(expected).max()
    if name == "model":
        graphs = (tmp_path / name / "saved_model.pb").read_bytes()
        saved = saved_model_pb2.SavedModel.FromString(graphs)
        functions = saved.meta_graphs[0].graph_def.library.function
        assert not any(function.attr["_XlaMustCompile"].b for function in functions)


@pytest.mark.parametrize(
    ("name", "quantize", "with_examples", "size"),
    [
        pytest.param("m.tflite", "dynamic", False, 0.5, marks=pytest.mark.slow),
        pytest.param("m.tflite", "float16", False, 0.6, marks=pytest.mark.slow),
        ("m.tflite", "int8", True, 0.5),
        pytest.param("m.tflite", "int8", False, 0.5, marks=pytest.mark.slow),
        pytest.param("m.onnx", "int8", True, 0.5, marks=pytest.mark.slow),
        ("m.onnx", "int8", False, 0.5),
    ],
)
def test_quantized_keeps_the_accuracy(
    name, quantize, with_examples, size, tmp_path, digits, classes, litert_file
):
    model, x, labels = digits
    examples = x[::6] if with_examples else None
    path = tmp_path / name
    export(model, path, quantize=quantize, examples=examples)
    assert os.path.getsize(path) < os.path.getsize(litert_file) * size
    actual = np.argmax(RUNTIMES[name](path, x), -1)
    assert np.mean(actual == labels) == pytest.approx(
        np.mean(classes == labels), abs=0.01
    )
    assert np.mean(actual == classes) >= 0.99


def test_int8_onnx_files_compute_with_8_bits_and_are_reproducible(tmp_path):
    model, x = one_block(), np.random.default_rng(0).normal(size=(20, 32, 32, 3))
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for path in files:
        options = {"input_name": "x", "output_name": "y", "batch_size": 2}
        export(model, path, quantize="int8", examples=x.astype("float32"), **options)
    assert files[0].read_bytes() == files[1].read_bytes()
    graph = onnx.load(files[0]).graph
    assert [x.name for x in graph.input] == ["x"]
    assert [x.name for x in graph.output] == ["y"]
    given = {name: node for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert convolutions
    for node in convolutions:
        assert all(given[x].op_type == "DequantizeLinear" for x in node.input)
    kernels = [onnx.numpy_helper.to_array(x) for x in graph.initializer]
    # Sums of larger products overflow on CPUs without instructions for them.
    assert max(np.abs(x).max() for x in kernels if x.dtype == "int8" and x.size) <= 64


@pytest.mark.parametrize(
    "path, options, message",
    [
        ("m.onnx", {"quantize": "dynamic"}, "'onnx' can be quantized to int8"),
        ("m", {"quantize": "int8"}, "'saved_model' cannot be.*quantize='int8'"),
        ("m.onnx", {"format": "litert"}, "must end in .tflite"),
        ("m", {"format": "torch"}, "saved_model"),
        ("m.onnx", {"format": "saved_model"}, "looks like a file"),
        ("m.keras", {}, "looks like a file"),
        ("m.h5", {}, "looks like a file"),
        ("m.onx", {}, "looks like a file. Files end in .onnx or .tflite or .xml"),
        ("m.tflite", {"quantize": "int4"}, "dynamic"),
        ("m.tflite", {"examples": np.zeros((1, 32, 32, 3))}, "`examples` are for"),
        ("m.tflite", {"input_name": "x"}, "`input_name` is for ONNX and OpenVINO"),
        ("m", {"opset": 20}, "`opset` is for ONNX and OpenVINO"),
        (
            "m.tflite",
            {"quantize": "int8", "examples": np.zeros((4, 32, 32))},
            r"shape \(4, 32, 32\)",
        ),
    ],
)
def test_refuses(path, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(small(), tmp_path / path, **options)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", RUNTIMES)
def test_replaces_only_when_told(name, tmp_path):
    path = tmp_path / name
    export(small(classes=3), path)
    with pytest.raises(ValueError, match="exists already"):
        export(small(), path)
    assert RUNTIMES[name](path, IMAGES[:1]).shape == (1, 3)
    export(small(), path, overwrite=True)
    assert RUNTIMES[name](path, IMAGES[:1]).shape == (1, 10)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_folder_of_something_else_is_left_alone(name, tmp_path):
    path = tmp_path / name
    path.mkdir()
    (path / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="must not"):
        export(small(), path, overwrite=True)
    assert (path / "thesis.txt").read_text() == "all of it"


def test_a_saved_model_with_something_else_in_its_folder_is_left_alone(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    export(small(), path, overwrite=True)
    export(small(), path, overwrite=True)
    run_saved_model(path, IMAGES[:1])
    other = tmp_path / "other"
    (other / "variables").mkdir(parents=True)
    for file in (path / "thesis", path / "assets/photo", other / "variables/mine"):
        file.write_text("mine")
        with pytest.raises(ValueError, match="must not"):
            folder = tmp_path / file.relative_to(tmp_path).parts[0]
            export(small(), folder, overwrite=True)
        assert file.read_text() == "mine"
        file.unlink()


def test_a_saved_model_takes_the_place_of_a_file(tmp_path):
    (tmp_path / "model").write_text("old")
    export(small(), tmp_path / "model", overwrite=True)
    run_saved_model(tmp_path / "model", IMAGES[:1])
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("activation", ["gelu_exact", "celu"])
def test_operations_that_tf2onnx_does_not_know(activation, tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = keras_nfnets.WSConv2D(4, 3)(inputs)
    x = keras_nfnets.ScaledActivation(activation)(x)
    model = keras.Model(inputs, x)
    export(model, tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(run_onnx(tmp_path / "m.onnx", x), model(x), atol=1e-4)


def test_operations_that_onnx_does_not_have_are_named(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = keras.ops.erfinv(keras_nfnets.WSConv2D(4, 3)(inputs))
    with pytest.raises(ValueError, match="cannot be written as ONNX: .*Erfinv"):
        export(keras.Model(inputs, x), tmp_path / "m.onnx")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        *(
            ("mixed_bfloat16", "m.onnx"),
            ("bfloat16", "m.tflite"),
            ("float64", "m.onnx"),
        ),
        pytest.param("mixed_bfloat16", "m.tflite", marks=pytest.mark.slow),
        pytest.param("bfloat16", "m.onnx", marks=pytest.mark.slow),
        pytest.param("float64", "m.tflite", marks=pytest.mark.slow),
    ],
)
def test_other_precisions_are_written_in_float32(policy, name, tmp_path):
    keras.config.set_dtype_policy(policy)
    model = one_block()
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
    export(model, tmp_path / name)
    keras.config.set_dtype_policy("float32")
    same = one_block()
    same.set_weights([np.asarray(w, "float32") for w in model.get_weights()])
    x = rng.normal(size=(2, 32, 32, 3)).astype("float32")
    actual, expected = RUNTIMES[name](tmp_path / name, x), np.array(same(x))
    # (Kernels stored in bfloat16 are folded in bfloat16.)
    atol = (5e-3 if policy == "bfloat16" else 1e-4) * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, atol=atol)


@pytest.mark.parametrize("name", RUNTIMES)
def test_names_that_tensorflow_does_not_take(name, tmp_path):
    inputs = keras.Input((8, 8, 3), name="my input: é")
    x = keras_nfnets.WSConv2D(4, 3, name="é %")(inputs)
    inner = keras.Sequential([keras.layers.Conv2D(2, 1, name="ü %")], name="ö %")
    model = keras.Model(inputs, inner(x), name="a b:c")
    export(model, tmp_path / name)
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(
        RUNTIMES[name](tmp_path / name, x), model(x), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("path", [None, 5, b"m.onnx", "", "~no such user/m.onnx"])
def test_refuses_paths(path):
    with pytest.raises(ValueError, match="Received: path="):
        export(small(), path)


@pytest.mark.parametrize(
    "examples",
    [
        IMAGES + np.nan,
        IMAGES + np.inf,
        IMAGES[:0],
        IMAGES[:, :0, :0],
        IMAGES.astype("complex64"),
        IMAGES.astype("str"),
        IMAGES.astype("uint8"),
        IMAGES.astype("int64"),
        IMAGES.astype("bool"),
        [[1.0], [1.0, 2.0]],
        iter(IMAGES),
        tf.data.Dataset.from_tensors(IMAGES),
    ],
)
def test_refuses_examples(examples, tmp_path):
    with pytest.raises(ValueError, match="`examples` must .* Received: "):
        export(small(), tmp_path / "m.tflite", quantize="int8", examples=examples)
    assert os.listdir(tmp_path) == []


# `pytest.warns` repeats the warnings of other modules as those of this one.
repeated = pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")


@repeated
def test_examples_of_raw_pixels_are_a_warning(tmp_path):
    raw = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3)).astype("float32")
    with pytest.warns(UserWarning, match="look like raw pixels.*values from"):
        export(small(), tmp_path / "m.tflite", quantize="int8", examples=raw)


@repeated
@pytest.mark.slow
def test_examples_that_are_not_preprocessed_are_a_warning(tmp_path, digits):
    model, x, labels = digits
    raw = (x[::6] + 1) * 127.5
    path = tmp_path / "m.tflite"
    with pytest.warns(UserWarning, match="look like raw pixels.*values from 0 to 255"):
        export(model, path, quantize="int8", examples=raw)
    # It is right: the file is there, and useless.
    assert np.mean(np.argmax(run_litert(path, x), -1) == labels) < 0.2


def test_networks_that_preprocess_need_examples(tmp_path):
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, small()(keras.layers.Rescaling(1 / 255)(inputs)))
    with pytest.raises(ValueError, match="needs `examples` for a network that prepro"):
        export(model, tmp_path / "m.onnx", quantize="int8")
    assert os.listdir(tmp_path) == []


@repeated
def test_noise_for_a_network_that_is_not_normalizer_free_is_a_warning(tmp_path):
    inputs = keras.Input((8, 8, 3))
    # The range of the first channel leaves no bits to the others.
    x = inputs * np.array([1e6, 1, 1], "float32") * np.array([0, 1, 1], "float32")
    with pytest.warns(
        UserWarning, match="relative error .*, passed as `examples`, may give"
    ):
        export(keras.Model(inputs, x), tmp_path / "m.onnx", quantize="int8")


@repeated
def test_a_quantized_network_that_disagrees_is_a_warning(tmp_path, digits):
    model, x, _ = digits
    with pytest.warns(UserWarning, match="same class .* for only 0% of 3 examples"):
        export(model, tmp_path / "m.tflite", quantize="int8", examples=0 * x[:3])


@pytest.mark.slow
def test_raw_examples_of_a_model_that_preprocesses_are_right(tmp_path, digits):
    model, x, labels = digits
    inputs = keras.Input((32, 32, 3))
    rescaled = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    raw = (x + 1) * 127.5
    path = tmp_path / "m.tflite"
    export(
        keras.Model(inputs, model(rescaled)), path, quantize="int8", examples=raw[::6]
    )
    assert np.mean(np.argmax(run_litert(path, raw), -1) == labels) > 0.98


def test_a_model_of_several_outputs_is_quantized(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = keras_nfnets.WSConv2D(4, 3)(inputs)
    outputs = [keras.layers.GlobalAveragePooling2D()(x), keras.layers.Flatten()(x), x]
    model = keras.Model(inputs, outputs)
    examples = np.random.default_rng(0).normal(size=(50, 8, 8, 3)).astype("float32")
    export(model, tmp_path / "m.tflite", quantize="int8", examples=examples)


@pytest.mark.parametrize("batch", [None, 2])
def test_examples_as_the_model_takes_them(batch, tmp_path):
    inputs = keras.Input((8, 8, 3), batch_size=batch, dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    model = keras.Model(inputs, keras_nfnets.WSConv2D(4, 3)(x))
    examples = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), "uint8")
    path = tmp_path / "m.tflite"
    export(model, path, quantize="int8", examples=examples)
    expected = np.array(model(examples[:2]))
    actual = run_litert(path, examples[:2])
    assert np.abs(actual - expected).max() < 0.05 * np.abs(expected).max()


def test_what_fails_leaves_no_folders(tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.UnitNormalization()])
    (tmp_path / "old").mkdir()
    with pytest.raises(ValueError, match="cannot be written as ONNX|opset"):
        export(model, tmp_path / "old/new/newer/m.onnx", opset=22)
    assert os.listdir(tmp_path) == ["old"] and not os.listdir(tmp_path / "old")


def test_what_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.tflite"
    path.write_bytes(b"old")

    def fail(*args, **kwargs):
        pathlib.Path(args[1]).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(keras.Model, "export", fail)
    with pytest.raises(OSError, match="No space"):
        export(small(), path, overwrite=True)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["m.tflite"]


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_full_disk_leaves_the_old_file(name, tmp_path):
    path = tmp_path / name
    path.write_text("old")
    with pytest.raises(OSError, match=f"Not written: .*'{path}'"), full_disk(1000):
        export(small(), path, overwrite=True)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    ("package", "layers"),
    [
        ("onnx", []),
        # Only Keras's own converter writes that layer.
        ("tf2onnx", [keras.layers.UnitNormalization()]),
    ],
)
def test_says_what_to_install(package, layers, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    message = rf'{package}.*pip install "keras_nfnets\[export'
    with pytest.raises(ImportError, match=message):
        export(model, tmp_path / "m.onnx")


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_fixed_batch_size(name, tmp_path):
    export(small(), tmp_path / name, batch_size=4)
    assert RUNTIMES[name](tmp_path / name, IMAGES).shape == (4, 10)
