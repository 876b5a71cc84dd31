"""One training run of an experiment, and the sweep that finds its learning rate."""

import math

import keras

from keras_nfnets import models, training
from keras_nfnets.experiments import images
from keras_nfnets.experiments.experiment import Finding
from keras_nfnets.experiments.results import distinct, grid, median, select

# What a run is at each scale, and the same with a sweep of learning rates. The small one
# is of minutes on two cores.
SMALL_RUN = {
    "depths": [1, 1, 1, 1],
    "width": 1,
    "epochs": 16,
    "weight_decay": None,
    "seeds": 3,
}
SMALL = {
    **SMALL_RUN,
    "sweep_batch_size": 256,
    "sweep_seeds": 1,
    "sweep_within": 0.01,
    "learning_rates": [0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6],
}
# The papers': NF-ResNet-50, 90 epochs (arXiv 2102.06171, section 4.1).
FULL_RUN = {
    "dataset": "imagenet2012",
    "depths": [3, 4, 6, 3],
    "width": 4,
    "epochs": 90,
    "weight_decay": 5e-5,
    "seeds": 2,
    "image_size": 224,
    "augmentation": "crop flip",
    "train_split": "train",
    "test_split": "validation",
}
FULL = {
    **FULL_RUN,
    "sweep_batch_size": 256,
    "sweep_seeds": 1,
    "sweep_within": 0.01,
    "learning_rates": [0.05, 0.1, 0.2],
    "tuning_train_split": "train[:99%]",
    "tuning_test_split": "train[99%:]",
}

# How AGC clips at each scale, and why so, for the pages.
SMALL_CLIPPING = {"clip_factor": 0.02, "agc_eps": 0.1}
FULL_CLIPPING = {"clip_factor": 0.01, "agc_eps": 1e-3}
CLIPPING_OF_ZERO = """
AGC takes weights to have a norm of 0.1 at least in the small runs, of 0.001 in the paper's. What
starts at zero, such as the skip gains of blocks, moves by that much times clip factor and
learning rate a step at most: with 0.001 far enough in the hundred thousand steps of ImageNet,
but in some hundred the residual branches would stay shut."""

BATCH_NORM, NORMALIZER_FREE, CLIPPED = "BN-ResNet", "NF-ResNet", "NF-ResNet, AGC"
NETWORKS = (BATCH_NORM, NORMALIZER_FREE, CLIPPED)

# Of a run of few steps a running mean of the last hundred would be one of noise.
_MOMENTUM, _RUN_IN_MEANS = 0.99, 10


def build(settings, network, input_shape, classes, steps=1000, **options):
    """A network of `NETWORKS`, of the shape that settings ask for.

    `steps` is how many it will be trained; with them grows what the running statistics
    of batch normalization are the mean of: a tenth of the run, at most 100 batches.
    """
    common = {
        "depths": settings["depths"],
        "width": settings["width"],
        "input_shape": input_shape,
        "classes": classes,
        # Logits, as there are losses and gradients of these.
        "classifier_activation": None,
    }
    if network == BATCH_NORM:
        return models.PreActResNet(**common, momentum=momentum(steps), **options)
    return models.NFResNet(**common, **options)


def momentum(steps):
    """Of batch norm: its running statistics are then means of a tenth of so many steps."""
    return min(_MOMENTUM, max(0.5, 1 - _RUN_IN_MEANS / steps))


def train(
    settings,
    network,
    *,
    batch_size,
    learning_rate,
    seed,
    tuning=False,
    clip_factor=None,
    exclude=None,
    optimizer_options=None,
    network_options=None,
):
    """Trains a network and tests it.

    Args:
        settings: with `"dataset"`, `"depths"`, `"width"`, `"epochs"` and
            `"weight_decay"`; for AGC also with `"clip_factor"`, where no other is given,
            and with `"agc_eps"`.
        network: one of `NETWORKS`.
        batch_size: a step; the learning rate is scaled with it.
        learning_rate: the peak for a batch of 256.
        seed: of weights, order of pictures and dropout.
        tuning: see `images.load`.
        clip_factor: of AGC.
        exclude: `agc_exclude` of `AGCModel.compile`; by default all but the classifier
            is clipped.
        optimizer_options: more arguments of `keras.optimizers.SGD`.
        network_options: more arguments of the network.

    Returns:
        The trained model, and a row: `accuracy` and `loss` of pictures held out,
        `train_loss` of the last epoch, `diverged`. A run diverges if its loss is not a
        finite number any more; then the accuracy is that of guessing.
    """
    keras.utils.set_random_seed(seed)
    pictures = images.load(settings)
    batches = pictures.batches(batch_size, seed, tuning)
    model = build(
        settings,
        network,
        pictures.input_shape,
        pictures.classes,
        batches[-1] * settings["epochs"],
        **(network_options or {}),
    )
    clipping = {"clip_factor": None}
    if network == CLIPPED:
        clipping["clip_factor"] = clip_factor or settings["clip_factor"]
        clipping["agc_eps"] = settings["agc_eps"]
        if exclude is not None:
            clipping["agc_exclude"] = exclude
    row = fit(
        settings, model, batches, batch_size, learning_rate, optimizer_options, clipping
    )
    return model, row


def fit(
    settings,
    model,
    batches,
    batch_size,
    learning_rate,
    optimizer_options=None,
    clipping=None,
):
    """Trains a model that gives logits on `batches` of `images.load`, and tests it.

    `clipping` is what `AGCModel.compile` takes for it; the others are as of `train`,
    whose row is returned.
    """
    train_batches, test_batches, steps = batches
    epochs = settings["epochs"]
    optimizer = keras.optimizers.SGD(
        training.warmup_cosine(
            learning_rate, batch_size, steps_per_epoch=steps, epochs=epochs
        ),
        momentum=0.9,
        nesterov=True,
        weight_decay=settings["weight_decay"],
        **(optimizer_options or {}),
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gain", "beta", "gamma"])
    model.compile(
        optimizer,
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **(clipping or {}),
    )
    watch = _StopWhenDiverged()
    history = model.fit(
        train_batches, epochs=epochs, shuffle=False, verbose=0, callbacks=[watch]
    ).history
    loss, accuracy = (float(v) for v in model.evaluate(test_batches, verbose=0)[:2])
    diverged = watch.diverged or not math.isfinite(loss)
    return {
        "accuracy": round(1 / model.output_shape[-1] if diverged else accuracy, 5),
        "loss": round(loss, 5),
        "train_loss": round(float(history["loss"][-1]), 5),
        "diverged": diverged,
    }


def train_as_set(settings, network, seed):
    """`train` at the one batch size and learning rate that settings have."""
    return train(
        settings,
        network,
        batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"],
        seed=seed,
    )


def plan_with_and_without(settings, rows):
    """The `plan` of an experiment on one network with batch norm and one without."""
    return [
        {"network": network, "seed": seed}
        for seed in range(settings["seeds"])
        for network in (BATCH_NORM, NORMALIZER_FREE)
    ]


class _StopWhenDiverged(keras.callbacks.Callback):
    """Ends training when the loss is not finite. (Keras's own prints, each time.)"""

    diverged = False

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(float(logs["loss"])):
            self.diverged = self.model.stop_training = True


def diverged_findings(rows):
    """A `Finding` if there are rows of runs that diverged; a list."""
    of_run = {
        (row.get("network"), row["seed"]): row for row in rows if "diverged" in row
    }
    diverged = sum(row["diverged"] for row in of_run.values())
    if not diverged:
        return []
    return [Finding(f"{diverged} of {len(of_run)} training runs diverged.", False)]


# Learning rates are tuned in the same way for all networks of all experiments.

SWEEP, MAIN = "sweep", "main"

# Rates that are scaled up with the batch want more room.
WITH_ROOM = {"sweep_within": 0.02}


def sweep(settings, networks=NETWORKS, column="network"):
    """The cells in which the learning rate of each network is looked for.

    `column` is where a cell says which of them it is.
    """
    return [
        {"part": SWEEP, column: network, "learning_rate": rate, "seed": seed}
        for seed in range(settings["sweep_seeds"])
        for network in networks
        for rate in settings["learning_rates"]
    ]


def measure_sweep(settings, cell):
    """A row of a cell of `sweep`: the result with pictures put aside for tuning."""
    _, row = train(
        settings,
        cell["network"],
        batch_size=settings["sweep_batch_size"],
        learning_rate=cell["learning_rate"],
        seed=cell["seed"],
        tuning=True,
    )
    return row


def tuned(settings, rows, networks=NETWORKS, column="network"):
    """`{network: learning rate}`, as soon as all of the sweep is done; else None.

    It is the smallest rate that comes near the network's best accuracy, to
    `settings["sweep_within"]`: one that leaves room to be scaled up with the batch.
    """
    done = select(rows, part=SWEEP)
    if len(done) < len(sweep(settings, networks)):
        return None
    chosen = {}
    for network in networks:
        accuracy = {
            rate: median(
                select(done, **{column: network}, learning_rate=rate), "accuracy"
            )
            for rate in settings["learning_rates"]
        }
        enough = max(accuracy.values()) - settings["sweep_within"]
        chosen[network] = min(rate for rate, a in accuracy.items() if a >= enough)
    return chosen


def cells_by_batch_size(networks):
    """The cells of `plan_with_sweep`: each network at each batch size that settings have."""

    def cells(settings, rates):
        return [
            {
                "network": network,
                "batch_size": batch_size,
                "learning_rate": rates[network],
                "seed": seed,
            }
            for seed in range(settings["seeds"])
            for batch_size in settings["batch_sizes"]
            for network in networks
        ]

    return cells


def plan_with_sweep(cells, networks=NETWORKS):
    """The `plan` of an experiment: the sweep, then `cells(settings, rates)`."""

    def plan(settings, rows):
        rates = tuned(settings, rows, networks)
        later = cells(settings, rates) if rates else []
        return sweep(settings, networks) + [{"part": MAIN, **cell} for cell in later]

    return plan


def measure_with_sweep(measure):
    """The `measure` of an experiment: of the sweep's cells, or what is given of others."""

    def measure_either(settings, cell):
        return (measure_sweep if cell["part"] == SWEEP else measure)(settings, cell)

    return measure_either


def train_cell(settings, cell, **options):
    """The row of a cell that says of what network, batch size, rate and seed it is."""
    names = ("batch_size", "learning_rate", "seed")
    arguments = {name: cell[name] for name in names}
    return train(settings, cell["network"], **arguments, **options)[1]


def sweep_table(settings, rows):
    """The sweep, for the page: `{caption: lines}`."""
    done = select(rows, part=SWEEP)
    if not done:
        return {}
    rates = tuned(settings, rows, distinct(done, "network"))
    ends = settings["learning_rates"][0], settings["learning_rates"][-1]
    chosen = ", ".join(
        f"{rate:g} for {network}" + " (an end of the sweep)" * (rate in ends)
        for network, rate in rates.items()
    )
    return {
        "The sweep of learning rates (for a batch of 256; tried at "
        f"{settings['sweep_batch_size']}, on training pictures put aside for it). The "
        f"smallest within {100 * settings['sweep_within']:g} points of the best is chosen: "
        f"{chosen}.": grid(
            done, "network", "learning_rate", names=lambda rate: f"{rate:g}"
        )
    }


def accuracy_tables(down, across):
    """The `tables` of an experiment: the accuracies over two columns, and the sweep."""

    def tables(rows, settings):
        return {
            "Accuracy on held-out pictures: median (least to most).": grid(
                select(rows, part=MAIN), down, across
            ),
            **sweep_table(settings, rows),
        }

    return tables
