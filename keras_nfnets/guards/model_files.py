"""Model and weight files of unknown origin: the only module that reads them."""

import contextlib
import os
import pathlib
import zipfile

from keras_nfnets.guards import hdf5, json_text
from keras_nfnets.guards.archive import Archive
from keras_nfnets.guards.limits import TooMuchContent, most_content

# Members of a `.keras` file.
_WEIGHTS, _CONFIGS = "model.weights.h5", ("config.json", "metadata.json")
_MAX_REASON = 2000  # characters; Keras quotes configurations


@contextlib.contextmanager
def checked(path):
    """Context in which Keras may read a file, as its content has been checked.

    Args:
        path: str or path. Path of a `.keras`, `.h5`, `.hdf5` or `.weights.json` file.
            Others, such as folders, are not checked.

    Raises:
        ValueError: the file is not complete, its content is far larger than the file,
            or it refers to other files; or it changed in the context.
        OSError: the file cannot be read.

    Example:

    >>> keras_nfnets.NFNetTest().save("model.keras")
    >>> with checked("model.keras"):
    ...     model = keras.saving.load_model("model.keras")
    """
    paths = []
    if os.path.isfile(path):
        try:
            paths = _check(pathlib.Path(path))
        except TooMuchContent as error:
            raise ValueError(f"{path} is not read: it has {error}.") from error
        # For a broken file, the libraries raise errors of many types: OSError, KeyError,
        # RuntimeError, zlib.error, ...
        except Exception as error:
            ending = pathlib.Path(path).suffix
            raise ValueError(
                f"{path} is not a complete {ending} file: {reason(error)}. Save or "
                "download it again."
            ) from error
    sizes = [os.path.getsize(path) for path in paths]
    yield
    # Keras reads zeros where an HDF5 file ends early.
    if sizes != [os.path.getsize(path) for path in paths]:
        raise ValueError(
            f"{path} was changed while it was read. Read it again once it is complete."
        )


def _check(path):
    """Check a file by its ending, as Keras does; return the paths of all its files."""
    name = path.name.lower()
    if name.endswith(".keras"):
        with Archive.opened(path) as archive:
            for config in archive.names & set(_CONFIGS):
                json_text.parse(archive.read(config, json_text.MAX_BYTES))
            archive.check()
            hdf5.check(archive.stream(_WEIGHTS), limit_of(path))
    elif name.endswith((".h5", ".hdf5")):
        with path.open("rb") as file:
            hdf5.check(file, limit_of(path))
    elif name.endswith(".weights.json"):
        shards = [path.with_name(shard) for shard in _shards(json_text.read(path))]
        return [path, *(file for shard in shards for file in _check(shard))]
    else:
        return []
    return [path]


def _shards(record):
    """Return the names of the files of sharded weights, given their record."""
    names = set()
    for given in record["weight_map"].values():
        names.update(given if isinstance(given, list) else [given])
    for name in names:
        # Files in the same folder, of the type that is checked.
        if not name.endswith(".weights.h5") or pathlib.Path(name).name != name:
            raise ValueError(f"a shard of the name {name[:200]!r}")
    return sorted(names)


def limit_of(path):
    """Return how many bytes the content of a file may have, see `most_content`."""
    return most_content(os.path.getsize(path))


@contextlib.contextmanager
def weights(path):
    """Context in which the weights in a file are open, and their content is checked.

    Args:
        path: str or path. Path of a `.weights.h5` or `.keras` file.

    Yields:
        `h5py.File`.

    Raises:
        OSError, ValueError: as for `checked`.
    """
    with contextlib.ExitStack() as opened:
        if zipfile.is_zipfile(path):
            archive = opened.enter_context(Archive.opened(path))
            content = archive.stream(_WEIGHTS)
        else:
            content = opened.enter_context(open(path, "rb"))
        yield opened.enter_context(hdf5.opened(content, limit_of(path)))


def reason(error):
    """Describe the error in a file, given the exception that it has caused."""
    if isinstance(error, RecursionError):
        return "content that is nested too deep"
    if isinstance(error, MemoryError):
        return "content that is larger than the memory"
    return str(error)[:_MAX_REASON] or type(error).__name__
