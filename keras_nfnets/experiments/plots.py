"""Plots shared by the experiments."""

import numpy as np
from matplotlib import cycler

from keras_nfnets.experiments.results import distinct, median, select

# Smaller differences of accuracy are noise, of 1,000 test images and of the seeds.
NEAR = 0.02
# A network is as good as another if its accuracy is at most this much lower.
AS_GOOD = 0.01

# Text is readable on a phone. Series differ in brightness, marker and line, so that they can
# be told apart in black and white, too; the colors are those of Okabe and Ito.
STYLE = {
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.8,
    "axes.prop_cycle": cycler(
        color=["#0072B2", "#E69F00", "#000000", "#CC79A7", "#009E73"],
        marker=["o", "s", "^", "D", "v"],
        linestyle=["-", "--", "-.", ":", "-"],
    ),
}

# Distance between labels, as a fraction of the height of the axes.
_LABEL_HEIGHT = 0.085


def line(axes, rows, across, value="accuracy", label=None, scale=100):
    """Plot the median of a value over a column, with its range, and x for diverged runs.

    Values are multiplied by `scale`; the default shows shares in percent. Returns the
    `matplotlib.lines.Line2D` of the medians.
    """
    positions = sorted(distinct(rows, across))
    values = [
        [scale * row[value] for row in select(rows, **{across: p}) if value in row]
        for p in positions
    ]
    medians = np.array([np.median(v) for v in values])
    ranges = [medians - [min(v) for v in values], [max(v) for v in values] - medians]
    drawn = axes.errorbar(
        positions, medians, ranges, capsize=3, elinewidth=1, label=label
    )
    diverged = [row for row in rows if row.get("diverged", False)]
    axes.scatter(
        [row[across] for row in diverged],
        [scale * row[value] for row in diverged],
        marker="x",
        color=drawn[0].get_color(),
        zorder=3,
    )
    return drawn[0]


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


def by_batch_size(figure, rows):
    """Plot the accuracy of each network over the batch size."""
    axes = figure.subplots()
    for network in distinct(rows, "network"):
        line(axes, select(rows, network=network), "batch_size", label=network)
    axes.set(xlabel="batch size (learning rate proportional to it)")
    accuracy_axis(axes, distinct(rows, "batch_size"))


def accuracy_axis(axes, ticks, what="test accuracy (%)"):
    """Finish axes with lines of shares over a quantity on a logarithmic scale."""
    factor_axis(axes, ticks)
    axes.set(ylabel=what, ylim=(0, 102))
    label_lines(axes)


def factor_axis(axes, ticks):
    """Make the x axis logarithmic, with a tick at each of `ticks`."""
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def heat_map(axes, rows, down, across, title):
    """Draw the median accuracy over two columns as a heat map."""
    heights, widths = distinct(rows, down), distinct(rows, across)
    values = np.array(
        [
            [
                100 * median(select(rows, **{down: h, across: w}), "accuracy")
                for w in widths
            ]
            for h in heights
        ]
    )
    shown = axes.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        runs = select(rows, **{down: heights[i], across: widths[j]})
        diverged = sum(row.get("diverged", False) for row in runs)
        text = f"{value:.0f}" + "×" * diverged
        color = "black" if value > 60 else "white"
        axes.text(j, i, text, ha="center", va="center", color=color)
    names = [f"{w:g}" if isinstance(w, (int, float)) else w for w in widths]
    axes.set_xticks(range(len(widths)), names)
    names = [f"{h:g}" if isinstance(h, (int, float)) else h for h in heights]
    axes.set_yticks(range(len(heights)), names)
    axes.set_xlabel(across.replace("_", " "))
    axes.set_title(title)
    return shown
