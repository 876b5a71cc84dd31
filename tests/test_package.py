"""Import of the complete package, in separate processes."""

import os
import subprocess
import sys


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


def test_import_loads_nothing_that_keras_does_not():
    # (Keras itself loads matplotlib and scikit-learn where they are installed.)
    code = """
import sys, keras
before = set(sys.modules)
import keras_nfnets
print(*{name.partition(".")[0] for name in set(sys.modules) - before})
"""
    assert run(code).split() == ["keras_nfnets"]


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
