"""Predicted and measured standard deviations of the inputs of residual blocks."""

import keras
import numpy as np

from keras_nfnets import models, plotting
from keras_nfnets.experiments import fitting, images
from keras_nfnets.experiments.experiment import Experiment, Finding
from keras_nfnets.experiments.fitting import CLIPPED
from keras_nfnets.experiments.results import (
    distinct,
    markdown,
    median,
    select,
    with_spread,
)
from keras_nfnets.layers import NFBlock

_GAINS_ONE, _START, _TRAINED = "start, gains one", "start", "trained"

# Relative error up to which a predicted standard deviation holds; twice that for variances.
_NEAR = 0.25


def _plan(settings, rows):
    return [{"seed": seed} for seed in range(settings["seeds"])]


def _measure(settings, cell):
    keras.utils.set_random_seed(cell["seed"])
    dataset = images.load(settings)
    x, _ = dataset.test_images(settings["pictures"])
    options = settings, CLIPPED, dataset.input_shape, dataset.classes
    start = _compared(fitting.build(*options), x, _START)
    model = fitting.build(*options)
    for block in _blocks(model):
        block.skip_gain.assign(1.0)
    gains_one = _compared(model, x, _GAINS_ONE)
    model, row = fitting.train_with_settings(settings, CLIPPED, cell["seed"])
    trained = [
        {**compared, "diverged": row["diverged"]}
        for compared in _compared(model, x, _TRAINED)
    ]
    return gains_one + start + trained


def _blocks(model):
    return [layer for layer in model.layers if isinstance(layer, NFBlock)]


def _compared(model, x, when):
    """Return a row per block: predicted and measured standard deviation of its input."""
    signal = models.signal_propagation(model, x)
    return [
        {
            "when": when,
            "block": block.name,
            "predicted": round(1 / block.beta, 5),
            "measured": float(f"{np.sqrt(variance):.5g}"),
        }
        for block, variance in zip(_blocks(model), signal["avg_var"])
    ]


def _draw(figure, rows, settings):
    axes = figure.subplots()
    names = distinct(rows, "block")
    positions = range(len(names))
    predicted = [median(select(rows, block=name), "predicted") for name in names]
    axes.plot(positions, predicted, "k--", linewidth=3, label="predicted (1 / beta)")
    for when in distinct(rows, "when"):
        runs = select(rows, when=when)
        values = [median(select(runs, block=name), "measured") for name in names]
        [line] = axes.plot(positions, values, markersize=4, label=when)
        for row in runs:
            position = names.index(row["block"])
            axes.plot(position, row["measured"], ".", color=line.get_color(), alpha=0.5)
    axes.set_xticks(positions, [_short(name) for name in names])
    axes.set(xlabel="input of (stage.block)", ylabel="standard deviation")
    if max(row["measured"] for row in rows) > 10 * max(predicted):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    plotting.label_lines(axes)


def _short(block):
    return block.replace("stage", "").replace("_block", ".")


def _errors(rows, when):
    """Return `measured / predicted - 1` for each block but the first."""
    names = distinct(rows, "block")[1:]  # the first block's input is the stem's output
    values = []
    for name in names:
        runs = select(rows, when=when, block=name)
        values.append(median(runs, "measured") / median(runs, "predicted") - 1)
    return values


def _growth(rows, when, value):
    """Return the growth of the variance from a stage's second block to its last, per stage."""
    growths = []
    names = distinct(rows, "block")
    stages = list(dict.fromkeys(name.partition("_")[0] for name in names))
    for stage in stages:
        first, *_, last = (
            median(select(rows, when=when, block=name), value) ** 2
            for name in names
            if name.startswith(f"{stage}_") and name != f"{stage}_block1"
        )
        growths.append(last - first)
    return growths


def _conclude(rows, settings):
    error = {when: _errors(rows, when) for when in distinct(rows, "when")}

    def described(when):
        return f"{min(error[when]):+.0%} to {max(error[when]):+.0%}"

    def grown(when, value="measured"):
        return ", ".join(f"{growth:.3f}" for growth in _growth(rows, when, value))

    predicted = _growth(rows, _GAINS_ONE, "predicted")
    measured = _growth(rows, _GAINS_ONE, "measured")
    findings = [
        Finding(
            "At initialization, with skip gains of one as in the analysis, the measured "
            "standard deviation differs from the predicted one by "
            f"{described(_GAINS_ONE)}, also at the beginnings of stages.",
            max(map(abs, error[_GAINS_ONE])) < _NEAR,
        ),
        Finding(
            f"Within the stages the variance grows by {grown(_GAINS_ONE)}; predicted: "
            f"{grown(_GAINS_ONE, 'predicted')}.",
            all(abs(m / p - 1) < 2 * _NEAR for m, p in zip(measured, predicted)),
        ),
        Finding(
            "With skip gains of zero, as networks start, it grows by "
            f"{grown(_START)}; the standard deviation differs from the predicted one by "
            f"{described(_START)}.",
            None,
        ),
        Finding(
            f"After training the standard deviation differs by {described(_TRAINED)}: beta "
            "is meant for initialization.",
            None,
        ),
    ]
    return findings + fitting.diverged_findings(rows)


def _tables(rows, settings):
    whens = distinct(rows, "when")
    return {
        "Standard deviation of the input of each block: median (minimum to maximum).": markdown(
            ["block", "predicted", *whens],
            [
                [
                    name,
                    f"{median(select(rows, block=name), 'predicted'):.3f}",
                    *(
                        with_spread(
                            select(rows, block=name, when=when),
                            "measured",
                            "{:.3f}".format,
                        )
                        for when in whens
                    ),
                ]
                for name in distinct(rows, "block")
            ],
        )
    }


EXPERIMENT = Experiment(
    name="residual_scale",
    title="Alpha and beta predict the variance of each block",
    claim="""\
At initialization the variance of an NF-ResNet's signal grows by alpha squared per block and
restarts from one in each stage; beta divides by the standard deviation predicted in this
way (arXiv 2101.08692, section 3).""",
    how="""\
An NF-ResNet. Its signal is measured with test images at the input of each block: at
initialization with skip gains of one and of zero, and after training with AGC."""
    + fitting.AGC_AT_ZERO_TEXT,
    beyond="""\
The prediction assumes many channels and large feature maps. These networks have three
stages: in a fourth, with feature maps of one pixel, a padded 3 x 3 convolution sees eight
zeros and one value, and the standard deviation falls to 0.6. `--scale full` measures
NF-ResNet-50 on ImageNet.""",
    scales={
        "small": {
            **fitting.SMALL_RUN,
            **fitting.SMALL_CLIPPING,
            "depths": [4, 4, 4],
            "epochs": 10,
            "batch_size": 64,
            "learning_rate": 0.2,
            "pictures": 500,
        },
        "full": {
            **fitting.FULL_RUN,
            **fitting.FULL_CLIPPING,
            "batch_size": 1024,
            "learning_rate": 0.1,
            "pictures": 256,
        },
    },
    plan=_plan,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
    tables=_tables,
    figure_size=(8, 4.4),
)
