"""What the tests share: quiet logs, repeatable randomness, the golden cases."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Devices to train on; tests that do not ask for others use the first.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import json
import pathlib
import sys

import keras
import numpy as np
import pytest

GOLDEN = pathlib.Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))

import rule

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    [_cpu] = tf.config.list_physical_devices("CPU")
    _devices = [tf.config.LogicalDeviceConfiguration()] * 4
    tf.config.set_logical_device_configuration(_cpu, _devices)

# Only TensorFlow has replicas and sparse gradients; the data and the command stand on
# tf.data.
# Downloads and pickles know no backend: once is enough.
collect_ignore = []
if keras.backend.backend() != "tensorflow":
    collect_ignore = [
        "cli",
        "colab",  # the notebooks choose TensorFlow
        "examples",
        "data",
        "recipes",
        "experiments/test_images_on_the_disk.py",
        "deploy/test_exporting.py",
        "test_lean.py",
        "pretrained/test_download.py",
        "pretrained/test_pickles.py",
        "training/test_compiled_step.py",
        "training/test_replicas.py",
        "training/test_sparse_gradients.py",
        "training/test_strategies.py",
        "training/test_tracing.py",
    ]
if keras.backend.backend() != "jax":
    collect_ignore = [*collect_ignore, "training/test_data_parallel_jax.py"]


@pytest.fixture(autouse=True)
def _repeatable():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


class GoldenCase:
    """One case of tests/golden: its input, parameters and recorded outputs."""

    def __init__(self, name):
        self.spec = json.loads((GOLDEN / f"{name}.json").read_text())
        with np.load(GOLDEN / f"{name}.npz") as outputs:
            self.outputs = dict(outputs)
        self.images = rule.image(
            self.spec["input"]["seed"], self.spec["input"]["shape"]
        )

    @property
    def parameters(self):
        """Haiku's `{module: {leaf: array}}`, or timm's `{name: array}`."""
        return {
            module: {
                leaf: rule.value(f"{module}/{leaf}", tuple(shape))
                for leaf, shape in leaves.items()
            }
            if isinstance(leaves, dict)
            else rule.value(module, tuple(leaves))
            for module, leaves in self.spec["parameters"].items()
        }

    def series(self, name):
        """`out/<name>_0`, `out/<name>_1`, ... as one array."""
        count = sum(key.startswith(f"out/{name}_") for key in self.outputs)
        return np.array([self.outputs[f"out/{name}_{i}"] for i in range(count)])


@pytest.fixture
def golden():
    return GoldenCase


def relative_error(actual, expected):
    """Largest difference as a share of the largest expected value."""
    expected = np.asarray(expected)
    return np.max(np.abs(np.asarray(actual) - expected)) / np.max(np.abs(expected))


@pytest.fixture(name="relative_error")
def _relative_error():
    return relative_error


def nfnet_tiny(**options):
    """`nfnet_tiny` of the golden cases."""
    import keras_nfnets

    arguments = {
        "depths": (1, 2, 2, 1),
        "widths": (16, 32, 48, 48),
        "group_size": 8,
        "classes": 10,
        "classifier_activation": None,
    }
    return keras_nfnets.NFNet(**{**arguments, **options})


@pytest.fixture(name="nfnet_tiny")
def _nfnet_tiny():
    return nfnet_tiny
