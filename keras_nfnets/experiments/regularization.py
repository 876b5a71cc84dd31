"""Regularization by batch normalization, and by dropout and stochastic depth."""

from keras_nfnets.experiments import fitting, plots
from keras_nfnets.experiments.experiment import Experiment, Finding
from keras_nfnets.experiments.fitting import BATCH_NORM, MAIN, NORMALIZER_FREE
from keras_nfnets.experiments.results import (
    Difference,
    accuracies,
    distinct,
    markdown,
    median,
    opposite,
    percent,
    select,
    with_spread,
)

_NETWORKS = (BATCH_NORM, NORMALIZER_FREE)
_REGULARIZED = "NF-ResNet, dropout and stochastic depth"


def _cells(settings, rates):
    options = {
        BATCH_NORM: (BATCH_NORM, 0.0, 0.0),
        NORMALIZER_FREE: (NORMALIZER_FREE, 0.0, 0.0),
        _REGULARIZED: (
            NORMALIZER_FREE,
            settings["drop_rate"],
            settings["stochastic_depth_rate"],
        ),
    }
    return [
        {
            "setting": name,
            "network": network,
            "drop_rate": drop_rate,
            "stochastic_depth_rate": depth_rate,
            "batch_size": settings["sweep_batch_size"],
            "learning_rate": rates[network],
            "seed": seed,
        }
        for seed in range(settings["seeds"])
        for name, (network, drop_rate, depth_rate) in options.items()
    ]


def _measure(settings, cell):
    options = {
        name: cell[name]
        for name in ("drop_rate", "stochastic_depth_rate")
        if cell[name]
    }
    return fitting.train_cell(settings, cell, network_options=options)


def _draw(figure, rows, settings):
    main = select(rows, part=MAIN)
    names = distinct(main, "setting")
    panels = {"accuracy": "test accuracy (%)", "loss": "test loss"}
    for axes, (value, label) in zip(figure.subplots(1, 2), panels.items()):
        scale = 100 if value == "accuracy" else 1
        for i, name in enumerate(names):
            runs = select(main, setting=name)
            for row in runs:
                marker = "x" if row["diverged"] else "o"
                axes.plot(i, scale * row[value], f"C{i}{marker}", alpha=0.6)
            middle = scale * median(runs, value)
            axes.hlines(middle, i - 0.25, i + 0.25, color=f"C{i}")
        axes.set_xticks(range(len(names)), [_on_lines(n) for n in names])
        axes.set(ylabel=label, xlim=(-0.5, len(names) - 0.5))
        axes.grid(alpha=0.3, axis="y")


def _on_lines(name):
    return name.replace(", ", ",\n").replace(" and ", "\nand ").replace("tic ", "tic\n")


def _conclude(rows, settings):
    main = select(rows, part=MAIN)
    accuracy, loss = (
        {
            name: median(select(main, setting=name), value)
            for name in distinct(main, "setting")
        }
        for value in ("accuracy", "loss")
    )
    shown = ", ".join(
        f"{name} {percent(accuracy[name])} (loss {loss[name]:.3f})" for name in accuracy
    )
    runs = {name: select(main, setting=name) for name in accuracy}
    behind = Difference.of(runs[NORMALIZER_FREE], runs[BATCH_NORM])
    gain = Difference.of(runs[_REGULARIZED], runs[NORMALIZER_FREE])
    left = Difference.of(runs[_REGULARIZED], runs[BATCH_NORM])
    loss_gain = Difference.of(runs[_REGULARIZED], runs[NORMALIZER_FREE], "loss")
    return [
        Finding(f"Medians: {shown}.", None),
        Finding(
            "Without regularization, the accuracy of the normalizer-free network differs from "
            f"that of batch normalization by {behind}.",
            opposite(behind.exceeds(0)),
        ),
        Finding(
            f"Dropout and stochastic depth make a mean difference of {gain}.",
            gain.exceeds(0),
        ),
        Finding(
            f"With them, the difference from batch normalization is {left} (to catch up, it "
            f"must be above {-100 * plots.AS_GOOD:g}).",
            left.exceeds(-plots.AS_GOOD),
        ),
        Finding(
            f"The loss goes from {loss[NORMALIZER_FREE]:.2f} to {loss[_REGULARIZED]:.2f} "
            f"with them, compared with {loss[BATCH_NORM]:.2f} for batch normalization.",
            opposite(loss_gain.exceeds(0)),
        ),
    ]


def _tables(rows, settings):
    main = select(rows, part=MAIN)
    lines = []
    for name in distinct(main, "setting"):
        runs = select(main, setting=name)
        lines.append(
            [name, accuracies(runs)]
            + [with_spread(runs, v, "{:.3f}".format) for v in ("loss", "train_loss")]
        )
    return {
        "Medians (minimum to maximum).": markdown(
            ["network", "test accuracy", "test loss", "training loss"],
            lines,
        ),
        **fitting.sweep_table(settings, rows),
    }


EXPERIMENT = Experiment(
    name="regularization",
    title="Dropout and stochastic depth replace batch norm's noise",
    claim="""\
Batch normalization regularizes through the noise of its batches, and a normalizer-free
network catches up with explicit regularization: dropout and stochastic depth (arXiv
2102.06171, section 2 and appendix).""",
    how="""\
Few images and many epochs, so that networks without regularization overfit (compare the
training loss with the test loss). The learning rate of each network is tuned in the same way; the regularized network
uses that of the other normalizer-free network.""",
    beyond="""\
The amounts of dropout and stochastic depth were chosen before the runs, not tuned. With few
images, regularization matters most: the networks of `batch_size` see five times as many and
do not overfit, and still differ from batch normalization by one to two points, at small
batches as at large ones. So the noise of batches is not the only reason. On ImageNet the
networks are a hundred times as large, and trained with strong augmentation.""",
    scales={
        "small": {
            **fitting.SMALL,
            "depths": [2, 2, 2, 2],
            "examples": 800,
            "epochs": 40,
            "sweep_batch_size": 64,
            "drop_rate": 0.4,
            "stochastic_depth_rate": 0.25,
            "seeds": 3,
        },
        "medium": {
            **fitting.MEDIUM,
            "examples": 4000,
            "epochs": 60,
            "learning_rates": [0.1, 0.2, 0.4, 0.8, 1.6],
            "drop_rate": 0.4,
            "stochastic_depth_rate": 0.25,
            "seeds": 5,
        },
        "full": {
            **fitting.FULL,
            "sweep_batch_size": 1024,
            "drop_rate": 0.2,
            "stochastic_depth_rate": 0.1,
        },
    },
    plan=fitting.plan_with_sweep(_cells, _NETWORKS),
    measure=fitting.measure_with_sweep(_measure),
    draw=_draw,
    conclude=_conclude,
    tables=_tables,
    figure_size=(8.6, 4.8),
)
