"""Accuracy over clip factors, at several batch sizes."""

from keras_nfnets.experiments import fitting, plots
from keras_nfnets.experiments.experiment import Experiment, Finding
from keras_nfnets.experiments.fitting import CLIPPED, MAIN
from keras_nfnets.experiments.results import distinct, median, percent, select


def _cells(settings, rates):
    return [
        {
            "network": CLIPPED,
            "batch_size": batch_size,
            "clip_factor": clip_factor,
            "learning_rate": rates[CLIPPED],
            "seed": seed,
        }
        for seed in range(settings["seeds"])
        for batch_size in settings["batch_sizes"]
        for clip_factor in settings["clip_factors"]
    ]


def _measure(settings, cell):
    return fitting.train_cell(settings, cell, clip_factor=cell["clip_factor"])


def _draw(figure, rows, settings):
    main = select(rows, part=MAIN)
    axes = figure.subplots()
    for batch_size in distinct(main, "batch_size"):
        runs = select(main, batch_size=batch_size)
        plots.line(axes, runs, "clip_factor", label=f"batch size {batch_size}")
    axes.set(xlabel="clip factor")
    plots.accuracy_axis(axes, distinct(main, "clip_factor"))


def _conclude(rows, settings):
    main = select(rows, part=MAIN)
    largest = {}
    for batch_size in sorted(distinct(main, "batch_size")):
        runs = select(main, batch_size=batch_size)
        accuracy = {
            factor: median(select(runs, clip_factor=factor), "accuracy")
            for factor in distinct(runs, "clip_factor")
        }
        best = max(accuracy.values())
        if best > 0.5:  # else the network trains with no clip factor
            near = [f for f, value in accuracy.items() if value > best - plots.NEAR]
            largest[batch_size] = max(near), best
    shown = "; ".join(
        f"{factor:g} at a batch of {batch_size} ({percent(best)})"
        for batch_size, (factor, best) in largest.items()
    )
    factors = [factor for factor, _ in largest.values()]
    failing = [b for b in distinct(main, "batch_size") if b not in largest]
    findings = []
    if factors:
        text = (
            f"The largest clip factor within {percent(plots.NEAR)} of the best accuracy at "
            f"its batch size: {shown}."
        )
        falling = factors == sorted(factors, reverse=True) and factors[0] > factors[-1]
        findings.append(Finding(text, falling))
    if failing:
        shown = ", ".join(map(str, failing))
        text = f"At a batch of {shown}, no clip factor reaches an accuracy of 50%."
        findings.append(Finding(text, None if factors else False))
    return findings


EXPERIMENT = Experiment(
    name="clip_factor",
    claim="""\
Larger batches need smaller clip factors: small batches train well with any factor from 0.01
to 0.16, the largest only with 0.01 (arXiv 2102.06171, figure 2b).""",
    how="""\
The NF-ResNet with AGC. Its learning rate is tuned at one batch size with one clip factor,
and scaled linearly with the batch size."""
    + fitting.AGC_AT_ZERO_TEXT,
    beyond="""\
The distance that weights can move is bounded by clip factor times learning rate times
steps, and runs of a few hundred steps are short: with fewer steps a small factor would cost
accuracy at any batch size. The factor at which a batch size fails depends on all of these;
the paper's values are for ImageNet (`--scale full`).""",
    scales={
        "small": {
            **fitting.SMALL,
            **fitting.SMALL_CLIPPING,
            **fitting.WITH_ROOM,
            "seeds": 2,
            "batch_sizes": [64, 256, 1000],
            "clip_factors": [0.01, 0.02, 0.04, 0.08, 0.16],
        },
        "full": {
            **fitting.FULL,
            **fitting.FULL_CLIPPING,
            **fitting.WITH_ROOM,
            "batch_sizes": [256, 512, 1024, 2048, 4096],
            "clip_factors": [0.01, 0.02, 0.04, 0.08, 0.16],
        },
    },
    plan=fitting.plan_with_sweep(_cells, (CLIPPED,)),
    measure=fitting.measure_with_sweep(_measure),
    draw=_draw,
    conclude=_conclude,
    tables=fitting.accuracy_tables("batch_size", "clip_factor"),
)
