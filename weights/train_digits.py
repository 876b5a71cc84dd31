"""Train the bundled checkpoint, `NFNetTiny(weights="digits")`.

    python weights/train_digits.py

Takes two minutes on two cores, writes keras_nfnets/pretrained/digits.weights.h5 and
prints the test accuracy, which checkpoints.json states as `top1`. Two runs on the same
machine with the same versions of the libraries write identical files.

Half of the training images are inverted copies, so that the network also classifies
dark digits on a light background.
"""

import pathlib

import keras
import numpy as np
import tensorflow as tf

import keras_nfnets
from keras_nfnets import data, pretrained

EPOCHS, BATCH_SIZE = 40, 64


def main():
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)
    checkpoint = pretrained.find_checkpoint("digits")
    (x, y), (x_test, y_test) = data.load_digits()
    x = np.concatenate([x, 255 - x])
    y = np.concatenate([y, y])
    x, x_test, x_test_dark = (
        np.stack([data.prepare(image, **checkpoint.preparation) for image in images])
        for images in (x, x_test, 255 - x_test)
    )
    model = keras_nfnets.NFNetTiny()
    steps = EPOCHS * -(-len(x) // BATCH_SIZE)
    learning_rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps - steps // 10, warmup_target=0.4, warmup_steps=steps // 10
    )
    model.compile(
        keras.optimizers.SGD(learning_rate, momentum=0.9, nesterov=True),
        keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        metrics=["accuracy"],
        clip_factor=0.01,
    )
    model.fit(
        x,
        keras.utils.to_categorical(y),
        BATCH_SIZE,
        EPOCHS,
        validation_data=(x_test, keras.utils.to_categorical(y_test)),
        verbose=2,
    )
    for name, images in {"light": x_test, "dark": x_test_dark}.items():
        predicted = model.predict(images, verbose=0).argmax(axis=1)
        accuracy = 100 * np.mean(predicted == y_test)
        print(f"Test accuracy, {name} digits: {accuracy:.2f} %")
    path = pathlib.Path(pretrained.__file__).with_name(checkpoint.file)
    # A model that was not compiled is saved without an optimizer's state.
    trained = keras_nfnets.NFNetTiny()
    trained.set_weights(model.get_weights())
    trained.save_weights(path)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
