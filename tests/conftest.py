"""Shared fixtures and settings: quiet logs, fixed seeds, golden cases."""

import gc
import os
from importlib import metadata

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

_has_fusion_emitters = not metadata.version("tensorflow").startswith("2.18.")

# Devices to train on; tests use the first one by default. Programs run only once or
# twice, so compiling them takes longer than running them.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=0",
        # Before TensorFlow 2.19 there is no such flag, and XLA ends the process.
        *(["--xla_cpu_use_fusion_emitters=false"] if _has_fusion_emitters else []),
        "--xla_force_host_platform_device_count=8",
        os.environ.get("XLA_FLAGS", ""),
    ]
)

import pathlib
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, settings

# Other processes may keep the machine busy.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

sys.path.insert(0, str(pathlib.Path(__file__).parent / "golden"))

from golden_case import GoldenCase, nfnet_tiny, relative_error
from on_every_backend import COLLECTED, ON_EVERY_BACKEND

# Set by `pytest_configure`.
collect_ignore = []
# Only TensorFlow has replicas and sparse gradients; the data and the command need tf.data.
# Code that does not depend on the backend, such as downloads and pickles, is tested once.
_ON_TENSORFLOW = [
    "benchmarks",  # its processes choose JAX
    "cli",
    "colab",  # the notebooks choose TensorFlow
    "examples",
    "data",
    "fuzz",
    "runs",
    "tools",
    "experiments/test_glyphs.py",
    "experiments/test_images_on_the_disk.py",
    "deploy/test_exporting.py",
    "deploy/test_openvino.py",
    "deploy/test_preprocessing.py",
    "models/test_costs.py",
    "models/test_feature_pyramid.py",
    "backend/test_fusion.py",
    "backend/test_keras_internals_tensorflow.py",
    "test_files.py",
    "test_newcomer.py",
    "test_package.py",  # a process of its own chooses JAX
    "test_plotting.py",
    "test_printing.py",
    "pretrained/test_checkpoints.py",
    "pretrained/test_download.py",
    "pretrained/test_hostile_servers.py",
    "pretrained/test_pickles.py",
    "pretrained/test_sharing.py",
    "pretrained/test_timm.py",
    "training/test_compiled_step.py",
    "training/test_hostile_checkpoints.py",
    "training/test_replicas.py",
    "training/test_sparse_gradients.py",
    "training/test_strategies.py",
    "training/test_tracing.py",
]


# Files whose tests take longest, on either backend.
_LONGEST = {
    *("test_docs.py", "test_runs.py", "test_train.py", "test_resume.py"),
    *("test_own_images.py", "test_predict.py", "test_experiments.py"),
    *("test_exporting.py", "test_pipeline.py", "test_replicas.py"),
    *("test_standardization.py", "test_training_options.py"),
}


def pytest_addoption(parser):
    parser.addoption(
        "--slice",
        metavar="K/N",
        help="run one test in N of those selected, starting with the K-th (from 0)",
    )


def pytest_configure(config):
    is_worker = hasattr(config, "workerinput")
    if config.option.numprocesses and not (is_worker or config.option.collectonly):
        return  # The tests run in other processes, so this one need not import Keras.
    import keras

    backend = keras.backend.backend()
    if backend != "jax":
        here = pathlib.Path(__file__).parent
        collect_ignore.extend(map(str, here.glob("*/test_*_jax.py")))
    if backend != "tensorflow":
        collect_ignore.extend(_ON_TENSORFLOW)
    if backend == "torch":
        # `pytest.warns` hides that they are of Keras and PyTorch.
        for start in ("__array__ implementation", "`torch.jit.script_method`"):
            config.addinivalue_line(
                "filterwarnings", f"ignore:{start}:DeprecationWarning"
            )
    elif backend == "tensorflow":
        import tensorflow as tf

        [cpu] = tf.config.list_physical_devices("CPU")
        devices = [tf.config.LogicalDeviceConfiguration()] * 4
        tf.config.set_logical_device_configuration(cpu, devices)
        _disable_autotuning()
        # Optimizing graphs takes a fifth of the time of the tests; slow ones do it.
        if config.option.markexpr == "not slow":
            tf.config.optimizer.set_experimental_options(
                {"disable_meta_optimizer": True}
            )
    elif backend == "jax":
        import jax

        # Processes share compiled programs; runs do, too, with pytest's cache.
        jax.config.update("jax_compilation_cache_dir", _folder_of_programs(config))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _disable_autotuning():
    """Disable the autotuning of data sets.

    Its thread often misses the end of an iteration. Whoever deletes the iterator then
    waits until the thread wakes up, after as much time again as the iteration took.
    """
    import tensorflow as tf

    apply_options = tf.data.Dataset._apply_debug_options

    def apply_more_options(dataset):
        options = tf.data.Options()
        options.autotune.enabled = False
        return apply_options(dataset.with_options(options))

    tf.data.Dataset._apply_debug_options = apply_more_options


def _folder_of_programs(config):
    if hasattr(config, "cache"):
        return str(config.cache.mkdir("compiled-by-jax"))
    # Beside the temporary folders of the processes.
    folder = config.option.basetemp
    return folder and str(pathlib.Path(folder).parent / "compiled-by-jax")


def pytest_itemcollected(item):
    COLLECTED[item.path.name] |= {item.name, item.originalname}


# Runs after pytest's own hook, which deselects by markers.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    import keras

    if keras.backend.backend() != "tensorflow":
        items[:] = [item for item in items if _depends_on_the_backend(item)]
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(3600))
    # The longest files start first, so that no process runs one alone at the end.
    items.sort(key=lambda item: item.path.name not in _LONGEST)
    if config.getoption("slice"):
        k, n = map(int, config.getoption("slice").split("/"))
        chosen = sorted(item.nodeid for item in items)[k::n]
        items[:] = [item for item in items if item.nodeid in set(chosen)]


# Imported modules stay alive, so exclude them from garbage collection. Graphs have so many
# objects that it would run all the time.
def pytest_collection_finish():
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def _depends_on_the_backend(item):
    names = ON_EVERY_BACKEND.get(item.path.name)
    return names is None or not names.isdisjoint({item.name, item.originalname})


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    marked = pyfuncitem.get_closest_marker("own_process")
    if marked is None or os.environ.get("KERAS_NFNETS_OWN_PROCESS"):
        return None
    options = ["-q", "-n", "0", "-m", "slow", "-p", "no:cacheprovider"]
    found = subprocess.run(
        [sys.executable, "-m", "pytest", *options, pyfuncitem.nodeid],
        cwd=pyfuncitem.config.rootpath,
        env={**os.environ, "KERAS_NFNETS_OWN_PROCESS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-5000:]
    return True


# Each test starts like a new process: a layer is named "add", not "add_7".
@pytest.fixture(autouse=True)
def _repeatable():
    import keras

    keras.utils.clear_session(free_memory=False)
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
