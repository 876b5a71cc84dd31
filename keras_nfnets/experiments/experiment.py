"""The definition of an experiment and of its findings."""

import dataclasses
import typing

# Value of `Finding.holds`.
CANNOT_TELL = "cannot tell"


class Finding(typing.NamedTuple):
    """A result in words, and what it says of the claim.

    Attributes:
        text: str.
        holds: True if it supports the claim, False if it contradicts it, `CANNOT_TELL` if
            this scale cannot decide that part of the claim (then the text says why, and
            which scale could), None if the claim says nothing of it.
    """

    text: str
    holds: bool | str | None


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A claim of the papers, the measurements that test it, and their evaluation.

    A cell is a dict of plain values (numbers, strings, booleans) that identifies one
    measurement, such as a network, a batch size and a seed. A row is a cell together with
    its measured values, which are plain values too. A cell may yield several rows.

    Attributes:
        name: str. Name on the command line.
        title: str. The claim in a few words, for the figure.
        claim: str. The claim and its source.
        how: str. Description of the measurements.
        beyond: str. Limits of the scales that were run, and what a larger one would show.
        scales: `{"small": settings, "full": settings}`, and `"medium"` if there is one.
            The settings are JSON-serializable dicts.
        plan: callable `(settings, rows so far)` that returns the cells to measure that are
            known by then.
        measure: callable `(settings, cell)` that returns a row or a list of rows, without
            the values of the cell. It may run in a separate process.
        draw: callable `(matplotlib figure, rows, settings)` that draws the figure.
        conclude: callable `(rows, settings)` that returns `Finding`s.
        tables: callable `(rows, settings)` that returns `{caption: lines of Markdown}`.
        undecided: callable `(settings)` that returns the `Finding`s with `CANNOT_TELL` that
            the settings imply, for a warning before the run.
        figure_size: tuple. Width and height in inches.
        measures_machine: bool. Whether time and memory are measured. Then each cell runs
            alone in a new process.
        needs: tuple of str. Modules that only some installations have.
    """

    name: str
    title: str
    claim: str
    how: str
    beyond: str
    scales: dict
    plan: typing.Callable
    measure: typing.Callable
    draw: typing.Callable
    conclude: typing.Callable
    tables: typing.Callable
    undecided: typing.Callable = lambda settings: []
    figure_size: tuple = (6.8, 4.6)
    measures_machine: bool = False
    needs: tuple = ()
