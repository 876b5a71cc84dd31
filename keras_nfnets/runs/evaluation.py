"""Evaluation of a classifier on every image of a split."""

import collections
import os
import pathlib
import typing

import numpy as np

from keras_nfnets.data import Source, find, folder_of, load
from keras_nfnets.data.preparation import completed
from keras_nfnets.runs.classifier import Classifier, load_classifier
from keras_nfnets.runs.errors import RunError, explained


class Results(typing.NamedTuple):
    """Predictions of a model on the images of a split that were not left out.

    Attributes:
        indices: ints `(n,)`. Index of each image among the records of its split.
        labels: ints `(n,)`. True class of each image.
        probabilities: float64 `(n, classes)`. Predicted probabilities.

    Example:

    >>> probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> results = Results(np.arange(3), np.array([0, 1, 1]), probabilities)
    >>> results.predicted.tolist(), results.confusion().tolist()
    ([0, 1, 0], [[1, 0], [1, 1]])
    """

    indices: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def predicted(self):
        """Predicted class of each image, ints `(n,)`."""
        return self.probabilities.argmax(axis=1)

    @property
    def accuracy(self):
        """Fraction of images that are classified correctly."""
        return float((self.predicted == self.labels).mean())

    def loss(self, label_smoothing=0.0):
        """Compute the mean loss, as `keras.losses.CategoricalCrossentropy` does."""
        sums = self.probabilities.sum(axis=1, keepdims=True)
        p = self.probabilities / np.where(sums == 0, 1, sums)
        logs = np.log(p.clip(1e-7, 1 - 1e-7))
        of_label = logs[np.arange(len(logs)), self.labels]
        uniform = logs.mean(axis=1)
        return float(
            -np.mean((1 - label_smoothing) * of_label + label_smoothing * uniform)
        )

    def accuracy_by_class(self):
        """Return the accuracy of each class, NaN without images, and its image count."""
        classes = self.probabilities.shape[1]
        counts = np.bincount(self.labels, minlength=classes)
        correct = np.bincount(
            self.labels, weights=self.predicted == self.labels, minlength=classes
        )
        return np.where(counts, correct / np.maximum(counts, 1), np.nan), counts

    def confusion(self):
        """Return the confusion matrix, ints `(true classes, predicted classes)`."""
        classes = self.probabilities.shape[1]
        matrix = np.zeros((classes, classes), int)
        np.add.at(matrix, (self.labels, self.predicted), 1)
        return matrix


class Evaluation(typing.NamedTuple):
    """Results of a classifier on a split of a data set.

    Attributes:
        results: `Results`. Labels are class indices of the classifier.
        class_names: list of str. Names of the classifier's classes.
        data: str. Name of the data set.
        source: `data.Source`. Its `left_out` names images that could not be read.
        split: str. Name of the split.
        label_smoothing: float. Label smoothing of the loss, as in training.
        has_loss: bool. Whether the outputs are probabilities, see `Classifier`.

    Example:

    >>> probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> results = Results(np.arange(3), np.array([0, 1, 1]), probabilities)
    >>> source = find((np.zeros((3, 8, 8, 3), "uint8"), [0, 1, 1]))
    >>> Evaluation(results, ["cat", "dog"], "mine", source, "train", 0.0).classes
    {'dog': (0.5, 2), 'cat': (1.0, 1)}
    """

    results: Results
    class_names: list
    data: str
    source: Source
    split: str
    label_smoothing: float
    has_loss: bool = True

    @property
    def accuracy(self):
        """Fraction of images that are classified correctly."""
        return self.results.accuracy

    @property
    def loss(self):
        """Mean cross-entropy with the label smoothing of training, or None without one."""
        if not self.has_loss:
            return None
        return self.results.loss(self.label_smoothing)

    @property
    def classes(self):
        """dict `{class name: (accuracy, number of images)}`, lowest accuracy first.

        Classes without images are left out. If several classes have the same name, their
        indices are added to it.
        """
        accuracy, counts = self.results.accuracy_by_class()
        order = np.argsort(accuracy, kind="stable")  # NaN is last
        number_of = collections.Counter(self.class_names)

        def name_of(i):
            name = self.class_names[i]
            return name if number_of[name] == 1 else f"{name} ({i})"

        return {
            name_of(i): (float(accuracy[i]), int(counts[i])) for i in order if counts[i]
        }


def evaluate(classifier, data=None, split=None, batch_size=64, progress=iter):
    """Evaluate a classifier on a split of a data set.

    A model that `train` has written is evaluated on its validation images by default,
    with the results that training ended with.

    Args:
        classifier: a `Classifier`, or what `load_classifier` accepts.
        data: what `data.find` accepts; None for the data that the model was trained on.
        split: str or None. None for the validation split, if the data are those of the
            training, wherever they are now. Otherwise None is for `"test"` (or
            `"validation"`); of a folder without splits, for all images.
        batch_size: int. Number of images per batch.
        progress: callable that wraps the iterable of batch numbers, such as `tqdm.tqdm`.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: the classifier, data set or split does not exist, or the data set has
            classes that the classifier does not know.
        RunError: more than half of the images cannot be read, or the model's outputs are
            not finite.

    Example:

    >>> evaluation = evaluate("digits", "digits")
    >>> evaluation.accuracy > 0.95, len(evaluation.classes)
    (True, 10)
    """
    if not isinstance(classifier, Classifier):
        classifier = load_classifier(classifier)
    metadata = classifier.metadata
    is_given = data is not None
    if not is_given:
        data = metadata.get("data")
    if data is None:
        raise ValueError(
            "`data` must be given, as the classifier does not contain the name of its training "
            "data. Received: data=None"
        )
    # What a file from elsewhere says must not start a download.
    source, split = _source_and_split(data, split, metadata, download=is_given)
    labels = _labels_of_classifier(source, classifier)
    preparation = completed(classifier.preparation)

    def predict(images):
        return classifier.probabilities(classifier.model.predict_on_batch(images))

    with explained(source):
        results = predict_split(
            predict, source, split, preparation, batch_size, progress
        )
    finite = np.isfinite(results.probabilities).all(axis=1)
    if not finite.all():
        raise RunError(
            f"The model's outputs are not finite for {np.sum(~finite):,} of "
            f"{len(finite):,} images: its weights may have diverged. Use an earlier "
            "checkpoint."
        )
    return Evaluation(
        results._replace(labels=labels[results.labels]),
        classifier.class_names or [str(i) for i in range(classifier.classes)],
        str(data) if isinstance(data, (str, os.PathLike)) else source.name,
        source,
        split,
        metadata.get("label_smoothing", 0.0),
        classifier.gives_probabilities,
    )


def _source_and_split(data, split, metadata, download):
    """Return the `Source` of `data`, and a split that it has."""
    is_folder = isinstance(data, (str, os.PathLike)) and folder_of(data) is not None
    if split != "all" and _is_of_training(data, is_folder, metadata):
        source, split = find(data, download), split or metadata.get("split")
    else:
        # New images are not for training: a folder need not be divided.
        source = find(data, download, divide=not is_folder)
        if is_folder and split not in (None, *source.splits):
            source = find(data)  # of a folder without splits, a part is asked for
    if source.needs_download:
        raise ValueError(
            f"The classifier was trained on {data!r}, which is not downloaded yet. Give `data` to "
            f"download it. Received: no data, metadata with data={data!r}"
        )
    if split is None:
        # (The test labels of ImageNet are secret.)
        of_imagenet = data == metadata.get("classes_of")
        usual = ("all", "test", "validation")[2 if of_imagenet else 0 :]
        split = next((name for name in usual if name in source.splits), "test")
    source.size_of(split)  # raises if there is no such split
    return source, split


def _is_of_training(data, is_folder, metadata):
    """Whether a classifier was trained on `data`, which may have been moved since."""
    trained_on = metadata.get("data")
    if trained_on is None or not isinstance(data, (str, os.PathLike)):
        return False
    if not is_folder or str(data) == trained_on:
        return str(data) == trained_on
    if folder_of(data).resolve() == pathlib.Path(trained_on):
        return True
    try:
        return "images" in metadata and find(data).digest() == metadata["images"]
    except ValueError:  # such as for a folder with one class
        return False


def _labels_of_classifier(source, classifier):
    """Return the classifier's class index for each class of the data set."""
    wanted = list(source.class_names)
    known = classifier.class_names
    if known is not None and list(known) == wanted:
        return np.arange(len(wanted))
    lists = [list(known)] if known is not None else []
    if "classes_of" in classifier.metadata:
        # Ids such as "n01440764", which are unique, and known without a download.
        ids = find(classifier.metadata["classes_of"], download=False).class_names
        lists.insert(0, list(ids))
    for names in lists:
        if set(wanted) <= set(names):
            return np.array([_index(names, name) for name in wanted])
    if all(name.isdecimal() and int(name) < classifier.classes for name in wanted):
        return np.array([int(name) for name in wanted])
    if lists:
        unknown = [name for name in wanted if name not in lists[-1]]
        some = ", ".join(lists[-1][:10]) + (", ..." if len(lists[-1]) > 10 else "")
        raise ValueError(
            f"The classifier does not know the classes {', '.join(unknown[:10])}; it "
            f"knows {some}. Name the classes of the data as the classifier does, or remove "
            f"the others. Received: {len(unknown)} unknown of {len(wanted)} classes"
        )
    # The classes of the classifier have numbers only.
    if len(wanted) == classifier.classes:
        return np.arange(len(wanted))
    raise ValueError(
        f"The names of the classifier's {classifier.classes} classes are not known, so the "
        "data must have the same number of classes, in the same order. Received: "
        f"{len(wanted)} classes"
    )


def _index(names, name):
    if names.count(name) > 1:
        raise ValueError(
            f"Several classes of the classifier have the name {name!r}. Name the folders "
            "of images by WordNet ids, such as n01440764."
        )
    return names.index(name)


def predict_split(predict, source, split, preparation, batch_size=64, progress=iter):
    """Compute the predictions of a model on a split.

    Args:
        predict: callable from a batch of images to their probabilities.
        source: `data.Source`.
        split: str. Name of a split, see `data.load`.
        preparation: dict. Preprocessing of the images, see `data.load`, with their `size`.
        batch_size: int. Number of images per batch.
        progress: callable that wraps the iterable of batch numbers.

    Returns:
        `Results`.

    Raises:
        ValueError: no image of the split can be read.
    """
    batches = load(
        source, split, preparation["size"], batch_size, preparation=preparation
    )
    labels, outputs = [], []
    count = -(-source.size_of(split) // batch_size)
    for _, (images, targets) in zip(progress(range(count)), batches):
        outputs.append(np.asarray(predict(images), "float64"))
        labels.append(np.asarray(targets).argmax(axis=1))
    if not outputs:
        raise ValueError(
            f"There are no images in split {split!r} of {source.name} that can be read. "
            f"Repair the images, or choose another split. Received: split={split!r}"
        )
    names = source.records(split).map(lambda name, *_: name).as_numpy_iterator()
    indices = [
        i for i, name in enumerate(map(_text, names)) if name not in source.left_out
    ]
    return Results(np.array(indices), np.concatenate(labels), np.concatenate(outputs))


def images_at(source, split, indices):
    """Yield `(index, name, image)` of the records at these indices; images are uint8."""
    wanted = set(map(int, indices))
    for index, (name, image, _) in enumerate(source.records(split).as_numpy_iterator()):
        if index in wanted:
            name = _text(name)
            if isinstance(image, bytes):
                image = source.read(name, image)
            yield index, name, image


def _text(name):
    # File names may contain bytes that are not valid text.
    return name.decode(errors="surrogateescape")
