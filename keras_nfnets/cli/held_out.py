"""What a network says of all pictures of a part."""

import typing

import numpy as np

from keras_nfnets import data
from keras_nfnets.cli.command import progress_bar


class Results(typing.NamedTuple):
    """What a network says of pictures that were not left out.

    Attributes:
        places: of each picture among the records of its part.
        labels: of each picture, ints `(n,)`.
        probabilities: float64 `(n, classes)`.
    """

    places: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def said(self):
        """The most probable class of each picture."""
        return self.probabilities.argmax(axis=1)

    @property
    def accuracy(self):
        return float((self.said == self.labels).mean())

    def loss(self, label_smoothing=0.0):
        """The mean cross entropy, as `keras.losses.CategoricalCrossentropy` has it."""
        p = self.probabilities / self.probabilities.sum(axis=1, keepdims=True)
        logs = np.log(p.clip(1e-7, 1 - 1e-7))
        of_label = logs[np.arange(len(logs)), self.labels]
        smoothed = (1 - label_smoothing) * of_label + label_smoothing * logs.mean(
            axis=1
        )
        return float(-smoothed.mean())

    def accuracy_by_class(self):
        """The accuracy of each class, NaN where there are no pictures, and their count."""
        right = self.said == self.labels
        classes = self.probabilities.shape[1]
        counts = np.bincount(self.labels, minlength=classes)
        sums = np.bincount(self.labels, weights=right, minlength=classes)
        return np.where(counts, sums / np.maximum(counts, 1), np.nan), counts

    def confusion(self):
        """ints `(classes, classes)`: of each class (row), what the network says."""
        classes = self.probabilities.shape[1]
        matrix = np.zeros((classes, classes), int)
        np.add.at(matrix, (self.labels, self.said), 1)
        return matrix


def results_of(predict, source, split, preparation, batch_size=64):
    """What a network says of all pictures of a part, with a bar where somebody looks.

    Args:
        predict: makes of a batch of pictures their probabilities or logits.
        source, split: of `data.load`.
        preparation: of the pictures, with their `size`.

    Raises:
        ValueError: none of them can be read.
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
    """A network's answers as probabilities, float64, whether they are or are logits."""
    outputs = np.asarray(outputs, "float64")
    sums = outputs.sum(axis=-1, keepdims=True)
    if outputs.min() >= 0 and np.abs(sums - 1).max() < 1e-2:
        return outputs
    exponentials = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def pictures_at(source, split, places):
    """`{place: (name, picture)}` of some records of a part; pictures are uint8."""
    wanted, found = set(map(int, places)), {}
    for place, (name, image, _) in enumerate(source.records(split).as_numpy_iterator()):
        if place in wanted:
            name = name.decode(errors="surrogateescape")
            if isinstance(image, bytes):
                image = data.read_picture(name if source.reads_files else image)
            found[place] = name, image
    return found
