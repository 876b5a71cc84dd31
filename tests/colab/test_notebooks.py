"""Content of the notebooks in `colab`, and (slow tests) their execution.

pytest -m slow -n 0 tests/colab runs all six, each in a folder outside the repository
with a space in its name.
"""

import ast
import configparser
import pathlib
import re
import sys

import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "colab"))

import execute

each = pytest.mark.parametrize("path", execute.NOTEBOOKS, ids=lambda path: path.stem)

# Package -> module, where the names differ.
MODULES = {"pillow": "PIL", "scikit-learn": "sklearn"}
LARGEST = 400_000  # bytes
LONGEST = 25  # lines per cell


def read(path):
    notebook = nbformat.read(path, as_version=4)
    return notebook, [c for c in notebook.cells if c.cell_type == "code"]


def text_of(output):
    """Return all text of an output."""
    texts = [output.get("text", ""), *output.get("data", {}).values()]
    return "\n".join(text for text in texts if isinstance(text, str))


def imported(code):
    """Yield top-level modules that a cell, or a file that it writes, imports."""
    # A cell magic such as `%%writefile` is in the first line.
    tree = ast.parse(re.sub(r"\A%%.*\n", "", code))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


def declared():
    """Return the modules of all required and optional packages in setup.cfg."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].splitlines()
    for extra in config["options.extras_require"].values():
        lines += extra.splitlines()
    names = {re.match(r"[\w-]*", line)[0] for line in lines if not line.startswith("#")}
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


def test_there_are_six():
    assert [path.stem[:2] for path in execute.NOTEBOOKS] == [
        f"{number}_" for number in range(1, 7)
    ]


@each
def test_file_is_valid_and_moderate(path):
    notebook, _ = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size < LARGEST
    identifiers = [cell.id for cell in notebook.cells]
    assert len(set(identifiers)) == len(identifiers)
    # Identifiers are names that survive changes, not nbformat's random digits.
    assert not any(re.fullmatch("[0-9a-f]{8}", name) for name in identifiers)


@each
def test_title_is_short_and_that_of_the_readme(path):
    notebook, _ = read(path)
    assert notebook.cells[0].cell_type == "markdown"
    title = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
    assert len(title) <= 40
    readme = (ROOT / "colab" / "README.md").read_text("utf-8")
    assert f"[{title}]({path.name})" in readme


@each
def test_no_cell_is_over_a_screen(path):
    _, code = read(path)
    lengths = {cell.id: len(cell.source.splitlines()) for cell in code}
    assert max(lengths.values()) <= LONGEST, lengths


@each
def test_outputs_are_those_of_one_run_without_noise(path):
    _, code = read(path)
    assert [cell.execution_count for cell in code] == list(range(1, 1 + len(code)))
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    for cell in code:
        assert "execution" not in cell.metadata  # times of execution
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            text = text_of(output)
            assert not re.search(r"(?<![\w.])/(tmp|home|root|usr|work|content)/", text)
            assert not re.search(r"\b(WARNING|Warning|INFO:)", text)


@each
def test_pictures_say_what_they_show(path):
    _, code = read(path)
    for cell in code:
        if "plt.subplots" in cell.source:
            assert re.search(r"title\(|title=", cell.source), cell.id


@each
def test_imports_are_declared_and_looked_for(path):
    _, code = read(path)
    setup, *rest = (set(imported(cell.source)) for cell in code)
    assert setup <= sys.stdlib_module_names
    needed = ast.literal_eval(
        re.search("^needed = (.*)$", code[0].source, re.MULTILINE)[1]
    )
    used = set().union(*rest) - sys.stdlib_module_names - {"keras_nfnets"}
    assert used <= declared()
    # Notebooks must list all packages that are not installed with this one.
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    always = config["options"]["install_requires"].split()
    always = {MODULES.get(name, name.replace("-", "_")) for name in always}
    assert used - always <= set(needed)


def test_setup_cells_differ_in_what_is_needed_alone():
    cells = {
        re.sub("^needed = .*$", "", read(path)[1][0].source, flags=re.MULTILINE)
        for path in execute.NOTEBOOKS
    }
    assert len(cells) == 1


@each
def test_links_lead_somewhere(path):
    notebook, _ = read(path)
    for cell in notebook.cells:
        for link in re.findall(r"\]\(([^)]+)\)", cell.source):
            if cell.cell_type == "markdown" and not link.startswith("https://"):
                assert (path.parent / link).exists(), link


@pytest.mark.slow
@each
def test_runs_from_top_to_bottom(path, tmp_path):
    notebook, _ = read(path)
    folder = tmp_path / "a folder"
    folder.mkdir()
    shown = execute.execute(notebook, folder)
    kinds = [
        sorted(key for output in cell.outputs for key in output.get("data", {}))
        for cell in shown.cells
        if cell.cell_type == "code"
    ]
    # The same cells produce figures as in the stored notebook.
    expected = [
        sorted(key for output in cell.outputs for key in output.get("data", {}))
        for cell in read(path)[1]
    ]
    assert kinds == expected
