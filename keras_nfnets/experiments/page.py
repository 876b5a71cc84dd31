"""Page and figure with the results of an experiment."""

import textwrap

from keras_nfnets import files, plotting

PAGE, PICTURE = "README.md", "picture.png"


def verdict(findings):
    """Summarize in a few words whether findings support the claim."""
    judged = [finding.holds for finding in findings if finding.holds is not None]
    if not judged:
        return "inconclusive"
    if all(judged):
        return "supported"
    return "partly supported" if any(judged) else "not supported"


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
    _draw(experiment, settings, rows, folder / PICTURE)
    findings = experiment.conclude(rows, settings)
    lines = [
        f"# {_title(settings)}",
        "",
        f"**Claim.** {_one_line(experiment.claim)}",
        "",
        f"**Result: {verdict(findings)}**, at this scale.",
        "",
        f"![{experiment.name}]({PICTURE})",
        "",
        *[f"- {_MARKS[f.holds]} {_one_line(f.text)}" for f in findings],
        "",
        "## Method",
        "",
        _one_line(experiment.how),
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


_MARKS = {True: "Supported:", False: "**Not supported:**", None: "Observed:"}


_INDEX_TITLE = "# Reproducing the papers' claims"
_INDEX = """\
Each page has the claim, the method, a figure, the results and the limits of its scale."""


def write_index(rows, path):
    """Write a page that summarizes several experiments.

    Args:
        rows: list of `(name, claim, findings)`.
        path: `pathlib.Path` of the page. The experiments' folders are next to it.
    """
    lines = [
        _INDEX_TITLE,
        "",
        _one_line(_INDEX),
        "",
        "| experiment | claim | result at this scale |",
        "| --- | --- | --- |",
    ]
    for name, claim, findings in rows:
        lines.append(
            f"| [{name}]({name}/{PAGE}) | {_one_line(claim)} | {verdict(findings)} |"
        )
    lines.append("")
    for name, _, findings in rows:
        lines += [
            f"## [{name}]({name}/{PAGE})",
            "",
            f"![{name}]({name}/{PICTURE})",
            "",
            *[f"- {_MARKS[f.holds]} {_one_line(f.text)}" for f in findings],
            "",
        ]
    _replace(path, "\n".join(_wrapped(line) for line in lines))


def check_index(path):
    """Raise a ValueError if there is another file where `write_index` is to write."""
    if path.exists() and not path.read_bytes().startswith(_INDEX_TITLE.encode()):
        raise ValueError(
            f"{path} would be replaced, but is no summary of experiments. Give another "
            "folder, or move that file away."
        )


def _draw(experiment, settings, rows, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=experiment.figure_size, layout="constrained")
    experiment.draw(figure, rows, settings)
    plotting.save(figure, path, dpi=110)


def _title(settings):
    on = f" on {settings['dataset']}" if "dataset" in settings else ""
    return settings["experiment"] + on


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
    minutes = sum(row.get("cell_seconds", 0) for row in rows) / 60
    return f"Total time of all runs: {minutes:.0f} min."


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
