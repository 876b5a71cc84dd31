"""Import of the complete package, in separate processes."""

import configparser
import os
import pathlib
import subprocess
import sys

import pytest
from on_every_backend import COLLECTED, ON_EVERY_BACKEND
from packaging import requirements

import keras_nfnets


def run(code, **environment):
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


# The package imports nothing that Keras does not. (Keras itself loads matplotlib and
# scikit-learn where they are installed.)
_AS_LIBRARY = """
import sys, keras
before = set(sys.modules)
import keras_nfnets
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
assert loaded == {"keras_nfnets"}, loaded
"""
# In the process of the command, the package does not import everything.
_AS_COMMAND = """
import sys
sys.orig_argv = ["python", "/bin/keras-nfnets"]
sys.argv = ["/bin/keras-nfnets"]
import keras_nfnets
assert not hasattr(keras_nfnets, "NFNetF0")
from keras_nfnets.cli.quiet import import_keras
import_keras()
"""


@pytest.mark.parametrize(
    "start", [_AS_LIBRARY, _AS_COMMAND], ids=["library", "command"]
)
def test_saved_models_load_after_the_import_alone(start):
    """It registers all classes, also those that no saved file here has.

    Those of `keras_nfnets.hub` need KerasHub, and an import of their own.
    """
    root = pathlib.Path(keras_nfnets.__file__).parent
    modules = [
        ".".join(file.relative_to(root.parent).with_suffix("").parts)
        for file in root.rglob("*.py")
        if "register_keras_serializable" in file.read_text() and file.stem != "hub"
    ]
    assert len(modules) > 10
    run(
        f"""
{start}
import importlib
import keras
keras.saving.load_model("{pathlib.Path(__file__).parent}/saved/converted.keras")
known = set(keras.saving.get_custom_objects())
for module in {modules}:
    importlib.import_module(module)
assert set(keras.saving.get_custom_objects()) == known
"""
    )


def test_import_on_jax_does_not_import_tensorflow():
    run(_AS_LIBRARY, KERAS_BACKEND="jax")


# What a user of the networks alone needs not install.
_NOT_INSTALLED = """
import sys
from importlib.machinery import PathFinder
missing = {"tensorflow", "tensorflow_datasets", "sklearn", "matplotlib", "fontTools"}
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *args: None if name in missing else find(name, *args)
import numpy as np
"""


def test_networks_work_on_jax_without_tensorflow():
    run(
        f"""
{_NOT_INSTALLED}
import keras
import keras_nfnets

x, y = np.ones((4, 32, 32, 3), "float32"), np.array([0, 1, 0, 1])
model = keras_nfnets.NFNet((1,), (16,), group_size=8, classes=2)
model.compile(keras_nfnets.SGDAGC(), "sparse_categorical_crossentropy")
model.fit(x, y, verbose=0)
folded = keras_nfnets.fold(model)
expected = model.predict(x, verbose=0)
np.testing.assert_allclose(folded.predict(x, verbose=0), expected, rtol=1e-4)
assert len(keras_nfnets.signal_propagation(model, x)["avg_var"]) > 0

inputs = keras.Input((3,))
model = keras_nfnets.AGCModel(inputs, keras_nfnets.WSDense(2)(inputs))
model.compile("sgd", "mse")
assert "clip_share" in model.fit(np.ones((4, 3)), np.zeros((4, 2)), verbose=0).history

normalized = keras.Sequential(
    [inputs, keras.layers.Dense(8), keras.layers.BatchNormalization()]
)
keras_nfnets.normalizer_free(normalized).predict(np.ones((4, 3)), verbose=0)

from keras_nfnets import runs
classifier = runs.load_classifier("digits")
[prediction] = classifier.predict([np.zeros((8, 8, 3), "uint8")])
""",
        KERAS_BACKEND="jax",
    )


def test_what_needs_a_missing_package_says_so():
    printed = run(
        f"""
{_NOT_INSTALLED}
import keras_nfnets
from keras_nfnets import data
from keras_nfnets.cli import main

signal = {{"avg_var": np.ones(3)}}
for call in (
    lambda: data.load("digits", "train", 32, 8),
    lambda: data.load_digits(),
    lambda: data.find("cifar10"),
    lambda: keras_nfnets.plot_signal_propagation(signal, "signal.png"),
):
    try:
        call()
    except ModuleNotFoundError as error:
        print(error)
sys.stderr = sys.stdout
assert main.main(["train", "--data=digits", "--output_dir=run"]) == 1
""",
        KERAS_BACKEND="jax",
    )
    sentences = [
        ("data.load", "tensorflow"),
        ("The data set 'digits'", "scikit-learn"),
        ("A data set of TensorFlow Datasets", "tensorflow-datasets"),
        ("plot_signal_propagation", "matplotlib"),
    ]
    *lines, from_command = printed.splitlines()
    assert lines == [
        f"{what} needs the package '{package}', which is not installed: pip install "
        f"{package}"
        for what, package in sentences
    ]
    assert from_command == (
        "keras-nfnets train: 'train' needs the package 'tensorflow', which is not "
        "installed: pip install tensorflow"
    )


def test_constraints_are_the_lowest_versions_of_setup_cfg():
    root = pathlib.Path(__file__).parent.parent
    setup = configparser.ConfigParser()
    setup.read(root / "setup.cfg", "utf-8")
    listed = (
        setup["options"]["install_requires"]
        + setup["options.extras_require"]["experiments"]
    )
    lines = [line for line in listed.splitlines() if line and line[0] != "#"]
    floors = {
        r.name: s.version
        for r in map(requirements.Requirement, lines)
        for s in r.specifier
        if s.operator == ">="
    }
    pins = (root / "constraints" / "lowest.txt").read_text("utf-8").splitlines()
    pinned = dict(line.split("==") for line in pins if line[0] != "#")
    assert floors == {name: pinned[name] for name in floors}
    assert len(floors) > 10


def test_tests_listed_for_every_backend_exist():
    for file, listed in ON_EVERY_BACKEND.items():
        # (Not all files are collected if paths are given.)
        found = COLLECTED.get(file, listed)
        assert listed <= found, listed - found
