"""Single pictures: from a file to what a network reads."""

import io
import math
import pathlib

import numpy as np

from keras_nfnets.data import preprocessing

# Of the files of a folder. (Pillow would also try documents and films.)
ENDINGS = {
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
}


def is_picture(path):
    """Whether a path is of a file with the ending of a picture, and not hidden."""
    is_named_so = path.suffix.lower() in ENDINGS and not path.name.startswith(".")
    return is_named_so and path.is_file()


def find_pictures(paths):
    """The picture files that `paths` name.

    Args:
        paths: of files, taken as they are, and of folders, of which the files are taken
            whose endings are those of pictures.

    Returns:
        List of `pathlib.Path`; those of a folder in the order of their names.

    Raises:
        ValueError: there is no such file, or no picture in a folder.

    Example:

    >>> import pathlib
    >>> pathlib.Path("pictures").mkdir()
    >>> for name in ("b.png", "a.jpg", "notes.txt"):
    ...     pathlib.Path("pictures", name).touch()
    >>> [path.name for path in find_pictures(["pictures"])]
    ['a.jpg', 'b.png']
    """
    found = []
    for given in paths:
        path = pathlib.Path(given)
        # An empty name would be the whole folder in which one is.
        if given and path.is_dir():
            inside = [file for file in path.iterdir() if is_picture(file)]
            if not inside:
                raise ValueError(f"There are no pictures in the folder {path}")
            found += sorted(inside)
        elif path.is_file():
            found.append(path)
        else:
            raise ValueError(f"There is no file {str(given)!r}")
    return found


def read_picture(path):
    """Reads a picture of any kind that Pillow knows as RGB.

    Args:
        path: of a JPEG, PNG, ..., or its bytes. Grey, 16-bit, palette and CMYK
            pictures are converted, transparent ones put on white, turned as the camera
            says; of an animation the first picture is taken.

    Returns:
        uint8 array `(height, width, 3)`.

    Raises:
        ValueError: the file is no picture, or not whole.

    Example:

    >>> import io
    >>> from PIL import Image
    >>> file = io.BytesIO()
    >>> Image.new("L", (640, 480)).save(file, "png")
    >>> read_picture(file.getvalue()).shape
    (480, 640, 3)
    """
    from PIL import Image, ImageOps

    name = "" if isinstance(path, bytes) else f"{path} "
    try:
        file = io.BytesIO(path) if isinstance(path, bytes) else path
        with Image.open(file) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode in ("I", "F"):
                raise ValueError("its numbers have no largest one, that of white")
            if image.mode.startswith("I;16"):
                # Which Pillow would cut off at 255.
                values = np.asarray(image, "float64")
                image = Image.fromarray((values / 257).clip(0, 255).astype("uint8"))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return np.asarray(image.convert("RGB"))
    # Pillow's decoders raise errors of many kinds for broken files, and refuse the
    # largest pictures as an attack on the memory.
    except Exception as error:
        raise ValueError(f"{name}is not a whole picture: {error}") from error


def prepare(
    picture, *, size, crop_mode, interpolation, mean, deviation, crop=1.0, channels=3
):
    """Prepares a picture for a network, as in evaluation.

    Args:
        picture: uint8 array `(height, width, 3)`.
        size: pixels a side of the result.
        crop_mode: as the authors do, see `evaluation_crop`, `"crop_resize"`,
            `"resize_crop_32"` or `"whole"`; or as timm does, `"center"`, which resizes
            the shorter side to `size / crop`, or `"squash"`, which resizes both; then
            the middle is cropped.
        interpolation: of the resizing: `"bicubic"`, `"bilinear"` or (timm's)
            `"nearest"`.
        mean, deviation: one number a channel, for values in [0, 1]; where they are None
            each picture's own are taken.
        crop: timm's: share of the resized picture's side that is used.
        channels: 3, or 1 for grey.

    Returns:
        float32 array `(size, size, channels)`.

    Raises:
        ValueError: an unknown `crop_mode`.

    Example:

    >>> picture = np.full((40, 30, 3), 255, "uint8")
    >>> prepare(picture, size=16, crop=0.8, crop_mode="center",
    ...         interpolation="bicubic", mean=(0.5,) * 3, deviation=(0.5,) * 3).max()
    np.float32(1.0)

    Reference: `_preprocess_image` in the authors' dataset.py; the transforms of
    evaluation in timm 1.0, data/transforms_factory.py.
    """
    if channels == 1:
        picture = as_grey(picture)
    if crop_mode in ("center", "squash"):
        x = crop_as_timm(picture, size, crop, crop_mode, interpolation)
        if mean is None:
            # As tf.image.per_image_standardization, on values up to 255.
            deviation = max(x.std(), 1 / math.sqrt(x.size))
            return ((x - x.mean()) / deviation).astype("float32")
        return preprocessing.scale(x, mean, deviation)
    window_of, resize = preprocessing.evaluation_crop(crop_mode, interpolation)
    top, left, height, width = np.array(window_of(picture.shape, size))
    x = resize(picture[top : top + height, left : left + width], size)
    return preprocessing.standardize(x, mean, deviation).numpy()


def as_grey(picture):
    """The picture with one channel, `(height, width, 1)`."""
    from PIL import Image

    return np.asarray(Image.fromarray(picture).convert("L"))[..., np.newaxis]


def crop_as_timm(picture, size, crop, crop_mode, interpolation):
    """What timm resizes and crops, float32 `(size, size, channels)` up to 255."""
    from PIL import Image

    channels = picture.shape[-1]
    image = Image.fromarray(picture[..., 0] if channels == 1 else picture)
    side = math.floor(size / crop)
    width = height = side
    if crop_mode == "center":
        image = _without_far_ends(image)
        shorter = min(image.size)
        width, height = (int(side * length / shorter) for length in image.size)
    image = image.resize((width, height), Image.Resampling[interpolation.upper()])
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, "float32").reshape(size, size, channels)


def _without_far_ends(image):
    """A very long picture's middle, four times as long as it is wide.

    Resized whole, a line of a hundred thousand pixels would fill the memory.
    """
    longest = 4 * min(image.size)
    width, height = (min(length, longest) for length in image.size)
    left, top = (image.size[0] - width) // 2, (image.size[1] - height) // 2
    return image.crop((left, top, left + width, top + height))
