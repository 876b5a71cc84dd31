"""Accuracy over clip factors, at several batch sizes."""

from keras_nfnets.experiments import fitting, plots
from keras_nfnets.experiments.experiment import CANNOT_TELL, Experiment, Finding
from keras_nfnets.experiments.fitting import CLIPPED, MAIN
from keras_nfnets.experiments.plots import NEAR
from keras_nfnets.experiments.results import (
    Difference,
    distinct,
    median,
    opposite,
    percent,
    select,
)


def _cells(settings, rates):
    return [
        {
            "network": CLIPPED,
            "batch_size": batch_size,
            "clip_factor": clip_factor,
            "learning_rate": rates[CLIPPED],
            "seed": seed,
        }
        for seed, batch_size in fitting.seeds_and_batch_sizes(settings)
        for clip_factor in settings["clip_factors"]
    ]


def _measure(settings, cell):
    return fitting.train_cell(settings, cell, clip_factor=cell["clip_factor"])


def _draw(figure, rows, settings):
    main = select(rows, part=MAIN)
    axes = figure.subplots()
    for batch_size in distinct(main, "batch_size"):
        runs = select(main, batch_size=batch_size)
        plots.line(axes, runs, "clip_factor", label=f"batch of {batch_size}")
    axes.set(xlabel="clip factor")
    plots.accuracy_axis(axes, distinct(main, "clip_factor"))


def _conclude(rows, settings):
    main = select(rows, part=MAIN)
    if undecided := fitting.undecided(main, settings):
        return undecided
    sizes = sorted(distinct(main, "batch_size"))
    factors = sorted(distinct(main, "clip_factor"))
    runs = {
        size: {f: select(main, batch_size=size, clip_factor=f) for f in factors}
        for size in sizes
    }
    accuracy = {
        size: {f: median(runs[size][f], "accuracy") for f in factors} for size in sizes
    }
    best = {size: max(factors, key=accuracy[size].get) for size in sizes}
    enough = max(row["accuracy"] for row in main) / 2
    failing = [size for size in sizes if accuracy[size][best[size]] < enough]
    if failing:
        shown = ", ".join(map(str, failing))
        text = f"At batches of {shown} no clip factor reaches {percent(enough)}."
        return [Finding(text, CANNOT_TELL)]

    def lost(size, factor):
        """Return the difference from the best clip factor at a batch size."""
        return Difference.of(runs[size][factor], runs[size][best[size]])

    near = {
        size: [
            f
            for f in factors
            if max(accuracy[size].values()) - accuracy[size][f] < NEAR
        ]
        for size in sizes
    }
    shown = "; ".join(
        f"{', '.join(f'{f:g}' for f in near[size])} at {size} "
        f"({percent(accuracy[size][best[size]])})"
        for size in sizes
    )
    small, large = sizes[0], sizes[-1]
    worst = min(factors, key=accuracy[small].get)
    at_small, at_large = lost(small, worst), lost(large, factors[-1])
    return [
        Finding(
            f"Clip factors whose median is within {percent(NEAR)} of the best at a batch size: "
            f"{shown}.",
            None,
        ),
        Finding(
            f"At a batch of {small} the worst factor, {worst:g}, makes a mean difference of "
            f"{at_small} from the best (to train well, it must be above {-100 * NEAR:g}).",
            at_small.exceeds(-NEAR),
        ),
        Finding(
            f"At a batch of {large} the largest factor, {factors[-1]:g}, makes a mean "
            f"difference of {at_large} from the best (to fail, it must be below "
            f"{-100 * NEAR:g}).",
            opposite(at_large.exceeds(-NEAR)),
        ),
    ]


EXPERIMENT = Experiment(
    name="clip_factor",
    title="Larger batches need smaller clip factors",
    claim="""\
Larger batches need smaller clip factors: small batches train well with any factor from 0.01
to 0.16, large ones only with small factors, in the paper 0.01 at a batch of 4,096 (arXiv
2102.06171, figure 2b).""",
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
        "medium": {
            **fitting.MEDIUM,
            **fitting.MEDIUM_CLIPPING,
            "batch_sizes": [64, 256, 1024],
            "clip_factors": [0.01, 0.02, 0.04, 0.08, 0.16],
            "seeds_at_largest": 5,
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
    undecided=fitting.undecided_before,
    tables=fitting.accuracy_tables("batch_size", "clip_factor"),
)
