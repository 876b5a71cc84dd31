"""Training of small networks of many families, with and without normalization."""

import keras

from keras_nfnets import models
from keras_nfnets.experiments import fitting, images, small_networks
from keras_nfnets.experiments.experiment import Experiment, Finding
from keras_nfnets.experiments.fitting import MAIN, SWEEP
from keras_nfnets.experiments.results import distinct, grid, median, select

ORIGINAL, NORMALIZER_FREE = "original", "normalizer_free"
_DELETED = "normalization deleted"

# A network that is behind by no more than this accuracy counts as equally good.
_POINT = 0.01
# Number of images with which `normalizer_free` finds its constants.
_CALIBRATION_IMAGES = 64
# Ticks of the error axis, in percent.
_ERRORS = (0, 1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100)


def plan_of(*versions):
    """Build the `plan` of an experiment that tunes each version at each batch size."""

    def plan(settings, rows):
        sweeps, main = [], []
        for network in small_networks.NETWORKS:
            for size in settings["batch_sizes"]:
                condition = {"network": network, "batch_size": size}
                sweep = fitting.sweep(settings, versions, "version")
                sweeps += [{**condition, **cell} for cell in sweep]
                done = select(rows, **condition)
                rates = fitting.tuned(settings, done, versions, "version") or {}
                main += [
                    {
                        "part": MAIN,
                        **condition,
                        "version": version,
                        "learning_rate": rate,
                        "seed": seed,
                    }
                    for seed in range(settings["seeds"])
                    for version, rate in rates.items()
                ]
        return sweeps + main

    return plan


def measure(settings, cell):
    """Train the network of a cell of `plan_of`, and return its row."""
    keras.utils.set_random_seed(cell["seed"])
    dataset = images.load(settings)
    tuning = cell["part"] == SWEEP
    if tuning and "sweep_epochs" in settings:
        settings = {**settings, "epochs": settings["sweep_epochs"]}
    batches = dataset.batches(cell["batch_size"], cell["seed"], tuning)
    steps = batches[-1] * settings["epochs"]
    model, clipping = _build(settings, cell, dataset, steps)
    return fitting.fit(
        settings,
        model,
        batches,
        cell["batch_size"],
        cell["learning_rate"],
        clipping=clipping,
    )


def _build(settings, cell, dataset, steps):
    """Build the network of a cell, and return it with the AGC arguments of `compile`."""
    model = small_networks.build(cell["network"], dataset.input_shape, dataset.classes)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = fitting.momentum(steps)
    if cell["version"] == ORIGINAL:
        return model, {}
    if cell["version"] == _DELETED:
        return small_networks.without_normalization(model), {}
    calibration, _ = next(iter(dataset.batches(_CALIBRATION_IMAGES, cell["seed"])[0]))
    model = models.normalizer_free(
        model, calibration, alpha=settings["alpha"], skip_gain_initializer="ones"
    )
    return model, {name: settings[name] for name in ("clip_factor", "agc_eps")}


def draw(figure, rows, settings):
    """Plot the error of every run, with one panel per batch size."""
    main = select(rows, part=MAIN)
    networks = distinct(main, "network")
    sizes = settings["batch_sizes"]
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    figure.set_size_inches(4.2 + 2.2 * len(sizes), 6.4)
    styles = {
        ORIGINAL: (-0.2, "C0o"),
        _DELETED: (0, "C3x"),
        NORMALIZER_FREE: (0.2, "C2D"),
    }
    for axes, size in zip(panels, sizes):
        for version, (shift, style) in styles.items():
            for row in select(main, version=version, batch_size=size):
                error = 100 * (1 - row["accuracy"])
                height = networks.index(row["network"]) + shift
                axes.plot(error, height, style, markersize=4, alpha=0.7)
        axes.set_title(f"batches of {size}")
        axes.set_xlabel("error (%)")
        # Failed runs and differences of a point between the others are both visible.
        axes.set_xscale("symlog", linthresh=1)
        least, most = axes.get_xlim()
        axes.set_xticks([x for x in _ERRORS if least <= x <= most])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_yticks(range(len(networks)), networks)
        axes.grid(alpha=0.3)
    panels[0].invert_yaxis()
    for version in distinct(main, "version"):
        panels[0].plot([], [], styles[version][1], label=version)
    figure.legend(loc="outside lower center", ncols=2)


def leads(rows, other, batch_size):
    """Compare the accuracy without normalization with that of another version.

    Returns:
        A dict from networks to the median accuracy over seeds of `NORMALIZER_FREE`, minus
        that of the version `other`.
    """
    main = select(rows, part=MAIN, batch_size=batch_size)

    def accuracy(network, version):
        return median(select(main, network=network, version=version), "accuracy")

    return {
        network: round(accuracy(network, NORMALIZER_FREE) - accuracy(network, other), 5)
        for network in distinct(main, "network")
    }


def named(what, leads):
    """Format networks with their leads in points; `""` if there are no networks."""
    networks = ", ".join(f"{n} ({100 * by:+.1f})" for n, by in leads.items())
    return f" {what}, in points: {networks}." if leads else ""


def _conclude(rows, settings):
    findings = []
    for size in settings["batch_sizes"]:
        over_original = leads(rows, ORIGINAL, size)
        further = {n: by for n, by in over_original.items() if by < -_POINT}
        over_deleted = leads(rows, _DELETED, size).values()
        findings += [
            Finding(
                f"At batches of {size}, {len(over_original) - len(further)} of "
                f"{len(over_original)} networks without normalization are at most a point "
                f"behind their original, or ahead of it.{named('Further behind', further)}",
                not further,
            ),
            Finding(
                "With normalization deleted without replacement, "
                f"{sum(by > 0 for by in over_deleted)} of {len(over_deleted)} are behind "
                f"these, by {100 * min(over_deleted):.1f} to "
                f"{100 * max(over_deleted):.1f} points.",
                min(over_deleted) > 0,
            ),
        ]
    if "sweep_epochs" in settings:
        tuned = (
            f"Learning rates were tuned in runs of {settings['sweep_epochs']} epochs"
        )
        findings.append(Finding(f"{tuned}; longer ones may need smaller rates.", None))
    return findings


def tables(rows, settings):
    """Return the tables of accuracies and learning rates at each batch size."""
    main = select(rows, part=MAIN)
    epochs = "1 epoch" if settings["epochs"] == 1 else f"{settings['epochs']} epochs"
    shown = {}
    for size in settings["batch_sizes"]:
        of_size = select(main, batch_size=size)
        shown[
            f"Batches of {size}, {epochs}: test accuracy, median (minimum to "
            "maximum) of the seeds."
        ] = grid(of_size, "network", "version")
        shown[
            f"Learning rates at batches of {size} (for a batch of 256): of "
            f"{', '.join(f'{rate:g}' for rate in settings['learning_rates'])}, the best on "
            "validation images taken from the training set."
        ] = grid(of_size, "network", "version", _rates)
    return shown


def _rates(rows):
    return ", ".join(f"{rate:g}" for rate in distinct(rows, "learning_rate"))


# Settings shared with `any_network_small_batches`, at each scale.
SMALL_RUN = {
    "weight_decay": None,
    "shift": 1,
    "seeds": 3,
    "sweep_seeds": 1,
    "sweep_within": 0,
    # As in the originals, where the output of a residual branch is normalized too.
    "alpha": 1.0,
    # The clip factor for batches of 64 or fewer.
    "clip_factor": 0.16,
    "agc_eps": 0.1,
}
# Test fonts differ more from training fonts than test digits from training digits, and
# normalization regularizes, so all versions get weight decay. With five times as many
# images runs take hours, so there are fewer seeds.
SMALL_RUN_ON_GLYPHS = {"weight_decay": 0.02, "seeds": 2}
FULL_RUN = {
    "dataset": "imagenet2012",
    "image_size": 112,
    "augmentation": "crop flip",
    "train_split": "train",
    "test_split": "validation",
    "tuning_train_split": "train[:99%]",
    "tuning_test_split": "train[99%:]",
    "weight_decay": 5e-5,
    "seeds": 2,
    "sweep_seeds": 1,
    "sweep_within": 0,
    "learning_rates": [0.05, 0.1, 0.2, 0.4],
    "alpha": 0.2,
    "clip_factor": 0.01,
    "agc_eps": 1e-3,
}

EXPERIMENT = Experiment(
    name="any_network_training",
    title="Any network trains as well without normalization",
    claim="""\
With `keras_nfnets.normalizer_free` and AGC a network of any shape trains without
normalization as well as with it, to within a point; with normalization deleted without
replacement, it fails or falls behind.""",
    how="""\
Small networks of thirteen families, about six blocks deep: the originals with batch
normalization (ConvNeXt: layer normalization), with normalization deleted without
replacement, and after `normalizer_free`. The last is trained with AGC, the others without.
Its skip gains start at one instead of zero, because in so few steps they would hardly grow.
All see the same images in the same order, shifted by at most one pixel. The learning rate
of each version of each network is tuned in the same way. The running statistics of batch
normalization are means over a tenth of the run.""",
    beyond="""\
Networks of a few layers are easier to train without normalization than deep ones. In a few
hundred steps, networks that train fast are ahead, and with few images those that are
regularized, as by batch normalization (see [regularization](../regularization/README.md)).""",
    scales={
        "small": {
            **SMALL_RUN,
            "epochs": 6,
            "learning_rates": [0.1, 0.4, 1.6],
            "batch_sizes": [64],
            "settings_by_dataset": {
                "glyphs": {
                    **SMALL_RUN_ON_GLYPHS,
                    "sweep_epochs": 2,
                    # 1.6 is often best after two epochs, but a point or two worse than
                    # 0.4 after six.
                    "learning_rates": [0.1, 0.4],
                }
            },
        },
        "full": {**FULL_RUN, "epochs": 30, "batch_sizes": [256]},
    },
    plan=plan_of(ORIGINAL, _DELETED, NORMALIZER_FREE),
    measure=measure,
    draw=draw,
    conclude=_conclude,
    tables=tables,
    figure_size=(9, 5.5),
)
