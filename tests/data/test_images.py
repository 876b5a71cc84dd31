import io
import re
import struct

import keras
import memory
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


def random_image(height, width):
    shape = (height, width, 3)
    return np.random.default_rng(0).integers(0, 256, shape).astype("uint8")


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_the_center_is_cropped_and_normalized(crop_mode):
    # 16 / 0.8 = 20 pixels on the shorter side, so no resizing is needed.
    x = random_image(20, 26 if crop_mode == "center" else 20)
    left = 5 if crop_mode == "center" else 2
    expected = (x[2:18, left : left + 16] / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    prepared = data.prepare(x, **{**PREPARATION, "crop_mode": crop_mode})
    assert prepared.dtype == "float32"
    np.testing.assert_allclose(prepared, expected, rtol=1e-4, atol=1e-5)


def test_squash_keeps_the_sides_and_center_crops_them():
    x = np.zeros((40, 120, 3), "uint8")
    x[:, :30] = 255
    full = {**PREPARATION, "crop": 1.0, "mean": (0,) * 3, "deviation": (1,) * 3}
    assert data.prepare(x, **{**full, "crop_mode": "squash"}).max() == 1
    assert data.prepare(x, **full).max() == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (2000, 1), (16, 16), (7, 300)])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_any_shape_gives_the_same_size(shape, crop_mode):
    prepared = data.prepare(
        random_image(*shape), **{**PREPARATION, "crop_mode": crop_mode}
    )
    assert prepared.shape == (16, 16, 3)
    assert np.isfinite(prepared).all()


def test_imagenet_mean_and_std_equal_those_of_keras():
    x = random_image(16, 16)
    expected = keras.applications.imagenet_utils.preprocess_input(x, mode="torch")
    prepared = data.prepare(x, **{**PREPARATION, "crop": 1.0, **data.IMAGENET})
    np.testing.assert_allclose(prepared, expected, rtol=1e-4, atol=1e-5)


def test_per_image_standardization_equals_that_of_tensorflow():
    own = {**PREPARATION, "mean": None, "deviation": None, "crop": 1.0, "size": 20}
    x = random_image(20, 20)
    np.testing.assert_allclose(
        data.prepare(x, **own), tf.image.per_image_standardization(x), atol=1e-5
    )
    assert (data.prepare(np.zeros((20, 20, 3), "uint8"), **own) == 0).all()
    assert data.prepare(x, **own, channels=1).shape == (20, 20, 1)


CROP_MODES = ["crop_resize", "resize_crop_32", "whole", "squash", "center"]


@pytest.mark.parametrize(
    ("crop_mode", "channels"),
    [
        *((crop_mode, 3) for crop_mode in CROP_MODES),
        ("crop_resize", 1),
        *(pytest.param(mode, 1, marks=pytest.mark.slow) for mode in CROP_MODES[1:]),
    ],
)
def test_prepare_equals_the_evaluation_batches_of_load(crop_mode, channels, tmp_path):
    preparation = {**PREPARATION, "crop_mode": crop_mode}
    if channels == 1:
        preparation = {**preparation, "mean": [0.4], "deviation": [0.3]}
    # Color images are read from a file, grey ones from an array.
    image = Image.fromarray(random_image(50, 70)).convert(
        "L" if channels == 1 else "RGB"
    )
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(2):
            image.save(tmp_path / name / f"{i}.jpg")
    one = data.read_picture(tmp_path / "a" / "0.jpg")
    where = tmp_path if channels == 3 else (one[np.newaxis, ..., :1], [0])
    batch, _ = next(iter(data.load(where, "train", 16, 2, preparation=preparation)))
    alone = data.prepare(one, **{**preparation, "size": 16, "channels": channels})
    np.testing.assert_array_equal(batch[0], alone)


def test_statistics_of_three_channels_are_averaged_for_grayscale():
    x = random_image(20, 20)
    averaged = {**PREPARATION, "mean": [0.4], "deviation": [0.3]}
    np.testing.assert_array_equal(
        data.prepare(x, **PREPARATION, channels=1),
        data.prepare(x, **averaged, channels=1),
    )


def test_the_error_of_check_crop_mode_offers_only_modes_that_it_accepts():
    with pytest.raises(ValueError, match="`crop_mode` must be one of ") as error:
        data.check_crop_mode("center")
    offered, _, received = str(error.value).partition("Received: ")
    modes = re.findall(r"'(\w+)'", offered)
    assert modes == ["crop_resize", "whole", "resize_crop_32"]
    assert received == "crop_mode='center'"
    for mode in modes:
        data.check_crop_mode(mode)


def test_an_unknown_crop_mode_is_an_error_that_lists_all_modes():
    with pytest.raises(
        ValueError, match="must be one of .*'squash' .*Received: crop_mode='middle'"
    ):
        data.prepare(random_image(9, 9), **{**PREPARATION, "crop_mode": "middle"})


def test_memory_is_bounded_for_images_one_pixel_high():
    with memory.at_most(5_000_000):
        data.prepare(random_image(1, 80_000), **PREPARATION)
    # Only the middle of the image determines the result.
    x = random_image(10, 200)
    near = x[:, 60:140]
    np.testing.assert_allclose(
        data.prepare(x, **PREPARATION), data.prepare(near, **PREPARATION), atol=0.05
    )


@pytest.mark.parametrize("mode", ["F", "I"])
def test_images_without_a_maximum_value_are_an_error(mode, tmp_path):
    Image.new(mode, (20, 20)).save(tmp_path / "odd.tiff")
    with pytest.raises(ValueError, match="odd.tiff .* no maximum"):
        data.read_picture(tmp_path / "odd.tiff")


def tiff(values, bits, photometric=1, **tags):
    """Return the content of an uncompressed gray TIFF file."""
    height, width = values.shape
    if bits == 16:
        pixels = values.astype("<u2").tobytes()
    else:
        rows = ["".join(f"{v:0{bits}b}" for v in row) for row in values]
        rows = [row + "0" * (-len(row) % 8) for row in rows]
        pixels = b"".join(int(row, 2).to_bytes(len(row) // 8, "big") for row in rows)
    entries = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: photometric,
        273: 8,
        277: 1,
        278: height,
        279: len(pixels),
        **{int(name.strip("_")): value for name, value in tags.items()},
    }
    directory = struct.pack("<H", len(entries)) + b"".join(
        tag(number, value) for number, value in sorted(entries.items())
    )
    pixels += b"\0" * (len(pixels) % 2)
    offset = struct.pack("<I", 8 + len(pixels))
    return b"II*\0" + offset + pixels + directory + b"\0" * 4


RAMP = np.array([[0, 1, 2, 3, 4]]) / 4


@pytest.mark.parametrize(
    ("content", "is_inverted"),
    [
        (lambda: tiff(np.rint(RAMP * 4095).astype(int), 12), False),
        (lambda: tiff(np.rint(RAMP * 65535).astype(int), 16), False),
        (lambda: tiff(np.rint(RAMP * 65535).astype(int), 16, photometric=0), True),
        # SMaxSampleValue: the largest of 16 bits that are used.
        (lambda: tiff(np.rint(RAMP * 1023).astype(int), 16, _341=1023), False),
        (lambda: tiff(np.rint(RAMP * 1023).astype(int), 16, 0, _341=1023), True),
        # MaxSampleValue, if it is that of a number of bits.
        (lambda: tiff(np.rint(RAMP * 4095).astype(int), 16, _281=4095), False),
        (lambda: tiff(np.rint(RAMP * 65535).astype(int), 16, _281=60000), False),
        (
            lambda: b"P5 5 1 4095\n" + np.rint(RAMP * 4095).astype(">u2").tobytes(),
            False,
        ),
        (lambda: b"P5 5 1 100\n" + np.rint(RAMP * 100).astype("u1").tobytes(), False),
        (lambda: b"P2 5 1 1000\n0 250 500 750 1000\n", False),
        (lambda: saved(RAMP * 65535, "PNG"), False),
        (lambda: saved(RAMP * 65535, "JPEG2000"), False),
        (lambda: saved(RAMP * 65535, "TIFF", compression="tiff_lzw"), False),
    ],
)
def test_values_of_more_bits_have_the_maximum_of_the_header(content, is_inverted):
    expected = 255 * (1 - RAMP if is_inverted else RAMP)
    read = data.read_picture(content())[..., 0]
    np.testing.assert_allclose(read, expected, atol=1)
    assert {0, 255} <= set(read.ravel())


def saved(values, kind, **options):
    file = io.BytesIO()
    Image.fromarray(np.rint(values).astype("uint16")).save(file, kind, **options)
    return file.getvalue()


def test_colors_of_fewer_bits_than_stated_are_refused():
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "TIFF", tiffinfo={341: 4095})
    content = file.getvalue()
    assert data.read_picture(content).shape == (4, 4, 3)  # 8 bits
    wide = tiff(np.zeros((4, 12), int), 16, photometric=2, _341=4095)
    wide = wide.replace(tag(256, 12), tag(256, 4)).replace(tag(277, 1), tag(277, 3))
    with pytest.raises(ValueError, match="16 bits, of which only values up to 4095"):
        data.read_picture(wide)


def tag(number, value):
    return struct.pack("<HHII", number, 4, 1, value)


def test_transparent_pixels_of_16_bits_are_white():
    file = io.BytesIO()
    image = Image.fromarray(np.array([[0, 30_000, 65_535]], "uint16"))
    image.save(file, "PNG", transparency=0)
    assert data.read_picture(file.getvalue())[0, :, 0].tolist() == [255, 116, 255]


def test_floats_of_a_pfm_file_have_no_maximum():
    content = b"Pf 2 1 -1.0\n" + np.array([0, 1], "<f4").tobytes()
    with pytest.raises(ValueError, match="no maximum"):
        data.read_picture(content)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright_whatever_their_metadata_say(kind, orientation, tmp_path):
    upright = Image.new("RGB", (16, 8))
    upright.paste((255, 0, 0), (0, 0, 8, 8))
    upright.paste((0, 255, 0), (0, 0, 8, 4))
    # Pillow is the oracle for metadata that can be read.
    methods = [None, None, 0, 3, 1, 5, 2, 6, 4]  # inverse of each orientation
    stored = upright
    if orientation > 1:
        stored = upright.transpose(Image.Transpose(methods[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "a description"
    path = tmp_path / f"image.{kind.lower()}"
    lossless = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    stored.save(path, kind, exif=exif, **lossless.get(kind, {}))
    np.testing.assert_allclose(data.read_picture(path), np.asarray(upright), atol=2)


# Pillow warns of such metadata.
_UNREADABLE = pytest.mark.filterwarnings("ignore:(Corrupt|Tag data):UserWarning")


@_UNREADABLE
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0no TIFF at all"]
)
def test_metadata_that_cannot_be_read_do_not_cost_the_image(kind, exif):
    file = io.BytesIO()
    Image.new("RGB", (16, 8), "red").save(file, kind, exif=exif)
    assert data.read_picture(file.getvalue()).shape == (8, 16, 3)


@_UNREADABLE
def test_a_value_that_cannot_be_read_does_not_cost_an_image_its_orientation():
    # The description says that it is longer than the file.
    head = b"Exif\0\0MM\0*\0\0\0\x08\0\x02"
    description = struct.pack(">HHII", 0x010E, 2, 10**6, 100)
    orientation = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    file = io.BytesIO()
    exif = head + description + orientation + b"\0" * 4
    Image.new("RGB", (16, 8), "red").save(file, "JPEG", exif=exif)
    assert data.read_picture(file.getvalue()).shape == (16, 8, 3)


def test_images_too_large_for_the_memory_are_an_error(tmp_path, monkeypatch):
    Image.new("L", (200, 200)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(
        ValueError, match="large.png is too large to be decoded: .*bomb"
    ):
        data.read_picture(tmp_path / "large.png")
