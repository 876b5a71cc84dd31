"""Code of a page of the documentation. As a program: `python tests/pages.py PAGE`."""

import configparser
import contextlib
import io
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parent.parent
# Comment lines below a `print` of one or several lines.
_PRINTED = re.compile(r"^ *print\(.*\n(?:(?: .*\n)+\)\n)?((?:# .*\n)+)", re.MULTILINE)


def run(page):
    """Run the Python code of a page, and compare what it prints.

    A comment below a `print` shows its output. Such lines are printed in this order.

    Args:
        page: path.
    """
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, str(page), "exec"), names)  # noqa: S102
        remaining = iter(printed.getvalue().splitlines())
        for lines in _PRINTED.findall(block):
            for line in re.findall(r"^# (.*)$", lines, re.MULTILINE):
                assert line in remaining, (line, printed.getvalue())


def packages_of_pages():
    """Return `{page: packages}` of the pages that install more than this package.

    The packages stand on the page, or in the extra of `setup.cfg` that it installs.
    """
    installs = r'^pip install (?:"\.\[(\w+)\]"|\. (.+))$'
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", "utf-8")
    extras = setup["options.extras_require"]
    pages = sorted((ROOT / "docs" / "tools").glob("*.md"))
    found = {
        page: re.findall(installs, page.read_text(), re.MULTILINE) for page in pages
    }
    return {
        page: extras[lines[0][0]].split("\n")[1:]
        if lines[0][0]
        else lines[0][1].split()
        for page, lines in found.items()
        if lines
    }


if __name__ == "__main__":
    run(pathlib.Path(sys.argv[1]))
