"""Accuracy at large batch sizes, with and without AGC."""

import math

from keras_nfnets.experiments import fitting, plots
from keras_nfnets.experiments.experiment import CANNOT_TELL, Experiment, Finding
from keras_nfnets.experiments.fitting import (
    BATCH_NORM,
    CLIPPED,
    MAIN,
    NETWORKS,
    NORMALIZER_FREE,
)
from keras_nfnets.experiments.results import (
    Difference,
    distinct,
    median,
    percent,
    select,
)

# A network fails at a batch size if its accuracy is this much below the best there.
_FAILURE_GAP = 0.1


def _draw(figure, rows, settings):
    plots.by_batch_size(figure, select(rows, part=MAIN))


def _conclude(rows, settings):
    main = select(rows, part=MAIN)
    if undecided := fitting.undecided(main, settings):
        return undecided
    sizes = sorted(distinct(main, "batch_size"))
    largest = sizes[-1]

    def runs(network, batch_size):
        return select(main, network=network, batch_size=batch_size)

    def accuracy(network, batch_size):
        return median(runs(network, batch_size), "accuracy")

    best = {size: max(accuracy(n, size) for n in NETWORKS) for size in sizes}
    if best[largest] < max(best.values()) / 2:
        return [Finding(f"No network trains at a batch of {largest}.", CANNOT_TELL)]
    reached = {}
    for network in NETWORKS:
        failed = [s for s in sizes if accuracy(network, s) < best[s] - _FAILURE_GAP]
        trained = [size for size in sizes if size < min(failed, default=math.inf)]
        reached[network] = max(trained, default=0)
    # Without a batch at which the unclipped network fails, nothing is seen of what AGC does.
    tells = reached[NORMALIZER_FREE] < largest
    over_unclipped = Difference.of(
        runs(CLIPPED, largest), runs(NORMALIZER_FREE, largest)
    )
    over_batch_norm = {
        size: Difference.of(runs(CLIPPED, size), runs(BATCH_NORM, size))
        for size in sizes
    }
    matches = over_batch_norm[largest].exceeds(-plots.AS_GOOD)
    if any(d.exceeds(-plots.AS_GOOD) is False for d in over_batch_norm.values()):
        matches = False
    shown = ", ".join(
        f"{network} {percent(accuracy(network, largest))}" for network in NETWORKS
    )
    differences = "; ".join(f"{size}: {d}" for size, d in over_batch_norm.items())
    return [
        Finding(
            f"The accuracy is within {100 * _FAILURE_GAP:.0f} points of the best at its batch "
            f"size up to a batch of {reached[CLIPPED]} with AGC, up to "
            f"{reached[NORMALIZER_FREE]} without it, and up to {reached[BATCH_NORM]} with "
            "batch normalization."
            + " Larger batches could tell, as with `--scale=full`."
            * (not tells),
            reached[CLIPPED] > reached[NORMALIZER_FREE] if tells else CANNOT_TELL,
        ),
        Finding(f"Medians at a batch of {largest}: {shown}.", None),
        Finding(
            f"At a batch of {largest} AGC makes a mean difference of {over_unclipped}.",
            over_unclipped.exceeds(0) if tells else None,
        ),
        Finding(
            "Mean difference of the NF-ResNet with AGC from the BN-ResNet by batch size (to "
            f"match, it must be above {-100 * plots.AS_GOOD:g}): {differences}.",
            matches,
        ),
    ]


EXPERIMENT = Experiment(
    name="batch_size",
    title="With AGC, larger batches train",
    claim="""\
With the learning rate scaled linearly with the batch size, normalizer-free ResNets without
AGC fail at large batches; with AGC they match or beat batch-normalized ones (arXiv
2102.06171, figure 2a).""",
    how="""\
Three networks of one shape see the same order of images and the same number of epochs at
each batch size; the two NF-ResNets start from the same weights. The learning rate of each
is tuned in the same way at one batch size, and scaled linearly from there."""
    + fitting.BY_BATCH_SIZE_TEXT
    + fitting.AGC_AT_ZERO_TEXT,
    beyond="""\
The number of epochs is fixed, as in the paper, so the largest batch has the fewest steps:
on ImageNet a batch of 4,096 still has 28,000. At the medium scale every batch size has at
least 500, at the small scale only those up to 64. `--scale full` runs the paper's setting
(NF-ResNet-50, ImageNet, batches of 256 to 4,096).""",
    scales={
        "small": {
            **fitting.SMALL,
            **fitting.SMALL_CLIPPING,
            **fitting.WITH_ROOM,
            "batch_sizes": [16, 64, 256, 1000, 4000],
        },
        "medium": {
            **fitting.MEDIUM,
            **fitting.MEDIUM_CLIPPING,
            "batch_sizes": [64, 256, 512, 1024],
            "seeds_at_largest": 5,
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
    undecided=fitting.undecided_before,
    tables=fitting.accuracy_tables("network", "batch_size"),
)
