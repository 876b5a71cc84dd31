"""Processes that take turns to measure, both ends of it.

All of them are ready before the first measures, so that a machine that speeds up or
slows down does so for all. Only the standard library is needed: peers have environments
of their own.
"""

import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent


def machine():
    """One line about where this runs."""
    cpu = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        names = [r for r in info.read_text().splitlines() if r.startswith("model name")]
        cpu = names[0].partition(": ")[2] if names else cpu
    return f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}"


class Process:
    """A process that measures, ready to.

    Args:
        script: of this folder; it ends in `serve`.
        task: a dict, what the script's `task()` returns.
        python: the interpreter, of the environment that the script needs.

    Attributes:
        ready: the figures that the script reported before it measured.
        laps: seconds of a call, a number for each `measure`.
        memory: MiB, `imported` and `peak`.
    """

    def __init__(self, script, task, python=sys.executable):
        self.laps, self.memory = [], {}
        self._process = subprocess.Popen(
            [python, str(HERE / script), json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready = self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:  # what went wrong stands above
            sys.exit(f"{' '.join(self._process.args)} failed.")
        return json.loads(line)

    def measure(self, calls):
        self._process.stdin.write(f"{calls}\n")
        self._process.stdin.flush()
        answer = self._answer()
        self.laps.append(statistics.median(answer.pop("seconds")))
        self.memory = answer

    def close(self):
        self._process.stdin.close()
        self._process.wait()

    @property
    def seconds(self):
        return statistics.median(self.laps)


def take_turns(processes, rounds, calls):
    """Lets each measure so many calls, so many times, and ends them."""
    for _ in range(rounds):
        for process in processes:
            process.measure(calls)
    for process in processes:
        process.close()


def times_as_fast(ours, theirs):
    """Each round's ratio, a list."""
    return [b / a for a, b in zip(ours.laps, theirs.laps)]


def peak_memory():
    """The most memory this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def task():
    """What this process is to measure, a dict."""
    return json.loads(sys.argv[1])


def serve(call, imported, **figures):
    """Answers each number on standard input with the seconds of so many calls.

    Args:
        call: what to measure; it returns when its results are there.
        imported: `peak_memory()` when all was imported.
        **figures: to report once ready, such as the seconds it took to build.
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
