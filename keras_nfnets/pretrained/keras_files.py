"""Reader of Keras weight files, which executes nothing in them.

Variables are matched by the names of layers. The loader of Keras matches them by order,
assigns weights one by one and ignores those that are left over.
"""

import io
import mmap
import zipfile

import h5py
import ml_dtypes

from keras_nfnets.backend.keras_internals import WeightFile
from keras_nfnets.pretrained.assign import named_variables, with_input_channels


def match(model, arrays):
    """Return the model's variables, and the arrays, under the same keys."""
    variables = named_variables(model)
    return variables, with_input_channels(variables, arrays)


def read(path):
    """Read the arrays of a Keras weight file, under the keys of `named_variables`."""
    # Weights hardly compress: content a hundred times as large as the file is a
    # decompression bomb.
    limit = 100 * path.stat().st_size
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = WeightFile.IN_ARCHIVE
                _check_size(archive.getinfo(name).file_size, limit)
                content = archive.read(name)
            _check_strings(content)
            opened = h5py.File(io.BytesIO(content), "r")
        else:
            with (
                path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                _check_strings(content)
            opened = h5py.File(path, "r")
        with opened as file:
            return _read_layers(file, limit)
    # For a broken file, the libraries raise errors of many types: OSError, KeyError,
    # RuntimeError, zlib.error, ...
    except Exception as error:
        raise ValueError(
            f"{path} is not a complete .weights.h5 or .keras file; nothing was changed. "
            f"Save or download it again. Received: {error}"
        ) from error


def _check_strings(content):
    """Refuse HDF5's heaps of strings (global heaps) if their sizes are inconsistent.

    Such a heap may send libhdf5 (1.14) into an infinite loop.
    """
    start = content.find(_HEAP)
    while start >= 0:
        end = start + _integer(content, start + 8, 8)
        at = start + 16
        # An object has an index, a reference count, four reserved bytes, its size and
        # its data, padded to eight bytes. The object with index zero is the free space;
        # its size includes the header.
        while at + 16 <= end:
            size = _integer(content, at + 8, 8)
            is_rest = _integer(content, at, 2) == 0
            at += size if is_rest else 16 + (size + 7) // 8 * 8
            if is_rest:
                break
        if not start + 16 <= at <= end <= len(content) or (at < end and is_rest):
            raise ValueError("a heap of strings with inconsistent sizes")
        start = content.find(_HEAP, start + 8)


# Signature, version 1, and three reserved bytes.
_HEAP = b"GCOL\1\0\0\0"


def _integer(content, at, size):
    return int.from_bytes(content[at : at + size], "little")


def _check_size(size, limit):
    if size > limit:
        raise ValueError(
            f"content of {size:,} bytes, far more than the size of the file allows"
        )


def _read_layers(file, limit):
    arrays, seen, total = {}, set(), 0

    def item_of(group, name):
        # No other links: they may lead to other files, or form cycles.
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{group.name}/{name}, which is a link")
        item = group[name]
        at = h5py.h5o.get_info(item.id).addr
        if at in seen:
            raise ValueError(f"{item.name}, which has two names")
        seen.add(at)
        return item

    def visit(group, prefix):
        variables = None
        if WeightFile.VARIABLES in group:
            variables = item_of(group, WeightFile.VARIABLES)
        if variables is not None and WeightFile.LAYER_NAME in variables.attrs:
            prefix = [*prefix, _text(variables.attrs[WeightFile.LAYER_NAME])]
        for index in variables or ():
            key = "/".join([*prefix, index])
            if key in arrays:
                raise ValueError(f"{key} twice")
            arrays[key] = array_of(item_of(variables, index))
        for name in group:
            if name != WeightFile.VARIABLES:
                item = item_of(group, name)
                visit(item, prefix if name != "seed_generator" else [*prefix, name])

    def array_of(dataset):
        nonlocal total
        if dataset.is_virtual or dataset.external:
            raise ValueError(f"{dataset.name}, which is stored in another file")
        total += dataset.nbytes
        _check_size(total, limit)
        array = dataset[()]
        if dataset.attrs.get(WeightFile.DTYPE) == "bfloat16":
            array = array.view(ml_dtypes.bfloat16)
        return array

    visit(item_of(file, WeightFile.LAYERS), [])
    return {key: a for key, a in arrays.items() if not _is_random_state(key, a)}


def _text(name):
    if not (isinstance(name, str) and name.isprintable()):
        raise ValueError(f"a layer name that is not printable text: {name!a:.100}")
    return name


def _is_random_state(key, array):
    """Whether an array is the state of a `keras.random.SeedGenerator`, not a weight.

    Keras 3.15 does not save it.
    """
    parts = key.split("/")
    return (
        "seed_generator" in parts and array.shape == (2,) and array.dtype.kind in "iu"
    )
