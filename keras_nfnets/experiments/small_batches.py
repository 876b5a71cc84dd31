"""Accuracy at small batch sizes, with and without batch normalization."""

from keras_nfnets.experiments import fitting, plots
from keras_nfnets.experiments.experiment import Experiment, Finding
from keras_nfnets.experiments.fitting import (
    BATCH_NORM,
    MAIN,
    NORMALIZER_FREE,
)
from keras_nfnets.experiments.results import distinct, median, percent, select

_NETWORKS = (BATCH_NORM, NORMALIZER_FREE)

# Loss of accuracy that counts as a collapse.
_COLLAPSE = 0.1


def _draw(figure, rows, settings):
    plots.by_batch_size(figure, select(rows, part=MAIN))


def _conclude(rows, settings):
    main = select(rows, part=MAIN)
    sizes = sorted(distinct(main, "batch_size"))

    def accuracy(network, size):
        return median(select(main, network=network, batch_size=size), "accuracy")

    def finding(network, collapses):
        values = [accuracy(network, size) for size in sizes]
        loses = values[-1] - values[0]
        shown = ", ".join(map(percent, values))
        return Finding(
            f"{network}: {shown} at batches of {', '.join(map(str, sizes))}; from the "
            f"largest of these to the smallest it changes by {-100 * loses:+.1f} points.",
            values[-1] > 0.5 and (loses > _COLLAPSE) == collapses,
        )

    return [
        finding(BATCH_NORM, True),
        finding(NORMALIZER_FREE, False),
    ]


EXPERIMENT = Experiment(
    name="small_batches",
    title="Batch normalization fails at batches of a few images",
    claim="""\
At batches of a few images the accuracy of batch-normalized networks collapses; that of
normalizer-free networks does not (arXiv 2101.08692, section 1; 2102.06171, section 1).""",
    how="""\
Two networks of one shape see the same images in the same order. The learning rate of each
is tuned in the same way at the largest of these batch sizes, and scaled linearly from
there. The running statistics of batch normalization are means over the last hundred
batches, or over a tenth of all.""",
    beyond="""\
The last stage of this small network has feature maps of one pixel: at a batch of one, batch
normalization then has a single value to normalize, and always gives zero. With the 7 x 7
feature maps of ImageNet networks the collapse is less abrupt; `--scale full` measures it.""",
    scales={
        "small": {
            **fitting.SMALL,
            "epochs": 2,
            "sweep_batch_size": 8,
            "batch_sizes": [1, 2, 4, 8],
        },
        "full": {
            **fitting.FULL,
            "epochs": 15,
            "sweep_batch_size": 8,
            "batch_sizes": [1, 2, 4, 8],
        },
    },
    plan=fitting.plan_with_sweep(fitting.cells_by_batch_size(_NETWORKS), _NETWORKS),
    measure=fitting.measure_with_sweep(fitting.train_cell),
    draw=_draw,
    conclude=_conclude,
    tables=fitting.accuracy_tables("network", "batch_size"),
)
