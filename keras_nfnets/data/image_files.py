"""Image files in folders, and the files that are skipped there."""

import collections
import functools
import os
import pathlib
import re

from absl import logging

from keras_nfnets.printing import printable

# Extensions of image files in a folder. (Pillow would also try documents and videos.)
EXTENSIONS = {
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm"),
    *(".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
}
# Hidden names, and those of thumbnails and other files that systems, network drives and
# archives add: Synology, QNAP, macOS, Windows, Linux.
_OF_SYSTEMS = re.compile(
    r"\..*|@eaDir|@tmp|#recycle|#snapshot|SYNO(PHOTO|FILE|VIDEO)_.*"
    r"|@Recycle|@Recently-Snapshot|\.?@__thumb|__MACOSX|Icon\r|\$RECYCLE\.BIN"
    r"|System Volume Information|(eh)?thumbs(_vista)?\.db|desktop\.ini|lost\+found",
    re.IGNORECASE | re.DOTALL,
)
# Number of different extensions that a note lists.
_MOST_LISTED = 5


def has_extension(name):
    """Whether a file name has the extension of an image."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def is_of_system(name):
    """Whether a file or folder is hidden, or was added by a system."""
    return bool(_OF_SYSTEMS.fullmatch(name))


@functools.cache
def warn_once(note):
    """Log a note as a warning, once in this process."""
    logging.warning("%s", note)


def entries(folder):
    """List a folder.

    Returns:
        List of `os.DirEntry`, sorted by name.

    Raises:
        ValueError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as inside:
            return sorted(inside, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(
            "A folder cannot be read. Check its permissions and the drive. "
            f"Received: {printable(folder)}: {error.strerror}"
        ) from error


def is_folder(entry):
    """Whether a directory entry is a folder or leads to one."""
    # (`entry.is_dir` is fast, but fails for a link to itself.)
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def is_file(entry):
    """Whether a directory entry is a file or leads to one."""
    return os.path.isfile(entry) if entry.is_symlink() else entry.is_file()


def subfolders(folder):
    """List the folders in a folder that are not a system's, as sorted paths."""
    return [
        folder / entry.name
        for entry in entries(folder)
        if is_folder(entry) and not is_of_system(entry.name)
    ]


class Listing:
    """Lister of the images below folders, which notes what it skips.

    Hidden files and those of systems are skipped, as are files with other extensions
    than those of images. Linked files and folders are followed, but a folder is listed
    once.

    Args:
        root: path. Folder that paths in the notes are relative to.
    """

    def __init__(self, root):
        self._root = root
        self._extensions = collections.Counter()
        self._of_systems = []
        self._links = []

    def images_below(self, folder):
        """List the image files in a folder and its subfolders.

        Returns:
            List of `pathlib.Path`, sorted.

        Raises:
            ValueError: a folder cannot be read.
        """
        # A link to a folder above would list other classes too.
        above = {*folder.absolute().parents, *folder.resolve().parents}
        listed = {_identity(path) for path in above}
        found = []
        # Linked folders come last: a folder is known by its own name, if it has one here.
        folders, links = [folder], []
        while folders or links:
            here = folders.pop() if folders else links.pop(0)
            if _identity(here) in listed:
                self._links.append(here)
                continue
            listed.add(_identity(here))
            for entry in entries(here):
                path = here / entry.name
                if is_of_system(entry.name):
                    if has_images(path):
                        self._of_systems.append(path)
                elif is_folder(entry):
                    (links if entry.is_symlink() else folders).append(path)
                elif not is_file(entry):
                    self._links.append(path)
                elif has_extension(entry.name):
                    found.append(path)
                else:
                    self._extensions[os.path.splitext(entry.name)[1].lower()] += 1
        return sorted(found)

    def notes(self):
        """Describe what was skipped; return a list of sentences."""
        notes = []
        if self._extensions:
            notes.append(f"Skipped {self.other_files()}.")
        if self._of_systems:
            count = counted(len(self._of_systems), "hidden file")
            example = self._shown(self._of_systems[0])
            notes.append(f"Skipped {count} or system thumbnails, such as {example}.")
        if self._links:
            count = counted(len(self._links), "link")
            notes.append(
                f"Skipped {count} to a missing file or to a folder that is listed already, "
                f"such as {self._shown(self._links[0])}."
            )
        return notes

    def other_files(self):
        """Count the files with other extensions, or return an empty string."""
        if not self._extensions:
            return ""
        by_count = sorted(
            self._extensions.items(), key=lambda item: (-item[1], item[0])
        )
        listed = [
            f"{printable(extension) or 'none'} ({count})"
            for extension, count in by_count[:_MOST_LISTED]
        ]
        if len(self._extensions) > _MOST_LISTED:
            listed.append("...")
        total = counted(self._extensions.total(), "file")
        return f"{total} with other extensions: {', '.join(listed)}"

    def _shown(self, path):
        return printable(os.path.relpath(path, self._root))


def counted(count, noun):
    """Return a number with a noun: 1 image, 2 images."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _identity(folder):
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def has_images(path):
    """Whether a path is an image file by its extension, or has one below it."""
    if not path.is_dir():
        return has_extension(path.name)
    return any(has_extension(name) for _, _, names in os.walk(path) for name in names)


def find_pictures(paths):
    """List the image files that `paths` name.

    Args:
        paths: iterable of str or `pathlib.Path`. Files are listed as given, whatever
            their extension. Folders are replaced by the files in them and in their
            subfolders that have the extension of an image. Hidden files, and thumbnails
            and other files that systems add, are skipped. Linked folders are followed.

    Returns:
        List of `pathlib.Path`; those of a folder are sorted.

    Raises:
        ValueError: a file does not exist, or a folder contains no images.

    Example:

    >>> import pathlib
    >>> pathlib.Path("pictures", "old").mkdir(parents=True)
    >>> for name in ("old/c.png", "b.png", "a.jpg"):
    ...     pathlib.Path("pictures", name).touch()
    >>> [path.name for path in find_pictures(["pictures"])]
    ['a.jpg', 'b.png', 'c.png']
    """
    found = []
    for given in paths:
        path = pathlib.Path(given)
        # An empty string would mean the working directory.
        if given and path.is_dir():
            listing = Listing(path)
            inside = listing.images_below(path)
            if not inside:
                raise ValueError(
                    "There are no images in the folder (files that end in "
                    f"{', '.join(sorted(EXTENSIONS))}). Received: {str(path)!r}"
                    f"{with_other_files(listing)}"
                )
            for note in listing.notes():
                warn_once(f"{printable(path)}: {note}")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise ValueError(
                f"There is no file {str(given)!r}. Give paths of images or of folders of "
                f"images. Received: {str(given)!r}"
            )
    return found


def with_other_files(listing):
    """Describe the files that are not images, for an error message."""
    others = listing.other_files()
    return f", which has {others}" if others else ""
