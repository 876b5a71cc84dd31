"""How wide is the range of settings that trains."""

from keras_nfnets.experiments import fitting, plots
from keras_nfnets.experiments.experiment import Experiment, Finding
from keras_nfnets.experiments.fitting import CLIPPED, NORMALIZER_FREE
from keras_nfnets.experiments.results import distinct, grid, median, percent, select

_NONE, _AGC = "no clipping", "AGC"
# Of `keras.optimizers.SGD`.
_OF_NORM = {"clip by norm": "clipnorm", "clip by global norm": "global_clipnorm"}


def _plan(settings, rows):
    thresholds = {
        _NONE: [0],
        _AGC: settings["clip_factors"],
        **dict.fromkeys(_OF_NORM, settings["norms"]),
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
    options = {_OF_NORM[method]: threshold} if method in _OF_NORM else None
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
    figure.colorbar(shown, ax=panels, label="accuracy (%; ×: a run that diverged)")


def _training_rates(rows, best):
    """The learning rates whose median accuracy is near the best of all."""
    return [
        rate
        for rate in distinct(rows, "learning_rate")
        if median(select(rows, learning_rate=rate), "accuracy") > best - _NEAR
    ]


# Wider than `plots.NEAR`: the runs are short.
_NEAR = 2 * plots.NEAR


def _conclude(rows, settings):
    of_setting = {
        (row["method"], row["threshold"], row["learning_rate"]): None for row in rows
    }
    for method, threshold, rate in of_setting:
        runs = select(rows, method=method, threshold=threshold, learning_rate=rate)
        of_setting[method, threshold, rate] = median(runs, "accuracy")
    best = max(of_setting.values())
    widths, highest = {}, {}
    for method in distinct(rows, "method"):
        of_method = select(rows, method=method)
        highest[method] = max(v for (m, *_), v in of_setting.items() if m == method)
        widths[method] = max(
            (
                _training_rates(select(of_method, threshold=threshold), best)
                for threshold in distinct(of_method, "threshold")
            ),
            key=len,
        )

    def described(method):
        rates = widths[method]
        span = f"{rates[0]:g} to {rates[-1]:g}" if rates else "none"
        return f"{method} {span} (best {percent(highest[method])})"

    reach = {m: (rates[-1] / rates[0] if rates else 0) for m, rates in widths.items()}
    top = {m: max(rates, default=0) for m, rates in widths.items()}
    others = [m for m in reach if m != _AGC]
    return [
        Finding(
            f"Learning rates that come within {percent(_NEAR)} of the best of all "
            f"({percent(best)}), with the threshold that has most of them: "
            + "; ".join(described(method) for method in widths)
            + ".",
            None,
        ),
        Finding(
            f"The widest range of a threshold: AGC a factor of {reach[_AGC]:g}, without "
            f"clipping {reach[_NONE]:g}, the best of the others "
            f"{max(reach[m] for m in others):g}.",
            reach[_AGC] >= max(reach[m] for m in others) and reach[_AGC] > reach[_NONE],
        ),
        Finding(
            f"The highest learning rate that trains: {top[_AGC]:g} with AGC, "
            f"{top[_NONE]:g} without clipping, "
            f"{max(top[m] for m in _OF_NORM):g} with clipping by norms.",
            top[_AGC] > top[_NONE],
        ),
    ]


def _tables(rows, settings):
    return {
        f"Accuracy on held-out pictures with {method}, by threshold and learning rate: "
        "median (least to most).": grid(
            select(rows, method=method),
            "threshold",
            "learning_rate",
            names=lambda rate: f"{rate:g}",
        )
        for method in distinct(rows, "method")
    }


EXPERIMENT = Experiment(
    name="optimizers",
    claim="""\
AGC trains over a wider range of learning rates than no clipping, clipping each gradient by
its norm, or all by their global norm, and depends less on its threshold (arXiv 2102.06171,
section 4).""",
    how="""\
The NF-ResNet at one batch size, with each kind of clipping, thresholds and learning rates a
factor apart. What is asked is how many learning rates come near the best result of all."""
    + fitting.SKIP_GAINS,
    beyond="""\
Short runs at one batch size: what trains in ten epochs may fall apart in ninety. The same at
the paper's size is `--scale full`.""",
    scales={
        "small": {
            **fitting.SMALL_RUN,
            **fitting.SMALL_CLIPPING,
            "batch_size": 256,
            "epochs": 10,
            "learning_rates": [0.0125, 0.05, 0.2, 0.8, 3.2],
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
    figure_size=(8, 7),
)
