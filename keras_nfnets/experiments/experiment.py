"""What an experiment is."""

import dataclasses
import typing


class Finding(typing.NamedTuple):
    """A sentence about what came out, and whether it is as claimed (None: not said)."""

    text: str
    holds: bool | None


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A claim, what is run to try it, and what is made of the results.

    A cell is a dict of plain values (numbers, strings, booleans) that says what one
    measurement is of, such as a network, a batch size and a seed. A row is a cell with
    what was measured, as plain values too; a cell may give several.

    Attributes:
        name: as on the command line.
        claim: what the papers say, with the place.
        how: what is run, in words.
        beyond: what the small scale does not show, and what scale would.
        scales: `{"small": settings, "full": settings}`, dicts of JSON's types.
        plan: function of (settings, rows so far) that returns the cells to measure, as
            far as they are known by then.
        measure: function of (settings, cell) that returns a row or a list of rows
            (without the cell's own values). It may run in a process of its own.
        draw: function of (matplotlib figure, rows, settings).
        conclude: function of (rows, settings) that returns `Finding`s.
        tables: function of (rows, settings) that returns `{caption: lines of Markdown}`.
        figure_size: inches across and up.
        measures_machine: whether seconds and memory are measured: one cell at a time,
            each in a new process.
    """

    name: str
    claim: str
    how: str
    beyond: str
    scales: dict
    plan: typing.Callable
    measure: typing.Callable
    draw: typing.Callable
    conclude: typing.Callable
    tables: typing.Callable
    figure_size: tuple = (8, 5)
    measures_machine: bool = False
