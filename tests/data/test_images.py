import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_nfnets import data

PREPARATION = {
    "size": 16,
    "crop": 0.8,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "mean": (0.5, 0.4, 0.3),
    "deviation": (0.2, 0.3, 0.4),
}


def picture(height, width):
    shape = (height, width, 3)
    return np.random.default_rng(0).integers(0, 256, shape).astype("uint8")


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_the_middle_is_cropped_and_normalized(crop_mode):
    # 16 / 0.8 = 20 pixels on the shorter side, so no resizing is needed.
    x = picture(20, 26 if crop_mode == "center" else 20)
    left = 5 if crop_mode == "center" else 2
    expected = (x[2:18, left : left + 16] / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    prepared = data.prepare(x, **{**PREPARATION, "crop_mode": crop_mode})
    assert prepared.dtype == "float32"
    np.testing.assert_allclose(prepared, expected, rtol=1e-4, atol=1e-5)


def test_squash_keeps_what_is_at_the_sides_and_center_does_not():
    x = np.zeros((40, 120, 3), "uint8")
    x[:, :30] = 255
    whole = {**PREPARATION, "crop": 1.0, "mean": (0,) * 3, "deviation": (1,) * 3}
    assert data.prepare(x, **{**whole, "crop_mode": "squash"}).max() == 1
    assert data.prepare(x, **whole).max() == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (2000, 1), (16, 16), (7, 300)])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_any_shape_gives_the_same_size(shape, crop_mode):
    prepared = data.prepare(picture(*shape), **{**PREPARATION, "crop_mode": crop_mode})
    assert prepared.shape == (16, 16, 3)
    assert np.isfinite(prepared).all()


def test_mean_and_deviation_of_imagenet_are_those_that_keras_has():
    x = picture(16, 16)
    expected = keras.applications.imagenet_utils.preprocess_input(x, mode="torch")
    prepared = data.prepare(x, **{**PREPARATION, "crop": 1.0, **data.IMAGENET})
    np.testing.assert_allclose(prepared, expected, rtol=1e-4, atol=1e-5)


def test_pictures_own_mean_and_deviation_are_tensorflows():
    own = {**PREPARATION, "mean": None, "deviation": None, "crop": 1.0, "size": 20}
    x = picture(20, 20)
    np.testing.assert_allclose(
        data.prepare(x, **own), tf.image.per_image_standardization(x), atol=1e-5
    )
    assert (data.prepare(np.zeros((20, 20, 3), "uint8"), **own) == 0).all()
    assert data.prepare(x, **own, channels=1).shape == (20, 20, 1)


@pytest.mark.parametrize(
    "crop_mode", ["crop_resize", "resize_crop_32", "whole", "squash", "center"]
)
@pytest.mark.parametrize("channels", [3, 1])
def test_single_files_are_prepared_as_the_data_set_was(crop_mode, channels, tmp_path):
    preparation = {**PREPARATION, "crop_mode": crop_mode}
    if channels == 1:
        preparation = {**preparation, "mean": [0.4], "deviation": [0.3]}
    # Color images are read from a file, grey ones from an array.
    image = Image.fromarray(picture(50, 70)).convert("L" if channels == 1 else "RGB")
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(2):
            image.save(tmp_path / name / f"{i}.jpg")
    one = data.read_picture(tmp_path / "a" / "0.jpg")
    where = tmp_path if channels == 3 else (one[np.newaxis, ..., :1], [0])
    batch, _ = next(iter(data.load(where, "train", 16, 2, preparation=preparation)))
    alone = data.prepare(one, **{**preparation, "size": 16, "channels": channels})
    np.testing.assert_array_equal(batch[0], alone)


def test_an_unknown_crop_gets_a_sentence():
    with pytest.raises(ValueError, match="`crop_mode` must be one of .*'middle'"):
        data.prepare(picture(9, 9), **{**PREPARATION, "crop_mode": "middle"})


def test_a_line_of_a_picture_does_not_fill_the_memory():
    import tracemalloc

    tracemalloc.start()
    data.prepare(picture(1, 80_000), **PREPARATION)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    # Only the middle of the image determines the result.
    x = picture(10, 200)
    near = x[:, 60:140]
    np.testing.assert_allclose(
        data.prepare(x, **PREPARATION), data.prepare(near, **PREPARATION), atol=0.05
    )


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pictures_without_a_largest_number_are_refused(mode, tmp_path):
    Image.new(mode, (20, 20)).save(tmp_path / "odd.tiff")
    with pytest.raises(ValueError, match="odd.tiff .* no largest one"):
        data.read_picture(tmp_path / "odd.tiff")


def test_folders_and_files_are_found(tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    for name in ("b.png", "A.JPG", "c.txt", "manual.pdf", "model.h5"):
        (folder / name).touch()
    (folder / "sub.png").mkdir()
    found = data.find_pictures([tmp_path / "a folder" / "c.txt", str(folder)])
    assert [path.name for path in found] == ["c.txt", "A.JPG", "b.png"]
    with pytest.raises(ValueError, match="There is no file .*none.png"):
        data.find_pictures([tmp_path / "none.png"])
    with pytest.raises(ValueError, match="There is no file ''"):
        data.find_pictures([""])


def test_pictures_too_large_for_the_memory_are_refused(tmp_path, monkeypatch):
    Image.new("L", (200, 200)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(ValueError, match="large.png is not a whole picture: .*bomb"):
        data.read_picture(tmp_path / "large.png")
