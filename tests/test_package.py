"""Import of the complete package, in separate processes."""

import os
import pathlib
import subprocess
import sys

import pytest
from on_every_backend import COLLECTED, ON_EVERY_BACKEND

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
    """It registers all classes, also those that no saved file here has."""
    root = pathlib.Path(keras_nfnets.__file__).parent
    modules = [
        ".".join(file.relative_to(root.parent).with_suffix("").parts)
        for file in root.rglob("*.py")
        if "register_keras_serializable" in file.read_text()
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


def test_works_on_jax_where_tensorflow_is_not_installed():
    run(
        """
import sys
sys.modules["tensorflow"] = None  # importing it fails
import numpy as np
import keras_nfnets
model = keras_nfnets.NFNet((1,), (16,), group_size=8, classes=2)
model.compile(keras_nfnets.SGDAGC(), "sparse_categorical_crossentropy")
model.fit(np.ones((4, 8, 8, 3)), np.array([0, 1, 0, 1]), verbose=0)

import keras
inputs = keras.Input((3,))
model = keras_nfnets.AGCModel(inputs, keras_nfnets.WSDense(2)(inputs))
model.compile("sgd", "mse")
assert "clip_share" in model.fit(np.ones((4, 3)), np.zeros((4, 2)), verbose=0).history
""",
        KERAS_BACKEND="jax",
    )


def test_tests_listed_for_every_backend_exist():
    for file, listed in ON_EVERY_BACKEND.items():
        # (Not all files are collected if paths are given.)
        found = COLLECTED.get(file, listed)
        assert listed <= found, listed - found
