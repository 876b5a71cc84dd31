"""AGC applied to different parts of a network."""

import itertools

from keras_nfnets.experiments import fitting, plots
from keras_nfnets.experiments.experiment import Experiment, Finding
from keras_nfnets.experiments.fitting import CLIPPED, MAIN, NORMALIZER_FREE
from keras_nfnets.experiments.results import distinct, grid, median, percent, select

_STAGES = ("stage1", "stage2", "stage3", "stage4")
_EVERYTHING, _NOT_CLASSIFIER = "everything", "all but the classifier"
_NOT_STEM, _NOTHING = "all but classifier and stem", "nothing"


def _clipped_layers(stages):
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
        for clipped in _clipped_layers(_STAGES)
    ]


def _measure(settings, cell):
    prefixes = _clipped_layers(_STAGES)[cell["clipped"]]
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
    for axes, size in zip(figure.subplots(1, len(sizes), sharey=True), sizes):
        runs = select(main, batch_size=size)
        clipped = distinct(runs, "clipped")[::-1]
        for height, name in enumerate(clipped):
            runs_of_name = select(runs, clipped=name)
            axes.barh(
                height,
                100 * median(runs_of_name, "accuracy"),
                color="tab:blue",
                alpha=0.5,
            )
            for row in runs_of_name:
                marker = "rx" if row["diverged"] else "k."
                axes.plot(100 * row["accuracy"], height, marker)
        axes.set_yticks(range(len(clipped)), clipped)
        axes.set(xlabel="test accuracy (%; x: diverged)", title=f"batch size {size}")
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
                f"At a batch of {size}, clipping all but the classifier gives "
                f"{percent(most)}, clipping the classifier too "
                f"{percent(accuracy[_EVERYTHING])}.",
                gain > plots.NEAR / 2 if trains else None,
            )
        )
        partly = {n: v for n, v in accuracy.items() if n.startswith("stage")}
        enough = [n for n, v in partly.items() if v > most - plots.NEAR]
        best = max(partly, key=partly.get)
        text = (
            f"At {size}, the best of clipping only one or two stages is {best} "
            f"({percent(partly[best])}), the worst {percent(min(partly.values()))}; "
            f"{len(enough)} of {len(partly)} are within {percent(plots.NEAR)} of clipping "
            f"all four. Without clipping: {percent(accuracy[_NOTHING])}."
        )
        largest = size == max(sizes)
        holds = not enough if largest else bool(enough)
        findings.append(Finding(text, holds if trains else None))
        without_stem = accuracy[_NOT_STEM]
        text = f"At {size}, clipping neither classifier nor stem gives {percent(without_stem)}."
        holds = abs(without_stem - most) < plots.NEAR
        findings.append(Finding(text, holds if trains else None))
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
    claim="""\
The classifier should not be clipped; clipping the stem makes no difference; small batches
train with some of the stages clipped, large ones need all four clipped (arXiv 2102.06171,
section 4.1).""",
    how="""\
The NF-ResNet with AGC for all its layers, for all but the classifier, for all but
classifier and stem, for each stage alone, for each pair of stages, and for none, at a small
and a large batch size. The learning rate is the one tuned with all but the classifier
clipped."""
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
