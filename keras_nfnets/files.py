"""Writing files and folders completely or not at all, and by one process only."""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile

# Beginning of the names of folders that hold what is not complete yet. With the name of
# this package, so that no folder of a user is taken for one.
PARTIAL = ".keras_nfnets-partial-"


@contextlib.contextmanager
def written(path):
    """Context in which a file or folder is written; it appears at `path` when complete.

    An exception in the context leaves what was at `path` before. So does the end of the
    process, after which an invisible folder may stay behind: see `remove_partial`. A file
    replaces a file, and a folder a file or a folder; a file never replaces a folder.

    Args:
        path: str or `pathlib.Path`. Its folder must exist.

    Yields:
        `pathlib.Path`: where to write, in the same folder and under the same name.

    Raises:
        OSError: writing failed, or the folder of `path` does not exist. The message of
            an error for lack of space has `path`.
        IsADirectoryError: a file was written, and `path` is a folder.
    """
    path = pathlib.Path(path)
    with (
        _lack_of_space(path),
        tempfile.TemporaryDirectory(prefix=PARTIAL, dir=path.parent) as folder,
    ):
        partial = pathlib.Path(folder, path.name)
        yield partial
        if partial.is_file():
            # Else a crash of the machine may leave the new name with no content.
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
        if path.is_dir() and not partial.is_dir():
            # `os.replace` would name the partial file.
            raise IsADirectoryError(
                errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path)
            )
        _replace(partial, path, pathlib.Path(folder, "replaced"))


@contextlib.contextmanager
def parents(path):
    """Context in which the folder of a path exists.

    An exception in the context removes the folders that were created for it.

    Args:
        path: `pathlib.Path`.
    """
    created = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in created:  # the innermost is the first
            with contextlib.suppress(OSError):  # others have used it in the meantime
                folder.rmdir()
        raise


# The disk is full, a quota is used up, a file is larger than allowed.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def _lack_of_space(path):
    """Context in which an error for lack of space is raised with the path to be written.

    Such errors have no path, or that of a partial file; libraries wrap them in long
    messages or, as TensorFlow does, in errors that are no OSError.
    """
    try:
        yield
    except Exception as error:
        code = getattr(error, "errno", None)
        if type(error).__module__.startswith("tensorflow"):
            code = next((c for c in NO_SPACE if os.strerror(c) in str(error)), None)
        if code not in NO_SPACE:
            raise
        raise OSError(
            code, f"Not written: {os.strerror(code)}", os.fspath(path)
        ) from error


def _replace(new, path, old):
    """Move `new` to `path`; what was there goes to `old`, and back if that fails."""
    if not (new.is_dir() and os.path.lexists(path)):
        os.replace(new, path)
        return
    # For `os.replace`, a folder replaces nothing but empty folders.
    os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old, path)
        raise


def remove_partial(folder):
    """Remove what processes that were killed while in `written` have left in a folder.

    Args:
        folder: str or `pathlib.Path`. No other process may be writing into it.
    """
    for partial in pathlib.Path(folder).glob(f"{PARTIAL}*"):
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def claimed(folder):
    """Context in which no other process can claim a folder.

    The system ends the claim of a process that has ended, also of a killed one. Where
    files cannot be locked (some network drives), nothing is claimed.

    Args:
        folder: `pathlib.Path` of a folder that exists.

    Raises:
        BlockingIOError: another process has claimed it.
        OSError: nothing can be written there.
    """
    path = folder / ".keras_nfnets-claimed"
    while True:
        with open(path, "ab") as file:
            _lock(file)
            if not _is_at(path, file):
                continue  # another process removed it before it was locked
            try:
                yield
            finally:
                # While it is locked, as another process may create and lock it afterwards.
                with contextlib.suppress(OSError):  # on Windows, open files stay
                    path.unlink()
            return


def _is_at(path, file):
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(file):
    """Lock an open file until it is closed, or raise a BlockingIOError."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(str(error)) from error
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass  # no locks in this file system
