"""AGC applied to different parts of a network."""

import itertools

from keras_nfnets.experiments import fitting, plots
from keras_nfnets.experiments.experiment import Experiment, Finding
from keras_nfnets.experiments.fitting import CLIPPED, MAIN, NORMALIZER_FREE
from keras_nfnets.experiments.results import distinct, grid, median, percent, select

_STAGES = ("stage1", "stage2", "stage3", "stage4")
_EVERYTHING, _NOT_CLASSIFIER = "everything", "all but the classifier"
_NOT_STEM, _NOTHING = "all but classifier and stem", "nothing"


def _parts(stages):
    """Return `{what is clipped: prefixes of variable paths}`; None is AGC's default."""
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
        for seed in range(settings["seeds"])
        for batch_size in settings["batch_sizes"]
        for clipped in _parts(_STAGES)
    ]


def _measure(settings, cell):
    beginnings = _parts(_STAGES)[cell["clipped"]]
    if beginnings is None:
        return fitting.train_cell(settings, cell)
    if not beginnings:
        return fitting.train_cell(settings, {**cell, "network": NORMALIZER_FREE})

    def exclude(variable):
        return not variable.path.startswith(beginnings)

    return fitting.train_cell(settings, cell, exclude=exclude)


def _draw(figure, rows, settings):
    main = select(rows, part=MAIN)
    sizes = distinct(main, "batch_size")
    for axes, size in zip(figure.subplots(1, len(sizes), sharey=True), sizes):
        runs = select(main, batch_size=size)
        clipped = distinct(runs, "clipped")[::-1]
        for height, name in enumerate(clipped):
            of_name = select(runs, clipped=name)
            axes.barh(
                height, 100 * median(of_name, "accuracy"), color="tab:blue", alpha=0.5
            )
            for row in of_name:
                marker = "rx" if row["diverged"] else "k."
                axes.plot(100 * row["accuracy"], height, marker)
        axes.set_yticks(range(len(clipped)), clipped)
        axes.set(xlabel="accuracy (%; x: diverged)", title=f"batch size {size}")
        axes.set_xlim(0, 100)
        axes.grid(alpha=0.3, axis="x")


def _conclude(rows, settings):
    main = select(rows, part=MAIN)
    findings = []
    sizes = distinct(main, "batch_size")
    for size in sizes:
        runs = select(main, batch_size=size)
        accuracy = {
            name: median(select(runs, clipped=name), "accuracy")
            for name in distinct(runs, "clipped")
        }
        most = accuracy[_NOT_CLASSIFIER]
        gain = accuracy[_NOT_CLASSIFIER] - accuracy[_EVERYTHING]
        trains = max(accuracy.values()) > 0.5
        findings.append(
            Finding(
                f"At a batch of {size}, all clipped but the classifier gives "
                f"{percent(most)}, with the classifier clipped too "
                f"{percent(accuracy[_EVERYTHING])}.",
                gain > plots.NEAR / 2 if trains else None,
            )
        )
        partly = {n: v for n, v in accuracy.items() if n.startswith("stage")}
        enough = [n for n, v in partly.items() if v > most - plots.NEAR]
        best = max(partly, key=partly.get)
        text = (
            f"At {size}, of one stage or two clipped alone the best is {best} "
            f"({percent(partly[best])}), the worst {percent(min(partly.values()))}; "
            f"{len(enough)} of {len(partly)} are within {percent(plots.NEAR)} of all "
            f"four, nothing clipped gives {percent(accuracy[_NOTHING])}."
        )
        largest = size == max(sizes)
        holds = not enough if largest else bool(enough)
        findings.append(Finding(text, holds if trains else None))
        without_stem = accuracy[_NOT_STEM]
        text = f"At {size}, without the stem too it is {percent(without_stem)}."
        holds = abs(without_stem - most) < plots.NEAR
        findings.append(Finding(text, holds if trains else None))
    return findings


def _tables(rows, settings):
    return {
        "Accuracy on held-out pictures, by what is clipped: median (least to most).": grid(
            select(rows, part=MAIN), "clipped", "batch_size"
        ),
        **fitting.sweep_table(settings, rows),
    }


EXPERIMENT = Experiment(
    name="which_layers",
    claim="""\
The classifier is better not clipped; whether the stem is makes no difference; small batches
train with some of the stages clipped, large ones need all four (arXiv 2102.06171, section
4.1).""",
    how="""\
The NF-ResNet with AGC applied to all its layers, to all but the classifier, to neither
classifier nor stem, to each stage alone and to each pair of stages, and to none, at a small
and a large batch. The learning rate is that found for all but the classifier."""
    + fitting.CLIPPING_OF_ZERO,
    beyond="""\
A batch of 256 is not small among 4,000 pictures, and the rate found for the clipped network is
one at which nothing trains that is not clipped: the small batches of the claim would want a rate
of their own. Ten classes are few for a classifier, so that clipping it costs nothing and keeps a
short run at a high rate from going astray. The paper's differences are those of NF-ResNet-50 on
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
    tables=_tables,
    figure_size=(11, 5),
)
