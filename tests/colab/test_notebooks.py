"""The notebooks of colab/: what a reader finds in them, and, slowly, that they run.

pytest -m slow -n 0 tests/colab
"""

import importlib.util
import pathlib
import re

import nbformat
import pytest

COLAB = pathlib.Path(__file__).parents[2] / "colab"
NOTEBOOKS = sorted(COLAB.glob("*.ipynb"))
# A screen.
MOST_LINES = 25


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_notebook_is_valid_and_says_first_what_one_will_have(notebook):
    nbformat.validate(notebook)
    assert re.match("# You will have ", notebook.cells[0].source)


def test_no_cell_is_longer_than_a_screen(notebook):
    for cell in notebook.cells:
        assert len(cell.source.splitlines()) <= MOST_LINES, cell.source


def test_what_cells_gave_is_kept_and_reads_well(path, notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, 1 + len(cells)))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {
        "display_data",
        "execute_result",
        "stream",
    }
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    texts = [
        output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
        for output in outputs
    ]
    # Of whoever ran it, and what libraries have to say.
    for text in texts:
        assert not re.search(r"(?m)^\S*/(home|root|tmp|work|Users)/|Warning:", text)
    assert path.stat().st_size < 400_000


def test_the_table_of_notebooks_has_each_of_them(path):
    assert f"]({path.name})" in (COLAB / "README.md").read_text()


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom(notebook, tmp_path):
    spec = importlib.util.spec_from_file_location("execute", COLAB / "execute.py")
    execute = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(execute)
    folder = tmp_path / "a folder"
    folder.mkdir()
    kept = [len(cell.outputs) for cell in code_cells(notebook)]
    execute.execute(notebook, folder)
    # As much as is kept: a picture that is not drawn any more would be missed.
    assert [len(cell.outputs) for cell in code_cells(notebook)] == kept
