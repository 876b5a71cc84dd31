"""Images of letters and digits, drawn with the fonts that are installed.

The data set "glyphs" has one class per letter of the Latin alphabet, A to Z. One font of
each family is used, for an image of the capital and one of the small letter, slightly
rotated, scaled and shifted. The data set "characters" has one class for each of 62
characters: capital letters, small letters and digits. Characters of a font are drawn on one
line at one size, so that "c" differs from "C". Test and training set have no font in common.
Debian has packages with hundreds of families:

    apt-get install fonts-aenigma fonts-georgewilliams fonts-dustin fonts-texgyre \\
        fonts-urw-base35 fonts-noto-core
"""

import functools
import logging
import pathlib
import string
import typing
import zlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LETTERS = string.ascii_letters
CHARACTERS = LETTERS + string.digits

# With fewer families, a test set would say little about other fonts.
MIN_FAMILIES = 100
# With more families, runs would take longer.
MAX_FAMILIES = 500

# Letters are drawn at this font size, rotated at four times the resolution of an image,
# and averaged down.
_FONT_SIZE, _FINER = 96, 4


class _Style(typing.NamedTuple):
    """How letters are placed in images.

    Attributes:
        side: int. Height and width of an image, in pixels.
        longer_side: tuple. Least and largest longer side of a letter, as a fraction of the
            image's.
        max_rotation: float. Degrees.
        shift, margin: float. Largest shift and least margin, in pixels. The largest letter
            at the largest rotation just leaves the margin.
    """

    side: int
    longer_side: tuple
    max_rotation: float
    shift: float
    margin: float


_GLYPHS = _Style(28, (0.6, 0.78), 12, 3, 1)
_CHARACTERS = _Style(16, (0.7, 0.86), 8, 1.5, 0)

# Fonts are compared by letters with this many pixels a side and levels of grey. With so few
# levels, the sums below are integers that float32 holds exactly, in any order of addition.
_COARSE, _LEVELS = 12, 16
# Root mean square difference, where black to white is one. Redrawings of a typeface under
# another name, such as those of Times, differ by less, other typefaces by more.
_MAX_DIFFERENCE = 0.13


class _Font(typing.NamedTuple):
    path: pathlib.Path
    family: str
    letters: np.ndarray


@functools.cache
def read():
    """Draw the images of the data set.

    They depend only on the installed fonts and the version of FreeType.

    Returns:
        Images, uint8 `(n, 28, 28)`, white on black; classes, 0 to 25; and the index of
        each image's font in the order of file names. Images of a font are adjacent.

    Raises:
        ValueError: there are fonts of fewer than `MIN_FAMILIES` families.
    """
    chosen = fonts()
    _check_count(len(chosen), "glyphs", "all Latin letters")
    x = np.stack([image for path in chosen for image in _images(path)])
    classes = [string.ascii_lowercase.index(letter.lower()) for letter in LETTERS]
    return _with_classes(x, classes, len(chosen))


@functools.cache
def read_characters():
    """Draw the images of the data set "characters", see `read`.

    Returns:
        Images, uint8 `(n, 16, 16)`, white on black; classes, 0 to 61; and the index of
        each image's font in the order of file names. Images of a font are adjacent.

    Raises:
        ValueError: there are fonts of fewer than `MIN_FAMILIES` families.
    """
    drawn = [
        images
        for path in sorted(_families(), key=_by_name)
        if (images := _lines(path)) is not None
    ]
    _check_count(len(drawn), "characters", "all Latin letters and digits")
    return _with_classes(np.concatenate(drawn), np.arange(len(CHARACTERS)), len(drawn))


def _check_count(families, dataset, characters):
    if families < MIN_FAMILIES:
        raise ValueError(
            f"The data set {dataset!r} needs fonts of {MIN_FAMILIES} families with "
            f"{characters}. Install more, such as Debian's packages fonts-aenigma "
            "(hundreds), fonts-georgewilliams, fonts-texgyre and fonts-urw-base35. "
            f"Received: {families} families"
        )


def _with_classes(x, classes, number_of_fonts):
    """Return images, their classes, those of one font after those of another, and fonts."""
    fonts = np.arange(number_of_fonts)
    return x, np.tile(classes, number_of_fonts), np.repeat(fonts, len(classes))


def fonts():
    """Return the paths of one font per family, of at most `MAX_FAMILIES`, by file name.

    See `_families`.
    """
    return sorted(_families()[:MAX_FAMILIES], key=_by_name)


def _families():
    """Return the paths of one font per family.

    Fonts belong to one family if they share its name or draw nearly the same letters,
    directly or through other fonts: a typeface has several styles, and some have several
    makers. Hashes of the file names decide which font of a family is used, so that all
    weights and styles occur. Fonts that lack letters, or draw other symbols instead, are
    skipped. (A few of fonts-aenigma remain that draw ornaments under the names of letters.)
    """
    from scipy.sparse.csgraph import connected_components

    # fontTools warns about oddities of fonts that it can read nevertheless.
    logging.getLogger("fontTools").setLevel(logging.ERROR)
    found = [font for path in _paths() if (font := _opened(path))]
    if not found:
        return []
    _, names = np.unique([font.family for font in found], return_inverse=True)
    linked = (names[:, None] == names) | _similar(np.stack([f.letters for f in found]))
    _, families = connected_components(linked, directed=False)
    of_family = {}
    for font, family in zip(found, families, strict=True):
        of_family.setdefault(family, []).append(font.path)
    return sorted(
        (min(paths, key=_by_hash) for paths in of_family.values()), key=_by_hash
    )


def _paths():
    import matplotlib
    from matplotlib import font_manager

    own = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf")
    paths = map(pathlib.Path, font_manager.findSystemFonts())
    return sorted({*own, *paths}, key=_by_name)


def _by_name(path):
    return path.name, str(path)


def _by_hash(path):
    return _seed(path), str(path)


def _seed(path):
    return zlib.crc32(path.name.encode("utf-8", "surrogateescape"))


def _opened(path):
    """Return a `_Font`, or None if the file is not a font with all letters."""
    family = _family(path)
    if family is None:
        return None
    try:
        font = _loaded(path)
        drawn = [_drawn(font, letter) for letter in LETTERS]
    except (OSError, ValueError):  # FreeType cannot read it, or a letter is blank
        return None
    size = (_COARSE, _COARSE)
    coarse = np.stack([image.resize(size, Image.Resampling.BOX) for image in drawn])
    for case in np.split(coarse, 2):
        # A font that draws boxes in place of letters draws the same box for all.
        if len({letter.tobytes() for letter in case}) < len(case):
            return None
    return _Font(path, family, coarse // (256 // _LEVELS))


def _family(path):
    """Return the family of a font, or None if it lacks letters or cannot be read."""
    from fontTools import agl, ttLib

    try:
        with ttLib.TTFont(path, fontNumber=0, lazy=True) as font:
            glyphs = font.getBestCmap() or {}
            family = font["name"].getBestFamilyName() or path.stem
    except Exception:  # noqa: BLE001 (broken files raise exceptions of many types)
        return None
    # The name of a glyph shows whether it is another symbol in place of the letter.
    named = (agl.toUnicode(glyphs.get(ord(letter), "")) for letter in LETTERS)
    return family if "".join(named) == LETTERS else None


def _loaded(path):
    return ImageFont.truetype(path, _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)


def _drawn(font, letter, rows=None):
    """Draw a letter as an image without margins, or from the first to the last of `rows`.

    Raises:
        ValueError: the letter is blank.
    """
    left, top, right, bottom = font.getbbox(letter)
    top, bottom = rows or (top, bottom)
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), letter, fill=255, font=font)
    box = image.getbbox()
    if box is None:
        raise ValueError(f"{letter!r} is blank")
    if rows:
        box = (box[0], 0, box[2], image.height)
    return image.crop(box)


def _similar(letters):
    """Compare fonts by letters, integers `(n, letters, ...)`: a boolean `(n, n)`."""
    flat = letters.reshape(len(letters), -1).astype("float32")
    squares = (flat**2).sum(axis=1)
    differences = squares[:, None] + squares - 2 * flat @ flat.T
    return differences < (_MAX_DIFFERENCE * (_LEVELS - 1)) ** 2 * flat.shape[1]


def _images(path):
    """Yield the image of each letter in a font."""
    font = _loaded(path)
    for letter in LETTERS:
        yield _placed(_drawn(font, letter), _generator(path, letter), _GLYPHS)


def _lines(path):
    """Return the images of the characters in a font, or None if it lacks a digit."""
    font = _loaded(path)
    boxes = [font.getbbox(character) for character in CHARACTERS]
    rows = min(top for _, top, _, _ in boxes), max(bottom for *_, bottom in boxes)
    try:
        drawn = [_drawn(font, character, rows) for character in CHARACTERS]
    except ValueError:
        return None
    digits = {image.tobytes() for image in drawn[len(LETTERS) :]}
    if len(digits) < len(string.digits):  # boxes in place of digits
        return None
    return np.stack(
        [
            _placed(image, _generator(path, character), _CHARACTERS)
            for image, character in zip(drawn, CHARACTERS, strict=True)
        ]
    )


def _generator(path, character):
    return np.random.default_rng([_seed(path), ord(character)])


def _placed(image, generator, style):
    """Rotate, scale and shift a letter at random, so that it stays inside the image."""
    side = _FINER * style.side
    angle = np.radians(generator.uniform(-style.max_rotation, style.max_rotation))
    scale = side * generator.uniform(*style.longer_side) / max(image.size)
    cos, sin = np.cos(angle), np.sin(angle)
    width, height = image.size
    covered = scale * np.array(
        [width * cos + height * abs(sin), width * abs(sin) + height * cos]
    )
    room = (side - covered) / 2 - _FINER * style.margin
    room = np.minimum(room, _FINER * style.shift)
    x, y = side / 2 + generator.uniform(-room, room)
    # Coefficients of the inverse map, from positions in the image to those in the letter.
    a, b, d, e = cos / scale, sin / scale, -sin / scale, cos / scale
    inverse = (a, b, width / 2 - a * x - b * y, d, e, height / 2 - d * x - e * y)
    placed = image.transform(
        (side, side), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
    )
    return np.asarray(placed.reduce(_FINER))
