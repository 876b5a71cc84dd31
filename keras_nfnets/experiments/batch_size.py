"""Accuracy at large batch sizes, with and without AGC."""

from keras_nfnets.experiments import fitting, plots
from keras_nfnets.experiments.experiment import Experiment, Finding
from keras_nfnets.experiments.fitting import (
    BATCH_NORM,
    CLIPPED,
    MAIN,
    NETWORKS,
    NORMALIZER_FREE,
)
from keras_nfnets.experiments.results import (
    distinct,
    median,
    percent,
    select,
)

# A network fails at a batch size if its accuracy is this much below the best.
_FAILURE_GAP = 0.1


def _draw(figure, rows, settings):
    plots.by_batch_size(figure, select(rows, part=MAIN))


def _conclude(rows, settings):
    main = select(rows, part=MAIN)

    def accuracy(network, batch_size):
        return median(select(main, network=network, batch_size=batch_size), "accuracy")

    def reach(network):
        """Return the largest batch size up to which the network does not fail, or 0."""
        reached = 0
        for size in sizes:
            if accuracy(network, size) > best - _FAILURE_GAP:
                reached = size
            elif reached:
                break
        return reached

    sizes = sorted(distinct(main, "batch_size"))
    best = max(accuracy(network, size) for network in NETWORKS for size in sizes)
    reached = {network: reach(network) for network in NETWORKS}
    at, full = reached[CLIPPED], max(sizes)
    findings = [
        Finding(
            f"With AGC the accuracy stays within {100 * _FAILURE_GAP:.0f} points of the best of "
            f"all, {percent(best)}, up to a batch of {at}; without AGC up to "
            f"{reached[NORMALIZER_FREE]}, with batch normalization up to "
            f"{reached[BATCH_NORM]}.",
            at > reached[NORMALIZER_FREE],
        )
    ]
    for size, text in {at or full: "At a batch of", full: "At the full batch,"}.items():
        values = {network: accuracy(network, size) for network in NETWORKS}
        shown = ", ".join(f"{network} {percent(v)}" for network, v in values.items())
        follows = values[CLIPPED] > values[BATCH_NORM] - plots.NEAR / 2
        # The comparison says nothing if no network trains.
        holds = follows if max(values.values()) > 0.5 else None
        findings.append(Finding(f"{text} {size}: {shown}.", holds))
    return findings


EXPERIMENT = Experiment(
    name="batch_size",
    claim="""\
With the learning rate scaled linearly with the batch size, normalizer-free ResNets without
AGC fail at large batches; with AGC they match or beat batch-normalized ones (arXiv
2102.06171, figure 2a).""",
    how="""\
Three networks of one shape see the same order of images and the same number of epochs at
each batch size; the two NF-ResNets start from the same weights. The learning rate of each
is tuned in the same way at one batch size, and scaled linearly from there."""
    + fitting.AGC_AT_ZERO_TEXT,
    beyond="""\
The number of epochs is fixed, as in the paper, so at the full batch a run of this scale has
as many steps as epochs: fewer than a warm-up on ImageNet, where a batch of 4,096 still has
28,000 steps. The result there depends on how few these steps are. `--scale full` runs the
paper's setting (NF-ResNet-50, ImageNet, batches of 256 to 4,096).""",
    scales={
        "small": {
            **fitting.SMALL,
            **fitting.SMALL_CLIPPING,
            **fitting.WITH_ROOM,
            "batch_sizes": [16, 64, 256, 1000, 4000],
        },
        "full": {
            **fitting.FULL,
            **fitting.FULL_CLIPPING,
            **fitting.WITH_ROOM,
            "batch_sizes": [256, 512, 1024, 2048, 4096],
        },
    },
    plan=fitting.plan_with_sweep(fitting.cells_by_batch_size(NETWORKS)),
    measure=fitting.measure_with_sweep(fitting.train_cell),
    draw=_draw,
    conclude=_conclude,
    tables=fitting.accuracy_tables("network", "batch_size"),
)
