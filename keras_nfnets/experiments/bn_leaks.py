"""Dependence between the examples of a batch under batch normalization."""

import keras
import numpy as np
from keras import ops

from keras_nfnets.experiments import fitting, images
from keras_nfnets.experiments.experiment import Experiment, Finding
from keras_nfnets.experiments.fitting import BATCH_NORM, NORMALIZER_FREE
from keras_nfnets.experiments.results import distinct, markdown, select, with_spread


def _measure(settings, cell):
    model, row = fitting.train_with_settings(settings, cell["network"], cell["seed"])
    x, _ = images.load(settings).test_images(settings["pictures"])
    return [
        {
            "mode": mode,
            "of": i,
            "with_respect_to": j,
            "gradient": float(f"{value:.4g}"),
            "diverged": row["diverged"],
        }
        for mode in ("inference", "training")  # last, as it changes running statistics
        for (i, j), value in np.ndenumerate(
            _sensitivities(model, x, training=mode == "training")
        )
    ]


def _sensitivities(model, x, training):
    """Compute gradient norms of image i's logits with respect to image j's pixels."""
    squares = np.zeros((len(x), len(x)))
    for index, gradient in enumerate(_gradients(model, x, training)):
        i = index // model.output_shape[-1]
        gradient = ops.convert_to_numpy(gradient).astype("float64")
        squares[i] += np.sum(gradient**2, axis=(1, 2, 3))
    return np.sqrt(squares)


def _gradients(model, x, training):
    """Yield the gradient of each logit with respect to all pixels, image by image."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        def logits(x):
            values = model.stateless_call(
                model.trainable_variables, model.non_trainable_variables, x, training
            )[0]
            return values.reshape(-1)

        values, pull_back = jax.vjp(logits, x)
        pull_back = jax.jit(pull_back)
        for one in np.eye(len(values), dtype=values.dtype):
            yield pull_back(one)[0]
    elif backend == "torch":
        import torch

        x = ops.convert_to_tensor(x).requires_grad_()
        for logit in model(x, training=training).reshape(-1):
            yield torch.autograd.grad(logit, x, retain_graph=True)[0]
    else:
        import tensorflow as tf

        x = tf.constant(x)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            logits = tf.unstack(tf.reshape(model(x, training=training), [-1]))
        for logit in logits:
            yield tape.gradient(logit, x)


def _matrix(rows, network, mode):
    runs = select(rows, network=network, mode=mode, seed=0)
    size = 1 + max(row["of"] for row in runs)
    matrix = np.zeros((size, size))
    for row in runs:
        matrix[row["of"], row["with_respect_to"]] = row["gradient"]
    return matrix


def _draw(figure, rows, settings):
    networks, modes = distinct(rows, "network"), distinct(rows, "mode")
    pairs = [(network, mode) for network in networks for mode in modes]
    panels = figure.subplots(len(networks), len(modes), sharex=True, sharey=True)
    for axes, (network, mode) in zip(panels.flat, pairs):
        matrix = _matrix(rows, network, mode)
        shares = matrix / np.maximum(np.diag(matrix), 1e-30)[:, None]
        shown = axes.imshow(shares, vmin=0, vmax=1, cmap="magma")
        axes.set(title=f"{network}, {mode}")
    figure.supxlabel("pixels of image")
    figure.supylabel("logits of image")
    figure.colorbar(
        shown, ax=figure.axes, label="gradient, relative to the image's own", shrink=0.8
    )


def _leak(rows, network, mode, seed):
    """Summarize the gradients with respect to the pixels of other images.

    Returns:
        A dict: `mean`, relative to the mean gradient with respect to an image's own
        pixels, and `most`, the largest.
    """
    runs = select(rows, network=network, mode=mode, seed=seed)
    own = [row["gradient"] for row in runs if row["of"] == row["with_respect_to"]]
    others = [row["gradient"] for row in runs if row["of"] != row["with_respect_to"]]
    return {"mean": np.mean(others) / np.mean(own), "most": float(np.max(others))}


def _leaks(rows):
    """Return `{(network, mode): leaks of all seeds}`."""
    return {
        (network, mode): [
            _leak(rows, network, mode, seed) for seed in distinct(rows, "seed")
        ]
        for network in distinct(rows, "network")
        for mode in distinct(rows, "mode")
    }


def _conclude(rows, settings):
    leaks = _leaks(rows)
    shown = with_spread(leaks[BATCH_NORM, "training"], "mean", "{:.1%}".format)
    most = {
        key: np.max([leak["most"] for leak in values]) for key, values in leaks.items()
    }
    return [
        Finding(
            "With batch normalization, in training, the gradient of an image's logits with "
            f"respect to the pixels of another image is {shown} of that with respect to its "
            "own pixels: median (minimum to maximum) of the seeds, means over all pairs.",
            min(leak["mean"] for leak in leaks[BATCH_NORM, "training"]) > 0.01,
        ),
        Finding(
            "Without it the largest such gradient is "
            f"{most[NORMALIZER_FREE, 'training']:g} in training and "
            f"{most[NORMALIZER_FREE, 'inference']:g} in inference.",
            most[NORMALIZER_FREE, "training"]
            == most[NORMALIZER_FREE, "inference"]
            == 0,
        ),
        Finding(
            "In inference, with running statistics, it is "
            f"{most[BATCH_NORM, 'inference']:g} with batch normalization.",
            None,
        ),
        *fitting.diverged_findings(rows),
    ]


def _tables(rows, settings):
    lines = [
        [
            f"{network}, {mode}",
            with_spread(values, "mean", "{:.1%}".format),
            with_spread(values, "most", "{:.3g}".format),
        ]
        for (network, mode), values in _leaks(rows).items()
    ]
    return {
        "Gradients with respect to other images.": markdown(
            ["", "mean, relative to the image's own", "largest"], lines
        )
    }


EXPERIMENT = Experiment(
    name="bn_leaks",
    title="With batch normalization, images of a batch affect each other",
    claim="""\
With batch normalization the output for one example depends on the other examples of its
batch, so that networks can cheat in some tasks; without it, it does not (arXiv 2102.06171,
section 1).""",
    how="""\
Both networks are trained in the same way. Then the gradient of the logits of each image of
a batch is computed with respect to the pixels of every other image, in training and in
inference mode.""",
    beyond="""\
Nothing: there is a dependence or none, at any scale. Whether a network exploits it, as in
contrastive learning, is another question.""",
    scales={
        "small": {
            **fitting.SMALL_RUN,
            "epochs": 5,
            "batch_size": 64,
            "learning_rate": 0.1,
            "pictures": 8,
        },
        "full": {
            **fitting.FULL_RUN,
            "batch_size": 256,
            "learning_rate": 0.1,
            "pictures": 8,
        },
    },
    plan=fitting.plan_with_and_without,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
    tables=_tables,
    figure_size=(6.4, 6),
)
