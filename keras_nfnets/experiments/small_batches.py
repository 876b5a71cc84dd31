"""Batch normalization fails at small batches."""

from keras_nfnets.experiments import fitting, plots
from keras_nfnets.experiments.experiment import Experiment, Finding
from keras_nfnets.experiments.fitting import (
    BATCH_NORM,
    CLIPPED,
    MAIN,
    NETWORKS,
    NORMALIZER_FREE,
)
from keras_nfnets.experiments.results import distinct, grid, median, percent, select


def _cells(settings, rates):
    return [
        {
            "network": network,
            "batch_size": batch_size,
            "learning_rate": rates[network],
            "seed": seed,
        }
        for seed in range(settings["seeds"])
        for batch_size in settings["batch_sizes"]
        for network in NETWORKS
    ]


def _draw(figure, rows, settings):
    main = select(rows, part=MAIN)
    axes = figure.subplots()
    for network in NETWORKS:
        plots.line(axes, select(main, network=network), "batch_size", label=network)
    axes.set(xlabel="batch size (the learning rate grows with it)")
    plots.accuracy_axis(axes, distinct(main, "batch_size"))


def _conclude(rows, settings):
    main = select(rows, part=MAIN)
    sizes = sorted(distinct(main, "batch_size"))

    def accuracy(network, size):
        return median(select(main, network=network, batch_size=size), "accuracy")

    def loss_of(network):
        return accuracy(network, sizes[-1]) - accuracy(network, sizes[0])

    def described(network):
        values = ", ".join(percent(accuracy(network, size)) for size in sizes)
        return f"{network}: {values} at {', '.join(map(str, sizes))}"

    return [
        Finding(f"{described(BATCH_NORM)}.", loss_of(BATCH_NORM) > 5 * plots.NEAR),
        *[
            Finding(
                f"{described(network)}.",
                loss_of(network) < plots.NEAR and accuracy(network, sizes[0]) > 0.5,
            )
            for network in (NORMALIZER_FREE, CLIPPED)
        ],
    ]


def _tables(rows, settings):
    return {
        "Accuracy on held-out pictures: median (least to most).": grid(
            select(rows, part=MAIN), "network", "batch_size"
        ),
        **fitting.sweep_table(settings, rows),
    }


EXPERIMENT = Experiment(
    name="small_batches",
    claim="""\
At batches of a few pictures the accuracy of batch-normalized networks collapses; that of
normalizer-free ones does not (arXiv 2101.08692, section 1; 2102.06171, section 1).""",
    how="""\
Three networks of one shape, the same pictures in the same order. The learning rate of each
is tuned in the same way at the largest of these batch sizes, and scaled linearly from there.
The running statistics of batch normalization are means over the last hundred batches."""
    + fitting.SKIP_GAINS,
    beyond="""\
The last stage of this small network has feature maps of one pixel: at a batch of one, batch
normalization then has a single number to normalize, and gives zero whatever it is. With the
7 x 7 maps of ImageNet networks the collapse is less abrupt. How far it goes there is for
`--scale full` to say.""",
    scales={
        "small": {
            **fitting.SMALL,
            **fitting.SMALL_CLIPPING,
            "epochs": 2,
            "sweep_batch_size": 8,
            "batch_sizes": [1, 2, 4, 8],
        },
        "full": {
            **fitting.FULL,
            **fitting.FULL_CLIPPING,
            "epochs": 15,
            "sweep_batch_size": 8,
            "batch_sizes": [1, 2, 4, 8],
        },
    },
    plan=fitting.plan_with_sweep(_cells),
    measure=fitting.measure_with_sweep(fitting.train_cell),
    draw=_draw,
    conclude=_conclude,
    tables=_tables,
)
