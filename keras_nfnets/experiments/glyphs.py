"""Letters, drawn with the fonts that are installed here.

The set "glyphs" has a class for each letter of the Latin alphabet, A to Z: a picture of
the capital and one of the small letter in one font of each family, turned, scaled and
shifted a little. What is held out is of fonts that were not learned. Hundreds of families
come with Debian's packages:

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
SIDE = 28

# Fewer would say little about fonts that were not learned.
FEWEST_FAMILIES = 100
# More would make runs longer.
MOST_FAMILIES = 500

# Letters are drawn so large, turned at four times the size of a picture, and averaged.
_FONT_SIZE, _FINER = 96, 4
# The longer side of a letter as fractions of a picture's, degrees, and pixels. The largest
# one, turned that far, just leaves the margin.
_LONGER_SIDE, _TURN, _SHIFT, _MARGIN = (0.6, 0.78), 12, 3, 1

# How two fonts are compared: the letters at so many pixels and levels of grey. So few
# levels make the sums below integers that float32 has, whatever order they are added in.
_COARSE, _LEVELS = 12, 16
# Root mean square of differences, black to white being one. Below are the redrawings of
# a typeface under other names, such as those of Times; above, other typefaces.
_ALIKE = 0.13


class _Font(typing.NamedTuple):
    path: pathlib.Path
    family: str
    letters: np.ndarray


@functools.cache
def read():
    """Draws the pictures.

    They follow from the fonts found and the version of FreeType.

    Returns:
        Pictures, uint8 `(n, 28, 28)`, white on black; classes, 0 to 25; and the place of
        each one's font in the order of file names. Those of a font follow each other.

    Raises:
        ValueError: there are fonts of fewer than `FEWEST_FAMILIES` families.
    """
    chosen = fonts()
    if len(chosen) < FEWEST_FAMILIES:
        raise ValueError(
            f"The set 'glyphs' takes fonts of {FEWEST_FAMILIES} families with all Latin "
            f"letters; there are {len(chosen)} here. More come with Debian's packages "
            "fonts-aenigma (hundreds), fonts-georgewilliams, fonts-texgyre and "
            "fonts-urw-base35"
        )
    x = np.stack([picture for path in chosen for picture in _pictures(path)])
    classes = [string.ascii_lowercase.index(letter.lower()) for letter in LETTERS]
    return (
        x,
        np.tile(classes, len(chosen)),
        np.repeat(np.arange(len(chosen)), len(LETTERS)),
    )


def described():
    """What settings have to say of the pictures, as other fonts give others.

    Raises:
        ValueError: see `read`.
    """
    x, _, _ = read()
    return {
        "fonts": len(x) // len(LETTERS),
        "pictures_checksum": f"{zlib.crc32(x.tobytes()):08x}",
    }


def fonts():
    """Paths of one font of each of `MOST_FAMILIES` at most, sorted by file name.

    Fonts are of one family if they have its name, or draw nearly the same letters, or if
    others link them in these ways: a typeface has several styles, and some have several
    makers. Which fonts are taken follows from the file names alone, as if by lot, so that
    there are all weights and styles. Fonts that lack letters, or have others in their places,
    are passed over. (A few of fonts-aenigma's stay that have ornaments in place of letters
    and nothing that says so.)
    """
    from scipy.sparse.csgraph import connected_components

    # It says what is odd in fonts that can be read all the same.
    logging.getLogger("fontTools").setLevel(logging.ERROR)
    found = [font for path in _paths() if (font := _opened(path))]
    if not found:
        return []
    _, names = np.unique([font.family for font in found], return_inverse=True)
    linked = (names[:, None] == names) | _alike(np.stack([f.letters for f in found]))
    _, families = connected_components(linked, directed=False)
    of_family = {}
    for font, family in zip(found, families, strict=True):
        of_family.setdefault(family, []).append(font.path)
    chosen = sorted(
        (min(paths, key=_by_lot) for paths in of_family.values()), key=_by_lot
    )
    return sorted(chosen[:MOST_FAMILIES], key=_by_name)


def _paths():
    import matplotlib
    from matplotlib import font_manager

    own = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf")
    paths = map(pathlib.Path, font_manager.findSystemFonts())
    return sorted({*own, *paths}, key=_by_name)


def _by_name(path):
    return path.name, str(path)


def _by_lot(path):
    return _seed(path), str(path)


def _seed(path):
    return zlib.crc32(path.name.encode("utf-8", "surrogateescape"))


def _opened(path):
    """A `_Font`, or None if it is none with all letters."""
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
        # Boxes in place of letters are all the same.
        if len({letter.tobytes() for letter in case}) < len(case):
            return None
    return _Font(path, family, coarse // (256 // _LEVELS))


def _family(path):
    """The name of a font's family, or None if it has not all letters, or cannot be read."""
    from fontTools import agl, ttLib

    try:
        with ttLib.TTFont(path, fontNumber=0, lazy=True) as font:
            glyphs = font.getBestCmap() or {}
            family = font["name"].getBestFamilyName() or path.stem
    except Exception:  # noqa: BLE001 (it stumbles over broken files in many ways)
        return None
    # A glyph tells by its name when another symbol stands in a letter's place.
    named = (agl.toUnicode(glyphs.get(ord(letter), "")) for letter in LETTERS)
    return family if "".join(named) == LETTERS else None


def _loaded(path):
    return ImageFont.truetype(path, _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)


def _drawn(font, letter):
    """A picture of a letter without margins."""
    left, top, right, bottom = font.getbbox(letter)
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), letter, fill=255, font=font)
    box = image.getbbox()
    if box is None:
        raise ValueError(f"{letter!r} is blank.")
    return image.crop(box)


def _alike(letters):
    """Which fonts look like which: boolean `(n, n)`, of integers `(n, letters, ...)`."""
    flat = letters.reshape(len(letters), -1).astype("float32")
    squares = (flat**2).sum(axis=1)
    differences = squares[:, None] + squares - 2 * flat @ flat.T
    return differences < (_ALIKE * (_LEVELS - 1)) ** 2 * flat.shape[1]


def _pictures(path):
    """The picture of each letter."""
    font = _loaded(path)
    for letter in LETTERS:
        generator = np.random.default_rng([_seed(path), ord(letter)])
        yield _placed(_drawn(font, letter), generator)


def _placed(image, generator):
    """A letter somewhat turned, scaled and shifted, all of it in the picture."""
    side = _FINER * SIDE
    turn = np.radians(generator.uniform(-_TURN, _TURN))
    scale = side * generator.uniform(*_LONGER_SIDE) / max(image.size)
    cos, sin = np.cos(turn), np.sin(turn)
    width, height = image.size
    covered = scale * np.array(
        [width * cos + height * abs(sin), width * abs(sin) + height * cos]
    )
    room = np.minimum((side - covered) / 2 - _FINER * _MARGIN, _FINER * _SHIFT)
    x, y = side / 2 + generator.uniform(-room, room)
    # Where in the letter a place in the picture lies.
    a, b, d, e = cos / scale, sin / scale, -sin / scale, cos / scale
    inverse = (a, b, width / 2 - a * x - b * y, d, e, height / 2 - d * x - e * y)
    placed = image.transform(
        (side, side), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
    )
    return np.asarray(placed.reduce(_FINER))
