"""Reading and preprocessing of single images."""

import contextlib
import io
import math
import os
import re
import stat

import numpy as np

from keras_nfnets import checks
from keras_nfnets.data import preprocessing
from keras_nfnets.data.preparation import DEFAULTS
from keras_nfnets.printing import printable

# Largest number of pixels of an image that is decoded, for example 8,192 x 8,192. The
# environment variable sets another one.
MAX_PIXELS = 2**26
_MAX_PIXELS_VARIABLE = "KERAS_NFNETS_MAX_PIXELS"
# Resizing an image takes memory in proportion to its longer side, so a shorter side counts
# as at least this many pixels.
_MIN_COUNTED_SIDE = 1024
# An image above this number of pixels is large: input pipelines decode one at a time.
LARGE = 2**24
# Pixels that are converted at once.
_STRIP = 2**20
# Largest file, in bytes per pixel of the largest image: four channels of 16 bits.
_MAX_BYTES_PER_PIXEL = 8

# Most scans of a JPEG, each of which takes as long as a complete image; ten are usual.
_MAX_SCANS = 100

# Names in Pillow of the formats that are opened. Pillow knows more; for PostScript it
# starts another program.
_FORMATS = (
    *("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP"),
)


def max_pixels():
    """Return the number of pixels above which an image is not decoded.

    A side of fewer than 1,024 pixels counts as 1,024, see `read_picture`.

    Returns:
        int: that of the environment variable `KERAS_NFNETS_MAX_PIXELS`, or `MAX_PIXELS`.

    Raises:
        ValueError: the variable is not a positive integer.
    """
    return int(checks.from_environment(_MAX_PIXELS_VARIABLE, MAX_PIXELS))


def max_bytes():
    """Return the size in bytes above which an image file is not read, an int."""
    return _MAX_BYTES_PER_PIXEL * max_pixels()


def read_picture(path, upright=True):
    """Read an image as RGB: AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PPM, TGA, TIFF or WebP.

    Grayscale, 16-bit, palette and CMYK images are converted, transparent ones are
    composited onto white. Of an animation, the first frame is read. Values of more than 8
    bits are scaled by the maximum that the file states: in TIFF files that of
    `SMaxSampleValue`, or `MaxSampleValue` if it is that of a number of bits; otherwise
    that of the number of bits per value.

    An image of more than 67,108,864 pixels (8,192 x 8,192) is not decoded, as a small file
    can hold an image larger than the memory. A side of fewer than 1,024 pixels counts as
    1,024. The environment variable `KERAS_NFNETS_MAX_PIXELS` sets another limit; for one
    above that of Pillow, `PIL.Image.MAX_IMAGE_PIXELS` is raised too.

    Args:
        path: str, `pathlib.Path` or bytes. Path or content of a JPEG, PNG, ... file.
        upright: bool. Whether to apply the orientation that a camera recorded (Exif, XMP).

    Returns:
        uint8 array `(height, width, 3)`.

    Raises:
        ValueError: the file is not an image of these formats, is incomplete or too large.

    Example:

    >>> import io
    >>> from PIL import Image
    >>> file = io.BytesIO()
    >>> Image.new("L", (640, 480)).save(file, "png")
    >>> read_picture(file.getvalue()).shape
    (480, 640, 3)
    """
    checks.installed("data.read_picture", "PIL")
    from PIL import Image

    name = "The file" if isinstance(path, bytes) else printable(path)
    try:
        with _opened(path) as image:
            orientation = _orientation(image) if upright else None
            # Pillow reads the metadata of a TIFF again when it loads the image, and fails
            # if they cannot be read.
            image.getexif = Image.Exif
            return _turned(_rgb(image), orientation)
    except _TooLarge as error:
        raise ValueError(f"{name} is too large to be decoded: {error}") from None
    except MemoryError as error:
        raise ValueError(f"{name} needs more memory than is available") from error
    # Pillow's decoders raise errors of many types for broken files.
    except Exception as error:
        raise ValueError(f"{name} is not a complete image: {error}") from error


def is_large(path):
    """Whether an image states more than `LARGE` pixels; False if it cannot be opened.

    Args:
        path: str, `pathlib.Path` or bytes, as for `read_picture`.
    """
    try:
        with _opened(path) as image:
            return math.prod(image.size) > LARGE
    except Exception:  # noqa: BLE001 (of many types, as for the image)
        return False


class _TooLarge(Exception):
    """Error for an image or a file above the limit."""


@contextlib.contextmanager
def _opened(path):
    """Context of a Pillow image of permitted format and size that is not decoded yet."""
    from PIL import Image

    is_content = isinstance(path, bytes)
    # (Opening a named pipe would wait for a writer.)
    if not is_content and not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is not a regular file")
    with io.BytesIO(path) if is_content else open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size > max_bytes():
            raise _TooLarge(
                f"{size:,} bytes, more than {max_bytes():,}. Make it smaller, or set the "
                f"environment variable {_MAX_PIXELS_VARIABLE} to more than {max_pixels():,}"
            )
        file.seek(0)
        # Pillow allocates the memory for a WebP image when it opens the file.
        _check_size(_size_of_webp(file.read(30)))
        file.seek(0)
        _raise_limit_of_pillow()
        Image.init()
        formats = [name for name in _FORMATS if name in Image.OPEN]
        try:
            image = Image.open(file, formats=formats)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _TooLarge(str(error)) from None
        except Image.UnidentifiedImageError:
            raise ValueError(f"it is none of {', '.join(formats)}") from None
        with image:
            _check_size(image.size)
            if image.format in ("JPEG", "MPO"):
                _check_scans(file)
            tags = getattr(image, "tag_v2", {})
            _check_size([tags.get(tag, 0) for tag in _TILE_SIZE])
            yield image


_TILE_SIZE = 322, 323  # tags of TIFF


def _check_size(size):
    """Raise a `_TooLarge` if a width and height in pixels are above the limit."""
    shorter, longer = sorted(size)
    limit = max_pixels()
    if longer * max(shorter, _MIN_COUNTED_SIDE) > limit:
        narrow = f" (a side of less than {_MIN_COUNTED_SIDE:,} counts as {_MIN_COUNTED_SIDE:,})"
        raise _TooLarge(
            f"{size[0]:,} x {size[1]:,} pixels, more than {limit:,}"
            f"{narrow if shorter < _MIN_COUNTED_SIDE else ''}. Make it smaller, or set the "
            f"environment variable {_MAX_PIXELS_VARIABLE} to a larger number"
        )


# A marker of a JPEG that is not one within the data of a scan.
# (Without those that have no segment, which decoders pass over.)
_MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd8\xff])")
_END_OF_IMAGE, _START_OF_SCAN = b"\xd9", b"\xda"


def _check_scans(file):
    """Raise a ValueError if a JPEG has so many scans that decoding may take hours."""
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    at, scans = 2, 0
    while (marker := _MARKER.search(content, at)) and marker[1] != _END_OF_IMAGE:
        scans += marker[1] == _START_OF_SCAN
        if scans > _MAX_SCANS:
            raise ValueError(f"it has more than {_MAX_SCANS} scans")
        length = content[marker.end() : marker.end() + 2]
        at = marker.end() + int.from_bytes(length)


def _raise_limit_of_pillow():
    """Raise Pillow's limit to ours, if the user has set ours."""
    from PIL import Image

    if os.environ.get(_MAX_PIXELS_VARIABLE) and Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels())


def _size_of_webp(head):
    """Return the width and height in the first 30 bytes of a WebP file, or zeros.

    Reference: https://developers.google.com/speed/webp/docs/riff_container
    """
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return 0, 0
    kind, content = head[12:16], head[20:]
    if kind == b"VP8X":
        return tuple(1 + int.from_bytes(content[i : i + 3], "little") for i in (4, 7))
    if kind == b"VP8L":
        bits = int.from_bytes(content[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return tuple(int.from_bytes(content[i : i + 2], "little") & 0x3FFF for i in (6, 8))


def _rgb(image):
    """Decode an opened image and convert it, strip by strip, to uint8 RGB."""
    image.load()
    values = _range_of_values(image)
    # (The size of a TIFF image may be that of the image turned upright.)
    width, height = image.im.size
    rows = max(1, _STRIP // width)
    pixels = np.empty((height, width, 3), "uint8")
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strip = image.crop((0, top, width, bottom))
        pixels[top:bottom] = _converted(strip, values)
    return pixels


def _converted(image, values):
    """Convert a decoded Pillow image, or a strip of one, to RGB with 8 bits."""
    from PIL import Image

    if values is not None:
        image = _with_8_bits(image, *values)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image):
    """Return the orientation that a camera recorded, 1 to 8, or None.

    Metadata that cannot be read are ignored.
    """
    from PIL import ExifTags

    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 (of many types, as for the image)
        return None


def _turned(pixels, orientation):
    """Turn an array of pixels so that an image of an orientation is upright."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _range_of_values(image):
    """Return the maximum of an image with more than 8 bits, and whether it is black.

    Pillow would clip such values at 255. The result is None for images of 8 bits.
    """
    from PIL import TiffImagePlugin

    is_gray = image.mode in ("I", "F") or image.mode.startswith("I;16")
    if image.format == "TIFF":
        tags = image.tag_v2
        bits = np.max(tags.get(TiffImagePlugin.BITSPERSAMPLE, 1))
        stated = _stated_maximum(tags)
        if not is_gray:
            if bits > 8 and stated and stated < 2**bits - 1:
                # Pillow has kept the upper 8 bits only.
                raise ValueError(
                    f"colors of {bits} bits, of which only values up to {stated:g} are "
                    "used, cannot be read; convert it to 8 bits"
                )
            return None
        # (Of 32 bits, nobody uses all.)
        maximum = stated or (2**bits - 1 if image.mode.startswith("I;16") else None)
        is_inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    elif not is_gray:
        return None
    else:
        # Pillow scales what has fewer bits, such as a PGM file with another maximum.
        is_scaled = image.format in ("PNG", "PPM") and image.mode == "I"
        is_scaled |= image.mode.startswith("I;16")
        maximum, is_inverted = 65_535 if is_scaled else None, False
    if maximum is None:
        raise ValueError(
            f"values of mode {image.mode!r} have no maximum that means white; convert it "
            "to 8 or 16 bits"
        )
    return maximum, is_inverted


def _with_8_bits(image, maximum, is_inverted):
    """Convert an image, or a strip of one, to 8 bits; see `_range_of_values`."""
    from PIL import Image

    original = np.asarray(image, "float64")
    values = original.clip(0, maximum)
    if is_inverted:
        values = maximum - values
    converted = Image.fromarray(np.floor(values * 255 / maximum).astype("uint8"))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # the value of transparent pixels of a PNG
        opaque = np.where(original == transparent, 0, 255).astype("uint8")
        converted.putalpha(Image.fromarray(opaque))
    return converted


_MAX_SAMPLE_VALUE, _S_MAX_SAMPLE_VALUE = 281, 341  # tags of TIFF


def _stated_maximum(tags):
    """Return the largest value that the tags of a TIFF file allow, or None."""
    for tag in (_S_MAX_SAMPLE_VALUE, _MAX_SAMPLE_VALUE):
        value = tags.get(tag)
        if value is None:
            continue
        value = float(np.max(value))
        # The other tag often has the largest value of this image, which is not white.
        of_bits = (value + 1) in (2.0**bits for bits in range(9, 17))
        if np.isfinite(value) and value > 0 and (tag == _S_MAX_SAMPLE_VALUE or of_bits):
            return value
    return None


def prepare(
    picture,
    *,
    size,
    crop_mode,
    interpolation,
    mean,
    deviation,
    crop=DEFAULTS["crop"],
    channels=DEFAULTS["channels"],
):
    """Preprocess an image for a network, as in evaluation.

    Args:
        picture: uint8 array `(height, width, 3)`.
        size: int. Side length of the result, in pixels.
        crop_mode: str. `"crop_resize"`, `"resize_crop_32"` or `"whole"` preprocess as
            the authors do, see `evaluation_crop`. `"center"` and `"squash"` preprocess
            as timm does: `"center"` resizes the shorter side to `size / crop`,
            `"squash"` resizes both sides to it; then the center is cropped.
        interpolation: str. `"bicubic"` is that of the authors, without antialiasing: in
            a large image that is made small, thin lines vanish.
            `"antialiased_bicubic"` averages over the pixels in between; `"bilinear"`
            does so too, and so does everything that is done as timm does, where
            `"nearest"` is another choice.
        mean, deviation: one float per channel. Mean and standard deviation of values
            in [0, 1]; for grayscale images, three values are averaged. If they are None,
            each image is standardized by its own mean and standard deviation.
        crop: float. Fraction of the resized image's side that is used, for `"center"`
            and `"squash"`.
        channels: int. 3, or 1 for grayscale.

    Returns:
        float32 array `(size, size, channels)`.

    Raises:
        ValueError: `crop_mode` is unknown.

    Example:

    >>> picture = np.full((40, 30, 3), 255, "uint8")
    >>> prepare(picture, size=16, crop=0.8, crop_mode="center",
    ...         interpolation="bicubic", mean=(0.5,) * 3, deviation=(0.5,) * 3).max()
    np.float32(1.0)

    Reference: `_preprocess_image` in the authors' dataset.py; the transforms of
    evaluation in timm 1.0, data/transforms_factory.py.
    """
    if channels == 1:
        picture = to_grayscale(picture)
    mean, deviation = (
        preprocessing.per_channel(values, channels) for values in (mean, deviation)
    )
    if crop_mode in preprocessing.TIMM_CROP_MODES:
        x = crop_as_timm(picture, size, crop, crop_mode, interpolation)
        if mean is None:
            # Same as `tf.image.per_image_standardization`, for values up to 255.
            deviation = max(x.std(), 1 / math.sqrt(x.size))
            return ((x - x.mean()) / deviation).astype("float32")
        return preprocessing.scale(x, mean, deviation)
    checks.installed(f"`crop_mode={crop_mode!r}`", "tensorflow")
    window_of, resize = preprocessing.evaluation_crop(crop_mode, interpolation)
    top, left, height, width = np.array(window_of(picture.shape, size))
    x = resize(picture[top : top + height, left : left + width], size)
    return preprocessing.standardize(x, mean, deviation).numpy()


def to_grayscale(pixels):
    """Convert an image to grayscale, `(height, width, 1)`."""
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).convert("L"))[..., np.newaxis]


def crop_as_timm(pixels, size, crop, crop_mode, interpolation):
    """Resize and crop an image as timm does.

    Returns:
        float32 array `(size, size, channels)` of values up to 255.
    """
    from PIL import Image

    channels = pixels.shape[-1]
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    side = math.floor(size / crop)
    width = height = side
    if crop_mode == "center":
        image = _limit_aspect_ratio(image)
        shorter = min(image.size)
        width, height = (int(side * length / shorter) for length in image.size)
    # Pillow antialiases always.
    method = interpolation.removeprefix("antialiased_").upper()
    image = image.resize((width, height), Image.Resampling[method])
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, "float32").reshape(size, size, channels)


def _limit_aspect_ratio(image):
    """Crop a very long image to its center, four times as long as it is wide.

    Resizing the complete image could exhaust the memory, for example if it is one pixel
    high and a hundred thousand wide.
    """
    longest = 4 * min(image.size)
    width, height = (min(length, longest) for length in image.size)
    left, top = (image.size[0] - width) // 2, (image.size[1] - height) // 2
    return image.crop((left, top, left + width, top + height))
