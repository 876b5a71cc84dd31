"""Rows of results: their CSV file, statistics and tables."""

import csv
import math
import statistics
import typing

import numpy as np
import scipy.stats

from keras_nfnets import files
from keras_nfnets.experiments.experiment import CANNOT_TELL


class Results:
    """Rows of an experiment, in a CSV file that is complete at any time.

    Args:
        path: `pathlib.Path` of the file, which need not exist yet.

    Attributes:
        rows: list of dicts.

    Raises:
        ValueError: the file was not written by this class.
    """

    def __init__(self, path):
        self._path = path
        self.rows = []
        if path.exists():
            try:
                with path.open(newline="", encoding="utf-8-sig") as file:
                    self.rows = [_parsed(row) for row in csv.DictReader(file)]
            except (UnicodeDecodeError, csv.Error, TypeError) as error:
                raise ValueError(
                    f"{path} does not contain results of an experiment. Move it away, or "
                    f"give another folder. Received: {error}"
                ) from error

    def has(self, cell):
        """Whether there are rows of a cell."""
        return any(_is_of(row, cell) for row in self.rows)

    def of(self, cells):
        """Return the rows of these cells, in the order of the cells."""
        return [row for cell in cells for row in self.rows if _is_of(row, cell)]

    def add(self, rows):
        """Add rows and write the file."""
        self.rows += rows
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with (
            files.written(self._path) as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)


def _is_of(row, cell):
    return all(row.get(name) == value for name, value in cell.items())


def _parsed(row):
    if None in row or None in row.values():
        raise TypeError("a row has more or fewer values than there are columns")
    return {name: _value(text) for name, text in row.items() if text != ""}


def _value(text):
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def select(rows, **values):
    """Return the rows that have these values."""
    return [row for row in rows if _is_of(row, values)]


def distinct(rows, name):
    """Return the distinct values of a column, in the order of the rows."""
    return list(dict.fromkeys(row[name] for row in rows if name in row))


def median(rows, name):
    """Return the median of a column, or NaN without rows."""
    values = [row[name] for row in rows if name in row]
    return statistics.median(values) if values else math.nan


class Difference(typing.NamedTuple):
    """Difference of accuracy between two kinds of runs, with its 95 % interval."""

    value: float
    least: float
    most: float

    @classmethod
    def of(cls, rows, others, name="accuracy"):
        """Return the mean difference between runs of the same seeds.

        Its interval is Student's, as a bootstrap of so few values would be too narrow. One
        seed has an infinite one.
        """
        other = {row["seed"]: row[name] for row in others}
        differences = [row[name] - other[row["seed"]] for row in rows]
        mean, half = float(np.mean(differences)), math.inf
        if len(differences) > 1:
            error = np.std(differences, ddof=1) / math.sqrt(len(differences))
            half = float(error * scipy.stats.t.ppf(0.975, len(differences) - 1))
        return cls(mean, mean - half, mean + half)

    @classmethod
    def typical(cls, differences):
        """Return the median of differences, such as those of networks: a bootstrap."""
        differences = np.asarray(differences)
        count = len(differences)
        drawn = np.random.default_rng(0).integers(count, size=(_DRAWS, count))
        medians = np.median(differences[drawn], axis=1)
        ends = np.quantile(medians, [0.025, 0.975])
        return cls(*map(float, (np.median(differences), *ends)))

    def exceeds(self, bound):
        """Return True if the interval is above a bound, False if below, or `CANNOT_TELL`."""
        if self.least > bound:
            return True
        return False if self.most <= bound else CANNOT_TELL

    def is_small(self, bound):
        """Return True if it is between -bound and bound, False if not, or `CANNOT_TELL`."""
        if -bound < self.least and self.most < bound:
            return True
        outside = self.most <= -bound or self.least >= bound
        return False if outside else CANNOT_TELL

    def __str__(self):
        value, least, most = (f"{100 * share:+.1f}" for share in self)
        return f"{value} points (95 % interval {least} to {most})"


_DRAWS = 10_000


def opposite(holds):
    """Return the other verdict; `CANNOT_TELL` has none."""
    return holds if holds == CANNOT_TELL else not holds


def with_spread(rows, name, show):
    """Format a column as `median (minimum to maximum)`, each number with `show`."""
    values = [row[name] for row in rows if name in row]
    if not values:
        return "-"
    text = show(statistics.median(values))
    if len(values) > 1 and show(min(values)) != show(max(values)):
        text += f" ({show(min(values))} to {show(max(values))})"
    return text


def percent(share):
    """Format a share, such as `97.3%`."""
    return f"{100 * share:.1f}%"


def accuracies(rows, column="accuracy"):
    """Format the accuracies of runs with their spread and the number that diverged."""
    text = with_spread(rows, column, percent)
    diverged = sum(row.get("diverged", False) for row in rows)
    return text + (f"; {diverged} of {len(rows)} diverged" if diverged else "")


def markdown(header, lines):
    """Return a Markdown table as a list of lines."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return [
        "| " + " | ".join(map(str, cells)) + " |" for cells in [header, rule, *lines]
    ]


def grid(rows, down, across, show=accuracies, names=str):
    """Return a Markdown table of `show(rows)` for each pair of values of two columns."""
    columns = distinct(rows, across)
    return markdown(
        [down.replace("_", " "), *map(names, columns)],
        [
            [value]
            + [
                show(select(rows, **{down: value, across: column}))
                for column in columns
            ]
            for value in distinct(rows, down)
        ],
    )
