"""Sources of labeled images: digits, folders, TensorFlow Datasets and arrays."""

import collections
import collections.abc
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import typing
import unicodedata

import numpy as np
from absl import logging

from keras_nfnets import checks
from keras_nfnets.data.folders import labeled_images, sample
from keras_nfnets.data.image_files import warn_once
from keras_nfnets.data.images import read_picture
from keras_nfnets.data.preparation import ARRAYS, AUTHORS, DIGITS, FOLDER, WHOLE
from keras_nfnets.printing import printable

# Fraction of test images among the digits.
_TEST_FRACTION = 0.2

# More classes would need gigabytes for each batch of labels. (ImageNet-21k has 21,841.)
_MOST_CLASSES = 100_000

# Size of the shuffle buffer for encoded images of TFDS: a gigabyte of ImageNet.
_SHUFFLE_BUFFER = 10_000

# Size in pixels below which images (CIFAR, MNIST) have no margin to crop.
_SMALL = 96


class Source:
    """Labeled images that are not decoded yet, as `find` returns them.

    Attributes:
        name: str. Name of the data set.
        class_names: list of str.
        channels: int. 3, or 1 for grayscale.
        splits: dict `{name: number of images}` of its splits.
        preparation: dict. Default preprocessing of its images, see `load`.
        augmentation: str. Default augmentation of its training images, see `load`.
        left_out: dict `{name of an image: reason}` of the images left out so far.
        notes: list of str. What was skipped or is unusual in a folder, which `find` also
            logs as warnings.
        complaint: str or None. Error message once too many images are left out.
        reads_files: bool. Whether the images of `records` are paths.
        needs_download: bool. Whether the images have to be downloaded first, as those of
            TensorFlow Datasets with `find(download=False)`.

    Raises:
        ValueError: a split does not exist, or more than half of its images had to be
            left out.

    Example:

    >>> source = find((np.zeros((4, 8, 8, 3), "uint8"), [0, 1, 1, 1]))
    >>> source.splits, source.counts("train")
    ({'train': 4}, [1, 3])
    """

    preparation: typing.ClassVar = AUTHORS
    augmentation = "crop flip"
    reads_files = False
    needs_download = False

    def __init__(self, name, class_names, channels, splits):
        self.name = name
        self.class_names = class_names
        self.channels = channels
        self.splits = splits
        self.left_out = {}
        self.notes = []
        self._left_out_of = collections.Counter()
        self.complaint = None

    def records(self, split, shuffle=None):
        """Return the images of a split.

        Args:
            split: str. Name of the split.
            shuffle: callable or None. `shuffle(dataset, buffer_size)` returns a shuffled
                dataset. It is applied to the smallest elements available, such as
                indices. `buffer_size` is the number of elements that may be in memory
                at once.

        Returns:
            A `tf.data.Dataset` of (name, image, label): a string; the path of a file,
            the content of a file or a uint8 tensor `(height, width, channels)`; an
            int64.
        """
        raise NotImplementedError

    def read(self, name, image):
        """Read the image of a record as `read_picture` does.

        The orientation in the content of an image is ignored, as by TensorFlow Datasets
        and the authors; that in a file is applied.

        Args:
            name, image: str, and bytes or str. The beginning of a record, whose image is
                a path or encoded.

        Raises:
            ValueError: the file is not an image, or is incomplete.
        """
        if self.reads_files:
            return read_picture(name)
        return read_picture(image, upright=False)

    def size_of(self, split):
        """Return the number of images in a split.

        Raises:
            ValueError: the split does not exist.
        """
        checks.one_of("split", split, tuple(self.splits))
        return self.splits[split]

    def counts(self, split):
        """Count the images of each class in a split; return a list of int."""
        counts = np.zeros(len(self.class_names), int)
        for label in self.records(split).map(lambda *r: r[2]).as_numpy_iterator():
            if 0 <= label < len(counts):
                counts[label] += 1
        return counts.tolist()

    def digest(self):
        """Compute a digest of the class names, the splits and their images.

        It changes when images, labels or splits change, and is the same in every process
        and wherever a folder is. No image is decoded:

        - a folder is identified by the relative paths and the sizes of its files, and
          files of the same size by 16 kB from their middle,
        - arrays by their content,
        - a data set of TensorFlow Datasets by its name and version, and, once it has been
          downloaded, by the sizes of its splits.

        A custom subclass that does not override this is identified by its name.

        Returns:
            str of 64 hexadecimal digits.

        Example:

        >>> x, y = np.zeros((4, 8, 8, 3), "uint8"), np.array([0, 1, 1, 1])
        >>> digest = find((x, y)).digest()
        >>> find((x, y)).digest() == digest, find((x, 1 - y)).digest() == digest
        (True, False)
        """
        digest = hashlib.sha256()
        head = [self.class_names, self.channels, sorted(self.splits.items())]
        for value in [head, *self._images_for_digest()]:
            # (JSON, as the end of each value is then certain.)
            digest.update(json.dumps(value).encode())
        return digest.hexdigest()

    def _images_for_digest(self):
        """Yield values for JSON that identify the images with their splits and labels."""
        yield self.name

    def leave_out(self, name, reason, split):
        """Record that an image of a split is left out, and warn the first time.

        Raises:
            ValueError: more than half of the split is left out.
        """
        if name in self.left_out:
            return
        reason, shown = printable(reason), printable(name)
        self.left_out[name] = reason
        self._left_out_of[split] += 1
        logging.warning("Image left out: %s: %s", shown, reason)
        if self._left_out_of[split] > self.size_of(split) / 2:
            self.complaint = (
                f"More than half of the images of {self.name}, split {split!r}, could not "
                f"be used, such as {shown}: {reason}. Repair or remove them."
            )
            raise ValueError(self.complaint)


def find(name, download=True, divide=True):
    """Find a data set of labeled images.

    Args:
        name: one of

            - `"digits"`, the 1,797 handwritten digits of scikit-learn, with splits
              `"train"` and `"test"`. The test set is always the same fifth of each
              class.
            - a folder with one subfolder per class. If it has folders such as `train`,
              `validation` and `test` (`training_set`, `Val`, `dev`, ...) that contain
              the class folders, these are its splits. Otherwise about a fifth of all
              images is `"test"`, and the others are `"train"`. The file names alone
              decide, so adding files does not move others to another split; both splits
              get at least one image of each class with two or more. Images in subfolders of a class folder
              belong to the class. Hidden files, and thumbnails and other files that
              systems add, are skipped. Linked files and folders are followed.
            - a classification data set of TensorFlow Datasets, such as
              `"imagenet2012"`, which is downloaded on first use. Its splits may be
              sliced: `"train[:90%]"`.
            - `(x, y)`, uint8 images `(n, height, width, 1 or 3)` and integer labels
              `(n,)`, which are `"train"`; or a dict `{split: (x, y)}`.
            - a `Source`, which is returned.
        download: bool. Whether to download a data set of TensorFlow Datasets. If False,
            everything but its images is available.
        divide: bool. Whether to divide a folder that has no splits. If False, all of its
            images are split `"all"`, and one class suffices.

    Returns:
        A `Source`.

    Raises:
        ValueError: the data set does not exist, or has no labeled images.

    Example:

    >>> source = find("digits")
    >>> source.splits, source.class_names[:3]
    ({'train': 1437, 'test': 360}, ['0', '1', '2'])
    """
    if isinstance(name, Source):
        return name
    if isinstance(name, (tuple, list)) and len(name) == 2:
        return _Arrays("arrays", {"train": name})
    if isinstance(name, collections.abc.Mapping) and name:
        return _Arrays("arrays", dict(name))
    if not isinstance(name, (str, os.PathLike)):
        raise ValueError(
            "A data set must be 'digits', a folder, a data set of TensorFlow Datasets or "
            f"arrays (x, y). Received: {type(name).__name__}"
        )
    if name == "digits":
        return _Digits()
    folder = folder_of(name)
    if folder is not None:
        source = _Folder(folder, divide)
        if (
            str(name).isidentifier()
            and importlib.util.find_spec("tensorflow_datasets")
            and name in _names_in_tfds()
        ):
            source.notes.append(
                f"This folder is used, not the data set {name!r} of TensorFlow Datasets, "
                f"which has the same name. Write ./{name} to use the folder without this "
                "note."
            )
        for note in source.notes:
            warn_once(f"{printable(folder)}: {note}")
        return source
    path = pathlib.Path(name).expanduser()
    if path.is_file():
        raise ValueError(
            f"{str(name)!r} is a file. Give a folder with one subfolder of images per "
            f"class. Received: {str(name)!r}"
        )
    if isinstance(name, os.PathLike) or path.is_absolute() or name.startswith("."):
        raise ValueError(
            f"There is no folder {str(name)!r}. Give a folder with one subfolder of images "
            f"per class. Received: {str(name)!r}"
        )
    return _Tfds(name, download)


def folder_of(name):
    """Return the folder that a name given to `find` refers to.

    Args:
        name: str or path.

    Returns:
        A `pathlib.Path`, or None if the name refers to no folder.

    Example:

    >>> folder_of("digits") is None, folder_of(".")
    (True, PosixPath('.'))
    """
    path = pathlib.Path(name).expanduser()
    # (An empty string would mean the working directory.)
    return path if name not in ("", "digits") and path.is_dir() else None


def load_digits():
    """Load the handwritten digits of scikit-learn as images.

    Returns:
        `(x_train, y_train), (x_test, y_test)`: uint8 images `(n, 8, 8, 3)`, light on
        dark, and int labels `(n,)`. The test set is always the same fifth of each
        class.

    Example:

    >>> (x, y), (x_test, y_test) = load_digits()
    >>> x.shape, x_test.shape
    ((1437, 8, 8, 3), (360, 8, 8, 3))
    """
    checks.installed("The data set 'digits'", "sklearn")
    from sklearn.model_selection import train_test_split

    images, labels = raw_digits()
    images = np.uint8(np.rint(images[..., np.newaxis] * 255 / 16)).repeat(3, -1)
    x, x_test, y, y_test = train_test_split(
        images, labels, test_size=_TEST_FRACTION, stratify=labels, random_state=0
    )
    return (x, y), (x_test, y_test)


def raw_digits():
    """Return the handwritten digits of scikit-learn in their original order.

    Returns:
        Images, float64 `(1797, 8, 8)` with 17 gray levels from 0 to 16, and int labels
        `(1797,)`.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target


def random_pictures(name, size, class_names, channels, count):
    """Create a data set of noise for trial runs.

    Args:
        name: str. Name of the data set.
        size: int. Side length of the images, in pixels.
        class_names: list of str. Labels are drawn at random.
        channels: int. 3, or 1 for grayscale.
        count: int. Number of images.

    Returns:
        A `Source` with one split, `"train"`, of uint8 images.

    Example:

    >>> random_pictures("noise", 32, ["a", "b"], 3, count=8).splits
    {'train': 8}
    """
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (count, size, size, channels)).astype("uint8")
    y = generator.integers(0, len(class_names), count)
    return _Arrays(name, {"train": (x, y)}, class_names)


class _Arrays(Source):
    preparation: typing.ClassVar = ARRAYS

    def __init__(self, name, arrays, class_names=None):
        for split, xy in arrays.items():
            if not isinstance(xy, (tuple, list)) or len(xy) != 2:
                raise ValueError(
                    f"Split {split!r} must be images and labels, (x, y). "
                    f"Received: {type(xy).__name__}"
                )
        self._arrays = {
            split: _checked_arrays(split, *xy) for split, xy in arrays.items()
        }
        channels = {x.shape[-1] for x, _ in self._arrays.values()}
        if len(channels) != 1:
            raise ValueError(
                "All splits must have images with the same number of channels. "
                f"Received: {channels}"
            )
        if class_names is None:
            classes = 1 + max(int(y.max()) for _, y in self._arrays.values())
            class_names = [str(label) for label in range(classes)]
        super().__init__(
            name,
            class_names,
            channels.pop(),
            {split: len(y) for split, (_, y) in self._arrays.items()},
        )

    def records(self, split, shuffle=None):
        import tensorflow as tf

        x, y = _tensors(*self._arrays[split])

        def record(i):
            return _name_of(i, split), x[i], tf.cast(y[i], "int64")

        return _indices(self.splits[split], shuffle).map(record)

    def _images_for_digest(self):
        for split, (x, y) in sorted(self._arrays.items()):
            content = hashlib.sha256(np.ascontiguousarray(x)).hexdigest()
            yield [split, x.shape, content, y.tolist()]


def _name_of(i, split):
    """Name the i-th image of a split, for images that have no name."""
    import tensorflow as tf

    return tf.strings.join(["image ", tf.strings.as_string(i), f" of {split}"])


def _indices(count, shuffle):
    """Return the indices of the records, shuffled if `shuffle` is given."""
    import tensorflow as tf

    indices = tf.data.Dataset.range(count)
    return shuffle(indices, count) if shuffle else indices


def _tensors(*arrays):
    """Create tensors outside of any graph; constants of a graph are below 2 GB."""
    import tensorflow as tf

    with tf.init_scope(), tf.device("CPU"):
        return [tf.constant(array) for array in arrays]


class _Digits(_Arrays):
    augmentation = "none"
    preparation: typing.ClassVar = DIGITS

    def __init__(self):
        (x, y), (x_test, y_test) = load_digits()
        arrays = {"train": (x[..., :1], y), "test": (x_test[..., :1], y_test)}
        super().__init__("digits", arrays)


def _checked_arrays(split, x, y):
    x, y = np.asarray(x), np.asarray(y)
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[-1] not in (1, 3) or not len(x):
        raise ValueError(
            f"Images of split {split!r} must be uint8 (n, height, width, 1 or 3). "
            f"Received: {x.dtype} {x.shape}"
        )
    y = y[:, 0] if y.shape == (len(x), 1) else y
    if y.shape != (len(x),) or y.dtype.kind not in "iu":
        raise ValueError(
            f"Labels of split {split!r} must be {len(x)} integers, one per image. "
            f"Received: {y.dtype} {y.shape}"
        )
    if y.min() < 0:
        raise ValueError(
            f"Labels must not be negative. Received: {y.min()}, the label of image "
            f"{y.argmin()} of split {split!r}"
        )
    if y.max() >= _MOST_CLASSES:
        raise ValueError(
            f"Labels must be class indices less than {_MOST_CLASSES:,}. "
            "`np.unique(y, return_inverse=True)[1]` numbers the values of y from 0. "
            f"Received: {y.max()}, the label of image {y.argmax()} of split {split!r}"
        )
    return x, y


class _Folder(Source):
    preparation: typing.ClassVar = FOLDER
    reads_files = True

    def __init__(self, folder, divide):
        class_names, self._files, notes = labeled_images(folder, divide)
        splits = {split: len(files) for split, files in self._files.items()}
        super().__init__(str(folder), class_names, 3, splits)
        self.notes = notes

    def files(self, split):
        """Return a list of (path, label), in the order of `records`."""
        return self._files[split]

    def records(self, split, shuffle=None):
        paths, labels = zip(*self._files[split])
        # (File names may contain bytes that are not valid text.)
        paths, labels = _tensors(
            [os.fsencode(path) for path in paths], np.array(labels, "int64")
        )
        indices = _indices(self.splits[split], shuffle)
        return indices.map(lambda i: (paths[i], paths[i], labels[i]))

    def _images_for_digest(self):
        sizes = {
            path: _size_of_file(path)
            for files in self._files.values()
            for path, _ in files
        }
        number_of = collections.Counter(sizes.values())
        for split, files in sorted(self._files.items()):
            images = []
            for path, label in files:
                name = pathlib.Path(path).relative_to(self.name).as_posix()
                # (A copy on another system may have names of another Unicode form.)
                name = unicodedata.normalize("NFC", name)
                # Files of the same size, as of some formats all are, may be exchanged.
                is_common = number_of[sizes[path]] > 1
                content = _digest_of_sample(path) if is_common else None
                images.append([name, label, sizes[path], content])
            yield [split, *sorted(images, key=lambda image: image[0])]


def _digest_of_sample(path):
    try:
        return hashlib.sha256(sample(path)).hexdigest()
    except OSError:  # it is left out when it is read
        return None


def _size_of_file(path):
    try:
        return os.stat(path).st_size
    except OSError:  # it was there when the folder was listed
        return -1


# Data sets whose sizes TFDS does not know before they are prepared.
_KNOWN_SPLITS = {"imagenet2012": {"train": 1_281_167, "validation": 50_000}}


def _names_in_tfds():
    checks.installed("A data set of TensorFlow Datasets", "tensorflow_datasets")
    import tensorflow_datasets as tfds

    return tfds.list_builders(with_community_datasets=False)


class _Tfds(Source):
    def __init__(self, name, download):
        known = _names_in_tfds()
        import tensorflow_datasets as tfds

        # Checked here, as TFDS would search the network for an unknown name.
        if re.split("[/:]", name)[0] not in known:
            raise ValueError(
                "A data set must be 'digits', a folder or one of TensorFlow Datasets. "
                f"Received: {name!r}, where there is no folder"
                f"{checks.perhaps(name, ['digits', *known])}"
            )
        try:
            self._builder = builder = tfds.builder(name)
        except Exception as error:  # its type depends on what is wrong with the name
            raise ValueError(
                f"TensorFlow Datasets has no data set {name!r}. "
                f"Received: {name!r}: {(str(error) or repr(error)).splitlines()[0]}"
            ) from error
        features = builder.info.features
        _check_features(name, features)
        if download:
            _prepare(builder, name)
        self.needs_download = not builder.data_path.exists()
        height, width, channels = features["image"].shape
        super().__init__(
            name,
            list(features["label"].names),
            1 if channels == 1 else 3,
            {split: info.num_examples for split, info in builder.info.splits.items()}
            or _KNOWN_SPLITS.get(builder.name, {}),
        )
        self._sizes = dict(self.splits)
        if max(height or _SMALL, width or _SMALL) < _SMALL:
            self.preparation = dict(WHOLE)
            # Flipped digits would not be digits.
            self.augmentation = "none" if channels == 1 else "crop_0.35 flip"

    def size_of(self, split):
        # Cached, as it is also called within graphs, where nothing can be counted.
        if split not in self._sizes:
            self._sizes[split] = self._count(split)
        return self._sizes[split]

    def _count(self, split):
        try:
            if self._builder.info.splits:
                return self._builder.info.splits[split].num_examples
            # (No split information, as with TFDS's mock data.)
            return int(self._as_dataset(split).cardinality())
        except (KeyError, ValueError, AssertionError) as error:
            raise ValueError(
                f"{self.name!r} has no split {split!r}. Its splits are "
                f"{list(self.splits)}, and slices of these such as 'train[:90%]'. "
                f"Received: {split!r}"
            ) from error

    def _as_dataset(self, split):
        import tensorflow_datasets as tfds

        return self._builder.as_dataset(
            split=split,
            decoders={"image": tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(try_autocache=False, add_tfds_id=True),
        )

    def records(self, split, shuffle=None):
        import tensorflow as tf

        def record(i, example):
            name = example.get("tfds_id", _name_of(i, split))
            return name, example["image"], tf.cast(example["label"], "int64")

        records = self._as_dataset(split).enumerate().map(record)
        size = min(self.size_of(split), _SHUFFLE_BUFFER)
        return shuffle(records, size) if shuffle else records

    def _images_for_digest(self):
        yield self._builder.info.full_name


def _check_features(name, features):
    """Check that a data set of TFDS has images with one class each."""
    from tensorflow_datasets import features as kinds

    known = dict(features) if isinstance(features, kinds.FeaturesDict) else {}
    image, label = known.get("image"), known.get("label")
    if (
        isinstance(image, kinds.Image)
        and np.issubdtype(image.np_dtype, np.unsignedinteger)
        and isinstance(label, kinds.ClassLabel)
        and label.num_classes
    ):
        return
    listed = [f"{key!r} ({_kind(feature)})" for key, feature in known.items()]
    raise ValueError(
        "A data set of TensorFlow Datasets must have images with labels: a feature 'image' "
        "(Image of integers) and a feature 'label' (ClassLabel), one class per image. "
        "For another one, give arrays (x, y) or write its images to a folder. "
        f"Received: {name!r} with features {', '.join(listed) or _kind(features)}"
    )


def _kind(feature):
    """Name the type of a feature of TFDS, with what makes it unusable if that is more."""
    from tensorflow_datasets import features as kinds

    kind = type(feature).__name__
    if isinstance(feature, kinds.Image):
        return f"{kind} of {np.dtype(feature.np_dtype).name}"
    if isinstance(feature, kinds.ClassLabel) and not feature.num_classes:
        return f"{kind} without classes"
    if isinstance(feature, kinds.Sequence):
        return f"{kind} of {_kind(feature.feature)}"
    return kind


def _prepare(builder, name):
    """Download a data set if it is not there yet."""
    try:
        builder.download_and_prepare()
    except Exception as error:  # network, server, archive, disk, ...
        raise ValueError(
            "TensorFlow Datasets cannot download or prepare the data set. "
            f"Received: {name!r}: {error}"
        ) from error
