"""Classifiers: a model with the preprocessing of its images and its class names."""

import contextlib
import os
import pathlib
import sys
import typing

import numpy as np
from absl import logging

from keras_nfnets import checks, data, deploy, pretrained
from keras_nfnets.backend.graph import activation_of_outputs
from keras_nfnets.data.images import LARGE
from keras_nfnets.data.preparation import TIMM, checked_preparation
from keras_nfnets.models import decode_predictions
from keras_nfnets.pretrained import architectures
from keras_nfnets.printing import printable, without_secrets
from keras_nfnets.runs import folder
from keras_nfnets.runs.metadata import checked
from keras_nfnets.runs.saved_model import load_metadata, load_model


class Classifier:
    """Model with the preprocessing of its images and the names of its classes.

    Args:
        model: `keras.Model` with outputs `(batch, classes)`. Outputs of a softmax or a
            sigmoid are probabilities; those of a linear last layer are logits, of which
            the softmax is taken. Other outputs are used as they are.
        preparation: dict. Keyword arguments of `data.prepare`.
        class_names: list of str or None. Names of the classes, in the order of the
            outputs.
        metadata: dict or None. What `train` has saved with the model: `"data"`,
            `"split"` and `"label_smoothing"`, for `evaluate`; or of a published
            checkpoint `"licence"` and `"classes_of"`, the data set whose classes it
            knows.

    Raises:
        ValueError: the model does not classify images prepared in this way, or the
            number of names differs from that of classes.

    Example:

    >>> classifier = load_classifier("digits")
    >>> _, (images, labels) = data.load_digits()
    >>> classifier.predict(images[:4]).shape
    (4, 10)
    >>> [[best, second]] = classifier.predict_classes(images[0], top=2)
    >>> best.name
    '7'
    """

    def __init__(self, model, preparation, class_names=None, metadata=None):
        self.model = model
        self.preparation = preparation
        self.class_names = class_names
        self.metadata = metadata or {}
        self._activation = activation_of_outputs(model)
        self._check()

    def _check(self):
        outputs = self.model.output_shape
        if not (isinstance(outputs, tuple) and len(outputs) == 2 and outputs[1] > 1):
            raise ValueError(
                "A classifier must have one output for each of two or more classes. "
                f"Received: a model with outputs of shape {outputs}"
            )
        names = self.class_names
        if names is not None and np.shape(names) != outputs[1:]:
            raise ValueError(
                "`class_names` must be a list with one name per class. "
                f"Received: {np.size(names)} names for {outputs[1]} classes"
            )
        try:
            checked_preparation(self.preparation)
            x = self.preprocess(np.zeros((2, 2, 3), "uint8"))
            self.model.predict(x[np.newaxis], verbose=0)
        except Exception as error:  # models raise exceptions of many types
            raise ValueError(
                "The model must accept images that are preprocessed by `preparation`. "
                f"Received: {self.preparation}: {error}"
            ) from error

    @property
    def classes(self):
        """Number of classes."""
        return self.model.output_shape[1]

    @property
    def gives_probabilities(self):
        """Whether the outputs can be converted to probabilities."""
        return self._activation is not None

    def preprocess(self, image):
        """Read and preprocess an image.

        Args:
            image: path of an image file of any format, or uint8 array
                `(height, width, 3)`, `(height, width, 1)` or `(height, width)`.

        Returns:
            float32 array `(size, size, channels)`.

        Raises:
            ValueError: the file or the array is not an image.
        """
        if isinstance(image, (str, os.PathLike)):
            image = data.read_picture(image)
        image = _rgb(image)
        try:
            return data.prepare(image, **self.preparation)
        except MemoryError as error:
            raise ValueError(
                "An image needs more memory than is available. Make it smaller. "
                f"Received: {image.shape[1]:,} x {image.shape[0]:,} pixels"
            ) from error

    def export(self, path, format=None, **options):
        """Write the classifier for another runtime, with its preprocessing and names.

        Args:
            path, format: see `deploy.export`.
            **options: the other arguments of `deploy.export`. With `preprocessing=True`,
                the file takes images and gives probabilities; otherwise its metadata
                describe the preprocessing.
        """
        described = {
            "preparation": self.preparation,
            "class_names": self.class_names,
            "licence": self.metadata.get("licence"),
        }
        deploy.export(self.model, path, format, **described | options)

    def predict(self, images, batch_size=8):
        """Predict the probability of each class, see `gives_probabilities`.

        Args:
            images: a path or array, see `preprocess`, or a sequence of these, which may
                differ in size.
            batch_size: int. Number of images per batch.

        Returns:
            float64 array `(images, classes)`.

        Raises:
            ValueError: a file or array is not an image, or the model's output for an
                image is not finite.
        """
        images = _sequence(images)
        outputs = [np.zeros((0, self.classes))]
        for start in range(0, len(images), batch_size):
            x = np.stack(
                [self.preprocess(i) for i in images[start : start + batch_size]]
            )
            outputs.append(self.predict_prepared(x))
        outputs = np.concatenate(outputs)
        [wrong] = np.nonzero(~np.isfinite(outputs).all(axis=1))
        if len(wrong):
            raise ValueError(
                f"The model's output for image {wrong[0]} of {len(images)} is not finite. "
                "Its weights may have diverged: use an earlier checkpoint."
            )
        return outputs

    def predict_prepared(self, x):
        """Predict the probabilities of preprocessed images `(n, size, size, channels)`."""
        return self.probabilities(self.model.predict(x, verbose=0))

    def probabilities(self, outputs):
        """Convert outputs of the model to probabilities, float64."""
        return to_probabilities(outputs, self._activation)

    def predict_classes(self, images, top=3, batch_size=8):
        """Return the `top` most probable classes of each image, a list of `ClassScore`s.

        The other arguments are those of `predict`.
        """
        return [
            self.most_probable(row, top) for row in self.predict(images, batch_size)
        ]

    def most_probable(self, probabilities, top=3):
        """Return the `top` most probable classes, given one row of `predict`."""
        names = self.class_names
        return [
            ClassScore(
                int(i),
                names[i] if names else str(i),
                float(probabilities[i]),
                self.gives_probabilities,
            )
            for i in np.argsort(-probabilities, kind="stable")[:top]
        ]


class ClassScore(typing.NamedTuple):
    """Predicted class.

    Attributes:
        index: int. Index among the classes of the model.
        name: str. Name of the class; the index as text if the names are unknown.
        probability: float.
        is_probability: bool. False if `probability` is an output of which it is not known
            how to convert it, see `Classifier`.

    Example:

    >>> _, (images, labels) = data.load_digits()
    >>> [[best]] = load_classifier("digits").predict_classes(images[0], 1)
    >>> best.index, best.name, best.probability > 0.5
    (7, '7', True)
    """

    index: int
    name: str
    probability: float
    is_probability: bool = True

    @property
    def text(self):
        """The probability in percent, such as `"98%"`, or the output as a number."""
        value = self.probability
        return f"{value:.0%}" if self.is_probability else f"{value:.3g}"


class Prediction(typing.NamedTuple):
    """Predicted classes of an image file.

    Attributes:
        path: `pathlib.Path`.
        image: uint8 array `(height, width, 3)`, or None if it cannot be read.
        classes: list of `ClassScore`, the most probable first.
        error: str or None. Why there is no prediction.

    Example:

    >>> pathlib.Path("broken.png").touch()
    >>> [prediction] = predict("digits", ["broken.png"])
    >>> prediction.image is None, prediction.classes, "broken.png" in prediction.error
    (True, [], True)
    """

    path: pathlib.Path
    image: np.ndarray | None
    classes: list
    error: str | None


def predict(classifier, paths, top=3, batch_size=8, progress=iter):
    """Predict the classes of image files, also if some cannot be read.

    Args:
        classifier: a `Classifier`, or what `load_classifier` accepts.
        paths: sequence of paths of image files and of folders of them.
        top: int. Number of classes per image.
        batch_size: int. Number of images per batch.
        progress: callable that wraps the list of batches, such as `tqdm.tqdm`.

    Returns:
        Iterator of one `Prediction` per file.

    Raises:
        ValueError: a path does not exist, or a folder contains no images.

    Example:

    >>> from PIL import Image
    >>> Image.fromarray(data.load_digits()[1][0][0]).save("digit.png")
    >>> for prediction in predict("digits", ["digit.png"]):
    ...     print(prediction.path, prediction.classes[0].name)
    digit.png 7
    """
    files = data.find_pictures(paths)
    if not isinstance(classifier, Classifier):
        classifier = load_classifier(classifier)
    batches = [files[i : i + batch_size] for i in range(0, len(files), batch_size)]
    return (
        prediction
        for batch in progress(batches)
        for prediction in _predict_batch(classifier, batch, top)
    )


def _predict_batch(classifier, files, top):
    """Yield the `Prediction`s of some files, of as many at once as fit into the memory."""
    read, pixels = [], 0
    for file in files:
        try:
            image = data.read_picture(file)
            row = file, image, classifier.preprocess(image), None
        except ValueError as error:
            row = file, None, None, str(error)
        read.append(row)
        pixels += 0 if row[1] is None else row[1].size // 3
        if pixels > LARGE:
            yield from _predict_read(classifier, read, top)
            read, pixels = [], 0
    yield from _predict_read(classifier, read, top)


def _predict_read(classifier, read, top):
    """Yield the `Prediction`s of (file, image, preprocessed image, error)."""
    x = [x for _, _, x, error in read if error is None]
    rows = iter(classifier.predict_prepared(np.stack(x)) if x else ())
    for file, image, _, error in read:
        classes = []
        if error is None:
            row = next(rows)
            if np.isfinite(row).all():
                classes = classifier.most_probable(row, top)
            else:
                error = f"The model's output for {file} is not finite."
        yield Prediction(file, image, classes, error)


def _rgb(image):
    """Return an array as an RGB image, or raise a ValueError."""
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., np.newaxis]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(
            "An image must be a path or a uint8 array (height, width, 3), or (height, "
            f"width) if it is gray. Received: {image.dtype} of shape {image.shape}"
        )
    return np.broadcast_to(image, (*image.shape[:2], 3))


def _sequence(images):
    """Return a list of images or paths, given one or several."""
    is_one = isinstance(images, (str, os.PathLike)) or (
        isinstance(images, np.ndarray) and images.ndim < 4
    )
    return [images] if is_one else list(images)


def to_probabilities(outputs, activation):
    """Convert outputs, `(n, classes)`, to float64 probabilities.

    Args:
        outputs: array or tensor.
        activation: str or None. What `activation_of_outputs` returns. Only the outputs of
            a linear layer are changed.
    """
    outputs = np.asarray(outputs, "float64")
    if activation != "linear":
        return outputs
    exponentials = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def load_classifier(name):
    """Load a `Classifier` from a training run, a file or the published checkpoints.

    Args:
        name: str or path. One of

            - the folder of a training run, or a `.keras` file;
            - a weight file of a network of this package;
            - a checkpoint of `pretrained.list_checkpoints()`, or a network that has
              published weights, which are downloaded on first use. If the folder of a
              run has that name too, `"./NAME"` or a `pathlib.Path` is the folder.

    Returns:
        A `Classifier`.

    Raises:
        ValueError, OSError: there is no such classifier, or it cannot be loaded or
            downloaded.

    Example:

    >>> load_classifier("digits").class_names[:3]
    ('0', '1', '2')
    """
    paths = pathlib.Path(name), pathlib.Path(name, folder.MODEL)
    if isinstance(name, str) and paths[1].is_file() and _is_published(name):
        logging.warning(
            "'%s' is the published network. To use the run in the folder of that name, write "
            "./%s.",
            printable(name),
            printable(name),
        )
        paths = ()
    for path in paths:
        if pretrained.is_weight_file(path):
            try:
                return _from_file(path.expanduser())
            except ValueError as error:
                raise ValueError(
                    f"{printable(path)} cannot be used: {error}"
                ) from error
    checkpoint, name = _published(str(name))
    model = pretrained.create(name, classes=checkpoint.classes)
    return _of_checkpoint(model, checkpoint)


def _is_published(name):
    try:
        _published(name)
    except ValueError:
        return False
    return True


def _published(name):
    """Return the checkpoint of a name, or the most accurate one of a network, and a name.

    A checkpoint has several names; the one that is given may say where to load it from.
    """
    checkpoint = pretrained.find_checkpoint(name)
    if checkpoint is not None:
        return checkpoint, name
    try:
        network = pretrained.find_network(name)
    except ValueError as error:
        names = [n for c in pretrained.list_checkpoints() for n in c.names]
        suggestion = checks.perhaps(name, [*names, *architectures.NETWORKS]) or "."
        raise ValueError(
            f"{name!r} is neither a weight file, nor the folder of a run with its "
            "model, nor a checkpoint or network of 'keras-nfnets list --weights'"
            f"{suggestion}"
        ) from error
    published = pretrained.published(network.architecture)
    if not published:
        raise ValueError(
            f"There are no published weights of {name!r}. 'keras-nfnets list "
            "--weights' lists all that there are."
        )
    best = published[0]
    return best, best.name


def _from_file(path):
    is_model = path.suffix.lower() == ".keras"
    model = load_model(path) if is_model else None
    metadata = load_metadata(path) if is_model else None
    if metadata is not None:
        try:
            metadata = checked(metadata)
        except ValueError as error:
            raise ValueError(
                f"{path.with_suffix('.json')} is not metadata of a training run: {error}"
            ) from error
        names, preparation = metadata["class_names"], metadata["preparation"]
        return Classifier(model, preparation, names, metadata)
    try:
        found = pretrained.recognize(path)
    except ValueError:
        if not is_model:
            raise
        return Classifier(model, _preparation_for(model))
    if not is_model:
        model = found.network.build(weights=path, **found.options)
    for checkpoint in pretrained.published(found.network.architecture):
        if checkpoint.classes == found.options.get("classes"):
            logging.warning(
                "%s has the shape of the checkpoint %s, so that checkpoint's preprocessing "
                "and class names are used.",
                printable(path),
                checkpoint.name,
            )
            channels = _preparation_for(model)["channels"]
            return _of_checkpoint(model, checkpoint, channels=channels)
    return Classifier(model, _preparation_for(model))


def _of_checkpoint(model, checkpoint, **changes):
    preparation = {**checkpoint.preparation, **changes}
    names, metadata = checkpoint.class_names, {"licence": checkpoint.licence}
    if names is None:
        # The names are not unique: there are two cranes.
        names, metadata["classes_of"] = _imagenet_names(), "imagenet2012"
    return Classifier(model, preparation, names, metadata)


def _preparation_for(model):
    """Return the preprocessing of ImageNet's images, for the input shape of a model."""
    shape = model.input_shape
    if not (isinstance(shape, tuple) and len(shape) == 4 and shape[3] in (1, 3)):
        raise ValueError(
            "A classifier must have one input: images, gray or RGB, channels last. "
            f"Received: a model with inputs of shape {shape}"
        )
    return {**TIMM, "size": shape[1] or TIMM["size"], "channels": shape[3]}


def _imagenet_names():
    try:
        # Keras reports the download of the names on the standard output.
        with contextlib.redirect_stdout(sys.stderr):
            return [best[0][1] for best in decode_predictions(np.eye(1000), top=1)]
    # A download can fail with exceptions of many types.
    except Exception as error:  # noqa: BLE001
        logging.warning(
            "Classes are numbered, as their names are missing: %s",
            printable(without_secrets(error)),
        )
        return None
