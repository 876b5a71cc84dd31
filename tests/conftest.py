"""What the tests share: quiet logs, repeatable randomness, the golden cases."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Devices to train on; tests that do not ask for others use the first.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import pathlib
import sys

import keras
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "golden"))

from golden_case import GoldenCase, nfnet_tiny, relative_error

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
        "benchmarks",  # its processes choose JAX
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


@pytest.fixture
def golden():
    return GoldenCase


@pytest.fixture(name="relative_error")
def _relative_error():
    return relative_error


@pytest.fixture(name="nfnet_tiny")
def _nfnet_tiny():
    return nfnet_tiny
