"""Folded models load on Keras 3.9, without this package."""

import json
import pathlib
import zipfile

import keras
import numpy as np
import pytest
from environments import Environment
from versions import since_keras

import keras_nfnets
from keras_nfnets import fold
from keras_nfnets.deploy import portable


def tiny():
    return keras_nfnets.NFNetTiny(input_shape=(32, 32, 3), classes=10)


def with_attention():
    options = {"attention": "eca", "convention": "timm", "input_shape": (32, 32, 3)}
    return keras_nfnets.NFResNet((1, 1), 1, classes=10, **options)


def of_many_layers():
    """Build a network with layers and operations that have new parameters since 3.9."""
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.BatchNormalization()(keras_nfnets.WSConv2D(8, 3, strides=4)(x))
    x = keras.layers.SeparableConv2D(8, 3, depthwise_initializer="he_normal")(x)
    a, b = keras.ops.split(x, 2, axis=-1)
    x = keras.ops.reshape(a * 2 + b, (-1, 36, 4))
    x = keras.layers.MultiHeadAttention(2, 4)(x, x)
    x = keras.layers.Bidirectional(keras.layers.LSTM(4))(x)
    x = keras.layers.EinsumDense("ab,bc->ac", output_shape=5)(x)
    return keras.Model(inputs, keras.layers.Dense(3)(x))


MODELS = [tiny, with_attention, of_many_layers]
IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")


def parts(structure):
    """List the classes with configurations in the configuration of a model."""
    if isinstance(structure, list):
        return [part for x in structure for part in parts(x)]
    if not isinstance(structure, dict):
        return []
    found = [part for x in structure.values() for part in parts(x)]
    return [*found, structure] if "class_name" in structure else found


@pytest.mark.parametrize("make", MODELS)
def test_no_parameter_is_newer_than_keras_3_9(make, tmp_path):
    fold(make()).save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        config = json.loads(archive.read("config.json"))
    checked = 0
    for part in parts(config):
        module, name = part.get("module", ""), part["class_name"]
        kind = "operations" if module.startswith("keras.src.ops") else "layers"
        if name in portable._PARAMETERS[kind]:
            assert part["config"].keys() <= portable._PARAMETERS[kind][name], name
            checked += 1
        else:
            assert name in ("Functional", "DTypePolicy", "Zeros", "__keras_tensor__")
    assert checked > 10


@since_keras("3.14")
def test_parameters_that_are_set_are_written_also_if_they_are_new():
    inputs = keras.Input((8, 8, 3))
    layer = keras.layers.BatchNormalization(renorm=True, name="new")
    model = keras.Model(inputs, layer(keras_nfnets.WSConv2D(4, 3)(inputs)))
    assert fold(model).get_layer("new").get_config()["renorm"]


def test_the_original_is_saved_as_before():
    model = of_many_layers()
    before = model.to_json()
    fold(model)
    assert model.to_json() == before


def test_a_loaded_model_is_the_same_and_has_the_names(tmp_path):
    folded = fold(of_many_layers())
    folded.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert [a.name for a in loaded.layers] == [a.name for a in folded.layers]
    expected = folded.predict_on_batch(IMAGES)
    np.testing.assert_allclose(loaded.predict_on_batch(IMAGES), expected, atol=1e-6)


def test_h5_files_load_or_are_refused(tmp_path):
    path = tmp_path / "m.h5"
    folded = fold(tiny())
    folded.save(path)
    loaded = keras.models.load_model(path, compile=False)
    expected = folded.predict_on_batch(IMAGES)
    np.testing.assert_allclose(loaded.predict_on_batch(IMAGES), expected, atol=1e-6)
    written = path.read_bytes()
    with pytest.raises(ValueError, match=r"operations .* split.* as .keras.*m.h5"):
        fold(of_many_layers()).save(path)
    assert path.read_bytes() == written


# Run with Keras 3.9 on the path: loads all models and writes their outputs.
LOAD = """
import pathlib, sys
import keras, numpy as np
folder = pathlib.Path(sys.argv[1])
assert keras.__version__ == "3.9.2" and "keras_nfnets" not in sys.modules
for file in folder.glob("m?.*"):
    model = keras.models.load_model(file, compile=False)
    outputs = model.predict_on_batch(np.load(folder / "images.npy"))
    np.save(folder / f"{keras.backend.backend()}_{file.name}", np.asarray(outputs))
"""


@pytest.fixture(scope="module", name="keras39")
def _keras39(tmp_path_factory):
    """Environment with Keras 3.9."""
    folder = tmp_path_factory.mktemp("keras39")
    return Environment(folder, "--no-deps", "keras==3.9.2")


@pytest.mark.slow
def test_keras_3_9_loads_folded_models(keras39, tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    expected = {}
    for i, make in enumerate(MODELS):
        folded = fold(make())
        files = (
            [f"m{i}.keras"] if make is of_many_layers else [f"m{i}.keras", f"m{i}.h5"]
        )
        for name in files:
            folded.save(tmp_path / name)
            expected[name] = folded.predict_on_batch(IMAGES)
    for backend in ("tensorflow", "jax"):
        keras39.run("-c", LOAD, str(tmp_path), folder=tmp_path, KERAS_BACKEND=backend)
        for name, outputs in expected.items():
            actual = np.load(tmp_path / f"{backend}_{name}.npy")
            np.testing.assert_allclose(actual, outputs, atol=1e-5)


# Run with Keras 3.9 on the path: prints the parameters of its classes.
LIST = """
import inspect, json, keras
from keras.src.ops.operation import Operation

def parameters(cls):
    names = set()
    for base in cls.__mro__:
        if "__init__" in vars(base):
            found = inspect.signature(base.__init__).parameters.values()
            names |= {p.name for p in found if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
            if not any(p.kind == p.VAR_KEYWORD for p in found):
                break
    return " ".join(sorted(names - {"self"}))

def subclasses(cls):
    for sub in cls.__subclasses__():
        yield sub
        yield from subclasses(sub)

classes = [c for c in subclasses(Operation) if c.__module__.startswith("keras.src.")]
layers = [c for c in classes if getattr(keras.layers, c.__name__, None) is c]
operations = [c for c in classes if not issubclass(c, keras.Layer)]
kinds = {"layers": layers, "operations": operations}
print(json.dumps({k: {c.__name__: parameters(c) for c in v} for k, v in kinds.items()}))
"""


@pytest.mark.slow
def test_the_parameters_of_keras_3_9_are_those_recorded(keras39, tmp_path):
    printed = keras39.run("-c", LIST, folder=tmp_path)
    file = pathlib.Path(portable.__file__).with_name("keras39.json")
    assert json.loads(printed) == json.loads(file.read_text("utf-8"))
