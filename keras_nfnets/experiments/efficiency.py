"""Published accuracy of networks against their measured cost."""

import keras

from keras_nfnets import pretrained
from keras_nfnets.deploy import fold
from keras_nfnets.experiments import costs
from keras_nfnets.experiments.experiment import Experiment, Finding
from keras_nfnets.experiments.results import (
    distinct,
    markdown,
    median,
    select,
    with_spread,
)
from keras_nfnets.models.costs import count_flops

# `{network of keras.applications: (published accuracy, test size in pixels)}`: top-1
# accuracy on ImageNet in percent, from the table at keras.io/api/applications and, for
# EfficientNetV2, from arXiv 2104.00298, table 7.
_APPLICATIONS = {
    "ResNet50V2": (76.0, 224),
    "ResNet101V2": (77.2, 224),
    "ResNet152V2": (78.0, 224),
    "EfficientNetB0": (77.1, 224),
    "EfficientNetB2": (80.1, 260),
    "EfficientNetB4": (82.9, 380),
    "EfficientNetB5": (83.6, 456),
    "EfficientNetB7": (84.3, 600),
    "EfficientNetV2S": (83.9, 384),
    "EfficientNetV2M": (85.1, 480),
}
# Training size in pixels where it is smaller than the test size: the largest that
# progressive training reaches (arXiv 2104.00298, table 6).
_TRAINED_AT = {"EfficientNetV2S": 300, "EfficientNetV2M": 380}
_CLASSES = 1000
_OURS = "normalizer-free"


def _family(network):
    if network not in _APPLICATIONS:
        return _OURS
    families = ("ResNet", "EfficientNetV2", "EfficientNet")
    return next(family for family in families if network.startswith(family))


def _published(network):
    """Return the accuracy in percent, and the training and test sizes in pixels."""
    if network in _APPLICATIONS:
        accuracy, test_size = _APPLICATIONS[network]
        return accuracy, _TRAINED_AT.get(network, test_size), test_size
    checkpoint = max(
        (c for c in pretrained.list_checkpoints() if c.network == network and c.top1),
        key=lambda checkpoint: checkpoint.top1,
    )
    return checkpoint.top1, checkpoint.train_size, checkpoint.size


def _build(network, size):
    options = {"input_shape": (size, size, 3), "classes": _CLASSES}
    if network in _APPLICATIONS:
        return getattr(keras.applications, network)(weights=None, **options)
    return pretrained.create(network, **options)


def _plan(settings, rows):
    return [
        {"network": network, "round": number}
        for number in range(settings["seeds"])
        for network in settings["networks"]
    ]


def _measure(settings, cell):
    network = cell["network"]
    accuracy, train_size, test_size = _published(network)
    model = _build(network, test_size)
    row = {
        "accuracy": accuracy / 100,
        "parameters": model.count_params(),
        "flops": count_flops(model),
        "train_size": train_size,
        "test_size": test_size,
    }
    if network not in _APPLICATIONS:
        model = fold(model)
    batch_size, calls = settings["batch_size"], settings["steps"]
    inference = costs.inference_seconds(model, batch_size, test_size, calls)
    model = _build(network, train_size)
    step = costs.step_seconds(
        model,
        batch_size,
        train_size,
        _CLASSES,
        calls,
        clip_factor=None if network in _APPLICATIONS else 0.01,
    )
    return {
        **row,
        "inference_seconds": float(f"{inference / batch_size:.4g}"),
        "step_seconds": float(f"{step / batch_size:.4g}"),
        "peak_mib": round(costs.peak_memory()),
    }


_COSTS = {
    "parameters": ("parameters (millions)", 1e-6),
    "flops": ("multiply-adds (billions)", 1e-9),
    "inference_seconds": ("inference, seconds per image", 1),
    "step_seconds": ("training step, seconds per image", 1),
}


def _draw(figure, rows, settings):
    networks = distinct(rows, "network")
    families = list(dict.fromkeys(map(_family, networks)))
    for axes, (value, (label, scale)) in zip(
        figure.subplots(2, 2, sharey=True).flat, _COSTS.items(), strict=True
    ):
        for family in families:
            points = sorted(
                (
                    scale * median(select(rows, network=network), value),
                    100 * median(select(rows, network=network), "accuracy"),
                    network,
                )
                for network in networks
                if _family(network) == family
            )
            axes.plot(*zip(*(p[:2] for p in points)), linewidth=1.2, label=family)
            for point in points:
                name = point[2].replace("EfficientNet", "").replace("dm_nfnet_", "")
                axes.annotate(
                    name, point[:2], (3, -9), textcoords="offset points", fontsize=9
                )
        axes.set(xlabel=label, xscale="log")
        axes.margins(x=0.25)
        axes.xaxis.set_minor_formatter("")  # minor labels would overlap
        axes.grid(alpha=0.3)
    figure.supylabel("published top-1 accuracy (%)")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2)


# In points of accuracy: two training runs of one network differ by as much.
_AS_ACCURATE = 0.2


def _conclude(rows, settings):
    networks = distinct(rows, "network")

    def of(network, value):
        return median(select(rows, network=network), value)

    findings = []
    for rival in networks:
        if _family(rival) == _OURS:
            continue
        least = of(rival, "accuracy") - _AS_ACCURATE / 100
        candidates = [
            n for n in networks if _family(n) == _OURS and of(n, "accuracy") >= least
        ]
        if not candidates:
            text = f"{rival} ({of(rival, 'accuracy'):.1%}): no normalizer-free network is as accurate."
            findings.append(Finding(text, False))
            continue
        ours = min(candidates, key=lambda network: of(network, "step_seconds"))
        step, inference = (
            of(rival, value) / of(ours, value)
            for value in ("step_seconds", "inference_seconds")
        )
        findings.append(
            Finding(
                f"{rival} ({of(rival, 'accuracy'):.1%}): {ours} ({of(ours, 'accuracy'):.1%}) "
                f"is {step:.2f} times as fast in training, {inference:.2f} times in "
                "inference.",
                step > 1,
            )
        )
    return findings


def _tables(rows, settings):
    lines = []
    for network in distinct(rows, "network"):
        runs = select(rows, network=network)
        lines.append(
            [
                network,
                f"{100 * median(runs, 'accuracy'):.1f}",
                f"{median(runs, 'parameters') / 1e6:.1f}",
                f"{median(runs, 'flops') / 1e9:.1f}",
                f"{runs[0]['train_size']} / {runs[0]['test_size']}",
                with_spread(runs, "step_seconds", "{:.3g}".format),
                with_spread(runs, "inference_seconds", "{:.3g}".format),
                with_spread(runs, "peak_mib", "{:.0f}".format),
            ]
        )
    header = [
        *("network", "published top-1 (%)", "parameters (M)", "multiply-adds (G)"),
        *("train / test size", "training step (s per image)"),
        *("inference (s per image)", "peak MiB"),
    ]
    caption = (
        f"Batches of {settings['batch_size']}: medians (minimum to maximum) of the "
        "rounds. Sizes are side lengths in pixels; multiply-adds are those at test size."
    )
    return {caption: markdown(header, lines)}


EXPERIMENT = Experiment(
    name="efficiency",
    title="NFNets are as accurate as EfficientNets in less time",
    claim="""\
NFNets reach the accuracy of EfficientNets in a fraction of the time of a training step, and
higher accuracies than batch-normalized ResNets (arXiv 2102.06171, figure 1 and table 3).""",
    how="""\
Networks of this package and of keras.applications with random weights are timed: a training
step (Nesterov momentum, and AGC for the normalizer-free networks) at the published training
size, and inference at the published test size, with or without XLA, whichever is faster.
The normalizer-free networks are folded for inference (`keras_nfnets.fold`); batch
normalization is not. Networks of keras.applications were trained at the test size, except
EfficientNetV2. Accuracies are the published ones of the best checkpoint of each network;
they were not measured here. Each network of keras.applications is compared with the
normalizer-free network that trains fastest among those that are as accurate, to 0.2 points.""",
    beyond="""\
Times are those of this machine: the paper measured TPUs and batches of 32 per core, where
grouped and depthwise convolutions cost more than their multiply-adds. Training recipes
differ too, so that accuracies depend on the recipe as much as on the network. The paper's
claim is about the larger networks, which `--scale full` includes; EfficientNetV2 was
published later.""",
    scales={
        "small": {
            "networks": [
                *("nf_resnet50", "eca_nfnet_l0", "dm_nfnet_f0"),
                *("ResNet50V2", "EfficientNetB0", "EfficientNetB4"),
            ],
            "batch_size": 4,
            "steps": 2,
            "seeds": 2,
        },
        "full": {
            "networks": [
                *("nf_regnet_b1", "nf_resnet50"),
                *("eca_nfnet_l0", "eca_nfnet_l1", "eca_nfnet_l2"),
                *("dm_nfnet_f0", "dm_nfnet_f1", "dm_nfnet_f2", "dm_nfnet_f3"),
                *("dm_nfnet_f4", "dm_nfnet_f5"),
                *_APPLICATIONS,
            ],
            "batch_size": 32,
            "steps": 10,
            "seeds": 3,
        },
    },
    plan=_plan,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
    tables=_tables,
    figure_size=(7, 7.4),
    measures_machine=True,
)
