"""HDF5 files of unknown origin: checked completely before anything is read.

What an HDF5 file says of itself decides how much memory and time libhdf5 takes: the shape
of an array that is not stored, the size of a chunk, strings that share their bytes.
"""

import contextlib
import math
import os
import struct
import zlib

import h5py

from keras_nfnets.guards.hdf5_headers import string_lengths
from keras_nfnets.guards.limits import check_content

_MAX_DEPTH = 100  # of groups
# Groups and arrays. Those of NFNet-F7+ with an optimizer are ten thousand.
_MAX_OBJECTS = 50_000
# libhdf5 keeps some 300 bytes for each chunk.
_MAX_CHUNKS = 1_000_000
# Keras writes a name for each layer, and in the legacy format the model's configuration.
_MAX_STRINGS = 16 * 2**20
_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF = 1, 2, 3, 32000
_PIECE = 2**20


@contextlib.contextmanager
def opened(stream, limit):
    """Context in which an HDF5 file is open whose content is safe to read.

    Args:
        stream: binary file, seekable.
        limit: int. How many bytes its arrays may have if they are compressed, see
            `most_content`. Those that are not are in the file.

    Yields:
        `h5py.File`.

    Raises:
        ValueError: there is more in it, anything stored in other files, or of other
            types than numbers and names. For broken files, also exceptions of many other
            types.
    """
    size = _size(stream)
    longest = _longest_string(stream, size)
    with h5py.File(stream, "r") as file:
        properties = file.id.get_create_plist()
        if properties.get_sizes() != (8, 8) or properties.get_userblock():
            raise ValueError("an HDF5 file of an unusual form")
        _Check(stream, size, limit, longest).group(file["/"])
        yield file
    # Where a file ends early, libhdf5 reads zeros.
    if _size(stream) < size:
        raise ValueError("a file that became shorter while it was read")


def check(stream, limit):
    """Check an HDF5 file, as `opened` does, without reading its arrays."""
    with opened(stream, limit):
        pass


def _size(stream):
    return stream.seek(0, os.SEEK_END)


# Heaps of strings (global heaps).

# Signature, version 1, and three reserved bytes.
_HEAP = b"GCOL\1\0\0\0"
_HEAD = len(_HEAP) + 8  # with the size of the heap


def _longest_string(stream, size):
    """Return the size of the largest object in heaps of strings.

    Raises:
        ValueError: sizes in a heap are inconsistent. Such a heap may send libhdf5 (1.14)
            into an infinite loop.
    """
    longest = total = end = 0
    for start in _places(stream, _HEAP):
        # What is in several heaps would be checked several times.
        if start < end:
            raise ValueError("heaps of strings that overlap")
        stream.seek(start + len(_HEAP))
        length = int.from_bytes(stream.read(8), "little")
        end, total = start + length, total + length
        if end > size or length < _HEAD:
            raise ValueError("a heap of strings with inconsistent sizes")
        if total > _MAX_STRINGS:
            raise ValueError(f"more than {_MAX_STRINGS:,} bytes of strings")
        longest = max(longest, _largest_object(stream.read(length - _HEAD)))
    return longest


def _places(stream, signature):
    """Yield the offsets of a signature in a file."""
    stream.seek(0)
    at, content = 0, b""
    while piece := stream.read(_PIECE):
        content += piece
        found = content.find(signature)
        while found >= 0:
            yield at + found
            found = content.find(signature, found + 1)
        # The signature may begin in this piece and end in the next.
        kept = min(len(content), len(signature) - 1)
        at += len(content) - kept
        content = content[len(content) - kept :]
        stream.seek(at + kept)


def _largest_object(heap):
    """Return the size of the largest object in a heap, whose head is cut off."""
    # An object has an index, a reference count, four reserved bytes, its size and its
    # data, padded to eight bytes. The object with index zero is the free space; its size
    # includes the header.
    at = largest = 0
    while at + 16 <= len(heap):
        index, length = struct.unpack_from("<H6xQ", heap, at)
        at += length if index == 0 else 16 + (length + 7) // 8 * 8
        if at > len(heap) or (index == 0 and (length < 16 or at < len(heap))):
            raise ValueError("a heap of strings with inconsistent sizes")
        largest = max(largest, length)
    return largest


class _Check:
    """Check of all groups, arrays and attributes of a file, which are counted."""

    def __init__(self, stream, size, limit, longest_string):
        self._stream, self._size, self._limit = stream, size, limit
        self._longest_string = longest_string
        self._seen = set()
        # Bytes, except of chunks.
        self._text = self._content = self._plain = self._chunks = self._headers = 0

    def group(self, group, depth=0):
        if depth > _MAX_DEPTH:
            raise ValueError("groups that are nested too deep")
        self._attributes(group)
        for name in group:
            # No other links: they may lead to other files, or form cycles.
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{group.name}/{name}, which is a link")
            item = group[name]
            if isinstance(item, h5py.Group):
                self.group(item, depth + 1)
            elif isinstance(item, h5py.Dataset):
                self._attributes(item)
                self._array(item)
            else:
                raise ValueError(f"{item.name}, which is not an array")

    def _attributes(self, item):
        """Check the attributes of a group or array, which no other may be."""
        address = h5py.h5o.get_info(item.id).addr
        if address in self._seen:
            raise ValueError(f"{item.name}, which has two names")
        if len(self._seen) >= _MAX_OBJECTS:
            raise ValueError(f"more than {_MAX_OBJECTS:,} groups and arrays")
        self._seen.add(address)
        left = self._size - self._headers
        lengths, size = string_lengths(self._stream, address, left)
        self._headers += size
        if max(lengths, default=0) > self._longest_string:
            raise ValueError(f"a string of {item.name} that is longer than its bytes")
        # Many strings may be the same bytes.
        self._text += sum(lengths)
        for name in item.attrs:
            attribute = item.attrs.get_id(name)
            dtype = attribute.dtype
            is_text = h5py.check_string_dtype(dtype) is not None
            if dtype.subdtype or not (is_text or dtype.kind in "biuf"):
                raise ValueError(f"an attribute of {item.name} of dtype {dtype}")
            self._text += math.prod(attribute.shape or ()) * dtype.itemsize
        if self._text > 2 * _MAX_STRINGS:
            raise ValueError(f"attributes with too much text, at {item.name}")

    def _array(self, dataset):
        dtype = dataset.dtype
        if dataset.shape is None or dtype.kind not in "biufcV" or dtype.fields:
            raise ValueError(f"{dataset.name} of dtype {dtype}, not of numbers")
        if dtype.subdtype or dtype.itemsize > 16:
            raise ValueError(f"{dataset.name} of dtype {dtype}, not of numbers")
        if dataset.is_virtual or dataset.external:
            raise ValueError(f"{dataset.name}, which is stored in another file")
        size, chunk, count = dataset.nbytes, None, 1
        if dataset.chunks:
            shape = zip(dataset.shape, dataset.chunks, strict=True)
            count = math.prod(-(-axis // length) for axis, length in shape)
            chunk = math.prod(dataset.chunks) * dtype.itemsize
            size = count * chunk
        self._content += size
        check_content(self._content, max(self._limit, self._size))
        self._chunks += count
        if self._chunks > min(_MAX_CHUNKS, _MAX_OBJECTS + self._size // 8):
            raise ValueError(f"{dataset.name}, which has too many chunks")
        properties = dataset.id.get_create_plist()
        filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
        if not filters:
            # Not compressed: each of them has bytes of its own in the file.
            self._plain += size
            if self._plain > self._size:
                raise ValueError(f"{dataset.name}, most of which is not in the file")
        if chunk:
            _check_filters(dataset.name, filters, chunk)
            _check_chunks(dataset, [kind for kind, *_ in filters], count, chunk)


def _check_filters(name, filters, size):
    """Check by what the chunks of an array are compressed; each has `size` bytes."""
    kinds = [kind for kind, *_ in filters]
    is_known = not set(kinds) - {_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF}
    if not is_known or len(kinds) > len(set(kinds)) or {_DEFLATE, _LZF} <= set(kinds):
        raise ValueError(f"{name}, which is not compressed by gzip or LZF")
    # A checksum follows what it is of.
    if _FLETCHER32 in kinds[:-1]:
        raise ValueError(f"{name}, whose checksum is compressed")
    for kind, _, values, _ in filters:
        # The last value is the size of a chunk, for which memory is allocated.
        if kind == _LZF and values[2:3] not in ((), (size,)):
            raise ValueError(f"{name}, whose chunks have two sizes")


def _check_chunks(dataset, kinds, count, size):
    """Check that each of the `count` chunks of an array unpacks to `size` bytes."""
    stored = []
    dataset.id.chunk_iter(lambda chunk: stored.append(chunk) and None)
    if len(stored) > count:
        raise ValueError(f"{dataset.name}, which has too many chunks")
    for chunk in stored:
        used = [kind for i, kind in enumerate(kinds) if not chunk.filter_mask >> i & 1]
        # What does not compress, gzip makes a little longer.
        if chunk.size > 2 * size + 2**10:
            raise ValueError(f"{dataset.name}, a chunk of which is too long")
        unpacked, checksum = chunk.size, 4 * (_FLETCHER32 in used)
        if _DEFLATE in used or _LZF in used:
            _, content = dataset.id.read_direct_chunk(chunk.chunk_offset)
            content = content[: len(content) - checksum]
            count_of = _inflated_size if _DEFLATE in used else _lzf_size
            unpacked, checksum = count_of(content, size + 1), 0
        # libhdf5 would read or write beyond the chunk, or take any memory.
        if unpacked != size + checksum:
            raise ValueError(f"{dataset.name}, a chunk of which has another size")


def _inflated_size(content, most):
    """Return how many bytes a content of deflate unpacks to, counted to `most`."""
    decoder, size = zlib.decompressobj(), 0
    # The last piece may come after all of the content has gone in.
    while size < most:
        piece = decoder.decompress(content, min(most - size, _PIECE))
        if not piece:
            break
        size += len(piece)
        content = decoder.unconsumed_tail
    return size


def _lzf_size(content, most):
    """Return how many bytes a content of LZF unpacks to, counted to about `most`."""
    at = size = 0
    while at < len(content) and size < most:
        control = content[at]
        at += 1
        if control < 32:  # so many bytes follow, and one more
            at += control + 1
            size += control + 1
            continue
        # A repetition: its length, then how far back it begins.
        length = control >> 5
        if length == 7:
            length += content[at]
            at += 1
        if ((control & 31) << 8 | content[at]) >= size:
            raise ValueError("a repetition of bytes that do not exist")
        at += 1
        size += length + 2
    return size if at == len(content) else most
