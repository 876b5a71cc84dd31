"""A process of limited memory and time, which reads files and reports how that went.

The standard input has a line of JSON per file, `[function, path]`. The standard output has
one too: `{"error": ..., "seconds": ..., "bytes": ...}`. It ends early if the process dies.
"""

import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

MEMORY = 700 * 2**20  # more than before
LITTLE = 50 * 2**20
SECONDS = 10  # of processor time, as other processes may be busy
_STARTED = "started"
TESTS = pathlib.Path(__file__).parents[1]


def is_harmless(report):
    """Whether a file was read, or refused by a ValueError, soon and in little memory."""
    error = report.get("error")
    return (
        "died" not in report
        and (error is None or error.startswith("ValueError: "))
        and report["seconds"] < SECONDS / 2
        and report["bytes"] < LITTLE
    )


def read_all(jobs, seconds=SECONDS, memory=MEMORY):
    """Read files in one process, or in a new one after it died.

    Args:
        jobs: list of `(function, path)`, see `_functions`.
        seconds, memory: int. Limits per file, memory in bytes.

    Returns:
        A list of dicts: `"error"` (None if there was none), `"seconds"`, `"bytes"`, or
        `"died"`: the signal.
    """
    reports = []
    while len(reports) < len(jobs):
        lines = [json.dumps([name, str(path)]) for name, path in jobs[len(reports) :]]
        ended = subprocess.run(
            [sys.executable, __file__, str(seconds), str(memory)],
            input="\n".join(lines),
            env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
            capture_output=True,
            text=True,
            check=False,
        )
        started, *lines = ended.stdout.splitlines() or [None]
        assert started == _STARTED, ended.stderr[-5000:]
        reports += [json.loads(line) for line in lines]
        if ended.returncode:
            reports.append({"died": -ended.returncode, "stderr": ended.stderr[-2000:]})
    return reports


def _functions():
    import keras

    from keras_nfnets import AGCModel, NFNetTest, pretrained, runs, training
    from keras_nfnets.runs.saved_model import load_model

    model = NFNetTest(classes=3)
    small = AGCModel(inputs := keras.Input((2,)), keras.layers.Dense(1)(inputs))
    small.compile("sgd", "mse")

    def load(path):
        pretrained.load(model, pretrained.Source(path, None))

    def load_classifier(path):
        runs.load_classifier(path)

    def restore(path):
        training.Checkpoints(pathlib.Path(path).parent, {}).restore(small)

    def build(path):
        found = pretrained.recognize(path)
        found.network.build(weights=path, **found.options)

    return {
        "load": load,
        "build": build,
        "recognize": pretrained.recognize,
        "load_classifier": load_classifier,
        "load_model": load_model,
        "load_weights": small.load_weights,
        "restore": restore,
    }


def _used(field):
    status = pathlib.Path("/proc/self/status").read_text("utf-8")
    [line] = [line for line in status.splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


def _main(seconds, memory):
    functions = _functions()
    print(_STARTED, flush=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        name, path = json.loads(line)
        # Peaks count from here.
        pathlib.Path("/proc/self/clear_refs").write_text("5", "utf-8")
        before, start = _used("VmRSS"), time.process_time()
        allowed = _used("VmSize") + memory
        resource.setrlimit(resource.RLIMIT_AS, (allowed, resource.RLIM_INFINITY))
        signal.setitimer(signal.ITIMER_PROF, seconds)
        error = None
        try:
            functions[name](path)
        except Exception as raised:  # noqa: BLE001 (reported)
            error = f"{type(raised).__name__}: {raised}"[:2000]
        signal.setitimer(signal.ITIMER_PROF, 0)
        report = {
            "error": error,
            "seconds": time.process_time() - start,
            "bytes": _used("VmHWM") - before,
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
