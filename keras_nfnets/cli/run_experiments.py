"""Planning, running and printing of experiments, for `keras-nfnets experiment`."""

import contextlib
import pathlib
import shlex
import sys
import textwrap
from concurrent.futures.process import BrokenProcessPool

from keras_nfnets import experiments, files
from keras_nfnets.cli import quiet
from keras_nfnets.cli.command import Failure, UsageError
from keras_nfnets.printing import printable


def run(flags, names):
    """Run experiments and write their pages.

    Args:
        flags: flags of the command.
        names: list of str. Names of experiments, or `["all"]` for those that have the
            scale and whose packages are installed.
    """
    if names == ["all"]:
        chosen = [
            experiment
            for experiment in experiments.EXPERIMENTS.values()
            if flags.scale in experiment.scales and _can_run(experiment)
        ]
    else:
        chosen = [experiments.find(name) for name in names]
    if flags.dataset and all(experiment.measures_machine for experiment in chosen):
        raise UsageError(
            "--dataset has no effect, as these experiments measure time or memory. "
            f"Received: {' '.join(names)} --dataset={flags.dataset}"
        )
    if flags.jobs is None:
        flags.jobs = experiments.default_jobs()
    several = len(chosen) > 1
    with contextlib.ExitStack() as claims:
        try:
            if several and flags.output_dir:
                experiments.check_index(_path(flags.output_dir) / experiments.PAGE)
            planned = [_prepared(flags, e, several, claims) for e in chosen]
        except (ValueError, OSError, ImportError) as error:
            raise UsageError(str(error)) from error
        try:
            _run_all(planned, flags, several)
        except OSError as error:
            raise Failure(f"{error}. To continue, repeat the command.") from error
    return 0


def _can_run(experiment):
    try:
        experiments.check_installed(experiment)
    except ImportError as error:
        print(f"Left out: {error}")
        return False
    return True


def _run_all(planned, flags, several):
    pages = []
    for experiment, settings, folder, results in planned:
        pages.append(
            (experiment, _run(experiment, settings, results, folder, flags.jobs))
        )
    if several and flags.output_dir:
        index = _path(flags.output_dir) / experiments.PAGE
        experiments.write_index(pages, index)
        print(f"\nSummary of all experiments: {printable(index)}")


def _prepared(flags, experiment, several, claims):
    """Return an experiment with its settings, folder and results, all checked.

    The folder is claimed until the end of `claims`, a `contextlib.ExitStack`.
    """
    experiments.check_installed(experiment)
    settings = experiments.settings_of(
        experiment, flags.scale, flags.dataset, flags.seeds
    )
    if not experiment.measures_machine:
        experiments.check_dataset(settings)
    folder = _folder(flags, settings, several)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        claims.enter_context(files.claimed(folder))
    except BlockingIOError as error:
        raise ValueError(
            f"Another process is running an experiment in {folder}. Choose another "
            "--output_dir, or wait until it has ended."
        ) from error
    files.remove_partial(folder)
    experiments.check_folder(folder, settings)
    return (
        experiment,
        settings,
        folder,
        experiments.Results(folder / experiments.RESULTS),
    )


def _path(text):
    return pathlib.Path(text).expanduser()


def _folder(flags, settings, several):
    name = settings["experiment"]
    if flags.output_dir:
        folder = _path(flags.output_dir)
        return folder / name if several else folder
    words = [name, settings["scale"]]
    if "dataset" in settings:
        words.append(pathlib.Path(settings["dataset"]).name)
    return pathlib.Path("runs") / "-".join(words)


def _run(experiment, settings, results, folder, jobs):
    """Measure the missing cells, write the page and return its summary."""
    there = len(results.rows)
    print(
        f"{experiment.name}, {settings['scale']} scale"
        + (f", on {printable(settings['dataset'])}" if "dataset" in settings else "")
        + f", into {printable(folder)}"
        + (f": {there} rows exist already" if there else "")
    )
    for finding in experiment.undecided(settings):
        print(f"This scale cannot tell: {finding.text}")
    try:
        with _Progress() as progress:
            rows = experiments.run(
                experiment, settings, results, jobs, progress, quiet.start_process
            )
        command = _command(experiment, settings)
        findings = experiments.write(experiment, settings, rows, folder, command)
    except OSError as error:
        raise Failure(
            f"Stopped: {error}. The results so far are in {folder}. To continue, repeat the "
            "command."
        ) from error
    except BrokenProcessPool as error:
        raise Failure(
            "A process was killed, perhaps because there was not enough memory. To continue, "
            "repeat the command; with --jobs=1 it needs the least memory."
        ) from error
    except KeyboardInterrupt:
        print(
            f"\nStopped. The results so far are in {printable(folder)}. To continue, repeat the "
            "command."
        )
        raise
    print(f"\nThe claim: {' '.join(experiment.claim.split())}")
    print(f"Result: {experiments.verdict(findings)}.\n")
    for finding in findings:
        print(
            textwrap.fill(finding.text, 80, initial_indent="- ", subsequent_indent="  ")
        )
    print(
        f"\nDetails: {printable(folder / experiments.PAGE)} and {experiments.PICTURE}"
    )
    return experiments.summary(settings, rows, findings)


def _command(experiment, settings):
    """Return the command line that reproduces a run."""
    scale, dataset = settings["scale"], settings.get("dataset")
    words = ["keras-nfnets", "experiment", experiment.name]
    if settings["backend"] != "tensorflow":
        words.insert(0, f"KERAS_BACKEND={settings['backend']}")
    if scale != "small":
        words.append(f"--scale={scale}")
    # (The usual data set may not be available here.)
    usual = experiments.usual_dataset(experiment.scales[scale])
    if dataset not in (None, usual):
        words.append(f"--dataset={dataset}")
    usual = experiments.settings_of(experiment, scale, dataset)
    if any(settings.get(name) != usual.get(name) for name in experiments.SEEDS):
        words.append(f"--seeds={settings['seeds']}")
    return shlex.join(words)


# Columns whose values are printed.
_SHOWN = ("accuracy", "mean_iou", "average_precision", "diverged", "step_seconds")


class _Progress:
    """Console output: a line per cell, and a progress bar if it is a terminal."""

    def __enter__(self):
        from tqdm import tqdm

        self._bar = tqdm(unit=" cells", disable=None, leave=False)
        return self

    def __exit__(self, *_):
        self._bar.close()

    def __call__(self, planned, done, cell, rows, seconds):
        self._bar.total, self._bar.n = planned, done
        words = [
            f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}"
            for k, v in cell.items()
        ]
        row = rows[-1]
        shown = [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in row.items()
            if name in _SHOWN and value is not False
        ]
        self._bar.write(
            f"[{done}/{planned}] {', '.join(words)}: {', '.join(shown) or 'done'} "
            f"({seconds:.0f} s)"
        )
        sys.stdout.flush()  # it may be a file that is watched
        self._bar.refresh()
