"""`Shades`, a small data set of TensorFlow Datasets. Importing it registers it."""

import numpy as np
import tensorflow_datasets as tfds


def picture(i):
    """Return the i-th image of both splits, uint8 `(30, 30, 1)`."""
    noise = np.random.default_rng(i).integers(50, size=(30, 30, 1))
    return (200 * (i % 2) + noise).astype("uint8")


class Shades(tfds.core.GeneratorBasedBuilder):
    """Data set of grey noise, dark or light."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(30, 30, 1)),
            "label": tfds.features.ClassLabel(names=["dark", "light"]),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, download_manager):
        return {split: self._generate_examples() for split in ("train", "test")}

    def _generate_examples(self):
        for i in range(40):
            yield i, {"image": picture(i), "label": i % 2}
