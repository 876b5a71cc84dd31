"""Processes that measure in alternation, and the code that runs in them.

All processes are ready before the first one measures, so that a change in the machine's
speed affects all of them. This module needs only the standard library, as it also runs in
the environments of other packages.
"""

import contextlib
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import traceback

HERE = pathlib.Path(__file__).parent


def machine():
    """Return one line that describes this machine."""
    cpu = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        names = [r for r in info.read_text().splitlines() if r.startswith("model name")]
        cpu = names[0].partition(": ")[2] if names else cpu
    return f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}"


class Worker:
    """A process that runs a script of this folder and exchanges lines of JSON with it.

    Args:
        script: str. File name in this folder.
        *arguments: str. Arguments of the script.
        python: str. Interpreter of the environment that the script needs.
        environment: dict. Environment variables to add.
    """

    def __init__(self, script, *arguments, python=sys.executable, environment=None):
        self._name = " ".join([script, *arguments])
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with this)
        self._process = subprocess.Popen(
            [python, str(HERE / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def send(self, message):
        # `receive` reports why a process has ended.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def receive(self):
        """Return the next message of the process.

        Raises:
            RuntimeError: the process has ended, or it reports an error.
        """
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._stderr.seek(0)
            last = "".join(self._stderr.readlines()[-20:])
            raise RuntimeError(f"{self._name} ended with status {code}.\n{last}")
        message = json.loads(line)
        if isinstance(message, dict) and "error" in message:
            raise RuntimeError(message["error"])
        return message

    def has_ended(self):
        return self._process.poll() is not None

    def close(self):
        """Close the input of the process and wait until it ends."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def kill(self):
        self._process.kill()
        self._process.wait()


class Process(Worker):
    """A process that prepares one measurement and repeats it on request.

    Args:
        script: str. File name in this folder of a script that ends in `serve`.
        task: dict. Task that the script reads with `task()`.
        python: str. Interpreter of the environment that the script needs.

    Attributes:
        ready: dict. Figures that the script reports before it measures.
        laps: list of float. Seconds per call, one value per `measure`.
        memory: dict. Memory in MiB: `imported` (after imports) and `peak`.
    """

    def __init__(self, script, task, python=sys.executable):
        super().__init__(script, json.dumps(task), python=python)
        self.laps, self.memory = [], {}
        self.ready = self.receive()

    def measure(self, calls):
        self.send(calls)
        answer = self.receive()
        self.laps.append(statistics.median(answer.pop("seconds")))
        self.memory = answer

    @property
    def seconds(self):
        return statistics.median(self.laps)


def take_turns(processes, rounds, calls):
    """Let each process measure `calls` calls per round; end all processes at last."""
    for _ in range(rounds):
        for process in processes:
            process.measure(calls)
    for process in processes:
        process.close()


def times_as_fast(ours, theirs):
    """Return a list with the speedup of `ours` over `theirs` in each round."""
    return [b / a for a, b in zip(ours.laps, theirs.laps)]


def peak_memory():
    """Return the peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def task():
    """Return the task that this process must measure, a dict."""
    return json.loads(sys.argv[1])


def serve(call, imported, **figures):
    """Answer each number on standard input with the seconds of that many calls.

    Args:
        call: callable to measure. It must return when its results are computed.
        imported: float. `peak_memory()` after all imports.
        **figures: figures to report once ready, such as the seconds it took to build.
    """
    start = time.perf_counter()
    call()
    figures["first"] = time.perf_counter() - start
    call()
    print(json.dumps(figures), flush=True)
    for line in sys.stdin:
        laps = []
        for _ in range(int(line)):
            start = time.perf_counter()
            call()
            laps.append(time.perf_counter() - start)
        memory = {"imported": imported, "peak": peak_memory()}
        print(json.dumps({"seconds": laps, **memory}), flush=True)


def serve_calls(functions):
    """Answer calls on standard input, `{"call": name, ...arguments}`, until it closes.

    The answer is the value that the function returns, or `{"error": text}` if it raises.

    Args:
        functions: list of functions that take and return what JSON can hold.
    """
    by_name = {function.__name__: function for function in functions}
    # Libraries write to standard output too, so move that to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        call = json.loads(line)
        answer = attempt(by_name[call.pop("call")], **call)
        print(json.dumps(answer), file=answers, flush=True)


def attempt(function, *arguments, **keywords):
    """Call a function; return `{"error": text}` if it raises."""
    try:
        return function(*arguments, **keywords)
    except Exception:  # noqa: BLE001 (other measurements continue after any error)
        return {"error": "\n".join(traceback.format_exc().splitlines()[-12:])}


def lap(program, seconds):
    """Measure seconds per call, over at most 500 calls that take about `seconds`.

    Args:
        program: dict. `run` is a function of a number of calls that returns seconds per
            call; `seconds` is the value that it last returned.
        seconds: float. Approximate duration of the measurement.
    """
    calls = int(seconds / max(program["seconds"], 1e-6))
    program["seconds"] = program["run"](min(max(calls, 1), 500))
    return program["seconds"]
