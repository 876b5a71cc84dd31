"""Difference between training and inference under batch normalization."""

import numpy as np
from keras import ops

from keras_nfnets import plotting
from keras_nfnets.experiments import fitting, images, plots
from keras_nfnets.experiments.experiment import Experiment, Finding
from keras_nfnets.experiments.fitting import BATCH_NORM, NORMALIZER_FREE
from keras_nfnets.experiments.results import (
    distinct,
    grid,
    median,
    percent,
    select,
    with_spread,
)


def _measure(settings, cell):
    model, row = fitting.train_with_settings(settings, cell["network"], cell["seed"])
    x, labels = images.load(settings).test_images(settings["pictures"])
    inference = np.concatenate(
        [_logits(model, batch) for batch in np.array_split(x, 4)]
    )
    rows = []
    # Training mode comes last, as it changes the running statistics.
    for mode in ("inference", "training"):
        for size in settings["batch_sizes"]:
            complete = len(x) // size * size
            logits = np.concatenate(
                [
                    _logits(model, batch, training=mode == "training")
                    for batch in np.split(x[:complete], complete // size)
                ]
            )
            expected, true = inference[:complete], labels[:complete]
            difference = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
            rows.append(
                {
                    "mode": mode,
                    "batch_size": size,
                    "difference": float(f"{difference:.3g}"),
                    "accuracy": float(np.mean(logits.argmax(-1) == true)),
                    "diverged": row["diverged"],
                }
            )
    return rows


def _logits(model, x, training=False):
    return ops.convert_to_numpy(model(x, training=training))


def _draw(figure, rows, settings):
    panels = {
        "difference": "change of the logits (relative)",
        "accuracy": "accuracy (%)",
    }
    for axes, (value, label) in zip(figure.subplots(2, 1), panels.items()):
        for network in distinct(rows, "network"):
            runs = select(rows, network=network, mode="training")
            scale = 100 if value == "accuracy" else 1
            plots.line(axes, runs, "batch_size", value, network, scale)
        plots.factor_axis(axes, distinct(rows, "batch_size"))
        axes.set(xlabel="batch size, in training mode", ylabel=label)
        axes.set_ylim(bottom=0 if value == "difference" else None)
        plotting.label_lines(axes)


def _conclude(rows, settings):
    smallest, largest = min(settings["batch_sizes"]), max(settings["batch_sizes"])

    def runs(network, size, mode="training"):
        return select(rows, network=network, batch_size=size, mode=mode)

    def most(network, mode):
        of_network = select(rows, network=network, mode=mode)
        return np.max([row["difference"] for row in of_network])

    small, large = (
        median(runs(BATCH_NORM, size), "difference") for size in (smallest, largest)
    )
    return [
        Finding(
            "The batch-normalized network's logits in training mode differ from those in "
            "inference by "
            f"{percent(small)} of their norm in batches of {smallest}, by "
            f"{percent(large)} in batches of {largest}; accuracy is "
            f"{percent(median(runs(BATCH_NORM, smallest), 'accuracy'))} and "
            f"{percent(median(runs(BATCH_NORM, largest), 'accuracy'))}.",
            small > 0.05 and small > 2 * large,
        ),
        Finding(
            "Those of the normalizer-free network differ by at most "
            f"{most(NORMALIZER_FREE, 'training'):.1g} of their norm.",
            most(NORMALIZER_FREE, "training") < 1e-4,
        ),
        Finding(
            "In inference, between batches of these sizes, the logits differ by at most "
            f"{most(BATCH_NORM, 'inference'):.1g} with batch normalization and "
            f"{most(NORMALIZER_FREE, 'inference'):.1g} without.",
            None,
        ),
        *fitting.diverged_findings(rows),
    ]


def _tables(rows, settings):
    tables = {}
    for network in distinct(rows, "network"):
        runs = select(rows, network=network)
        for value, show in (("difference", "{:.2g}".format), ("accuracy", percent)):
            tables[
                f"{network}, {value} by mode and batch size: median (minimum to maximum)."
            ] = grid(
                runs,
                "mode",
                "batch_size",
                lambda cell, value=value, show=show: with_spread(cell, value, show),
            )
    return tables


EXPERIMENT = Experiment(
    name="bn_train_test_gap",
    title="Batch normalization computes other outputs in training than in inference",
    claim="""\
A batch-normalized network computes different outputs in inference and in training, and in
training different ones for each batch size; a normalizer-free network always computes the
same (arXiv 2102.06171, section 1).""",
    how="""\
Both networks are trained in the same way. Then the logits of test images are computed in
training mode, in batches of several sizes, and compared with those of inference.""",
    beyond="""\
Any scale shows that the outputs differ; how much accuracy this costs depends on the task,
and is little here, where the classes are easy to distinguish.""",
    scales={
        "small": {
            **fitting.SMALL_RUN,
            "epochs": 8,
            "batch_size": 64,
            "learning_rate": 0.1,
            "pictures": 500,
            "batch_sizes": [2, 4, 8, 16, 64, 250],
        },
        "full": {
            **fitting.FULL_RUN,
            "batch_size": 256,
            "learning_rate": 0.1,
            "pictures": 4096,
            "batch_sizes": [2, 4, 8, 16, 64, 256],
        },
    },
    plan=fitting.plan_with_and_without,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
    tables=_tables,
    figure_size=(6.4, 7),
)
