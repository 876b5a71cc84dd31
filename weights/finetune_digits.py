"""Compare fine-tuning the bundled checkpoint with training from scratch.

    python weights/finetune_digits.py [SEEDS]

The task is new to the checkpoint: digits rotated by 30 degrees, from the test set of
scikit-learn's digits, on which the checkpoint was not trained. Ten images per class are
the training set, the others the test set. All runs have the same number of steps.
Prints the accuracies in weights/README.md. Takes four minutes.
"""

import sys

import keras
import numpy as np
from PIL import Image

import keras_nfnets
from keras_nfnets import data, pretrained

IMAGES_PER_CLASS, STEPS, BATCH_SIZE = 10, 40, 25


def load_task():
    """Return training and test images and labels of the new task."""
    checkpoint = pretrained.find_checkpoint("digits")
    _, (x, y) = data.load_digits()
    x = np.stack(
        [data.prepare(_rotated(image), **checkpoint.preparation) for image in x]
    )
    train = np.concatenate(
        [np.flatnonzero(y == k)[:IMAGES_PER_CLASS] for k in range(10)]
    )
    test = np.setdiff1d(np.arange(len(y)), train)
    return (x[train], y[train]), (x[test], y[test])


def _rotated(image):
    bilinear = Image.Resampling.BILINEAR
    enlarged = Image.fromarray(image).resize((32, 32), bilinear)
    return np.asarray(enlarged.rotate(30, bilinear))


def accuracy(weights, seed, learning_rate):
    """Train a network with a new classifier and return its test accuracy."""
    keras.utils.set_random_seed(seed)
    (x, y), test = load_task()
    body = keras_nfnets.NFNetTiny(weights=weights, include_top=False, pooling="avg")
    outputs = keras.layers.Dense(10, name="predictions")(body.output)
    model = keras_nfnets.AGCModel(body.input, outputs)
    model.compile(
        keras.optimizers.SGD(
            keras.optimizers.schedules.CosineDecay(learning_rate, STEPS),
            momentum=0.9,
            nesterov=True,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        clip_factor=0.01,
    )
    epochs = STEPS // -(-len(x) // BATCH_SIZE)
    model.fit(x, y, BATCH_SIZE, epochs, verbose=0)
    return model.evaluate(*test, verbose=0, return_dict=True)["accuracy"]


def main():
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
    for rate in (0.1, 0.3):
        for weights in ("digits", None):
            accuracies = [100 * accuracy(weights, seed, rate) for seed in seeds]
            print(
                f"learning rate {rate}, {'fine-tuned' if weights else 'from scratch'}: "
                f"median {np.median(accuracies):.1f} %, "
                f"{min(accuracies):.1f} to {max(accuracies):.1f} % "
                f"over {len(accuracies)} seeds",
                flush=True,
            )


if __name__ == "__main__":
    main()
