"""Pages of the repository outside of this folder, copied into the site.

Links to and from these pages lead to the copies. A link to a file that is not part of the
site is replaced by the name of the file.
"""

import functools
import os
import pathlib
import re
import shutil

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent
# Folder of the copies, which Git ignores.
COPIES = DOCS / "repository"
_PAGES = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "examples/README.md",
    "experiments/README.md",
    "experiments/*/README.md",
    "weights/README.md",
)
# Figures and results in these folders are copied too.
_FOLDERS = (ROOT / "examples", ROOT / "experiments")
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


def copy_pages():
    """Delete the copies and write them again."""
    shutil.rmtree(COPIES, ignore_errors=True)
    for page in _pages():
        copy = _copy_of(page)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(_with_links(page.read_text("utf-8"), page, copy), "utf-8")
    for folder in _FOLDERS:
        for file in filter(_is_copied_along, folder.rglob("*")):
            copy = _copy_of(file)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)


def lead_to_copies(app, docname, source):
    """Adapt the links of a page of this folder when Sphinx reads it."""
    page = pathlib.Path(app.env.doc2path(docname))
    if not page.is_relative_to(COPIES):
        source[0] = _with_links(source[0], page, page)


@functools.cache
def _pages():
    return frozenset(path for pattern in _PAGES for path in ROOT.glob(pattern))


def _copy_of(path):
    return COPIES / path.relative_to(ROOT)


def _is_copied_along(file):
    return any(map(file.is_relative_to, _FOLDERS)) and file.suffix in (".png", ".csv")


def _with_links(text, page, place):
    """Return the text of a page, with links that are valid at `place` in the site."""
    return _LINK.sub(functools.partial(_link, page=page, place=place), text)


def _link(match, page, place):
    text, address = match.groups()
    path, hash_sign, anchor = address.partition("#")
    if "://" in address or not path:
        return match[0]
    linked = (page.parent / path).resolve()
    if linked in _pages() or _is_copied_along(linked):
        linked = _copy_of(linked)
    if linked.is_relative_to(DOCS):
        there = os.path.relpath(linked, place.parent)
        return f"[{text}]({there}{hash_sign}{anchor})"
    name = linked.relative_to(ROOT)
    if text.strip("`") in (str(name), name.name):
        return f"`{name}`"
    return f"{text} (`{name}`)"
