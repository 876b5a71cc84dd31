"""Draw the diagrams of the guide `idea.md`: `python docs/diagrams.py`.

The text can be read if a figure is 400 pixels wide. The style and colors are those of the
experiments' plots; text, hatching and line styles carry the meaning without colors.
"""

import pathlib

import keras
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

import keras_nfnets
from keras_nfnets import plotting

_DOCS = pathlib.Path(__file__).parent
_PIXELS_PER_INCH = 200
_BLUE, _ORANGE, _BLACK = plotting.COLORS[:3]
_BLUE_FILL, _ORANGE_FILL, _GRAY_FILL = "#CCE3F0", "#FBE9C6", "#EDEDED"

# Positions in the diagram of the block, in inches.
_BRANCH, _PROJECTION, _IDENTITY, _VARIANCE = 2.5, 0.93, 0.22, 4.0
_ROW, _BOX_HEIGHT, _BOX_WIDTH = 0.46, 0.31, 2.2
_PLAIN = {"color": _BLACK, "linewidth": 1.3, "marker": "", "linestyle": "-"}

# The residual branch of `NFBlock` with its defaults: text, color, variance of the output.
_LAYERS = (
    ("activation × γ × β", _ORANGE_FILL, "1"),
    ("1×1 convolution", _BLUE_FILL, "1"),
    ("activation × γ", _ORANGE_FILL, "1"),
    ("3×3 convolution, strides", _BLUE_FILL, "1"),
    ("activation × γ", _ORANGE_FILL, "1"),
    ("3×3 convolution", _BLUE_FILL, "1"),
    ("activation × γ", _ORANGE_FILL, "1"),
    ("1×1 convolution", _BLUE_FILL, "1"),
    ("squeeze-and-excitation", _GRAY_FILL, "1"),
    ("× α × skip gain", _GRAY_FILL, "α²"),
)


def nf_block():
    """Return a figure of the layers of an `NFBlock`, with the variance after each."""
    height = _ROW * (len(_LAYERS) + 3.1)
    figure = Figure((4.4, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 4.4), ylim=(-height, 0))
    axes.axis("off")
    start = -0.33
    rows = [start - _ROW * (i + 1) for i in range(len(_LAYERS))]
    end = rows[-1] - _ROW

    axes.text(_BRANCH, start, "input", ha="center", va="bottom")
    axes.text(_VARIANCE, start, "variance", ha="center", va="bottom")
    _line(axes, (_BRANCH, start), (_BRANCH, end + 0.14))
    for (text, color, variance), y in zip(_LAYERS, rows, strict=True):
        _box(axes, (_BRANCH, y), text, color, _BOX_WIDTH, _BOX_HEIGHT)
        axes.text(_VARIANCE, y, variance, ha="center", va="center")
    axes.text(_VARIANCE, start - 0.17, "σ²", ha="center", va="center")
    axes.text(_VARIANCE, end, "σ² + α²", ha="center", va="center")
    axes.text(_VARIANCE, end - 0.25, "or 1 + α²", ha="center", va="center")

    _shortcuts(axes, start - 0.12, (rows[0] + rows[1]) / 2, end)
    axes.add_patch(Circle((_BRANCH, end), 0.13, facecolor="white", edgecolor=_BLACK))
    axes.text(_BRANCH, end - 0.01, "+", ha="center", va="center", fontsize=15)
    _line(axes, (_BRANCH, end - 0.13), (_BRANCH, end - 0.4))
    axes.text(_BRANCH, end - 0.42, "output", ha="center", va="top")
    return figure


def _shortcuts(axes, split, after_activation, end):
    """Draw the identity, and the projection of blocks that change the shape."""
    joint = (_BRANCH - 0.13, end)
    axes.plot([_BRANCH, _IDENTITY, _IDENTITY], [split, split, end], **_PLAIN)
    _line(axes, (_IDENTITY, end), joint)
    middle = (after_activation + end) / 2
    _label(axes, _IDENTITY, middle, "identity: same shape")

    dashed = {"linestyle": (0, (3, 2))}
    axes.plot(
        [_BRANCH, _PROJECTION, _PROJECTION],
        [after_activation, after_activation, end],
        **{**_PLAIN, **dashed},
    )
    _box(
        axes,
        (_PROJECTION, middle),
        "average\npooling,\n1×1 con-\nvolution",
        _BLUE_FILL,
        0.78,
        0.92,
        **dashed,
    )
    _label(axes, _PROJECTION - 0.32, end + 0.55, "new shape")


def _label(axes, x, y, text):
    axes.text(x + 0.16, y, text, rotation=90, ha="center", va="center")


def _line(axes, start, end):
    style = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "linewidth": 1.3}
    axes.annotate("", end, start, arrowprops={**style, "color": _BLACK}, zorder=1)


def _box(axes, center, text, color, width, height, **style):
    x, y = center
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.05",
            facecolor=color,
            edgecolor=_BLACK,
            zorder=2,
            **style,
        )
    )
    axes.text(x, y - 0.01, text, ha="center", va="center", zorder=3)


def unitwise_clipping():
    """Return a figure of gradients of five units before and after `adaptive_clip`."""
    clip_factor = 0.1
    norms = np.array([4.0, 3.0, 1.0, 2.0, 0.5])
    before = np.array([0.2, 0.9, 0.25, 0.1, 0.4])
    # Each unit has two weights, in the direction (3, 4) / 5.
    direction = np.array([[0.6], [0.8]])
    weights = keras.Variable(direction * norms)
    [clipped] = keras_nfnets.adaptive_clip(
        [keras.ops.array(direction * before)], [weights], clip_factor
    )
    after = np.linalg.norm(keras.ops.convert_to_numpy(clipped), axis=0)

    figure = Figure((4.4, 3.6), layout="constrained")
    axes = figure.subplots()
    units = np.arange(1, 6)
    axes.bar(
        units,
        before,
        0.6,
        facecolor="white",
        edgecolor=_ORANGE,
        hatch="////",
        label="gradient before clipping",
    )
    axes.bar(units, after, 0.6, color=_BLUE, label="gradient after clipping")
    axes.hlines(
        clip_factor * norms,
        units - 0.42,
        units + 0.42,
        _BLACK,
        linewidth=2.5,
        label=f"limit: {clip_factor} × norm of the weights",
    )
    axes.set_xticks(
        units, [f"{unit}\n{norm:g}" for unit, norm in zip(units, norms, strict=True)]
    )
    axes.set(xlabel="unit, and norm of its weights", ylabel="norm of the gradient")
    axes.set_ylim(0, 1)
    # After, before, limit: from the bottom of a bar to its top.
    handles, labels = axes.get_legend_handles_labels()
    order = [labels.index(label) for label in sorted(labels)]
    figure.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="outside upper left",
        frameon=False,
    )
    return figure


if __name__ == "__main__":
    for draw in (nf_block, unitwise_clipping):
        with plotting.styled():
            draw().savefig(_DOCS / f"{draw.__name__}.png", dpi=_PIXELS_PER_INCH)
