"""Accuracy over clip factors, at several batch sizes."""

from keras_nfnets.experiments import fitting, plots
from keras_nfnets.experiments.experiment import CANNOT_TELL, Experiment, Finding
from keras_nfnets.experiments.fitting import CLIPPED, MAIN
from keras_nfnets.experiments.results import (
    Difference,
    distinct,
    median,
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
    sizes, undecided = fitting.decided(main)
    factors = sorted(distinct(main, "clip_factor"))
    largest_near = {}
    enough = max(row["accuracy"] for row in main) / 2
    for size in sizes:
        accuracy = {
            factor: median(
                select(main, batch_size=size, clip_factor=factor), "accuracy"
            )
            for factor in factors
        }
        best = max(accuracy.values())
        if best > enough:  # else the network trains with no clip factor
            near = [f for f, value in accuracy.items() if value > best - plots.NEAR]
            largest_near[size] = max(near), best
    failing = [size for size in sizes if size not in largest_near]
    findings = []
    if failing:
        shown = ", ".join(map(str, failing))
        text = f"At a batch of {shown}, no clip factor reaches an accuracy of {percent(enough)}."
        findings.append(Finding(text, CANNOT_TELL if largest_near else False))
    if len(largest_near) < 2:
        return [*findings, *undecided]
    shown = "; ".join(
        f"{factor:g} at a batch of {size} ({percent(best)})"
        for size, (factor, best) in largest_near.items()
    )
    falling = [factor for factor, _ in largest_near.values()]
    least, most = min(largest_near), max(largest_near)

    def lost(size, factor, other):
        """Return what one factor loses compared with another, a `Difference`."""
        runs = select(main, batch_size=size)
        return Difference.of(
            select(runs, clip_factor=factor), select(runs, clip_factor=other)
        )

    small = lost(least, factors[0], factors[-1])
    large = lost(most, factors[-1], factors[0])
    return [
        Finding(
            f"The largest clip factor within {percent(plots.NEAR)} of the best accuracy at "
            f"its batch size: {shown}.",
            falling == sorted(falling, reverse=True) and falling[0] > falling[-1],
        ),
        Finding(
            f"At a batch of {most}, a factor of {factors[-1]:g} instead of {factors[0]:g} "
            f"makes a difference of {large}.",
            large.is_below(-plots.NEAR),
        ),
        Finding(
            f"At a batch of {least}, a factor of {factors[0]:g} instead of "
            f"{factors[-1]:g} makes a difference of {small}; it is to be small.",
            small.exceeds(-plots.NEAR),
        ),
        *findings,
        *undecided,
    ]


EXPERIMENT = Experiment(
    name="clip_factor",
    title="Larger batches need smaller clip factors",
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
    tables=fitting.accuracy_tables("batch_size", "clip_factor"),
)
