"""Train on several processes with JAX, started by Slurm or Kubernetes.

slurm/train_jax.sbatch and kubernetes/train_jax.yaml start it. If it is started again with
the same folder, it continues after the last complete epoch.
"""

import argparse
import os
import pathlib

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
from sklearn.datasets import load_digits

import keras_nfnets
from keras_nfnets import training

TRAINING_IMAGES = 1437


def main():
    """Train NFNet-Tiny on digits; the first process writes `model.keras`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=pathlib.Path, required=True)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument(
        "--batch_size", type=int, default=64, help="total of all processes"
    )
    flags = parser.parse_args()

    # JAX detects the processes of a Slurm step; elsewhere Keras reads
    # KERAS_DISTRIBUTION_*. Nothing may use a device before this call.
    keras.distribution.initialize()
    if flags.batch_size % jax.device_count():
        parser.error(
            f"--batch_size must be a multiple of {jax.device_count()} (devices)"
        )
    # Keras would divide a tf.data.Dataset among the processes; arrays are divided below.
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(auto_shard_dataset=False)
    )

    images, labels = digits()
    # Only complete batches: all processes must take the same number of steps.
    steps = TRAINING_IMAGES // flags.batch_size
    x, y = own_part(images, labels, 0, steps * flags.batch_size)
    test = (len(images) - TRAINING_IMAGES) // jax.device_count() * jax.device_count()
    x_test, y_test = own_part(images, labels, -test, None)

    keras.utils.set_random_seed(0)  # the same initial weights everywhere
    model = keras_nfnets.NFNetTiny(input_shape=(32, 32, 1), classes=10)
    model.compile(
        keras.optimizers.SGD(
            training.warmup_cosine(
                1.6,
                batch_size=flags.batch_size,
                steps_per_epoch=steps,
                epochs=flags.epochs,
            ),
            momentum=0.9,
            nesterov=True,
        ),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    first = jax.process_index() == 0
    checkpoints = training.Checkpoints(
        flags.output_dir / "checkpoints",
        settings={"epochs": flags.epochs, "batch_size": flags.batch_size},
        write=first,
    )
    done, _ = checkpoints.restore(model)
    model.fit(
        x,
        y,
        batch_size=flags.batch_size // jax.process_count(),
        initial_epoch=done,
        epochs=flags.epochs,
        callbacks=[checkpoints],
        verbose=2 if first else 0,
    )
    # In one batch, so that all processes know its size.
    results = model.evaluate(
        x_test, y_test, batch_size=len(x_test), verbose=0, return_dict=True
    )
    if first:
        # With a distribution, saving would create variables and wait for the other processes.
        keras.distribution.set_distribution(None)
        model.save(flags.output_dir / "model.keras")
        print(f"Test accuracy: {results['accuracy']:.4f}")


def digits():
    """Return scikit-learn's digits as 32 x 32 pixels in [-1, 1], and their labels."""
    x, y = load_digits(return_X_y=True)
    return x.reshape(-1, 8, 8, 1).repeat(4, 1).repeat(4, 2) / 8 - 1, y


def own_part(x, y, start, stop):
    """Return the images and labels of this process between two indices."""
    own = slice(jax.process_index(), None, jax.process_count())
    return x[start:stop][own], y[start:stop][own]


if __name__ == "__main__":
    main()
