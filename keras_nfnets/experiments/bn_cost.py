"""Time and memory cost of batch normalization."""

import keras

from keras_nfnets import models
from keras_nfnets.experiments import costs
from keras_nfnets.experiments.experiment import Experiment, Finding
from keras_nfnets.experiments.results import (
    distinct,
    markdown,
    median,
    select,
    with_spread,
)

_BATCH_NORM, _WITHOUT = "BN-ResNet", "the same without BN"
_NORMALIZER_FREE, _CLIPPED = "NF-ResNet", "NF-ResNet, AGC"
_NETWORKS = (_BATCH_NORM, _WITHOUT, _NORMALIZER_FREE, _CLIPPED)
_CLASSES = 1000


def _plan(settings, rows):
    # Networks take turns, so that a machine that slows down does so for all of them.
    return [
        {"network": network, "round": number}
        for number in range(settings["seeds"])
        for network in _NETWORKS
    ]


def _measure(settings, cell):
    keras.utils.set_random_seed(cell["round"])
    before = costs.peak_memory()
    network, size = cell["network"], settings["image_size"]
    common = {
        "depths": settings["depths"],
        "width": settings["width"],
        "input_shape": (size, size, 3),
        "classes": _CLASSES,
    }
    if network in (_BATCH_NORM, _WITHOUT):
        normalization = "batch" if network == _BATCH_NORM else None
        model = models.PreActResNet(**common, normalization=normalization)
    else:
        model = models.NFResNet(**common)
    seconds = costs.step_seconds(
        model,
        settings["batch_size"],
        size,
        _CLASSES,
        settings["steps"],
        clip_factor=0.01 if network == _CLIPPED else None,
    )
    peak = costs.peak_memory()
    return {
        "step_seconds": round(seconds, 5),
        "peak_mib": round(peak),
        "own_mib": round(peak - before),
    }


def _draw(figure, rows, settings):
    panels = {"step_seconds": "seconds per training step", "own_mib": "memory (MiB)"}
    for axes, (value, label) in zip(figure.subplots(2, 1), panels.items()):
        names = distinct(rows, "network")
        for i, name in enumerate(names):
            runs = select(rows, network=name)
            axes.bar(i, median(runs, value), color=f"C{i}", alpha=0.6)
            axes.plot([i] * len(runs), [row[value] for row in runs], "k.")
        labels = [
            n.replace(" without", "\nwithout").replace(", ", ",\n") for n in names
        ]
        axes.set_xticks(range(len(names)), labels)
        axes.set(ylabel=label)
        axes.grid(alpha=0.3, axis="y")


def _share(rows, value):
    """Return the share of a cost that is due to batch normalization."""
    with_it, without = (
        median(select(rows, network=n), value) for n in (_BATCH_NORM, _WITHOUT)
    )
    return 1 - without / max(with_it, 1e-9)


def _conclude(rows, settings):
    time, memory = _share(rows, "step_seconds"), _share(rows, "own_mib")
    seconds, mib = (
        {n: median(select(rows, network=n), value) for n in _NETWORKS}
        for value in ("step_seconds", "own_mib")
    )
    return [
        Finding(
            f"Batch normalization takes {time:.0%} of the time of a training step: "
            f"{seconds[_BATCH_NORM]:.2f} s with it, {seconds[_WITHOUT]:.2f} s without.",
            0.1 < time < 0.35,
        ),
        Finding(f"It takes {memory:.0%} of the memory.", 0.1 < memory < 0.35),
        Finding(
            "Its replacement has a cost too: a step of the NF-ResNet takes "
            f"{seconds[_NORMALIZER_FREE]:.2f} s, with AGC {seconds[_CLIPPED]:.2f} s, "
            f"{seconds[_CLIPPED] / seconds[_BATCH_NORM] - 1:+.0%} compared with batch "
            "normalization.",
            seconds[_CLIPPED] < seconds[_BATCH_NORM],
        ),
        Finding(
            "Its memory with AGC is "
            f"{mib[_CLIPPED] / mib[_BATCH_NORM] - 1:+.0%} compared with batch normalization.",
            None,
        ),
    ]


def _tables(rows, settings):
    values = {
        "step_seconds": "{:.3f}".format,
        "peak_mib": "{:.0f}".format,
        "own_mib": "{:.0f}".format,
    }
    return {
        "A training step: median (minimum to maximum) of the rounds. The last column is the "
        "memory above that of the process before the network was built.": markdown(
            ["network", "seconds", "peak MiB", "own MiB"],
            [
                [
                    name,
                    *(
                        with_spread(select(rows, network=name), value, show)
                        for value, show in values.items()
                    ),
                ]
                for name in distinct(rows, "network")
            ],
        )
    }


EXPERIMENT = Experiment(
    name="bn_cost",
    title="Batch normalization takes a fifth of a training step",
    claim="""\
Batch normalization takes about a fifth of the time of a training step, and memory (arXiv
2102.06171, section 1 and the works cited there).""",
    how="""\
A training step of a batch-normalized pre-activation ResNet-50, of the same network with
biases instead of batch normalization, and of NF-ResNet-50 without and with AGC. Each is
measured in a separate process, in alternation.""",
    beyond="""\
The share depends on the machine: on accelerators, where convolutions are faster relative to
memory, batch normalization takes a larger share than on a CPU. `--scale full` is made for
these.""",
    scales={
        "small": {
            "depths": [3, 4, 6, 3],
            "width": 4,
            "image_size": 128,
            "batch_size": 16,
            "steps": 6,
            "seeds": 3,
        },
        "full": {
            "depths": [3, 4, 6, 3],
            "width": 4,
            "image_size": 224,
            "batch_size": 128,
            "steps": 30,
            "seeds": 3,
        },
    },
    plan=_plan,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
    tables=_tables,
    figure_size=(6.4, 7.4),
    measures_machine=True,
)
