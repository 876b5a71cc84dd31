"""Predictions of a model on every image of a split."""

import typing

import numpy as np

from keras_nfnets import data
from keras_nfnets.cli.command import progress_bar


class Results(typing.NamedTuple):
    """Predictions of a model on the images of a split that were not left out.

    Attributes:
        places: ints `(n,)`. Index of each image among the records of its split.
        labels: ints `(n,)`. True class of each image.
        probabilities: float64 `(n, classes)`. Predicted probabilities.
    """

    places: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def said(self):
        """Predicted class of each image."""
        return self.probabilities.argmax(axis=1)

    @property
    def accuracy(self):
        return float((self.said == self.labels).mean())

    def loss(self, label_smoothing=0.0):
        """Compute the mean loss, as `keras.losses.CategoricalCrossentropy` does."""
        p = self.probabilities / self.probabilities.sum(axis=1, keepdims=True)
        logs = np.log(p.clip(1e-7, 1 - 1e-7))
        of_label = logs[np.arange(len(logs)), self.labels]
        smoothed = (1 - label_smoothing) * of_label + label_smoothing * logs.mean(
            axis=1
        )
        return float(-smoothed.mean())

    def accuracy_by_class(self):
        """Return the accuracy of each class, NaN without images, and its image count."""
        right = self.said == self.labels
        classes = self.probabilities.shape[1]
        counts = np.bincount(self.labels, minlength=classes)
        sums = np.bincount(self.labels, weights=right, minlength=classes)
        return np.where(counts, sums / np.maximum(counts, 1), np.nan), counts

    def confusion(self):
        """Return the confusion matrix, ints `(true classes, predicted classes)`."""
        classes = self.probabilities.shape[1]
        matrix = np.zeros((classes, classes), int)
        np.add.at(matrix, (self.labels, self.said), 1)
        return matrix


def results_of(predict, source, split, preparation, batch_size=64):
    """Compute the predictions of a model on a split, with a progress bar on terminals.

    Args:
        predict: callable from a batch of images to their probabilities or logits.
        source: `data.Source`.
        split: str. Name of a split, see `data.load`.
        preparation: dict. Preparation of the images, see `data.load`, with their `size`.
        batch_size: int. Number of images per batch.

    Returns:
        `Results`.

    Raises:
        ValueError: no image of the split can be read.
    """
    batches = data.load(
        source, split, preparation["size"], batch_size, preparation=preparation
    )
    labels, outputs = [], []
    total = -(-source.size_of(split) // batch_size)
    for images, targets in progress_bar(batches, "evaluating", "batches", total):
        outputs.append(probabilities(predict(images)))
        labels.append(np.asarray(targets).argmax(axis=1))
    if not outputs:
        raise ValueError(f"There are no pictures in {split!r} of {source.name}")
    names = (name.decode(errors="surrogateescape") for name in _names(source, split))
    places = [i for i, name in enumerate(names) if name not in source.left_out]
    return Results(np.array(places), np.concatenate(labels), np.concatenate(outputs))


def _names(source, split):
    return source.records(split).map(lambda name, *_: name).as_numpy_iterator()


def probabilities(outputs):
    """Convert outputs, probabilities or logits, to probabilities, float64."""
    outputs = np.asarray(outputs, "float64")
    sums = outputs.sum(axis=-1, keepdims=True)
    if outputs.min() >= 0 and np.abs(sums - 1).max() < 1e-2:
        return outputs
    exponentials = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def pictures_at(source, split, places):
    """Return `{index: (name, image)}` of the records at these indices; images are uint8."""
    wanted, found = set(map(int, places)), {}
    for place, (name, image, _) in enumerate(source.records(split).as_numpy_iterator()):
        if place in wanted:
            name = name.decode(errors="surrogateescape")
            if isinstance(image, bytes):
                image = data.read_picture(name if source.reads_files else image)
            found[place] = name, image
    return found
