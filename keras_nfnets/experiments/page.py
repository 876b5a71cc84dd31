"""Page and figure with the results of an experiment."""

import textwrap

from keras_nfnets import files, plotting
from keras_nfnets.experiments.experiment import CANNOT_TELL

PAGE, PICTURE = "README.md", "picture.png"


SUPPORTED, PARTLY, NOT = "supported", "partly supported", "not supported"
UNDECIDED = "this scale cannot tell"


def verdict(findings):
    """Return what the findings together say of the claim.

    A claim that consists of several parts is partly supported if some of them are.
    """
    holds = {finding.holds for finding in findings} - {None}
    if True in holds:
        return SUPPORTED if holds == {True} else PARTLY
    return NOT if False in holds else UNDECIDED


def write(experiment, settings, rows, folder, command):
    """Write the figure and the page of an experiment into a folder.

    Args:
        experiment: `Experiment`.
        settings: dict. Settings of the run.
        rows: list of dicts. Rows of all cells.
        folder: `pathlib.Path`.
        command: str. Command line that reproduces the results.

    Returns:
        A list of `Finding`s.
    """
    findings = experiment.conclude(rows, settings)
    _draw(experiment, settings, rows, findings, folder / PICTURE)
    lines = [
        f"# {experiment.title}",
        "",
        f"**Claim.** {_one_line(experiment.claim)}",
        "",
        f"**Result{_on(settings)}: {verdict(findings)}**.",
        "",
        f"![{experiment.name}]({PICTURE})",
        "",
        *[f"- {_MARKS[f.holds]} {_one_line(f.text)}" for f in findings],
        "",
        "## Method",
        "",
        _one_line(
            experiment.how + _INTERVALS * any("interval" in f.text for f in findings)
        ),
        "",
        f"    {command}",
        "",
        f"{_described(settings)} {_duration(rows)}",
        "",
        "## Limits of this scale",
        "",
        _one_line(experiment.beyond),
        "",
        "## Tables",
    ]
    for caption, table in experiment.tables(rows, settings).items():
        lines += ["", caption, "", *table]
    lines += ["", "All runs are in [results.csv](results.csv)."]
    _replace(folder / PAGE, "\n".join(_wrapped(line) for line in lines) + "\n")
    return findings


_INTERVALS = """
Intervals of 95 % are those of a mean over the seeds (Student's t) or of a median over the
networks (bootstrap)."""

_MARKS = {
    True: "Supported:",
    False: "**Not supported:**",
    CANNOT_TELL: "**This scale cannot tell:**",
    None: "Observed:",
}


_INDEX_TITLE = "# Reproducing the papers' claims"
_INDEX = """\
Each page has the method, the results, the limits of its scale and the command that
reproduces it. Minutes are those of all runs, one after another, on the machine that
published them."""


def write_index(rows, path):
    """Write a page that summarizes several experiments.

    Args:
        rows: list of `(experiment, summary)`, see `summary`.
        path: `pathlib.Path` of the page. The experiments' folders are next to it.
    """
    lines = [
        _INDEX_TITLE,
        "",
        _one_line(_INDEX),
        "",
        "| results | claim | verdict |",
        "| :---: | --- | --- |",
    ]
    for experiment, found in rows:
        name, page = experiment.name, f"{experiment.name}/{PAGE}"
        lines.append(
            f"| [![{name}]({name}/{PICTURE})]({page}) | [{name}]({page}): "
            f"{_one_line(experiment.claim)} | **{found['verdict']}**; {found['scale']} "
            f"scale, {found['minutes']} min |"
        )
    _replace(path, "\n".join(_wrapped(line) for line in lines) + "\n")


def summary(settings, rows, findings):
    """Return the verdict, the scale and the minutes of an experiment, a dict."""
    return {
        "verdict": verdict(findings),
        "scale": settings["scale"],
        "minutes": _minutes(rows),
    }


def check_index(path):
    """Raise a ValueError if there is another file where `write_index` is to write."""
    if path.exists() and not path.read_bytes().startswith(_INDEX_TITLE.encode()):
        raise ValueError(
            f"{path} would be replaced, but is no summary of experiments. Give another "
            "folder, or move that file away."
        )


def _draw(experiment, settings, rows, findings, path):
    from matplotlib.figure import Figure

    with plotting.styled():
        figure = Figure(figsize=experiment.figure_size, layout="constrained")
        experiment.draw(figure, rows, settings)
        width = round(_TITLE_CHARACTERS * figure.get_figwidth())
        title = textwrap.fill(experiment.title, width)
        figure.suptitle(f"{title}:\n{verdict(findings)}", fontweight="bold")
        plotting.save(figure, path, dpi=130)


# Per inch, in the size of titles.
_TITLE_CHARACTERS = 7.2


def _on(settings):
    on = f" on {settings['dataset']}" if "dataset" in settings else ""
    return f" at {settings['scale']} scale{on}"


def _described(settings):
    """Format settings as text, without the experiment's name and settings of None."""
    shown = {
        name: value
        for name, value in settings.items()
        if name != "experiment" and value is not None
    }
    words = [
        f"{name.replace('_', ' ')} {_text(value)}" for name, value in shown.items()
    ]
    return "Settings: " + "; ".join(words) + "."


def _duration(rows):
    return f"Total time of all runs: {_minutes(rows)} min."


def _minutes(rows):
    seconds = sum(row.get("cell_seconds", 0) for row in rows)
    return max(1, round(seconds / 60))


def _text(value):
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{_text(number)} {name}" for name, number in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _one_line(text):
    return " ".join(text.split())


def _wrapped(line):
    if len(line) <= 110 or line.startswith(("|", "!", "    ")):
        return line
    indent = "  " if line.startswith("- ") else ""
    # A line that ends with a hyphen would be shown with a space after it.
    lines = textwrap.wrap(line, 110, subsequent_indent=indent, break_on_hyphens=False)
    return "\n".join(lines)


def _replace(path, text):
    with files.written(path) as partial:
        partial.write_text(text, "utf-8")
