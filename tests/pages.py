"""Code of a page of the documentation. As a program: `python tests/pages.py PAGE`."""

import contextlib
import io
import pathlib
import re
import sys


def run(page):
    """Run the Python code of a page, and compare what it prints.

    A comment below a `print` shows its output.
    """
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, str(page), "exec"), names)  # noqa: S102
        if "-v" in sys.argv:
            sys.stderr.write(printed.getvalue())
        for line in re.findall(r"^print\(.*\n# (.*)$", block, re.MULTILINE):
            assert line in printed.getvalue().splitlines(), printed.getvalue()


if __name__ == "__main__":
    run(pathlib.Path(sys.argv[1]).resolve())
