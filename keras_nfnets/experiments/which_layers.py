"""AGC applied to different parts of a network."""

import itertools

from keras_nfnets.experiments import fitting
from keras_nfnets.experiments.experiment import CANNOT_TELL, Experiment, Finding
from keras_nfnets.experiments.fitting import CLIPPED, MAIN, NORMALIZER_FREE
from keras_nfnets.experiments.plots import NEAR
from keras_nfnets.experiments.results import (
    Difference,
    distinct,
    grid,
    median,
    opposite,
    percent,
    select,
)

_EVERYTHING, _NOT_CLASSIFIER = "everything", "all but the classifier"
_NOT_STEM, _NOTHING = "all but classifier and stem", "nothing"


def _clipped_layers(settings):
    """Return `{what is clipped: prefixes of variable paths}`; None is AGC's default."""
    stages = [f"stage{i + 1}" for i in range(len(settings["depths"]))]
    pairs = itertools.combinations(stages, 2)
    return {
        _EVERYTHING: ("",),
        _NOT_CLASSIFIER: None,
        _NOT_STEM: (*stages, "predictions/bias"),
        **{stage: (stage,) for stage in stages},
        **{" and ".join(pair): pair for pair in pairs},
        _NOTHING: (),
    }


def _cells(settings, rates):
    return [
        {
            "network": CLIPPED,
            "clipped": clipped,
            "batch_size": batch_size,
            "learning_rate": rates[CLIPPED],
            "seed": seed,
        }
        for seed, batch_size in fitting.seeds_and_batch_sizes(settings)
        for clipped in _clipped_layers(settings)
    ]


def _measure(settings, cell):
    prefixes = _clipped_layers(settings)[cell["clipped"]]
    if prefixes is None:
        return fitting.train_cell(settings, cell)
    if not prefixes:
        return fitting.train_cell(settings, {**cell, "network": NORMALIZER_FREE})

    def exclude(variable):
        return not variable.path.startswith(prefixes)

    return fitting.train_cell(settings, cell, exclude=exclude)


def _draw(figure, rows, settings):
    main = select(rows, part=MAIN)
    sizes = distinct(main, "batch_size")
    for axes, size in zip(
        figure.subplots(len(sizes), 1, sharex=True, squeeze=False)[:, 0], sizes
    ):
        runs = select(main, batch_size=size)
        clipped = distinct(runs, "clipped")[::-1]
        for height, name in enumerate(clipped):
            runs_of_name = select(runs, clipped=name)
            axes.barh(
                height,
                100 * median(runs_of_name, "accuracy"),
                color="C0",
                alpha=0.5,
            )
            for row in runs_of_name:
                marker = "rx" if row["diverged"] else "k."
                axes.plot(100 * row["accuracy"], height, marker)
        axes.set_yticks(range(len(clipped)), clipped)
        axes.set(xlim=(0, 100), title=f"batches of {size}")
        axes.grid(alpha=0.3, axis="x")
    axes.set_xlabel("test accuracy (%; x: diverged)")


def _conclude(rows, settings):
    main = select(rows, part=MAIN)
    if undecided := fitting.undecided(main, settings):
        return undecided
    sizes = sorted(distinct(main, "batch_size"))
    findings = []
    trained = max(row["accuracy"] for row in main) / 2
    for size in sizes:
        runs = select(main, batch_size=size)
        of = {name: select(runs, clipped=name) for name in distinct(runs, "clipped")}
        accuracy = {name: median(of[name], "accuracy") for name in of}
        if max(accuracy.values()) < trained:
            text = f"At a batch of {size} no choice reaches {percent(trained)}."
            findings.append(Finding(text, CANNOT_TELL))
            continue
        most = of[_NOT_CLASSIFIER]
        gain = Difference.of(most, of[_EVERYTHING])
        without_stem = Difference.of(of[_NOT_STEM], most)
        partly = {
            name: Difference.of(of[name], most)
            for name in of
            if name.startswith("stage")
        }
        best = max(partly, key=lambda name: partly[name].value)
        enough = {difference.exceeds(-NEAR) for difference in partly.values()}
        if True in enough:
            some_suffice = True
        else:
            some_suffice = CANNOT_TELL if CANNOT_TELL in enough else False
        holds = opposite(some_suffice) if size == sizes[-1] else some_suffice
        findings += [
            Finding(
                f"Medians at a batch of {size}: everything but the classifier clipped "
                f"{percent(accuracy[_NOT_CLASSIFIER])}, nothing clipped "
                f"{percent(accuracy[_NOTHING])}.",
                None,
            ),
            Finding(
                f"At {size}, to leave the classifier unclipped makes a mean difference of "
                f"{gain}.",
                gain.exceeds(0),
            ),
            Finding(
                f"At {size}, to leave the stem unclipped, too, makes one of {without_stem} (to "
                f"make none, it must be within {100 * NEAR:g}).",
                without_stem.is_small(NEAR),
            ),
            Finding(
                f"At {size}, the best of clipping only one or two stages is {best}, with a "
                f"difference of {partly[best]} from clipping all.",
                holds,
            ),
        ]
    return findings


def _tables(rows, settings):
    return {
        "Test accuracy by clipped layers: median (minimum to maximum).": grid(
            select(rows, part=MAIN), "clipped", "batch_size"
        ),
        **fitting.sweep_table(settings, rows),
    }


EXPERIMENT = Experiment(
    name="which_layers",
    title="Large batches need all stages clipped, and no classifier",
    claim="""\
The classifier should not be clipped; clipping the stem makes no difference; small batches
train with some of the stages clipped, large ones need all of them clipped (arXiv 2102.06171,
section 4.1).""",
    how="""\
The NF-ResNet with AGC for all its layers, for all but the classifier, for all but
classifier and stem, for each stage alone, for each pair of stages, and for none, at a small
and a large batch size. The learning rate is the one tuned with all but the classifier
clipped."""
    + fitting.BY_BATCH_SIZE_TEXT
    + fitting.AGC_AT_ZERO_TEXT,
    beyond="""\
A batch of 256 is not small compared with 4,000 images, and at the learning rate tuned for
the clipped network nothing trains without clipping: the small batches of the claim would
need their own rate. With only ten classes, clipping the classifier costs nothing and
stabilizes a short run at a high rate. The paper's differences are those of NF-ResNet-50 on
ImageNet (`--scale full`).""",
    scales={
        "small": {
            **fitting.SMALL,
            **fitting.SMALL_CLIPPING,
            **fitting.WITH_ROOM,
            "epochs": 12,
            "seeds": 2,
            "batch_sizes": [256, 1000],
        },
        "medium": {
            **fitting.MEDIUM,
            **fitting.MEDIUM_CLIPPING,
            "batch_sizes": [64, 1024],
        },
        "full": {
            **fitting.FULL,
            **fitting.FULL_CLIPPING,
            **fitting.WITH_ROOM,
            "batch_sizes": [1024, 4096],
        },
    },
    plan=fitting.plan_with_sweep(_cells, (CLIPPED,)),
    measure=fitting.measure_with_sweep(_measure),
    draw=_draw,
    conclude=_conclude,
    undecided=fitting.undecided_before,
    tables=_tables,
    figure_size=(6.4, 8.4),
)
