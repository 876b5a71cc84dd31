"""This package and keras.applications on the JAX backend: a worker of gpu.py."""

import os

# Leave memory of the GPU to the other worker.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ["KERAS_BACKEND"] = "jax"

import concurrent.futures
import contextlib
import functools
import gc
import importlib.metadata
import pathlib
import platform
import statistics
import sys
import time

import jax
import keras
import numpy as np
from ablation import bytes_to_move, no_standardization
from turns import attempt, lap, serve_calls

import keras_nfnets
from keras_nfnets.models.costs import count_flops

GOLDEN = pathlib.Path(__file__).parents[1] / "tests" / "golden"
sys.path.insert(0, str(GOLDEN))

import rule
from golden_case import GoldenCase, nfnet_tiny, relative_error

# Precision of matrix products: float32, not TF32.
EXACT = "highest"

# Networks that only `gpu.py --smoke` uses.
SMOKE = {
    "normalizer-free": (
        keras_nfnets.NFNet,
        {"depths": (1,), "widths": (16,), "group_size": 8, "classes": 10},
    ),
    "batch-normalized": (
        keras_nfnets.models.PreActResNet,
        {"depths": (1,), "width": 1, "classes": 10},
    ),
}

programs = []


def start(compilation_cache=None):
    """Return the device and the versions; set the folder of the compilation cache."""
    if compilation_cache:
        jax.config.update("jax_compilation_cache_dir", compilation_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    device = jax.devices()[0]
    name = device.device_kind
    if device.platform == "cpu":
        name = platform.processor() or platform.machine()
    packages = ("keras", "jax", "jaxlib")
    return {
        "device": name,
        "platform": device.platform,
        "versions": {
            "keras_nfnets": keras_nfnets.__version__,
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
    }


def ceilings(size, copied_bytes, laps=5):
    """Measure the rates of a bfloat16 matrix product and of a device-to-device copy.

    Args:
        size: int. Rows and columns of the square matrices of random values.
        copied_bytes: int. Size of the array that is read and written.
        laps: int. Number of measurements, whose median is used.
    """
    a, b = (
        jax.random.normal(jax.random.key(i), (size, size), "bfloat16") for i in (0, 1)
    )
    x = jax.random.normal(jax.random.key(2), (copied_bytes // 4,), "float32")
    rates = []
    # A negation moves as many bytes as a copy, and XLA cannot optimize it away.
    for function, arguments, work in (
        (jax.numpy.matmul, (a, b), 2 * size**3),
        (jax.numpy.negative, (x,), 2 * x.nbytes),
    ):
        program = jax.jit(function).lower(*arguments).compile()
        jax.block_until_ready(program(*arguments))
        seconds = [_seconds(program, arguments, calls=10) for _ in range(laps)]
        rates.append(work / statistics.median(seconds))
    return {"matmul_tflops": rates[0] / 1e12, "copy_gigabytes": rates[1] / 1e9}


def _seconds(program, arguments, calls):
    start = time.perf_counter()
    for _ in range(calls):
        result = program(*arguments)
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


# Correctness.


def golden_case(name):
    """Return the relative error of float32 logits against the authors' code."""
    case = GoldenCase(name)
    networks = {
        "haiku_nfnet_f0": keras_nfnets.NFNetF0,
        "haiku_nfnet_tiny": nfnet_tiny,
        "haiku_nfnet_tiny_odd": nfnet_tiny,
    }
    with _policy("float32"):
        model = networks[name](classifier_activation=None)
    keras_nfnets.pretrained.load_deepmind(model, case.parameters)
    logits = _logits(model, case.images)
    return float(relative_error(logits, case.outputs["out/logits"]))


def clipped_tensors():
    """Return the largest relative error of `adaptive_clip` against Optax."""
    with np.load(GOLDEN / "agc_tensors.npz") as tensors:
        tensors = dict(tensors)
    settings = {key: float(tensors[key]) for key in ("clip_factor", "eps")}
    errors = []
    for case in {key.partition("/")[0] for key in tensors if "/" in key}:
        weights, gradient, expected = (
            tensors[f"{case}/{key}"] for key in ("w", "g", "clipped")
        )
        [clipped] = keras_nfnets.adaptive_clip(
            [jax.numpy.asarray(gradient)], [keras.Variable(weights)], **settings
        )
        errors.append(relative_error(clipped, expected))
    return float(max(errors))


def step_on_cpu():
    """Return the largest relative error of a step's weight updates against a CPU.

    The learning rate is one, so that rounding of the weights does not matter.
    """
    model, images = _small_network("float32")
    before = [np.asarray(v.value) for v in model.trainable_variables]
    _set_up_training(model, learning_rate=1.0)
    labels = np.arange(len(images), dtype="int32")
    step, changes = jax.jit(model.train_step), []
    for device in (jax.devices()[0], jax.devices("cpu")[0]):
        arguments = jax.device_put((_training_state(model), (images, labels)), device)
        with jax.default_matmul_precision(EXACT):
            _, (after, *_) = step(*arguments)
        changes.append([np.asarray(new) - old for new, old in zip(after, before)])
    return float(max(relative_error(*pair) for pair in zip(*changes)))


def folded_in_bfloat16():
    """Return the relative error of bfloat16 logits that folding a network causes."""
    model, images = _small_network("mixed_bfloat16")
    logits = _logits(model, images)
    return float(relative_error(_logits(keras_nfnets.fold(model), images), logits))


def _small_network(policy):
    """Build a network none of whose weights are zero, and four images for it."""
    shape = (32, 32, 3)
    with _policy(policy):
        model = keras_nfnets.NFNet(
            depths=(1, 1),
            widths=(16, 32),
            group_size=8,
            classes=10,
            classifier_activation=None,
            input_shape=shape,
        )
    for variable in model.trainable_variables:
        variable.assign(rule.value(variable.path, tuple(variable.shape)))
    return model, rule.image(0, (4, *shape))


def _logits(model, images):
    with jax.default_matmul_precision(EXACT):
        logits, _ = jax.jit(model.stateless_call)(*_weights(model), images)
    return np.asarray(logits, "float32")


# Speed.


def prepare(cases):
    """Build and compile programs; `measure` then takes their indices.

    Args:
        cases: list of dicts with `network`, `batch`, `size` and `kind`: `"train"` or
            `"infer"`; for training also `clip` and `standardize` (False leaves
            that part out).

    Returns:
        A list with a dict for each case: figures, or `error`.
    """
    started = [attempt(_start, case) for case in cases]
    # Tracing in `_start` holds Python's global lock; compilation does not.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = list(pool.map(functools.partial(attempt, _compile), started))
    programs[:] = [{} for _ in cases]
    return [attempt(_finish, *both) for both in zip(compiled, programs)]


def _start(case):
    return {"train": _training, "infer": _inference}[case["kind"]](case)


def _compile(started):
    if "error" in started:
        return started
    return {**started, "compiled": started.pop("lowered").compile()}


def _finish(compiled, program):
    if "error" in compiled:
        return compiled
    executable = compiled["compiled"]
    run = functools.partial(compiled["run"], executable)
    run(1)
    program.update(run=run, seconds=run(2))
    memory = executable.memory_analysis()
    # Memory of this program only: peak allocation would include autotuning.
    used = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    return {**compiled["figures"], "peak_mib": used / 2**20}


def measure(index, lap_seconds):
    """Measure seconds per call of a prepared program, for about `lap_seconds`."""
    return lap(programs[index], lap_seconds)


def release():
    """Delete all prepared programs and free their memory."""
    programs.clear()
    keras.backend.clear_session()
    gc.collect()


def _training(case):
    model = _build(case)
    _set_up_training(model, clip=case.get("clip", True))
    state = jax.device_put(_training_state(model))
    batch = jax.device_put(_batch(case))
    standardize = case.get("standardize", True)
    with contextlib.nullcontext() if standardize else no_standardization():
        lowered = jax.jit(model.train_step, donate_argnums=0).lower(state, batch)

    def run(step, calls):
        nonlocal state
        start = time.perf_counter()
        for _ in range(calls):
            _, state = step(state, batch)
        jax.block_until_ready(state)
        return (time.perf_counter() - start) / calls

    # Gradients of kernels and of inputs each cost as much as the forward pass.
    flops = 3 * 2 * case["batch"] * count_flops(model)
    figures = {"flops": flops, "bytes": bytes_to_move(model)}
    return {"lowered": lowered, "run": run, "figures": figures}


def _inference(case):
    model = keras_nfnets.fold(_build(case))
    images, _ = jax.device_put(_batch(case))
    # Store weights in the dtype in which the layers use them.
    weights = jax.tree.map(lambda x: x.astype("bfloat16"), _weights(model))

    def infer(weights, images):
        return model.stateless_call(*weights, images)[0]

    # A single image stands for a request, so measure its latency.
    waits = case["batch"] == 1

    def run(infer, calls):
        start = time.perf_counter()
        for _ in range(calls):
            logits = infer(weights, images)
            if waits:
                jax.block_until_ready(logits)
        jax.block_until_ready(logits)
        return (time.perf_counter() - start) / calls

    figures = {"flops": 2 * case["batch"] * count_flops(model)}
    lowered = jax.jit(infer).lower(weights, images)
    return {"lowered": lowered, "run": run, "figures": figures}


def _build(case):
    name, shape = case["network"], (case["size"], case["size"], 3)
    options = {}
    if name in SMOKE:
        make, options = SMOKE[name]
    elif hasattr(keras_nfnets, name):
        make = getattr(keras_nfnets, name)
    else:
        make, options = getattr(keras.applications, name), {"weights": None}
    options = {"classifier_activation": None, "input_shape": shape, **options}
    with _policy("mixed_bfloat16"):
        return make(**options)


@contextlib.contextmanager
def _policy(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _set_up_training(model, learning_rate=1e-3, clip=True):
    optimizer = keras.optimizers.SGD(learning_rate, momentum=0.9, nesterov=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    options = {}
    if isinstance(model, keras_nfnets.AGCModel):
        normalized = any(
            isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers
        )
        options = {} if clip and not normalized else {"clip_factor": None}
    model.compile(optimizer, loss, **options)


def _weights(model):
    """Return the two arguments that `stateless_call` takes before the inputs."""
    return [
        [variable.value for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    ]


def _training_state(model):
    """Return the state that `train_step` takes on JAX."""
    if isinstance(model, keras_nfnets.AGCModel):
        model.build_training_state()
    else:
        model.optimizer.build(model.trainable_variables)
    others = (model.optimizer.variables, model.metrics_variables)
    return (*_weights(model), *([v.value for v in vs] for vs in others))


def _batch(case):
    shape = case["batch"], case["size"], case["size"], 3
    images = np.random.default_rng(0).normal(size=shape).astype("float32")
    return images, np.zeros(case["batch"], "int32")


if __name__ == "__main__":
    serve_calls(
        [
            *(start, ceilings, golden_case, clipped_tensors),
            *(step_on_cpu, folded_in_bfloat16, prepare, measure, release),
        ]
    )
