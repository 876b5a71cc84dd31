"""Experiments that test the papers' claims."""

import os
import platform

import keras

from keras_nfnets import checks, tables
from keras_nfnets.experiments import (
    any_network,
    any_network_small_batches,
    any_network_training,
    batch_size,
    bn_cost,
    bn_leaks,
    bn_train_test_gap,
    clip_factor,
    detection,
    efficiency,
    images,
    mean_shift,
    optimizers,
    regularization,
    residual_scale,
    segmentation,
    small_batches,
    which_layers,
)
from keras_nfnets.experiments.experiment import CANNOT_TELL, Experiment, Finding
from keras_nfnets.experiments.images import (
    check_dataset,
    usual_dataset,
    write_dataset,
)
from keras_nfnets.experiments.page import (
    PAGE,
    PICTURE,
    check_index,
    summary,
    verdict,
    write,
    write_index,
)
from keras_nfnets.experiments.results import Results
from keras_nfnets.experiments.running import (
    RESULTS,
    SEEDS,
    SETTINGS,
    check_folder,
    default_jobs,
    run,
)
from keras_nfnets.guards import json_text

_MODULES = (
    batch_size,
    clip_factor,
    which_layers,
    bn_cost,
    bn_train_test_gap,
    bn_leaks,
    small_batches,
    mean_shift,
    residual_scale,
    regularization,
    efficiency,
    optimizers,
    any_network,
    any_network_training,
    any_network_small_batches,
    segmentation,
    detection,
)

EXPERIMENTS = {module.EXPERIMENT.name: module.EXPERIMENT for module in _MODULES}

__all__ = [
    "CANNOT_TELL",
    "EXPERIMENTS",
    "PAGE",
    "PICTURE",
    "RESULTS",
    "SEEDS",
    "Experiment",
    "Finding",
    "Results",
    "check_dataset",
    "check_folder",
    "check_index",
    "check_installed",
    "default_jobs",
    "find",
    "published",
    "run",
    "settings_of",
    "summary",
    "usual_dataset",
    "verdict",
    "write",
    "write_dataset",
    "write_index",
]


def find(name):
    """Return the `Experiment` of this name.

    Raises:
        ValueError: there is no such experiment.
    """
    tables.check_experiment(name)
    return EXPERIMENTS[name]


def check_installed(experiment):
    """Raise an ImportError if a module that an experiment needs cannot be imported."""
    for module in experiment.needs:
        checks.installed(
            f"The experiment {experiment.name!r}",
            module,
            "'keras_nfnets[experiments,hub]'",
        )


def settings_of(experiment, scale, dataset=None, seeds=None):
    """Return the settings of an experiment, a JSON-serializable dict.

    Args:
        experiment: `Experiment`.
        scale: str. `"small"`, `"medium"` or `"full"`.
        dataset: str. Data set, see `images.load`; by default the scale's. Experiments
            that measure the machine ignore it.
        seeds: int. Number of seeds; by default the scale's.
    """
    checks.one_of("scale", scale, tuple(experiment.scales))
    settings = {"experiment": experiment.name, "scale": scale}
    settings |= experiment.scales[scale]
    settings["backend"] = keras.backend.backend()
    if experiment.measures_machine:
        settings["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    else:
        settings = images.with_dataset(settings, dataset)
    if seeds is not None:
        settings["seeds"] = seeds
        settings.pop("seeds_at_largest", None)
    return settings


def published(folder):
    """Return the `summary` of the results in a folder.

    Args:
        folder: `pathlib.Path`.
    """
    settings = json_text.read(folder / SETTINGS)
    experiment = find(settings["experiment"])
    results = Results(folder / RESULTS)
    rows = results.of(experiment.plan(settings, results.rows))
    return summary(settings, rows, experiment.conclude(rows, settings))
