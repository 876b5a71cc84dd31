"""Inference of NFNet-F0 in every way that a user has, next to timm, in turns.

    python benchmarks/inference.py --timm=ENV/bin/python --json=inference.json

Every way is a process of its own that computes in float32 (but for the int8 file) on 256 x
256 pixels. What is not installed is left out, with the reason. The exit status is 1 if a
target is missed; targets whose peer is left out are not judged.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import pathlib
import statistics
import sys
import tempfile
import typing

import numpy as np
from turns import Process, machine, take_turns, times_as_fast

SIZE = 256
_SPAWN = multiprocessing.get_context("spawn")


class Row(typing.NamedTuple):
    """One way: the script that measures it, whose Python runs it, and its settings."""

    script: str
    peer: str
    settings: dict


def _ours(how):
    settings = {"kind": "infer", "network": "NFNetF0", "fold": True, "how": how}
    return Row("measure_ours.py", "ours", settings)


def _timm(layout, **settings):
    settings |= {"kind": "infer", "network": "dm_nfnet_f0", "layout": layout}
    return Row("measure_timm.py", "timm", settings)


def _onnx(runtime, file="float32"):
    return Row("measure_onnx.py", "ours", {"runtime": runtime, "file": file})


ROWS = {
    "ours, predict": _ours("predict"),
    "ours, inference_function": _ours(None),
    "ours, inference_function, Keras": _ours("keras"),
    "timm": _timm("channels_last"),
    "timm, compiled": _timm("nchw", compiled=True),
    "timm, compiled and frozen": _timm("channels_last", compiled=True, frozen=True),
    "ours, ONNX Runtime": _onnx("onnxruntime"),
    "ours, OpenVINO": _onnx("openvino"),
    "ours, int8, ONNX Runtime": _onnx("onnxruntime", "int8"),
}
# Row, the row that it is compared with, and how many times as fast it must be, by batch.
TARGETS = [
    ("ours, inference_function", "timm, compiled and frozen", {1: 1.0, 8: 1.0}),
    ("ours, int8, ONNX Runtime", "ours, ONNX Runtime", {1: 1.9, 8: 1.7}),
]


def write_files(folder):
    """Write NFNet-F0 as ONNX files; return `{precision: path}` and why some are missing."""
    import keras_nfnets

    model = keras_nfnets.NFNetF0(weights=None, input_shape=(SIZE, SIZE, 3))
    noise = np.random.default_rng(0).normal(size=(16, SIZE, SIZE, 3)).astype("float32")
    options = {"float32": {}, "int8": {"quantize": "int8", "examples": noise}}
    files, missing = {}, {}
    for precision, chosen in options.items():
        path = folder / f"{precision}.onnx"
        try:
            keras_nfnets.export(model, path, **chosen)
            files[precision] = str(path)
        except (ImportError, ValueError) as error:
            missing[precision] = str(error)
    return files, missing


def measure(batch, rows, pythons, rounds, calls):
    """Measure rows in turns; return `{label: Process}` and `{label: why it is missing}`."""
    processes, missing = {}, {}
    for label, row in rows.items():
        task = {**row.settings, "batch": batch, "size": SIZE}
        try:
            processes[label] = Process(row.script, task, pythons[row.peer])
        except RuntimeError as error:  # such as a package that is not installed
            missing[label] = str(error).strip().splitlines()[-1]
    take_turns(list(processes.values()), rounds, calls)
    return processes, missing


def verdicts(batch, processes):
    """Return a list of `(text, whether the target is reached)`."""
    found = []
    for ours, theirs, wanted in TARGETS:
        if batch in wanted and {ours, theirs} <= set(processes):
            ratios = times_as_fast(processes[ours], processes[theirs])
            ratio = statistics.median(ratios)
            text = f"batch {batch}: {ours} is {ratio:.2f} times as fast as {theirs}"
            text += (
                f" (wanted: {wanted[batch]}; {min(ratios):.2f} to {max(ratios):.2f})"
            )
            found.append((text, ratio >= wanted[batch]))
    return found


def usable(pythons, files, missing_files):
    """Return the rows that can be measured, and why the others cannot."""
    rows, missing = {}, {}
    for label, row in ROWS.items():
        precision = row.settings.get("file")
        if row.peer not in pythons:
            missing[label] = f"no --{row.peer} was given"
        elif precision in missing_files:
            missing[label] = missing_files[precision]
        else:
            paths = {"file": files[precision]} if precision else {}
            rows[label] = row._replace(settings={**row.settings, **paths})
    return rows, missing


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--timm", help="a Python that has timm and PyTorch")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=3, help="calls per round")
    parser.add_argument("--json", type=pathlib.Path, help="file to write results to")
    arguments = parser.parse_args()
    pythons = {"ours": sys.executable}
    if arguments.timm:
        pythons["timm"] = arguments.timm
    results, judged = {"machine": machine(), "batches": {}}, []
    print(results["machine"])
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own, as the others would inherit its peak memory.
        with concurrent.futures.ProcessPoolExecutor(1, _SPAWN) as executor:
            files = executor.submit(write_files, pathlib.Path(folder)).result()
        rows, missing = usable(pythons, *files)
        for batch in arguments.batch:
            processes, failed = measure(
                batch, rows, pythons, arguments.rounds, arguments.calls
            )
            results["batches"][batch] = {
                label: {"seconds": p.laps, "ready": p.ready, "memory": p.memory}
                for label, p in processes.items()
            }
            print_table(batch, processes)
            print_missing({**missing, **failed})
            judged += verdicts(batch, processes)
    print()
    for text, reached in judged:
        print(f"{'reached' if reached else 'MISSED'}: {text}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    return int(not all(reached for _, reached in judged))


def print_table(batch, processes):
    print(f"\n## NFNetF0, batch {batch}, {SIZE} x {SIZE}\n")
    print("| | seconds (median of rounds) | least | first call | peak MiB |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for label, process in processes.items():
        print(
            f"| {label} | {process.seconds:.3f} | {min(process.laps):.3f} "
            f"| {process.ready['first']:.1f} | {process.memory['peak']:.0f} |"
        )
    print(flush=True)


def print_missing(missing):
    for label, reason in missing.items():
        print(f"- left out: {label}: {reason}")


if __name__ == "__main__":
    sys.exit(main())
