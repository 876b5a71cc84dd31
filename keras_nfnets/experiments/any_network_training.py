"""Small networks of every family, trained with their normalization and without."""

import statistics

import keras

from keras_nfnets import models
from keras_nfnets.experiments import fitting, images, small_networks
from keras_nfnets.experiments.experiment import Experiment, Finding
from keras_nfnets.experiments.fitting import MAIN, SWEEP
from keras_nfnets.experiments.results import distinct, grid, median, select

_ORIGINAL, _DELETED = "original", "normalization deleted"
_NORMALIZER_FREE = "normalizer_free"
_VERSIONS = (_ORIGINAL, _DELETED, _NORMALIZER_FREE)

# Of accuracy: so little behind is as good.
_POINT = 0.01
# Of pictures to find the constants by.
_KNOWN = 64


def _plan(settings, rows):
    sweeps, main = [], []
    for network in small_networks.NETWORKS:
        for size in settings["batch_sizes"]:
            place = {"network": network, "batch_size": size}
            run, versions = _at(settings, size), _versions(settings, size)
            sweep = fitting.sweep(run, versions, "version")
            sweeps += [{**place, **cell} for cell in sweep]
            done = select(rows, **place)
            rates = fitting.tuned(run, done, versions, "version") or {}
            main += [
                {
                    "part": MAIN,
                    **place,
                    "version": version,
                    "learning_rate": rate,
                    "seed": seed,
                }
                for seed in range(settings["seeds"])
                for version, rate in rates.items()
            ]
    return sweeps + main


def _versions(settings, size):
    """Of small batches the question is what they do to normalization."""
    return _VERSIONS if size == _largest(settings) else (_ORIGINAL, _NORMALIZER_FREE)


def _largest(settings):
    return max(settings["batch_sizes"])


def _measure(settings, cell):
    settings = _at(settings, cell["batch_size"])
    keras.utils.set_random_seed(cell["seed"])
    pictures = images.load(settings)
    tuning = cell["part"] == SWEEP
    if tuning and "sweep_epochs" in settings:
        settings = {**settings, "epochs": settings["sweep_epochs"]}
    batches = pictures.batches(cell["batch_size"], cell["seed"], tuning)
    steps = batches[-1] * settings["epochs"]
    model, clipping = _build(settings, cell, pictures, steps)
    return fitting.fit(
        settings,
        model,
        batches,
        cell["batch_size"],
        cell["learning_rate"],
        clipping=clipping,
    )


def _at(settings, batch_size):
    """Settings as they are at a batch size."""
    if batch_size == _largest(settings):
        return settings
    prefix = "small_batch_"
    small = {
        name.removeprefix(prefix): value
        for name, value in settings.items()
        if name.startswith(prefix)
    }
    return {**settings, **small}


def _build(settings, cell, pictures, steps):
    """The network of a cell, and what its `compile` takes for AGC."""
    model = small_networks.build(
        cell["network"], pictures.input_shape, pictures.classes
    )
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = fitting.momentum(steps)
    if cell["version"] == _ORIGINAL:
        return model, {}
    if cell["version"] == _DELETED:
        return small_networks.without_normalization(model), {}
    known, _ = next(iter(pictures.batches(_KNOWN, cell["seed"])[0]))
    model = models.normalizer_free(
        model, known, alpha=settings["alpha"], skip_gain_initializer="ones"
    )
    return model, {name: settings[name] for name in ("clip_factor", "agc_eps")}


def _accuracy(rows, network, version, batch_size):
    of_runs = select(rows, network=network, version=version, batch_size=batch_size)
    return median(of_runs, "accuracy")


def _draw(figure, rows, settings):
    main = select(rows, part=MAIN)
    networks = distinct(main, "network")
    sizes = settings["batch_sizes"]
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    styles = {_ORIGINAL: "C0o", _DELETED: "C3x", _NORMALIZER_FREE: "C2D"}
    for axes, size in zip(panels, sizes):
        for shift, (version, style) in zip((-0.2, 0, 0.2), styles.items()):
            of_version = select(main, version=version, batch_size=size)
            for row in of_version:
                place = networks.index(row["network"]) + shift
                axes.plot(100 * row["accuracy"], place, style, markersize=4, alpha=0.7)
        axes.set_title(f"batches of {size}", fontsize=10)
        axes.set_xlabel("accuracy (%)")
        axes.set_yticks(range(len(networks)), networks)
        axes.grid(alpha=0.3)
    panels[0].invert_yaxis()
    for version, style in styles.items():
        panels[0].plot([], [], style, label=version)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)


def _conclude(rows, settings):
    main = select(rows, part=MAIN)
    networks = distinct(main, "network")

    def lead(other, size):
        """By how much the accuracy of each network is higher than another version's."""
        return {
            network: round(
                _accuracy(main, network, _NORMALIZER_FREE, size)
                - _accuracy(main, network, other, size),
                5,
            )
            for network in networks
        }

    largest = _largest(settings)
    over_original = lead(_ORIGINAL, largest)
    further = {n: by for n, by in over_original.items() if by < -_POINT}
    over_deleted = lead(_DELETED, largest)
    findings = [
        Finding(
            f"At batches of {largest}, {len(networks) - len(further)} of {len(networks)} "
            "networks without normalization come within a point of their original, or "
            f"beat it.{_named('Further behind', further)}",
            not further,
        ),
        Finding(
            "With normalization deleted and nothing else done, "
            f"{sum(by > 0 for by in over_deleted.values())} of {len(networks)} are behind "
            f"these, by {100 * min(over_deleted.values()):.1f} to "
            f"{100 * max(over_deleted.values()):.1f} points.",
            min(over_deleted.values()) > 0,
        ),
    ]
    if "sweep_epochs" in settings:
        tuned = f"Rates were tuned in runs of {settings['sweep_epochs']} epochs"
        findings.append(Finding(f"{tuned}; longer ones may want smaller rates.", None))
    smaller = sorted(set(settings["batch_sizes"]) - {largest})
    if not smaller:
        findings.append(Finding("Smaller batches were not tried on this set.", None))
    for size in smaller:
        over_original = lead(_ORIGINAL, size)
        behind = {n: by for n, by in over_original.items() if by <= 0}
        findings.append(
            Finding(
                f"At batches of {size}, {len(networks) - len(behind)} of {len(networks)} "
                "are ahead of their original; the median is "
                f"{100 * statistics.median(over_original.values()):+.1f} points."
                f"{_named('Not ahead', behind)}",
                not behind,
            )
        )
    return findings


def _named(what, leads):
    """Networks and by how many points they are ahead; nothing without any."""
    named = ", ".join(f"{n} ({100 * by:+.1f})" for n, by in leads.items())
    return f" {what}, in points: {named}." if leads else ""


def _tables(rows, settings):
    main = select(rows, part=MAIN)
    tables = {}
    for size in settings["batch_sizes"]:
        of_size = select(main, batch_size=size)
        run = _at(settings, size)
        tables[
            f"Batches of {size}, {run['epochs']} epochs: accuracy on held-out pictures, "
            "median (least to most) of the seeds."
        ] = grid(of_size, "network", "version")
        tables[
            f"The learning rates at batches of {size} (each for a batch of 256), of "
            f"{', '.join(f'{rate:g}' for rate in run['learning_rates'])} the best on "
            "training pictures put aside for it."
        ] = grid(of_size, "network", "version", _rates)
    return tables


def _rates(rows):
    return ", ".join(f"{rate:g}" for rate in distinct(rows, "learning_rate"))


EXPERIMENT = Experiment(
    name="any_network_training",
    claim="""\
With `keras_nfnets.normalizer_free` and AGC a network of any shape trains without normalization as
it did with it, within a point; where normalization is deleted and nothing else done, it fails or
falls behind. With batches of two or four the network without normalization is ahead.""",
    how="""\
Small networks of thirteen families, about as deep as six blocks: as they are, with batch norm
(ConvNeXt: layer norm), with normalization deleted and nothing else done, and after
`normalizer_free`. This one is trained with AGC, the others without. Its skip gains start at one,
not at zero, for in so few steps they would hardly open. All see the same pictures in the same
order, moved by a pixel at most. The learning rate of each version of each network is tuned in the
same way, at each batch size apart. The running statistics of batch norm are means over a tenth of
the run.""",
    beyond="""\
Networks of a few layers can be trained without normalization more easily than deep ones. In a few
hundred steps what trains fast is ahead, and with few pictures what regularizes, as batch norm does
(see [regularization](../regularization/README.md)). Batch norm takes its statistics over positions
too: where maps are large, as before a VGG's pooling, even two pictures make many numbers.""",
    scales={
        "small": {
            "epochs": 6,
            "weight_decay": None,
            "shift": 1,
            "seeds": 3,
            "sweep_seeds": 1,
            "sweep_within": 0,
            "learning_rates": [0.1, 0.4, 1.6],
            "batch_sizes": [64, 4, 2],
            # Of few pictures, an epoch is many steps.
            "small_batch_epochs": 1,
            "small_batch_learning_rates": [0.4, 1.6, 6.4],
            # Five times as many pictures. With small batches they would take hours.
            "of_dataset": {
                "glyphs": {
                    "epochs": 6,
                    "sweep_epochs": 2,
                    # Held-out fonts are further from the learned ones than held-out
                    # digits are, and normalization regularizes: all versions get some.
                    "weight_decay": 0.02,
                    "seeds": 2,
                    # 1.6 is often the best of two epochs, and of six a point or two
                    # worse than 0.4.
                    "learning_rates": [0.1, 0.4],
                    "batch_sizes": [64],
                    "small_batch_epochs": None,
                    "small_batch_learning_rates": None,
                }
            },
            # As much as in the originals, where what a branch adds is normalized too.
            "alpha": 1.0,
            # As small batches take.
            "clip_factor": 0.16,
            "agc_eps": 0.1,
        },
        "full": {
            "dataset": "imagenet2012",
            "image_size": 112,
            "augmentation": "crop flip",
            "train_split": "train",
            "test_split": "validation",
            "tuning_train_split": "train[:99%]",
            "tuning_test_split": "train[99%:]",
            "epochs": 30,
            "small_batch_epochs": 5,
            "weight_decay": 5e-5,
            "seeds": 2,
            "sweep_seeds": 1,
            "sweep_within": 0,
            "learning_rates": [0.05, 0.1, 0.2, 0.4],
            "batch_sizes": [256, 4, 2],
            "alpha": 0.2,
            "clip_factor": 0.01,
            "agc_eps": 1e-3,
        },
    },
    plan=_plan,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
    tables=_tables,
    figure_size=(11, 5.5),
)
