"""Time of a training step by part: clipping, weight standardization and the rest.

    python benchmarks/parts.py

One process measures a network with and without each part in alternation. A part is too
slow if it takes more than its limit (2 % of a step for clipping, 5 % for weight
standardization) and more than the time to move the bytes that it must move, both by more
than two standard errors of the measurement. The exit status is then 1.
"""

import argparse
import collections
import contextlib
import pathlib
import statistics
import sys
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf
from ablation import bytes_to_move, no_standardization
from measure_ours import build, nesterov, training_step
from turns import machine

from keras_nfnets.models.costs import count_flops

NETWORKS = {"NFNetF0": (8, 192), "NFResNet50": (16, 128)}


def seconds_of(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_and_error(values):
    """Estimate the median and its standard error by quartiles, robust to outliers."""
    low, median, high = statistics.quantiles(values, n=4)
    deviation = (high - low) / 1.349  # for a normal distribution, as the next factor
    return median, 1.253 * deviation / len(values) ** 0.5


def bandwidth():
    """Measure bytes per second, read and written, of a copy larger than any cache."""
    a = np.ones(2**27, "float32")
    b = np.empty_like(a)
    laps = [seconds_of(lambda: np.copyto(b, a)) for _ in range(5)]
    return 2 * a.nbytes / statistics.median(laps[1:])


def product_peak():
    """Measure floating-point operations per second of a large matrix product."""
    a = tf.random.normal((4096, 4096))
    laps = [seconds_of(lambda: tf.matmul(a, a).numpy()) for _ in range(6)]
    return 2 * 4096**3 / min(laps)


def _operations(call):
    """Sum the threads' seconds in one call by kind of operation, with a profiler."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            call()
        [file] = pathlib.Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(file.read_bytes())
    totals = collections.Counter()
    for plane in space.planes:
        if "CPU" not in plane.name:
            continue
        for line in plane.lines:
            for event in line.events:
                name = plane.event_metadata[event.metadata_id].name
                totals[_kind(name)] += event.duration_ps / 1e12
    del totals[None]
    return totals


def _kind(name):
    """Return the row of the profile's table that an event belongs to, or None."""
    operation = name.rpartition(":")[2]
    if "Conv2D" in operation:
        if "BackpropFilter" in operation:
            return "convolutions, gradient of the kernel"
        if "BackpropInput" in operation:
            return "convolutions, gradient of the input"
        return "convolutions, forward"
    if "fusion" in operation or operation.startswith("wrapped_"):
        return "fused: activations, standardization, clipping, sums"
    if operation == "ResourceApplyKerasMomentum":
        return "the optimizer"
    if operation in ("Mul", "Sub", "AddV2", "AddN", "Neg"):
        return "other elementwise operations"
    if operation in ("Split", "ConcatV2", "Slice"):
        return "splitting and joining groups"
    if "MatMul" in operation:
        return "convolutions (1 x 1) and dense layers: matrix products"
    return None


def measure(name, rounds):
    """Print the table of one network; return a line per limit that is exceeded."""
    batch, size = NETWORKS[name]
    x = np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype("float32")
    # All variants share one model, so that its weights have the same memory addresses.
    model, optimizer, calls = build(name, size), nesterov(), {}
    for label, options in (
        ("whole", {}),
        ("without clipping", {"clip_factor": None}),
        ("without standardization", {}),
    ):
        without = label == "without standardization"
        with no_standardization() if without else contextlib.nullcontext():
            calls[label] = training_step(model, x, optimizer, **options)
            calls[label](), calls[label]()
    laps = {label: [] for label in calls}
    for _ in range(rounds):
        for label, call in calls.items():
            laps[label].append(seconds_of(call))
    whole = statistics.median(laps["whole"])
    speed, peak = bandwidth(), product_peak()
    moved = bytes_to_move(model)
    print(f"\n## {name}, batch {batch}, {size} x {size}: {whole:.3f} s per step\n")
    print("| part | share of the step | standard error | its bytes' share |")
    print("| --- | ---: | ---: | ---: |")
    short = []
    for part, limit in (("clipping", 0.02), ("standardization", 0.05)):
        ratios = [1 - b / a for a, b in zip(laps["whole"], laps[f"without {part}"])]
        share, error = median_and_error(ratios)
        bound = moved[part] / speed / whole
        gigabytes = f"{moved[part] / 1e9:.2f} GB"
        print(f"| {part} | {share:.1%} | {error:.1%} | {bound:.1%} ({gigabytes}) |")
        if share - 2 * error > max(limit, bound):
            short.append(f"{name}: {part} takes {share:.1%} of a step")
    print(
        f"\nMemory moves {speed / 1e9:.1f} GB/s, matrix products {peak / 1e9:.0f} GFLOP/s."
    )
    operations = _operations(calls["whole"])
    every = sum(operations.values())
    print("\n| operations | share of the threads' time |")
    print("| --- | ---: |")
    for kind, seconds in operations.most_common():
        print(f"| {kind} | {seconds / every:.1%} |")
    convolutions = sum(s for kind, s in operations.items() if kind.startswith("conv"))
    # Gradients of kernels and of inputs each cost as much as the forward pass.
    flops = 3 * 2 * batch * count_flops(model)
    print(
        f"\nConvolutions make {flops / 1e9:.0f} GFLOP per step: {flops / whole / peak:.0%} "
        f"of the peak over the whole step, {flops / whole / peak / convolutions * every:.0%} "
        "in their share of it."
    )
    return short


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    print(f"{machine()}, TensorFlow {tf.__version__}, Keras {keras.__version__}")
    short = [line for name in NETWORKS for line in measure(name, rounds)]
    for line in short:
        print(f"\nFalls short: {line}", file=sys.stderr)
    return int(bool(short))


if __name__ == "__main__":
    sys.exit(main())
