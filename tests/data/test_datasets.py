import numpy as np
import pytest
import tensorflow_datasets as tfds

from keras_nfnets import data


def arrays(dataset):
    return [np.concatenate(part) for part in zip(*dataset.as_numpy_iterator())]


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", image_size=16, batch_size=50)


def test_digits_are_all_there_and_held_out_evenly(digits):
    x, y = arrays(digits.train)
    x_test, y_test = arrays(digits.test)
    assert len(x) + len(x_test) == 1797
    assert x.shape[1:] == (16, 16, 1) and y.shape[1:] == (10,)
    assert digits.class_names == list("0123456789")
    held_out = y_test.sum(axis=0)
    np.testing.assert_allclose(held_out / (y.sum(axis=0) + held_out), 0.2, atol=0.01)


def test_pictures_have_mean_zero_and_variance_one(digits):
    x, _ = arrays(digits.test)
    np.testing.assert_allclose(x.mean(axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(x.var(axis=(1, 2, 3)), 1, rtol=1e-4)


def test_no_held_out_picture_is_trained_on(digits):
    train = {picture.tobytes() for picture in arrays(digits.train)[0]}
    assert not any(picture.tobytes() in train for picture in arrays(digits.test)[0])


def test_order_follows_the_seed_and_changes_every_epoch():
    def epochs(seed):
        train = data.load("digits", 8, 1797, seed=seed).train
        return [arrays(train)[1].argmax(axis=1).tolist() for _ in range(2)]

    first, second = epochs(3)
    assert epochs(3) == [first, second]
    assert first != second
    assert epochs(4)[0] != first


def test_an_epoch_is_the_same_whether_one_begins_with_it_or_not():
    def epochs(first, seed=3):
        pictures = data.load("digits", 8, 1000, seed=seed)
        batches = pictures.epochs_from(first).take(4).as_numpy_iterator()
        labels = [y.argmax(axis=1).tolist() for _, y in batches]
        assert [len(batch) for batch in labels] == [1000, pictures.examples - 1000] * 2
        return labels[0] + labels[1], labels[2] + labels[3]

    (zero, one), (again, two) = epochs(0), epochs(1)
    assert one == again
    assert zero != one and one != two
    assert sorted(zero) == sorted(one)
    assert epochs(0, seed=4)[0] not in (zero, one, two)
    # The largest seed, and one that TensorFlow takes for zero.
    assert epochs(0, seed=2**32 - 1)[0] != epochs(0, seed=2**31 - 2)[0]


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """A real data set, written and read by TFDS, of pictures made here."""

    VERSION = tfds.core.Version("1.0.0")
    PARTS = ("train", "validation")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=["dark", "light"]),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, download_manager):
        return {part: self._generate_examples() for part in self.PARTS}

    def _generate_examples(self):
        for i in range(30):
            image = np.full((10 + i, 40 - i, 3), 200 * (i % 2), "uint8")
            image[0] = 255 - image[0]
            yield i, {"image": image, "label": i % 2}


class TrainOnly(TinyPictures):
    VERSION = tfds.core.Version("1.0.0")
    PARTS = ("train",)


@pytest.fixture
def tfds_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))


def test_a_set_of_tfds_is_read(tfds_folder):
    pictures = data.load("tiny_pictures", image_size=20, batch_size=8)
    x, y = arrays(pictures.test)
    assert x.shape == (30, 20, 20, 3) and y.shape == (30, 2)
    assert len(arrays(pictures.train)[0]) == 30
    assert pictures.channels == 3 and pictures.class_names == ["dark", "light"]
    light = y.argmax(axis=1) == 1
    assert (x[light][:, 10, 10] > 0).all() and (x[~light][:, 10, 10] < 0).all()


def test_what_cannot_be_trained_on_is_refused(tfds_folder):
    with pytest.raises(
        ValueError, match="Received: 'digit'; perhaps one of .*'digits'"
    ):
        data.load("digit", 8, 8)
    with pytest.raises(
        ValueError, match="images with labels. Received: 'imdb_reviews'"
    ):
        data.load("imdb_reviews", 8, 8)
    with pytest.raises(ValueError, match="'train_only' with parts .'train'."):
        data.load("train_only", 8, 8)
