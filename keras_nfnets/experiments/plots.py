"""Plots shared by the experiments."""

import numpy as np

from keras_nfnets.experiments.results import distinct, median, select

# Smaller differences of accuracy are noise, of 1,000 test images and of the seeds.
NEAR = 0.02


def line(axes, rows, across, value="accuracy", label=None, scale=100):
    """Plot the median of a value over a column, with a dot per run, or x if it diverged.

    Values are multiplied by `scale`; the default shows shares in percent.
    """
    positions = sorted(distinct(rows, across))
    medians = [scale * median(select(rows, **{across: p}), value) for p in positions]
    [drawn] = axes.plot(positions, medians, label=label, linewidth=1.5)
    for diverged, marker, size in ((False, "o", 14), (True, "x", 40)):
        runs = [row for row in rows if row.get("diverged", False) == diverged]
        axes.scatter(
            [row[across] for row in runs],
            [scale * row[value] for row in runs],
            size,
            marker=marker,
            color=drawn.get_color(),
            alpha=0.7,
        )
    return drawn


def by_batch_size(figure, rows):
    """Plot the accuracy of each network over the batch size."""
    axes = figure.subplots()
    for network in distinct(rows, "network"):
        line(axes, select(rows, network=network), "batch_size", label=network)
    axes.set(xlabel="batch size (the learning rate is proportional to it)")
    accuracy_axis(axes, distinct(rows, "batch_size"))


def accuracy_axis(axes, ticks):
    """Label axes that show accuracy over a quantity on a logarithmic scale."""
    factor_axis(axes, ticks)
    axes.set(ylabel="test accuracy (%)", ylim=(0, 102))
    axes.grid(alpha=0.3)
    axes.plot([], [], "kx", label="diverged")
    axes.legend(fontsize=8)


def factor_axis(axes, ticks):
    """Make the x axis logarithmic, with a tick at each of `ticks`."""
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


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
        axes.text(j, i, text, ha="center", va="center", color=color, fontsize=8)
    names = [f"{w:g}" if isinstance(w, (int, float)) else w for w in widths]
    axes.set_xticks(range(len(widths)), names)
    names = [f"{h:g}" if isinstance(h, (int, float)) else h for h in heights]
    axes.set_yticks(range(len(heights)), names)
    axes.set_xlabel(across.replace("_", " "))
    axes.set_title(title, fontsize=10)
    return shown
