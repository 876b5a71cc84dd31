"""Plots shared by the experiments."""

import numpy as np

from keras_nfnets import plotting
from keras_nfnets.experiments.results import distinct, median, select

# Smaller differences of accuracy are noise, of 1,000 test images and of the seeds.
NEAR = 0.02
# A network is as good as another if its accuracy is at most this much lower.
AS_GOOD = 0.01


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
    plotting.label_lines(axes)


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
