"""The two worker processes of gpu.py, and measurements that alternate between them."""

import os
import statistics
import typing

from turns import HERE, Worker


class Contestant(typing.NamedTuple):
    """A program in a comparison: its worker, its label and the case to prepare."""

    worker: str
    label: str
    case: dict


class Bench:
    """The two worker processes, `"ours"` and `"timm"`.

    Args:
        scripts: dict. File name and interpreter of each worker.
        smoke: bool. Whether to measure only briefly, on CPUs.
        compilation_cache: str or None. Folder for compiled programs.
    """

    def __init__(self, scripts, smoke, compilation_cache):
        self.rounds, self.lap_seconds = (1, 0.0) if smoke else (5, 0.3)
        self.judges_speed = not smoke
        self.peak_flops = None  # of the card, once measured
        self._scripts = scripts
        self._cache = compilation_cache
        self._environment = {
            "PYTHONPATH": os.pathsep.join(
                [str(HERE.parent), os.getenv("PYTHONPATH", "")]
            )
        }
        if smoke:
            flags = "--xla_backend_optimization_level=0 "  # compiles in half the time
            self._environment |= {
                "JAX_PLATFORMS": "cpu",
                "CUDA_VISIBLE_DEVICES": "",
                "XLA_FLAGS": flags + os.getenv("XLA_FLAGS", ""),
            }
        self._workers = {}

    def start(self):
        """Start the workers that do not run; return their versions and devices."""
        missing = [name for name in self._scripts if name not in self._workers]
        for name in missing:
            script, python = self._scripts[name]
            worker = Worker(script, python=python, environment=self._environment)
            worker.send({"call": "start", "compilation_cache": self._cache})
            self._workers[name] = worker
        return {name: self._receive(name) for name in missing}

    def call(self, worker, function, /, **arguments):
        """Call a function of a worker; raise RuntimeError with the error it reports."""
        self._send(worker, function, **arguments)
        return self._receive(worker)

    def _send(self, name, function, /, **arguments):
        if name not in self._workers:
            raise RuntimeError(
                f"The process of {name} has ended; see the other errors."
            )
        self._workers[name].send({"call": function, **arguments})

    def _receive(self, name):
        try:
            return self._workers[name].receive()
        except RuntimeError:
            if self._workers[name].has_ended():
                del self._workers[name]
            raise

    def kill(self):
        for worker in list(self._workers.values()):
            worker.kill()

    def compare(self, groups):
        """Prepare all contestants at the same time, then measure in alternation.

        Args:
            groups: list of lists of `Contestant`. The others of a group
                are compared with its first.

        Returns:
            Rows (dicts), in lists like `groups`.
        """
        contestants = [contestant for group in groups for contestant in group]
        prepared = self._prepare(contestants)
        laps = self._laps(contestants, prepared)
        for name in list(self._workers):
            self.call(name, "release")
        rows = iter(map(self._row, contestants, prepared, laps))
        groups = [[next(rows) for _ in group] for group in groups]
        for group in groups:
            for row in group:
                _complete(row, group[0])
        return groups

    def _prepare(self, contestants):
        """Return a list of dicts: figures and `index` in the worker, or `error`."""
        names = dict.fromkeys(contestant.worker for contestant in contestants)
        cases = {
            name: [c.case for c in contestants if c.worker == name] for name in names
        }
        for name in names:
            self._send(name, "prepare", cases=cases[name])
        prepared = {}
        for name in names:
            try:
                answers = self._receive(name)
            except RuntimeError as error:
                answers = [{"error": str(error)} for _ in cases[name]]
            prepared[name] = enumerate(answers)
        found = (next(prepared[contestant.worker]) for contestant in contestants)
        return [{"index": index, **figures} for index, figures in found]

    def _laps(self, contestants, prepared):
        laps = [[] for _ in contestants]
        for _ in range(self.rounds):
            for contestant, found, own in zip(contestants, prepared, laps):
                if "error" in found:
                    continue
                try:
                    seconds = self.call(
                        contestant.worker,
                        "measure",
                        index=found["index"],
                        lap_seconds=self.lap_seconds,
                    )
                    own.append(seconds)
                except RuntimeError as error:
                    found["error"] = str(error)
        return laps

    def _row(self, contestant, figures, laps):
        case = contestant.case
        row = {key: case[key] for key in ("network", "size", "batch")}
        row = {"label": contestant.label, **row}
        if "error" in figures:
            return {**row, "error": figures["error"]}
        seconds, share = statistics.median(laps), None
        if self.peak_flops and "flops" in figures:
            share = figures["flops"] / seconds / self.peak_flops
        return {
            **row,
            "milliseconds": 1e3 * seconds,
            "images_per_second": case["batch"] / seconds,
            "share_of_peak": share,
            "peak_mib": figures.get("peak_mib"),
            "bytes": figures.get("bytes"),
            "laps": laps,
        }


def _complete(row, reference):
    """Add the ratio of the time of the row's program to that of the reference."""
    if "error" not in row:
        row["relative_time"] = None
        if row is not reference and "error" not in reference:
            ratios = [a / b for a, b in zip(row["laps"], reference["laps"])]
            row["relative_time"] = statistics.median(ratios)
