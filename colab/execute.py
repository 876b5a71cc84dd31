"""Run notebooks from top to bottom and store their outputs.

    python colab/execute.py                        # all of them
    python colab/execute.py colab/3_agc.ipynb

Needs the packages of the extra "test". Each notebook runs in a temporary folder, and is
written back only if no cell fails.
"""

import os
import pathlib
import sys
import tempfile
import time

import nbclient
import nbformat

HERE = pathlib.Path(__file__).resolve().parent
NOTEBOOKS = tuple(sorted(HERE.glob("*.ipynb")))


def execute(notebook, folder, timeout=600):
    """Run a notebook and store its outputs in it.

    Args:
        notebook: `nbformat` notebook. It is modified.
        folder: path. The working directory.
        timeout: int. Seconds that a cell may take.

    Returns:
        The notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    # Use the package of this repository, even if another version is installed.
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    nbclient.NotebookClient(
        notebook,
        timeout=timeout,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    ).execute(env=environment)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _tidied(cell.outputs)
    # The Python version would differ between machines.
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def _tidied(outputs):
    """Return outputs without stderr, with adjacent pieces of stdout joined."""
    kept = []
    for output in outputs:
        if output.get("name") == "stderr":
            continue
        if kept and output.get("name") == kept[-1].get("name") == "stdout":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def main(paths):
    for path in [pathlib.Path(path) for path in paths] or NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="a folder ") as folder:
            execute(notebook, folder)
        partial = path.with_suffix(".partial")
        nbformat.write(notebook, partial)
        os.replace(partial, path)
        print(f"{path}: {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
