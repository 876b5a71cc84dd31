"""Measurement of the missing cells of an experiment."""

import contextlib
import json
import multiprocessing
import os
import pickle
import signal
import threading
import time
import warnings
from concurrent import futures

import keras

from keras_nfnets import files
from keras_nfnets.backend.device import has_only_cpus
from keras_nfnets.experiments.page import PAGE, PICTURE
from keras_nfnets.guards import json_text

SETTINGS, RESULTS = "settings.json", "results.csv"

# Settings that decide how many cells there are, not how they are measured.
SEEDS = {"seeds", "seeds_at_largest"}

# Each process has its own TensorFlow in memory.
_MAX_PROCESSES = 8


def default_jobs():
    """Return the number of cells to measure in parallel.

    It is one per core, at most `_MAX_PROCESSES`, or one with an accelerator.
    """
    return min(os.cpu_count(), _MAX_PROCESSES) if has_only_cpus() else 1


def check_folder(folder, settings):
    """Create a folder with these settings, or check that it has the same settings.

    The number of seeds may differ: then more cells are measured, or fewer are shown.

    Raises:
        ValueError: the folder holds results with other settings.
        OSError: the folder is not writable.
    """
    path = folder / SETTINGS
    try:
        before = json_text.read(path)
        differing = {
            name
            for name in {**before, **settings}
            if before.get(name) != settings.get(name)
        }
    except FileNotFoundError:
        for name in (RESULTS, PAGE, PICTURE):
            if (folder / name).exists():
                raise ValueError(
                    f"{folder} has a {name}, which would be replaced, but no {SETTINGS} of "
                    "an experiment. Give another folder, or move that file away."
                ) from None
        differing = set()
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} does not contain settings. Give another folder. Received: {error}"
        ) from None
    if differing - SEEDS:
        name = min(differing - SEEDS)
        raise ValueError(
            f"{folder} contains results with other settings. Give another folder, or move "
            f"that one away. Received: {name}={settings.get(name)!r}, but "
            f"{before.get(name)!r} in the folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with files.written(path) as partial:
        partial.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def run(experiment, settings, results, jobs, report, start=None):
    """Measure the missing cells and return the rows of all cells.

    Args:
        experiment: `Experiment`.
        settings: dict. Settings of the experiment.
        results: `Results`, to which rows are added as they arrive.
        jobs: int. Number of cells to measure in parallel, each in a separate process; 1
            measures in this process. Cells of experiments that measure the machine run
            one at a time.
        report: callable `(cells planned, cells done, cell, rows, seconds)`, called after
            each cell.
        start: callable or None. Called first in each process, with a pickled function
            and its arguments, which it must call.
    """
    one_by_one = experiment.measures_machine
    with _measuring(1 if one_by_one else jobs, one_by_one, start) as measured:
        while True:
            cells = experiment.plan(settings, results.rows)
            missing = [cell for cell in cells if not results.has(cell)]
            if not missing:
                return results.of(cells)
            done = len(cells) - len(missing)
            for cell, rows, seconds in measured(experiment.name, settings, missing):
                rows[0]["cell_seconds"] = round(seconds, 1)
                results.add([{**cell, **row} for row in rows])
                done += 1
                report(len(cells), done, cell, rows, seconds)


def measure(name, settings, cell):
    """Measure a cell and return its rows and the time in seconds."""
    from keras_nfnets import experiments

    # Keras warns if a test set has fewer images than records, as some may be left out.
    warnings.filterwarnings("ignore", "Your input ran out of data")
    started = time.perf_counter()
    rows = experiments.find(name).measure(settings, cell)
    keras.backend.clear_session()
    rows = rows if isinstance(rows, list) else [rows]
    return rows, time.perf_counter() - started


@contextlib.contextmanager
def _measuring(jobs, fresh, start):
    """Context with a function `(name, settings, cells)` that measures the cells.

    The function yields `(cell, rows, seconds)` for each. It measures in this process, or
    in others, which end with the context.
    """

    def here(name, settings, cells):
        for cell in cells:
            yield cell, *measure(name, settings, cell)

    if jobs == 1 and not fresh:
        yield here
        return
    initializer, arguments = _start_process, (jobs,)
    if start is not None:
        initializer, arguments = start, (pickle.dumps((initializer, arguments)),)
    executor = futures.ProcessPoolExecutor(
        jobs,
        # TensorFlow does not survive a fork.
        multiprocessing.get_context("spawn"),
        initializer,
        arguments,
        max_tasks_per_child=1 if fresh else None,
    )

    def elsewhere(name, settings, cells):
        cell_of = {executor.submit(measure, name, settings, c): c for c in cells}
        for future in futures.as_completed(cell_of):
            yield cell_of[future], *future.result()

    others = multiprocessing.active_children()
    try:
        yield elsewhere
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()


def _start_process(jobs):
    """Give a process its share of the cores, and end it when its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    if jobs > 1:
        os.environ["TF_NUM_INTRAOP_THREADS"] = str(max(1, os.cpu_count() // jobs))
        os.environ["TF_NUM_INTEROP_THREADS"] = "1"
    parent = multiprocessing.parent_process()

    def end_with_parent():
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
