"""Style of figures, and their writing: complete files, in fonts that have all characters."""

import contextlib
import functools
import pathlib
import unicodedata
import warnings

import numpy as np
from absl import logging

from keras_nfnets import files

# Of Okabe and Ito, for color-blind readers.
COLORS = ("#0072B2", "#E69F00", "#000000", "#CC79A7", "#009E73", "#56B4E9")

# Distance between labels of lines, as a fraction of the height of the axes.
_LABEL_HEIGHT = 0.085

# Characters for which `save` has logged that no font has them.
_reported = set()
_MOST_REPORTED = 20
# Matplotlib's own font with boxes for the characters of all scripts.
_LAST_RESORT = "Last Resort"


def styled():
    """Context in which figures are readable on a phone and in black and white.

    Series differ in color, brightness, marker and line.
    """
    import matplotlib

    return matplotlib.rc_context(
        {
            "font.size": 12,
            "axes.titlesize": 12,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "lines.linewidth": 1.8,
            "axes.prop_cycle": matplotlib.cycler(
                color=COLORS,
                marker=["o", "s", "^", "D", "v", "P"],
                linestyle=["-", "--", "-.", ":", "-", "--"],
            ),
        }
    )


def label_lines(axes):
    """Write the label of each line at its right end; the limits of the axes must be set.

    A line may be drawn by `line` or by `axes.plot`.
    """
    axes.autoscale_view()  # matplotlib postpones it
    ends = []
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
        drawn = handle[0] if isinstance(handle, tuple) else handle
        points = np.transpose(drawn.get_data()).astype("float64")
        points = points[np.isfinite(points).all(axis=1)]
        if not len(points):
            continue
        end = axes.transData.transform(points[-1])
        height = float(axes.transAxes.inverted().transform(end)[1])
        ends.append((min(max(height, 0), 1), label, drawn))
    ends.sort(key=lambda end: end[0])
    heights = _apart(np.array([height for height, *_ in ends]))
    for height, (_, label, drawn) in zip(heights, ends, strict=True):
        style = {"color": drawn.get_color(), "transform": axes.transAxes}
        axes.plot(1.03, height, marker=drawn.get_marker(), clip_on=False, **style)
        axes.text(1.06, height, label, va="center", **style)


def _apart(heights):
    """Move ascending heights so far apart that labels at them do not overlap."""
    gaps = _LABEL_HEIGHT * np.arange(len(heights))
    # The least and the most that each may be, if it were the only one to move.
    up = np.maximum.accumulate(heights - gaps) + gaps
    down = np.minimum.accumulate((heights - gaps)[::-1])[::-1] + gaps
    return (up + down) / 2


def save(figure, path, dpi=120):
    """Write a matplotlib figure, completely or not at all.

    Text gets further fonts, if its own lack some of its characters. If no installed font
    has them, that is logged once, and they are drawn as boxes.

    Args:
        figure: `matplotlib.figure.Figure`.
        path: str, path or binary file object. The file appears when it is complete.
        dpi: int. Pixels per inch.

    Raises:
        OSError: the file cannot be written.
        ValueError: matplotlib cannot write files with this extension.
    """
    _choose_fonts(figure)
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        if not hasattr(path, "write"):
            path = pathlib.Path(path)
            if not path.suffix:  # as matplotlib names it
                path = path.with_name(
                    f"{path.name}.{figure.canvas.get_default_filetype()}"
                )
            path = stack.enter_context(files.written(path))
        figure.savefig(path, dpi=dpi)


def _choose_fonts(figure):
    """Add fonts to each text in a figure that has characters its own fonts lack."""
    from matplotlib.text import Text

    lacking = {}
    for text in figure.findobj(Text):
        # File names may contain bytes that are not text, which matplotlib cannot draw.
        text.set_text(text.get_text().encode("utf-8", "replace").decode("utf-8"))
        drawn = frozenset(filter(_is_drawn, text.get_text()))
        missing = drawn.difference(
            *(_covered(family, drawn) for family in text.get_fontfamily())
        )
        if missing:
            lacking[text] = missing
    if not lacking:
        return
    wanted = frozenset().union(*lacking.values())
    families, missing = _families_with(wanted)
    for text in lacking:
        text.set_fontfamily([*text.get_fontfamily(), *families])
    if missing - _reported:
        _reported.update(missing)
        fonts = sorted({_suitable_font(character) for character in missing})
        logging.warning(
            "No installed font has the characters %s, which are drawn as boxes. Install a "
            "font that has them, for example %s.",
            " ".join(sorted(missing)[:_MOST_REPORTED]),
            " and ".join(fonts),
        )


def _is_drawn(character):
    """Whether a character has a glyph of its own, unlike spaces and joiners."""
    is_mark = unicodedata.name(character, "").startswith("VARIATION SELECTOR")
    # Separators, control and format characters, bytes that are not text.
    return not is_mark and unicodedata.category(character) not in _NOT_DRAWN


_NOT_DRAWN = ("Zs", "Zl", "Zp", "Cc", "Cf", "Cs")


@functools.lru_cache(maxsize=16)
def _families_with(characters):
    """Choose installed font families that together have as many characters as possible.

    Returns:
        The list of their names, and the set of characters that no font has.
    """
    chosen, missing = [], set(characters)
    families = _installed_families()
    while missing:
        has = {family: _covered(family, frozenset(missing)) for family in families}
        families = [family for family in families if has[family]]
        if not families:
            break
        best = max(families, key=lambda family: len(has[family]))
        chosen.append(best)
        missing -= has[best]
    return chosen, missing


def _installed_families():
    """List the names of all installed font families, those without serifs first."""
    from matplotlib import font_manager

    manager = font_manager.fontManager
    # The list of matplotlib lacks fonts that were installed after its cache was written.
    known = {font.fname for font in manager.ttflist}
    for path in font_manager.findSystemFonts():
        if path not in known:
            # Raised for files that are not fonts, with errors of many types.
            with contextlib.suppress(Exception):
                manager.addfont(path)
    # Matplotlib logs a message about families without a font of normal weight.
    names = {
        font.name
        for font in manager.ttflist
        if font.weight in (400, "normal")
        and font.style == font.stretch == "normal"
        and not font.name.startswith(_LAST_RESORT)
    }
    return sorted(names, key=lambda name: ("Sans" not in name, "Mono" in name, name))


@functools.lru_cache(maxsize=1024)
def _covered(family, characters):
    """Return those of the characters that matplotlib can draw in a font family, a set."""
    from matplotlib import font_manager

    properties = font_manager.FontProperties(family=[family])
    try:
        path = font_manager.findfont(properties, fallback_to_default=False)
        font = font_manager.get_font(path)
        font.set_size(12, 72)
        return {
            character
            for character in characters
            if font.get_char_index(ord(character))
            # Fonts of colored bitmaps either fail here or have empty outlines.
            and font.load_char(ord(character)).width > 0
        }
    except (OSError, RuntimeError, ValueError):
        return set()


_CJK = ("CJK", "KANGXI", "HIRAGANA", "KATAKANA", "HANGUL", "IDEOGRAPHIC", "BOPOMOFO")


def _suitable_font(character):
    """Return the name of a font that has the script of a character."""
    script = unicodedata.name(character, "").partition(" ")[0]
    if unicodedata.category(character) in ("So", "Sk"):
        return "Noto Emoji"
    if script.startswith(_CJK) or script == "FULLWIDTH":
        return "Noto Sans CJK"
    return f"Noto Sans {script.capitalize()}".strip()
