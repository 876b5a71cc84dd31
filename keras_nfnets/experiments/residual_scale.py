"""Predicted and measured standard deviations of the inputs of residual blocks."""

import keras
import numpy as np

from keras_nfnets import models
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
    pictures = images.load(settings)
    x, _ = pictures.some(settings["pictures"])
    options = settings, CLIPPED, pictures.input_shape, pictures.classes
    start = _compared(fitting.build(*options), x, _START)
    model = fitting.build(*options)
    for block in _blocks(model):
        block.skip_gain.assign(1.0)
    gains_one = _compared(model, x, _GAINS_ONE)
    model, row = fitting.train_as_set(settings, CLIPPED, cell["seed"])
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
    places = range(len(names))
    predicted = [median(select(rows, block=name), "predicted") for name in names]
    axes.plot(places, predicted, "k--", label="predicted (1 / beta)")
    for when in distinct(rows, "when"):
        runs = select(rows, when=when)
        values = [median(select(runs, block=name), "measured") for name in names]
        [line] = axes.plot(places, values, marker="o", markersize=4, label=when)
        for row in runs:
            place = names.index(row["block"])
            axes.plot(place, row["measured"], ".", color=line.get_color(), alpha=0.5)
    axes.set_xticks(places, [n.replace("_", "\n") for n in names], fontsize=8)
    axes.set(xlabel="input of", ylabel="standard deviation")
    if max(row["measured"] for row in rows) > 10 * max(predicted):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()


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
            "At initialization, with the blocks' learned gains at one as the analysis has "
            "them, the measured deviation differs from the predicted one by "
            f"{described(_GAINS_ONE)}, at the beginnings of stages too.",
            max(map(abs, error[_GAINS_ONE])) < _NEAR,
        ),
        Finding(
            f"Within the stages the variance grows by {grown(_GAINS_ONE)}; predicted is "
            f"{grown(_GAINS_ONE, 'predicted')}.",
            all(abs(m / p - 1) < 2 * _NEAR for m, p in zip(measured, predicted)),
        ),
        Finding(
            f"With these gains at zero, as networks start, by {grown(_START)}; the "
            f"deviation differs from the predicted one by {described(_START)}.",
            None,
        ),
        Finding(
            f"After training it differs by {described(_TRAINED)}: beta is made for the "
            "start.",
            None,
        ),
    ]
    return findings + fitting.diverged_findings(rows)


def _tables(rows, settings):
    whens = distinct(rows, "when")
    return {
        "Standard deviation of the input of each block: median (least to most).": markdown(
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
    claim="""\
At initialization the variance of an NF-ResNet's signal grows by alpha squared a block and
starts from one again in each stage; beta divides by the standard deviation so predicted
(arXiv 2101.08692, section 3).""",
    how="""\
An NF-ResNet, its signal measured with held-out pictures at the input of each block: at
initialization with the learned gains of the blocks at one and at zero, and after it was
trained with AGC."""
    + fitting.CLIPPING_OF_ZERO,
    beyond="""\
The prediction is one for signals of many channels and large maps. These networks have three
stages: in a fourth, whose maps would be one pixel, a padded 3 x 3 convolution sees eight zeros
and one number, and the deviation falls to 0.6. `--scale full` measures NF-ResNet-50 on ImageNet.""",
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
    figure_size=(9, 5),
)
