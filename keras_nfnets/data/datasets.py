"""Labelled pictures, ready to train on."""

import difflib
import re
import typing

import numpy as np


class Pictures(typing.NamedTuple):
    """A data set in two parts, each a `tf.data.Dataset` of batches.

    A batch is (pictures, labels): float32 `(batch, size, size, channels)`, each picture
    with mean zero and variance one, and float32 one-hot `(batch, classes)`.
    `preparation` are the arguments with which `data.prepare` prepares others like them.
    `examples` is how many pictures `train` has; it is shuffled anew each time.
    `epochs_from(n)` are all epochs from the n-th on, without end, each in an order that
    depends on its number and the seed alone.
    """

    train: typing.Any
    test: typing.Any
    channels: int
    class_names: list
    preparation: dict | None = None
    examples: int | None = None
    epochs_from: typing.Callable | None = None


def load(name, image_size, batch_size, seed=0):
    """Loads a data set by name.

    Args:
        name: `"digits"`, the 1,797 handwritten digits of scikit-learn (a fifth of each
            class held out, the same ones always), or any classification set of
            TensorFlow Datasets, which downloads it on first use.
        image_size: pixels a side to which pictures are resized.
        batch_size: of both parts.
        seed: of the order of the training pictures, another one each epoch.

    Returns:
        `Pictures`.

    Raises:
        ValueError: there is no such data set, or it is not one of labelled pictures in
            two parts.

    Example:

    >>> load("digits", image_size=32, batch_size=64).train.element_spec[0].shape
    TensorShape([None, 32, 32, 1])
    """
    import tensorflow as tf

    source = _digits() if name == "digits" else _from_tfds(name)
    classes = len(source.class_names)

    def prepare(image, label):
        image = tf.image.resize(image, (image_size, image_size), antialias=True)
        return tf.image.per_image_standardization(image), tf.one_hot(label, classes)

    parallel = tf.data.AUTOTUNE

    def shuffled(seed):
        train = source.train.shuffle(10_000, seed=seed, reshuffle_each_iteration=True)
        return train.map(prepare, parallel).batch(batch_size)

    def epochs_from(epoch):
        def shuffled_by(number):
            # The seed of this function alone. Zero would not do: beside it TensorFlow
            # wants to know the other one when it builds the graph.
            tf.random.set_seed(seed % 2**30 + 1)
            return shuffled(number)

        numbers = tf.data.Dataset.range(epoch, tf.int64.max)
        return numbers.flat_map(shuffled_by).prefetch(parallel)

    return source._replace(
        train=shuffled(seed).prefetch(parallel),
        examples=int(source.train.cardinality()),
        epochs_from=epochs_from,
        test=source.test.map(prepare, parallel).batch(batch_size).prefetch(parallel),
        # The same as `prepare` above, for single files.
        preparation={
            "size": image_size,
            "crop": 1.0,
            "crop_mode": "squash",
            "interpolation": "bilinear",
            "mean": None,
            "deviation": None,
            "channels": source.channels,
        },
    )


def load_digits():
    """The handwritten digits of scikit-learn as pictures.

    Returns:
        `(x_train, y_train), (x_test, y_test)`, the second a fifth of each class, always
        the same: uint8 pictures `(n, 8, 8, 3)`, light on dark, and int labels `(n,)`.

    Example:

    >>> (x, y), (x_test, y_test) = load_digits()
    >>> x.shape, x_test.shape
    ((1437, 8, 8, 3), (360, 8, 8, 3))
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    # Of 17 shades, from 0 to 16.
    images = np.uint8(np.rint(images.reshape(-1, 8, 8, 1) * 255 / 16)).repeat(3, -1)
    x, x_test, y, y_test = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    return (x, y), (x_test, y_test)


def _digits():
    import tensorflow as tf

    (x, y), (x_test, y_test) = load_digits()
    x, x_test = x[..., :1], x_test[..., :1]
    return Pictures(
        train=tf.data.Dataset.from_tensor_slices((x, y)),
        test=tf.data.Dataset.from_tensor_slices((x_test, y_test)),
        channels=1,
        class_names=[str(digit) for digit in np.unique(y)],
    )


def _from_tfds(name):
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    # Looked up here: for an unknown name TFDS would search the network.
    if re.split("[/:]", name)[0] not in known:
        close = difflib.get_close_matches(name, ["digits", *known])
        raise ValueError(
            "A data set is 'digits' or one of TensorFlow Datasets. Received: "
            f"{name!r}" + (f"; perhaps one of {close}?" if close else "")
        )
    builder = tfds.builder(name)
    features = builder.info.features
    if features is None or not {"image", "label"} <= set(features):
        raise ValueError(
            "A data set must have images with labels. Received: "
            f"{name!r} with features {list(features or ())}"
        )
    try:
        builder.download_and_prepare()
    except Exception as error:  # of the network, a server, an archive, the disk, ...
        raise ValueError(f"TensorFlow Datasets cannot get {name!r}: {error}") from error
    splits = builder.info.splits
    test = next((split for split in ("test", "validation") if split in splits), None)
    if "train" not in splits or test is None:
        raise ValueError(
            "A data set must have a train and a test (or validation) part. Received: "
            f"{name!r} with parts {list(splits)}"
        )
    return Pictures(
        train=builder.as_dataset("train", as_supervised=True),
        test=builder.as_dataset(test, as_supervised=True),
        channels=features["image"].shape[-1],
        class_names=features["label"].names,
    )
