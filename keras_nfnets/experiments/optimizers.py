"""Range of learning rates and thresholds that train, for each kind of clipping."""

from keras_nfnets.experiments import fitting, plots
from keras_nfnets.experiments.experiment import Experiment, Finding
from keras_nfnets.experiments.fitting import CLIPPED, NORMALIZER_FREE
from keras_nfnets.experiments.results import distinct, grid, median, percent, select

_NONE, _AGC = "no clipping", "AGC"
# Arguments of `keras.optimizers.SGD`.
_NORM_CLIPPING = {"clip by norm": "clipnorm", "clip by global norm": "global_clipnorm"}


def _plan(settings, rows):
    thresholds = {
        _NONE: [0],
        _AGC: settings["clip_factors"],
        **dict.fromkeys(_NORM_CLIPPING, settings["norms"]),
    }
    return [
        {
            "method": method,
            "threshold": threshold,
            "learning_rate": rate,
            "batch_size": settings["batch_size"],
            "seed": seed,
        }
        for seed in range(settings["seeds"])
        for method, values in thresholds.items()
        for threshold in values
        for rate in settings["learning_rates"]
    ]


def _measure(settings, cell):
    method, threshold = cell["method"], cell["threshold"]
    if method == _AGC:
        cell = {**cell, "network": CLIPPED}
        return fitting.train_cell(settings, cell, clip_factor=threshold)
    options = {_NORM_CLIPPING[method]: threshold} if method in _NORM_CLIPPING else None
    cell = {**cell, "network": NORMALIZER_FREE}
    return fitting.train_cell(settings, cell, optimizer_options=options)


def _draw(figure, rows, settings):
    methods = distinct(rows, "method")
    heights = [len(distinct(select(rows, method=m), "threshold")) for m in methods]
    panels = figure.subplots(len(methods), 1, height_ratios=heights)
    for axes, method in zip(panels, methods):
        runs = select(rows, method=method)
        shown = plots.heat_map(axes, runs, "threshold", "learning_rate", method)
        if method == _NONE:
            axes.set_yticks([])
        axes.set_ylabel("threshold" if method != _NONE else "")
        if axes is not panels[-1]:
            axes.set_xlabel("")
    figure.colorbar(shown, ax=panels, label="test accuracy (%; ×: a run diverged)")


# Wider than `plots.NEAR`, because the runs are short.
_NEAR = 2 * plots.NEAR


def _conclude(rows, settings):
    rates = settings["learning_rates"]
    accuracy = {
        (row["method"], row["threshold"], row["learning_rate"]): None for row in rows
    }
    for method, threshold, rate in accuracy:
        runs = select(rows, method=method, threshold=threshold, learning_rate=rate)
        accuracy[method, threshold, rate] = median(runs, "accuracy")
    best = max(accuracy.values())
    if best < 0.5:
        return [
            Finding(f"No setting trains: the best accuracy is {percent(best)}.", None)
        ]
    near = {setting: value > best - _NEAR for setting, value in accuracy.items()}

    def longest_range(method, threshold):
        """Return the longest sequence of adjacent learning rates that come near the best."""
        longest = current = []
        for rate in rates:
            current = [*current, rate] if near[method, threshold, rate] else []
            longest = max(longest, current, key=len)
        return longest

    methods = distinct(rows, "method")
    widest, highest, share = {}, {}, {}
    for method in methods:
        settings_of_method = [setting for setting in near if setting[0] == method]
        thresholds = dict.fromkeys(threshold for _, threshold, _ in settings_of_method)
        widest[method] = max((longest_range(method, t) for t in thresholds), key=len)
        training = [s for s in settings_of_method if near[s]]
        highest[method] = max((rate for *_, rate in training), default=0)
        share[method] = len(training) / len(settings_of_method)
    others = [method for method in methods if method != _AGC]

    def described(method):
        found = widest[method]
        return f"{method} {found[0]:g} to {found[-1]:g}" if found else f"{method} none"

    def each(values, show):
        return ", ".join(f"{method} {show(values[method])}" for method in methods)

    return [
        Finding(
            f"With AGC learning rates up to {highest[_AGC]:g} train, without clipping up to "
            f"{highest[_NONE]:g}.",
            highest[_AGC] > highest[_NONE],
        ),
        Finding(
            f"Longest range of adjacent learning rates within {100 * _NEAR:.0f} points of "
            f"the best of all ({percent(best)}), with the best threshold of each method: "
            + "; ".join(map(described, methods))
            + ".",
            all(len(widest[_AGC]) > len(widest[method]) for method in others),
        ),
        Finding(
            f"Highest such learning rate with any threshold: {each(highest, '{:g}'.format)}.",
            all(highest[_AGC] > highest[method] for method in others),
        ),
        Finding(
            "Share of all combinations of threshold and learning rate that come as near: "
            f"{each(share, '{:.0%}'.format)}.",
            all(share[_AGC] > share[method] for method in others),
        ),
    ]


def _tables(rows, settings):
    return {
        f"Test accuracy with {method}, by threshold and learning rate: "
        "median (minimum to maximum).": grid(
            select(rows, method=method),
            "threshold",
            "learning_rate",
            names=lambda rate: f"{rate:g}",
        )
        for method in distinct(rows, "method")
    }


EXPERIMENT = Experiment(
    name="optimizers",
    title="AGC trains at more learning rates than other clipping",
    claim="""\
AGC trains over a wider range of learning rates than no clipping, clipping each gradient by
its norm, or clipping all gradients by their global norm, and is less sensitive to its
threshold (arXiv 2102.06171, section 4).""",
    how="""\
The NF-ResNet at one batch size, with each kind of clipping, over grids of thresholds and
learning rates. The measure is how many learning rates come near the best result of all."""
    + fitting.AGC_AT_ZERO_TEXT,
    beyond="""\
These are short runs at one batch size of a network of four blocks: its gradients have
similar norms, so that one global norm clips as well as a norm per unit. In deep networks,
and over many thousand steps, this is not so. `--scale full` runs the paper's size.""",
    scales={
        "small": {
            **fitting.SMALL_RUN,
            **fitting.SMALL_CLIPPING,
            "batch_size": 256,
            "epochs": 8,
            "learning_rates": [0.05, 0.2, 0.8, 3.2],
            "clip_factors": [0.02, 0.08, 0.32],
            "norms": [0.1, 1.0, 10.0],
            "seeds": 2,
        },
        "full": {
            **fitting.FULL_RUN,
            **fitting.FULL_CLIPPING,
            "batch_size": 2048,
            "learning_rates": [0.0125, 0.05, 0.1, 0.2, 0.8],
            "clip_factors": [0.01, 0.04, 0.16],
            "norms": [0.1, 1.0, 10.0],
        },
    },
    plan=_plan,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
    tables=_tables,
    figure_size=(6.4, 8),
)
