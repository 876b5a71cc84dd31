"""Figures: fonts for the characters of their text."""

import warnings

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from keras_nfnets import plotting

# No font has characters for private use.
FIRST, SECOND = "\uf8a1", "\uf8a2"
CHINESE = "\u732b"


def make_font(path, family, characters):
    """Write a font in which characters are filled squares."""
    builder = FontBuilder(1000, isTTF=True)
    names = [f"glyph{i}" for i in range(len(characters))]
    builder.setupGlyphOrder([".notdef", *names])
    builder.setupCharacterMap(dict(zip(map(ord, characters), names)))
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    builder.setupGlyf(dict.fromkeys([".notdef", *names], square))
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names], (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    builder.save(path)


@pytest.fixture
def installed(monkeypatch):
    """List of the paths of the installed fonts, at first only those of matplotlib."""
    manager = font_manager.fontManager
    own = [font for font in manager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(manager, "ttflist", own)
    paths = []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [*map(str, paths)])
    monkeypatch.setattr(plotting, "_reported", set())
    caches = (plotting._families_with, plotting._covered, manager._findfont_cached)
    for cache in caches:
        cache.cache_clear()
    yield paths
    for cache in caches:
        cache.cache_clear()


def drawn(text, path):
    """Draw text and return the pixels, without any warning."""
    figure = Figure(figsize=(4, 1))
    figure.text(0.1, 0.3, text, fontsize=30, parse_math=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plotting.save(figure, path, dpi=50)
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def test_text_is_drawn_in_fonts_that_have_its_characters(installed, tmp_path, caplog):
    # Two fonts, installed after matplotlib listed those that it knows.
    for family, character in (("First Sans", FIRST), ("Second", SECOND)):
        installed.append(tmp_path / f"{family}.ttf")
        make_font(installed[-1], family, character)
    pixels = drawn(f"{FIRST}{SECOND}", tmp_path / "m.png")
    assert not caplog.text
    # Each is a square of 0.8 times the font size.
    area = 2 * (0.8 * 30 * 50 / 72) ** 2
    assert (255 - pixels).sum() / 255 == pytest.approx(area, rel=0.1)


def test_characters_that_no_font_has_are_one_log_line(installed, tmp_path, caplog):
    (tmp_path / "broken.ttf").write_text("no font")
    installed.append(tmp_path / "broken.ttf")
    for _ in range(2):
        drawn(f"cat {CHINESE}", tmp_path / "m.png")
    [record] = caplog.records
    assert f"No installed font has the characters {CHINESE}," in record.message
    assert "Noto Sans CJK" in record.message
    drawn("\u0939 \U0001f680", tmp_path / "m.png")
    assert "Noto Emoji and Noto Sans Devanagari" in caplog.records[-1].message


@pytest.mark.parametrize(
    "text",
    ["plain \u00e9\n\u03b2", "\u2764\ufe0f", "bad \udce9 name", "zero\u200dwidth"],
)
def test_usual_text_needs_no_other_font(text, installed, tmp_path, caplog, monkeypatch):
    monkeypatch.delattr(font_manager, "findSystemFonts")
    drawn(text, tmp_path / "m.png")
    assert not caplog.text


def test_a_path_without_extension_is_a_png(installed, tmp_path):
    plotting.save(Figure(), tmp_path / "figure")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
