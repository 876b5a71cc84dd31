"""Reading and preprocessing of single images."""

import io
import math

import numpy as np

from keras_nfnets.data import preprocessing
from keras_nfnets.data.preparation import DEFAULTS


def read_picture(path, upright=True):
    """Read an image of any format that Pillow supports as RGB.

    Grayscale, 16-bit, palette and CMYK images are converted, transparent ones are
    composited onto white. Of an animation, the first frame is read. Values of more than 8
    bits are scaled by the maximum that the file states: in TIFF files that of
    `SMaxSampleValue`, or `MaxSampleValue` if it is that of a number of bits; otherwise
    that of the number of bits per value.

    Args:
        path: str, `pathlib.Path` or bytes. Path or content of a JPEG, PNG, ... file.
        upright: bool. Whether to apply the orientation that a camera recorded (Exif, XMP).

    Returns:
        uint8 array `(height, width, 3)`.

    Raises:
        ValueError: the file is not an image, or is incomplete.

    Example:

    >>> import io
    >>> from PIL import Image
    >>> file = io.BytesIO()
    >>> Image.new("L", (640, 480)).save(file, "png")
    >>> read_picture(file.getvalue()).shape
    (480, 640, 3)
    """
    from PIL import Image

    name = "The file" if isinstance(path, bytes) else str(path)
    try:
        file = io.BytesIO(path) if isinstance(path, bytes) else path
        with Image.open(file) as image:
            orientation = _orientation(image) if upright else None
            # Pillow reads the metadata of a TIFF again when it loads the image, and fails
            # if they cannot be read.
            image.getexif = Image.Exif
            image.load()
            image = _with_8_bits(image)
            if orientation is not None:
                image = image.transpose(orientation)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return np.asarray(image.convert("RGB"))
    # Pillow's decoders raise errors of many types for broken files, and refuse the
    # largest images as decompression bombs.
    except Exception as error:
        raise ValueError(f"{name} is not a complete image: {error}") from error


def _orientation(image):
    """Return how to transpose an image so that it is upright, or None.

    Metadata that cannot be read are ignored.
    """
    from PIL import ExifTags, Image

    try:
        recorded = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 (of many types, as for the image)
        return None
    return {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(recorded)


def _with_8_bits(image):
    """Convert an image with more than 8 bits per value; Pillow would clip them at 255."""
    from PIL import Image, TiffImagePlugin

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
            return image
        # (Of 32 bits, nobody uses all.)
        maximum = stated or (2**bits - 1 if image.mode.startswith("I;16") else None)
        is_inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    elif not is_gray:
        return image
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
