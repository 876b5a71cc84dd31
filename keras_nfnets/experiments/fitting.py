"""Training runs of experiments, and the sweeps that tune their learning rates."""

import functools
import math

import keras

from keras_nfnets import models, training
from keras_nfnets.experiments import images
from keras_nfnets.experiments.experiment import CANNOT_TELL, Finding
from keras_nfnets.experiments.results import (
    accuracies,
    distinct,
    grid,
    median,
    select,
)

# Settings of a run at each scale, without and with a sweep of learning rates. A small run
# takes minutes on two cores.
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
# A medium run takes minutes on one core. Its largest batch, of 1,024, has 504 steps.
MEDIUM_RUN = {
    "dataset": "characters",
    "shift": 1,
    "depths": [3, 3, 2],
    "width": 1,
    "epochs": 24,
    "warmup_steps": 100,
    "weight_decay": 5e-5,
    "label_smoothing": 0.1,
    "seeds": 3,
}
MEDIUM = {
    **MEDIUM_RUN,
    # A sixteenth of the largest batch, as in the paper.
    "sweep_batch_size": 64,
    "sweep_seeds": 1,
    "sweep_within": 0.01,
    "learning_rates": [0.2, 0.4, 0.8, 1.6, 3.2],
}
# As in the papers: NF-ResNet-50, 90 epochs (arXiv 2102.06171, section 4.1).
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

# AGC settings at each scale, and the texts that explain them on the pages.
SMALL_CLIPPING = {"clip_factor": 0.02, "agc_eps": 0.1}
MEDIUM_CLIPPING = {
    "clip_factor": {
        "at 64": 0.16,
        "at 256": 0.08,
        "at 512": 0.04,
        "at 1024": 0.02,
    },
    "agc_eps": 0.1,
}
FULL_CLIPPING = {"clip_factor": 0.01, "agc_eps": 1e-3}
AGC_AT_ZERO_TEXT = """
AGC bounds the norm of weights from below, by 0.1 in small and medium runs and by 0.001 in
the paper's. In one step, weights that start at zero, such as the skip gains of blocks, move by
at most this bound times the clip factor and the learning rate. With 0.001 this is far
enough in the hundred thousand steps of ImageNet, but in a few hundred steps the skip gains
would stay near zero."""

BY_BATCH_SIZE_TEXT = """
At the medium scale the clip factor falls with the batch size, as in figure 2b of the paper,
and was chosen before the runs: 20 divided by the batch size, at most 0.16."""

BATCH_NORM, NORMALIZER_FREE, CLIPPED = "BN-ResNet", "NF-ResNet", "NF-ResNet, AGC"
NETWORKS = (BATCH_NORM, NORMALIZER_FREE, CLIPPED)

# Running statistics are means over 100 batches, or over a tenth of a shorter run: there,
# means over 100 batches would lag behind the weights.
_MOMENTUM, _RUN_PER_MEAN = 0.99, 10


def build(settings, network, input_shape, classes, steps=1000, **options):
    """Build a network of `NETWORKS` with the depths and the width of the settings.

    `steps` is the number of training steps. The running statistics of batch normalization
    are means over a tenth of them, at most 100 batches.
    """
    common = {
        "depths": settings["depths"],
        "width": settings["width"],
        "input_shape": input_shape,
        "classes": classes,
        # Losses and gradients are computed from logits.
        "classifier_activation": None,
    }
    if network == BATCH_NORM:
        return models.PreActResNet(**common, momentum=momentum(steps), **options)
    return models.NFResNet(**common, **options)


def momentum(steps):
    """Return the momentum that makes running statistics means over a tenth of the steps."""
    return min(_MOMENTUM, max(0.5, 1 - _RUN_PER_MEAN / steps))


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
    """Train and test a network.

    Args:
        settings: dict with `"dataset"`, `"depths"`, `"width"`, `"epochs"` and
            `"weight_decay"`; for AGC also with `"agc_eps"`, and with `"clip_factor"` unless
            that is given as an argument.
        network: str. One of `NETWORKS`.
        batch_size: int. Batch size; the learning rate is scaled with it.
        learning_rate: float. Peak learning rate for a batch of 256.
        seed: int. Seed of the weights, the order of images and dropout.
        tuning: bool. Whether to test on training images that are set aside for tuning.
        clip_factor: float. Clip factor of AGC; by default that of the settings.
        exclude: `agc_exclude` of `AGCModel.compile`; by default everything but the
            classifier is clipped.
        optimizer_options: dict. More arguments of `keras.optimizers.SGD`.
        network_options: dict. More arguments of the network.

    Returns:
        The trained model, and a row: `accuracy` and `loss` on test images, `train_loss` of
        the last epoch, `diverged`, and the planned number of `steps`. A run diverges if its
        loss becomes NaN or infinite; then its accuracy is that of guessing.
    """
    keras.utils.set_random_seed(seed)
    dataset = images.load(settings)
    batches = dataset.batches(batch_size, seed, tuning)
    model = build(
        settings,
        network,
        dataset.input_shape,
        dataset.classes,
        batches[-1] * settings["epochs"],
        **(network_options or {}),
    )
    clipping = {"clip_factor": None}
    if network == CLIPPED:
        clipping["clip_factor"] = clip_factor or _clip_factor(settings, batch_size)
        clipping["agc_eps"] = settings["agc_eps"]
        if exclude is not None:
            clipping["agc_exclude"] = exclude
    row = fit(
        settings, model, batches, batch_size, learning_rate, optimizer_options, clipping
    )
    return model, row


def _clip_factor(settings, batch_size):
    """Return the clip factor of the settings: that of the next larger batch size listed."""
    factor = settings["clip_factor"]
    if not isinstance(factor, dict):
        return factor
    by_size = {int(name.removeprefix("at ")): value for name, value in factor.items()}
    return by_size[min((s for s in by_size if s >= batch_size), default=max(by_size))]


def fit(
    settings,
    model,
    batches,
    batch_size,
    learning_rate,
    optimizer_options=None,
    clipping=None,
):
    """Train and test a model that outputs logits, and return a row as `train` does.

    `batches` is the result of `batches` of an object of `images.load`. `clipping` is a
    dict of AGC arguments of `AGCModel.compile`. The other arguments are those of `train`.
    """
    train_batches, test_batches, steps = batches
    epochs = settings["epochs"]
    model.compile(
        optimizer(
            settings, learning_rate, batch_size, steps, **(optimizer_options or {})
        ),
        keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=settings.get("label_smoothing", 0.0)
        ),
        metrics=["accuracy"],
        **(clipping or {}),
    )
    divergence = StopWhenDiverged()
    history = model.fit(
        train_batches, epochs=epochs, shuffle=False, verbose=0, callbacks=[divergence]
    ).history
    loss, accuracy = (float(v) for v in model.evaluate(test_batches, verbose=0)[:2])
    diverged = divergence.diverged or not math.isfinite(loss)
    return {
        "accuracy": round(1 / model.output_shape[-1] if diverged else accuracy, 5),
        "loss": round(loss, 5),
        "train_loss": round(float(history["loss"][-1]), 5),
        "diverged": diverged,
        "steps": steps * epochs,
    }


def optimizer(settings, learning_rate, batch_size, steps_per_epoch, **options):
    """Create the optimizer of a run: SGD with warm-up and cosine decay.

    Args:
        settings: dict with `"epochs"` and `"weight_decay"`, and with `"warmup_steps"` if
            the warm-up is not to be a tenth of the epochs.
        learning_rate: float. Peak for a batch of 256; it is scaled with the batch size.
        batch_size, steps_per_epoch: int.
        **options: more arguments of `keras.optimizers.SGD`.
    """
    warmup = settings.get("warmup_steps")
    created = keras.optimizers.SGD(
        training.warmup_cosine(
            learning_rate,
            batch_size,
            steps_per_epoch=steps_per_epoch,
            epochs=settings["epochs"],
            warmup_epochs=warmup and warmup / steps_per_epoch,
        ),
        momentum=0.9,
        nesterov=True,
        weight_decay=settings["weight_decay"],
        **options,
    )
    created.exclude_from_weight_decay(var_names=["bias", "gain", "beta", "gamma"])
    return created


def train_with_settings(settings, network, seed):
    """Call `train` with the batch size and the learning rate of the settings."""
    return train(
        settings,
        network,
        batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"],
        seed=seed,
    )


def plan_with_and_without(settings, rows):
    """Plan runs of a network with batch normalization and of one without, per seed."""
    return [
        {"network": network, "seed": seed}
        for seed in range(settings["seeds"])
        for network in (BATCH_NORM, NORMALIZER_FREE)
    ]


class StopWhenDiverged(keras.callbacks.Callback):
    """Callback that stops training when the loss is NaN or infinite.

    Keras's `TerminateOnNaN` prints a message each time.
    """

    diverged = False

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(float(logs["loss"])):
            self.diverged = self.model.stop_training = True


# With fewer steps, what is seen is the warm-up more than the batch size. ImageNet has 28,000
# at a batch of 4,096.
ENOUGH_STEPS = 500


def undecided(main, settings):
    """Return a list of one `Finding` if batch sizes had too few steps, else an empty one.

    Args:
        main: list of dicts. Rows of `train` with a batch size.
        settings: dict.
    """
    return _few_steps({row["batch_size"]: row["steps"] for row in main}, settings)


def undecided_before(settings):
    """Return what `undecided` will, before there are rows."""
    examples = images.load(settings).training_examples
    steps = {b: examples // b * settings["epochs"] for b in settings["batch_sizes"]}
    return _few_steps(steps, settings)


def _few_steps(steps, settings):
    few = [size for size in sorted(steps) if steps[size] < ENOUGH_STEPS]
    if not few:
        return []
    shown = ", ".join(f"{size} ({steps[size]} steps)" for size in few)
    larger = {
        "small": " `--scale=medium` has enough.",
        "medium": " Add fonts or epochs.",
    }
    return [
        Finding(
            f"At batches of {shown}: with fewer than {ENOUGH_STEPS} steps, a run says "
            "little of the batch size." + larger.get(settings["scale"], ""),
            CANNOT_TELL,
        )
    ]


def diverged_findings(rows):
    """Return a list of one `Finding` about diverged runs, empty if none diverged."""
    of_run = {
        (row.get("network"), row["seed"]): row for row in rows if "diverged" in row
    }
    diverged = sum(row["diverged"] for row in of_run.values())
    if not diverged:
        return []
    return [Finding(f"{diverged} of {len(of_run)} training runs diverged.", False)]


# Learning rates are tuned in the same way for all networks of all experiments.

SWEEP, MAIN = "sweep", "main"

# Learning rates that will be scaled up with the batch size need more headroom.
WITH_ROOM = {"sweep_within": 0.02}


def sweep(settings, networks=NETWORKS, column="network"):
    """List the cells that tune the learning rate of each network.

    `column` is the column with the name of the network.
    """
    return [
        {"part": SWEEP, column: network, "learning_rate": rate, "seed": seed}
        for seed in range(settings["sweep_seeds"])
        for network in networks
        for rate in settings["learning_rates"]
    ]


def measure_sweep(settings, cell):
    """Train the network of a cell of `sweep` and return its row, from tuning images."""
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
    """Return `{network: learning rate}` once the sweep is complete, else None.

    The learning rate is the smallest whose accuracy (or the column that
    `settings["score"]` names) is within `settings["sweep_within"]` of the network's best:
    it leaves headroom for scaling it up with the batch size.
    """
    done = select(rows, part=SWEEP)
    if len(done) < len(sweep(settings, networks)):
        return None
    chosen = {}
    for network in networks:
        accuracy = {
            rate: median(
                select(done, **{column: network}, learning_rate=rate),
                settings.get("score", "accuracy"),
            )
            for rate in settings["learning_rates"]
        }
        enough = max(accuracy.values()) - settings["sweep_within"]
        chosen[network] = min(rate for rate, a in accuracy.items() if a >= enough)
    return chosen


def cells_by_batch_size(networks):
    """Build the `cells` of `plan_with_sweep`: each network at each batch size."""

    def cells(settings, rates):
        return [
            {
                "network": network,
                "batch_size": batch_size,
                "learning_rate": rates[network],
                "seed": seed,
            }
            for seed, batch_size in seeds_and_batch_sizes(settings)
            for network in networks
        ]

    return cells


def seeds_and_batch_sizes(settings):
    """Return pairs of a seed and a batch size: more seeds at the largest batch size.

    There the settings may ask for `"seeds_at_largest"`.
    """
    sizes, seeds = settings["batch_sizes"], settings["seeds"]
    most = max(seeds, settings.get("seeds_at_largest", 0))
    return [
        (seed, size)
        for seed in range(most)
        for size in sizes
        if seed < seeds or size == max(sizes)
    ]


def plan_with_sweep(cells, networks=NETWORKS):
    """Build the `plan` of an experiment: the sweep, then `cells(settings, rates)`."""

    def plan(settings, rows):
        rates = tuned(settings, rows, networks)
        later = cells(settings, rates) if rates else []
        return sweep(settings, networks) + [{"part": MAIN, **cell} for cell in later]

    return plan


def measure_with_sweep(measure):
    """Build the `measure` of an experiment with a sweep; `measure` is for other cells."""

    def measure_either(settings, cell):
        return (measure_sweep if cell["part"] == SWEEP else measure)(settings, cell)

    return measure_either


def train_cell(settings, cell, **options):
    """Train with the network, batch size, rate and seed of a cell, and return its row."""
    names = ("batch_size", "learning_rate", "seed")
    arguments = {name: cell[name] for name in names}
    return train(settings, cell["network"], **arguments, **options)[1]


def sweep_table(settings, rows):
    """Return the table of the sweep for the page, `{caption: lines}`."""
    done = select(rows, part=SWEEP)
    if not done:
        return {}
    rates = tuned(settings, rows, distinct(done, "network"))
    within = 100 * settings["sweep_within"]
    ends = settings["learning_rates"][0], settings["learning_rates"][-1]
    chosen = ", ".join(
        f"{rate:g} for {network}" + " (at an end of the sweep)" * (rate in ends)
        for network, rate in rates.items()
    )
    return {
        "Sweep of learning rates (for a batch of 256; measured at a batch of "
        f"{settings['sweep_batch_size']}, on validation images taken from the training "
        f"set). The smallest within {within:g} point{'s' * (within != 1)} of the best is "
        f"chosen: {chosen}.": grid(
            done,
            "network",
            "learning_rate",
            show=_scores(settings),
            names=lambda rate: f"{rate:g}",
        )
    }


def _scores(settings):
    return functools.partial(accuracies, column=settings.get("score", "accuracy"))


def accuracy_tables(down, across, what="Test accuracy"):
    """Build the `tables` of an experiment: accuracies over two columns, and the sweep."""

    def tables(rows, settings):
        return {
            f"{what}: median (minimum to maximum).": grid(
                select(rows, part=MAIN), down, across, _scores(settings)
            ),
            **sweep_table(settings, rows),
        }

    return tables
