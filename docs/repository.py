"""Pages of the repository outside of this folder, copied into the site.

What they link to is linked where it is a page of the site, or a file copied with it, and
else named.
"""

import functools
import os
import pathlib
import re
import shutil

ROOT = pathlib.Path(__file__).parent.parent
# Of the copies, which Git ignores.
FOLDER = "repository"
_PAGES = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "experiments/README.md",
    "experiments/*/README.md",
    "weights/README.md",
)
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


def pages():
    """The paths of what is copied."""
    return sorted(path for pattern in _PAGES for path in ROOT.glob(pattern))


def copy_pages(folder):
    """Writes the copies into `folder` anew."""
    shutil.rmtree(folder, ignore_errors=True)
    known = set(pages())
    for page in known:
        target = folder / page.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        link = functools.partial(_link, page=page, target=target, known=known)
        target.write_text(_LINK.sub(link, page.read_text("utf-8")), "utf-8")
        for file in filter(_is_copied_along, page.parent.iterdir()):
            shutil.copy(file, target.parent)


def _is_copied_along(file):
    experiments = ROOT / "experiments"
    return file.is_relative_to(experiments) and file.suffix in (".png", ".csv")


def _link(match, page, target, known):
    text, address = match.groups()
    path, _, anchor = address.partition("#")
    if "://" in address or not path:
        return match[0]
    linked = (page.parent / path).resolve()
    if linked in known or _is_copied_along(linked):
        return match[0]
    docs = ROOT / "docs"
    if linked.is_relative_to(docs) and linked.suffix in (".md", ".png"):
        there = os.path.relpath(linked, target.parent)
        return f"[{text}]({there}{'#' + anchor if anchor else ''})"
    name = linked.relative_to(ROOT)
    return text if text.strip("`") == str(name) else f"{text} (`{name}`)"
