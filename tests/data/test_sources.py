import contextlib
import os
import pathlib
import shutil
import typing
import unicodedata

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from keras_nfnets import data


def arrays(dataset):
    return [np.concatenate(part) for part in zip(*dataset.as_numpy_iterator())]


def test_digits_are_complete_and_the_test_set_is_stratified():
    source = data.find("digits")
    x, y = arrays(
        data.load(source, "train", image_size=16, batch_size=50, training=True)
    )
    x_test, y_test = arrays(data.load(source, "test", image_size=16, batch_size=50))
    assert len(x) + len(x_test) == 1797
    assert source.splits == {"train": len(x), "test": len(x_test)}
    assert x.shape[1:] == (16, 16, 1) and y.shape[1:] == (10,)
    assert source.class_names == list("0123456789")
    held_out = y_test.sum(axis=0)
    np.testing.assert_allclose(held_out / (y.sum(axis=0) + held_out), 0.2, atol=0.01)
    np.testing.assert_allclose(x_test.mean(axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(x_test.var(axis=(1, 2, 3)), 1, rtol=1e-4)
    train = {image.tobytes() for image in x}
    assert not any(image.tobytes() in train for image in x_test)


# Custom folders.


def save(path, value=0, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 255 - value, 90)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Folder of two classes with 20 and 10 images, some of them in subfolders."""
    root = tmp_path / "a folder"
    for i in range(20):
        save(root / "cats" / f"{i}.png", i)
    for i in range(10):
        save(root / "dogs" / ("old" if i % 2 else "new") / f"{i}.jpg", 100 + i)
    (root / "dogs" / "notes.txt").write_text("no image")
    (root / "cats" / "._1.png").write_bytes(b"of another system")
    (root / ".hidden").mkdir()
    return root


def files_of(source, split):
    return {os.path.relpath(path, source.name) for path, _ in source.files(split)}


def test_a_folder_is_split_by_file_names_alone(folder, tmp_path):
    source = data.find(folder)
    assert source.class_names == ["cats", "dogs"]
    train, test = files_of(source, "train"), files_of(source, "test")
    assert not train & test and len(train | test) == 30
    together = np.array(source.counts("train")) + source.counts("test")
    assert together.tolist() == [20, 10]
    assert min(source.counts("test") + source.counts("train")) > 0
    # The split does not depend on location, times or order of writing.
    other = tmp_path / "elsewhere"
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.suffix in (".png", ".jpg"):
            copy = other / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    # (`Path.rglob` has also copied the hidden file.)
    (other / "cats" / "._1.png").unlink()
    assert files_of(data.find(str(other)), "test") == test
    # New images do not move existing ones to another split.
    for i in range(20, 60):
        save(folder / "cats" / f"{i}.png", i)
    more = data.find(folder)
    assert test <= files_of(more, "test") and train <= files_of(more, "train")
    save(folder / "cats" / ".thumbnails" / "1.png")
    assert data.find(folder).splits == more.splits


def test_the_test_split_is_about_a_fifth_and_has_every_class(tmp_path):
    for name, count in (("many", 400), ("two", 2)):
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"{i}.png").touch()
    source = data.find(tmp_path)
    assert source.counts("test")[1] == source.counts("train")[1] == 1
    assert 50 < source.counts("test")[0] < 110


@pytest.mark.parametrize("name", ["test", "Val", "validation", "valid"])
def test_a_folder_with_its_own_splits(folder, name):
    (folder.parent / "divided").mkdir()
    folder.rename(folder.parent / "divided" / "Train")
    root = folder.parent / "divided"
    # Without a folder for another split, the images are split automatically.
    assert list(data.find(root).splits) == ["train", "test"]
    part = "test" if name == "test" else "validation"
    for i in range(3):
        save(root / name / "dogs" / f"{i}.png")
    source = data.find(root)
    assert source.splits == {"train": 30, part: 3}
    assert source.counts(part) == [0, 3]
    (root / name / "birds").mkdir()
    save(root / name / "birds" / "1.png")
    with pytest.raises(
        ValueError, match="classes that .*does not have. .*Received: birds"
    ):
        data.find(root)


def test_file_names_need_not_be_valid_text(tmp_path):
    for name in (b"caf\xe9", b"b"):
        folder = os.path.join(os.fsencode(tmp_path), name)
        os.mkdir(folder)
        for i in range(3):
            Image.new("RGB", (9, 9)).save(tmp_path / "picture.png")
            os.rename(tmp_path / "picture.png", os.path.join(folder, b"%d\xff.png" % i))
    with open(os.path.join(folder, b"broken\xff.png"), "wb") as file:
        file.write(b"no image")
    source = data.find(tmp_path)
    count = 0
    for split in source.splits:
        count += len(arrays(data.load(source, split, 8, 4))[0])
    assert count == 6 and len(source.left_out) == 1


def test_folders_without_usable_images_are_errors(folder, tmp_path):
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="class folder has no images .*empty"):
        data.find(folder)
    (folder / "empty").rmdir()
    shutil.rmtree(folder / "dogs")
    with pytest.raises(ValueError, match="two or more classes. Received: cats"):
        data.find(folder)
    with pytest.raises(ValueError, match="There is no folder .*nowhere"):
        data.find(tmp_path / "nowhere")
    lonely = tmp_path / "lonely"
    for name in "ab":
        save(lonely / name / "1.png")
    with pytest.raises(
        ValueError, match="too few images .* no images for split 'test'"
    ):
        data.find(lonely)


def test_the_digest_of_a_folder_depends_on_its_images_alone(folder, tmp_path):
    digest = data.find(folder).digest()
    # It is the same wherever the folder is, in whatever order its files were written.
    other = tmp_path / "elsewhere"
    for path in sorted(folder.rglob("*.[pj][np]g"), reverse=True):
        (other / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, other / path.relative_to(folder))
    (other / "cats" / "._1.png").unlink()
    assert data.find(str(other)).digest() == digest
    # Some systems change the Unicode form of names.
    for form, parent in (("NFC", folder), ("NFD", other)):
        save(parent / "cats" / f"{unicodedata.normalize(form, 'é')}.png")
    digest = data.find(folder).digest()
    assert data.find(other).digest() == digest
    with contextlib.chdir(tmp_path):
        assert data.find("elsewhere").digest() == digest
    # Another size, name, class, split or number of images gives another one.
    seen = {digest}

    def changes():
        image, renamed = other / "cats" / "3.png", other / "cats" / "c.png"
        yield lambda: image.write_bytes(image.read_bytes() + b"0")
        yield lambda: image.rename(renamed)
        yield lambda: renamed.rename(other / "dogs" / "c.png")
        yield lambda: (other / "dogs" / "c.png").unlink()
        yield lambda: (other / "dogs").rename(other / "wolves")
        yield lambda: other.rename(tmp_path / "train")

    for change in changes():
        change()
        seen.add(data.find(other if other.exists() else tmp_path / "train").digest())
    assert len(seen) == 6
    # A file that has been removed meanwhile is no error.
    source = data.find(folder)
    (folder / "cats" / "1.png").unlink()
    assert source.digest() not in seen


def test_the_digest_is_the_same_in_every_process():
    x = np.arange(4 * 5 * 6 * 3).reshape(4, 5, 6, 3).astype("uint8")
    y = np.array([0, 1, 2, 1])
    digest = "db2dd8373f8eb64571c2a2817d027a48334d4876ac5516229d24e710b6ecbed6"
    assert data.find((x, y)).digest() == digest
    assert data.find((np.asfortranarray(x), y.astype("uint8"))).digest() == digest
    others = [
        (x[::-1], y),
        (x, y[::-1]),
        (x.reshape(4, 6, 5, 3), y),
        {"test": (x, y)},
        {"train": (x, y), "test": (x, y)},
    ]
    assert len({digest, *(data.find(other).digest() for other in others)}) == 6


# Arrays.


def test_arrays_are_a_source():
    x = np.random.default_rng(0).integers(0, 256, (7, 6, 8, 3)).astype("uint8")
    y = np.array([[0], [1], [2], [0], [1], [2], [3]])  # as in Keras data sets
    full = {"crop_mode": "whole", "interpolation": "bicubic"}
    plain = {**full, "mean": (0.0,) * 3, "deviation": (1 / 255,) * 3}
    source = data.find({"train": (x, y), "validation": (x[:2], y[:2])})
    assert source.splits == {"train": 7, "validation": 2}
    images, labels = arrays(data.load(source, "train", 8, 3, preparation=plain))
    assert labels.argmax(axis=1).tolist() == y[:, 0].tolist()
    np.testing.assert_allclose(images[:, 3:5].mean(), x[:, 2:4].mean(), atol=5)
    same = data.load((x[:, :, :6], y[:, 0]), "train", 6, 7, preparation=plain)
    np.testing.assert_allclose(arrays(same)[0], x[:, :, :6], atol=1e-3)


@pytest.mark.parametrize(
    "x, y, sentence",
    [
        (np.zeros((2, 4, 4, 3)), [0, 1], "uint8 .*Received: float64"),
        (np.zeros((2, 4, 4, 2), "uint8"), [0, 1], r"1 or 3\)"),
        (np.zeros((0, 4, 4, 3), "uint8"), [], "uint8"),
        (np.zeros((2, 4, 4, 3), "uint8"), [0, 1, 2], "must be 2 integers"),
        (np.zeros((2, 4, 4, 3), "uint8"), [0.5, 1], "must be 2 integers"),
        (np.zeros((2, 4, 4, 3), "uint8"), [0, -1], "negative. Received: -1.*image 1"),
        (
            np.zeros((2, 4, 4, 3), "uint8"),
            np.array([2**64 - 1, 0], "uint64"),
            "less than 100,000.*Received: 18446744073709551615, .* image 0",
        ),
    ],
)
def test_arrays_that_are_not_labeled_images_are_errors(x, y, sentence):
    with pytest.raises(ValueError, match=sentence):
        data.find((x, y))
    for odd in (3, {}):
        with pytest.raises(ValueError, match="a folder, a data set of .*Received: "):
            data.find(odd)
    with pytest.raises(ValueError, match="'train' must be images and labels"):
        data.find({"train": x})


# TensorFlow Datasets.


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """Data set of synthetic images, written and read by TFDS."""

    VERSION = tfds.core.Version("1.0.0")
    PARTS = ("train", "validation")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(None, None, 3), encoding_format="jpeg"
                    ),
                    "label": tfds.features.ClassLabel(names=["dark", "light"]),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, download_manager):
        return {part: self._generate_examples() for part in self.PARTS}

    def _generate_examples(self):
        for i in range(30):
            image = np.full((100 + i, 140 - i, 3), 200 * (i % 2), "uint8")
            image[0] = 255 - image[0]
            yield i, {"image": image, "label": i % 2}


class TrainOnly(TinyPictures):
    VERSION = tfds.core.Version("1.0.0")
    PARTS = ("train",)


class BadRecords(TinyPictures):
    """Data set with a broken JPEG and an invalid label."""

    VERSION = tfds.core.Version("1.0.0")

    def _generate_examples(self):
        for i, example in super()._generate_examples():
            if i == 3:
                broken = pathlib.Path(os.environ["TEST_TMPDIR"]) / "broken.jpg"
                broken.write_bytes(b"\xff\xd8\xff\xe0 no more of it \xff\xd9")
                example["image"] = broken
            yield i, {**example, "label": -1 if i == 5 else example["label"]}


class OtherFeatures(TinyPictures):
    """Data set that is not of images with one class each, and must not be downloaded."""

    VERSION = tfds.core.Version("1.0.0")
    FEATURES: typing.ClassVar = {}

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=self.FEATURES["now"])

    def download_and_prepare(self, **_):
        raise AssertionError("the data set is downloaded")


@pytest.fixture
def tfds_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_TMPDIR", str(tmp_path))
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))


def test_a_data_set_of_tfds_is_read(tfds_folder):
    source = data.find("tiny_pictures")
    assert source.splits == {"train": 30, "validation": 30}
    x, y = arrays(data.load(source, "validation", image_size=20, batch_size=8))
    assert x.shape == (30, 20, 20, 3) and y.shape == (30, 2)
    assert len(arrays(data.load(source, "train", 20, 8, training=True))[0]) == 30
    assert source.channels == 3 and source.class_names == ["dark", "light"]
    light = y.argmax(axis=1) == 1
    assert (x[light][:, 10, 10] > 0).all() and (x[~light][:, 10, 10] < 0).all()
    assert len(arrays(data.load(source, "train[:50%]", 20, 8))[0]) == 15
    with pytest.raises(ValueError, match="no split 'test'. .*'validation'"):
        data.load(source, "test", 20, 8)


def test_the_digest_of_a_data_set_of_tfds_is_that_of_its_version(
    tfds_folder, monkeypatch
):
    digest = data.find("tiny_pictures").digest()
    assert data.find("tiny_pictures:1.0.0").digest() == digest
    monkeypatch.setattr(TinyPictures, "VERSION", tfds.core.Version("1.0.1"))
    assert data.find("tiny_pictures").digest() != digest


def test_broken_records_are_left_out_and_recorded(tfds_folder, caplog):
    source = data.find("bad_records")
    x, y = arrays(data.load(source, "train", image_size=20, batch_size=8))
    assert len(x) == len(y) == 28
    reasons = sorted(source.left_out.values())
    assert "is not a complete image" in reasons[0]
    assert "its label is -1, but there are 2 classes" in reasons[1]
    assert all(name.startswith("bad_records-train") for name in source.left_out)
    # In training, the number of images is nevertheless complete.
    batches = data.load(source, "train", 20, 8, training=True, from_epoch=0)
    assert [len(x) for x, _ in batches.take(8)] == [8, 8, 8, 6] * 2
    assert caplog.text.count("left out: ") == 2


def test_mocked_data_sets_of_tfds_load():
    with tfds.testing.mock_data(num_examples=10):
        x, y = arrays(data.load("cifar10", "train", 32, 4, training=True))
        assert x.shape == (10, 32, 32, 3) and y.shape == (10, 10)
        x, y = arrays(data.load("imagenet2012", "validation", 64, 4))
        assert x.shape == (10, 64, 64, 3) and y.shape == (10, 1000)
        x, _ = arrays(data.load("mnist", "test", 28, 4))
        assert x.shape == (10, 28, 28, 1)


IMAGE, CLASS = (
    tfds.features.Image(shape=(8, 8, 3)),
    tfds.features.ClassLabel(names=["a"]),
)


@pytest.mark.parametrize(
    "features, received",
    [
        (
            {"image": IMAGE, "label": tfds.features.Text()},
            "'image' (Image of uint8), 'label' (Text)",
        ),
        (
            {"image": IMAGE, "label": tfds.features.Sequence(CLASS)},
            "'image' (Image of uint8), 'label' (Sequence of ClassLabel)",
        ),
        (
            {"image": IMAGE, "label": tfds.features.Scalar(np.float32)},
            "'image' (Image of uint8), 'label' (Scalar)",
        ),
        (
            {"image": IMAGE, "label": tfds.features.ClassLabel()},
            "'image' (Image of uint8), 'label' (ClassLabel without classes)",
        ),
        (
            {"image": IMAGE, "label": {"fine": CLASS, "coarse": CLASS}},
            "'image' (Image of uint8), 'label' (FeaturesDict)",
        ),
        (
            {"image": IMAGE, "boxes": tfds.features.Sequence({"label": CLASS})},
            "'image' (Image of uint8), 'boxes' (Sequence of FeaturesDict)",
        ),
        (
            {"image": tfds.features.Video((4, 8, 8, 3)), "label": CLASS},
            "'image' (Video of Image of uint8), 'label' (ClassLabel)",
        ),
        (
            {"image": tfds.features.Sequence(IMAGE), "label": CLASS},
            "'image' (Sequence of Image of uint8), 'label' (ClassLabel)",
        ),
        (
            {"image": tfds.features.Tensor(shape=(8, 8, 3), dtype=np.uint8)},
            "'image' (Tensor)",
        ),
        (
            {
                "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.float32),
                "label": CLASS,
            },
            "'image' (Image of float32), 'label' (ClassLabel)",
        ),
        ({"label": CLASS}, "'label' (ClassLabel)"),
        (
            tfds.features.Sequence({"image": IMAGE, "label": CLASS}),
            "Sequence of FeaturesDict",
        ),
        (None, "NoneType"),
    ],
)
def test_data_sets_without_one_class_per_image_are_refused_before_the_download(
    features, received, tfds_folder, monkeypatch
):
    if isinstance(features, dict):
        features = tfds.features.FeaturesDict(features)
    monkeypatch.setitem(OtherFeatures.FEATURES, "now", features)
    with pytest.raises(ValueError, match="must have images with labels: ") as error:
        data.find("other_features")
    _, _, end = str(error.value).partition("Received: 'other_features' with features ")
    assert end == received


def test_unknown_or_unlabeled_data_sets_are_errors(tfds_folder):
    with pytest.raises(ValueError, match="'digit', .* no folder; perhaps digits"):
        data.find("digit")
    with pytest.raises(ValueError, match="is a file. Give a folder with one subfolder"):
        data.find(__file__)
    with pytest.raises(
        ValueError,
        match="images with labels: .* Received: 'imdb_reviews' with .*'text'",
    ):
        data.find("imdb_reviews")
    with pytest.raises(ValueError, match="has no data set 'mnist:9.9.9'"):
        data.find("mnist:9.9.9")
