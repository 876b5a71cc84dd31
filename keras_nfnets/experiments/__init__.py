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
from keras_nfnets.experiments.experiment import Experiment, Finding
from keras_nfnets.experiments.images import check_dataset
from keras_nfnets.experiments.page import (
    PAGE,
    PICTURE,
    check_index,
    verdict,
    write,
    write_index,
)
from keras_nfnets.experiments.results import Results
from keras_nfnets.experiments.running import (
    RESULTS,
    check_folder,
    default_jobs,
    run,
)

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
)

EXPERIMENTS = {module.EXPERIMENT.name: module.EXPERIMENT for module in _MODULES}

__all__ = [
    "EXPERIMENTS",
    "PAGE",
    "PICTURE",
    "RESULTS",
    "Experiment",
    "Finding",
    "Results",
    "check_dataset",
    "check_folder",
    "check_index",
    "check_installed",
    "default_jobs",
    "find",
    "run",
    "settings_of",
    "verdict",
    "write",
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
        scale: str. `"small"` or `"full"`.
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
    return settings
