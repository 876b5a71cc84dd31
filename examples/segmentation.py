"""U-Net trained on batches of one to four images.

    python examples/segmentation.py

Each image has a complete digit among fragments of digits, and its own brightness and
contrast, like scans from different machines. The network must find the pixels of the
complete digit. In training, the batch statistics of a small batch let batch norm remove
brightness and contrast; in inference it has only the statistics of all images.
"""

import comparison
import keras
import numpy as np
from comparison import NORMALIZER_FREE
from keras import layers

import keras_nfnets
from keras_nfnets.experiments import fitting

SIDE, DIGIT, FRAGMENT = 48, 28, 9


def scenes(digits, count, seed):
    """Return images and masks of complete digits, both float32 `(count, 48, 48, 1)`."""
    generator = np.random.default_rng(seed)
    x = np.zeros((count, SIDE, SIDE))
    y = np.zeros_like(x)
    for picture, mask in zip(x, y, strict=True):
        for size in (FRAGMENT,) * 8 + (DIGIT,):
            digit = digits[generator.integers(len(digits))]
            start = generator.integers(DIGIT - size + 1)
            top, left = generator.integers(SIDE - size + 1, size=2)
            place = slice(top, top + size), slice(left, left + size)
            part = digit[start : start + size, start : start + size]
            picture[place] = np.maximum(picture[place], part)
        mask[place] = part > 0.5
        picture += generator.normal(0, 0.2, picture.shape)
        picture *= generator.uniform(0.3, 3)
        picture += generator.uniform(-2, 2)
    return x.astype("float32")[..., None], y.astype("float32")[..., None]


def u_net(momentum):
    def convolved(x, width):
        for _ in range(2):
            x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
            x = layers.BatchNormalization(momentum=momentum)(x)
            x = layers.Activation("relu")(x)
        return x

    x = inputs = keras.Input((SIDE, SIDE, 1))
    skips = []
    for width in (8, 16, 32):
        skips.append(convolved(x, width))
        x = layers.MaxPooling2D()(skips[-1])
    x = convolved(x, 64)
    for skip in reversed(skips):
        width = skip.shape[-1]
        x = layers.Conv2DTranspose(width, 2, strides=2)(x)
        x = convolved(layers.Concatenate()([skip, x]), width)
    return keras.Model(inputs, layers.Conv2D(1, 1, name="predictions")(x))


def iou(model, x, y):
    """Return the intersection over union of the predicted and the true masks."""
    found = model.predict(x, verbose=0) > 0
    return round(float(np.sum(found & (y > 0)) / np.sum(found | (y > 0))), 4)


def main(arguments=None):
    chosen = comparison.options(
        __doc__,
        arguments,
        epochs=5,
        examples=400,
        batch_sizes=[1, 2, 4],
        rates=[4.0, 16.0, 64.0],
    )
    digits, _ = comparison.digits()
    learn = scenes(digits[:3500], chosen.examples, 0)
    validation = scenes(digits[3500:4000], 100, 1)
    test = scenes(digits[4000:], 200, 2)

    def run(case, rate, seed):
        batch_size = case["batch size"]
        batches = comparison.Batches(learn, batch_size, seed)
        model = u_net(fitting.momentum(len(batches) * chosen.epochs))
        if case["network"] == NORMALIZER_FREE:
            model = keras_nfnets.normalizer_free(model, learn[0][:16])
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        comparison.fit(model, batches, loss, rate, batch_size, chosen.epochs)
        return {"validation": iou(model, *validation), "test": iou(model, *test)}

    cases = comparison.with_and_without(chosen.batch_sizes)
    rows = comparison.run_all(run, cases, chosen)
    comparison.show(rows, "batch size", {"test": "IoU on the test set"}, chosen)


if __name__ == "__main__":
    main()
