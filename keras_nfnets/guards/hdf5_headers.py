"""Attributes in the headers of HDF5 objects, as bytes.

Before libhdf5 (1.14) looks for a string, it allocates and clears as many bytes as the
attribute says that it has, up to 4 GiB. So this module reads what it says.

Reference: HDF5 File Format Specification 3.0, sections IV.A.1, IV.A.2.m and IV.A.2.q.
"""

import struct

_CONTINUATION, _ATTRIBUTE, _ATTRIBUTE_INFO = 0x10, 0x0C, 0x15
_SHARED = 0x02  # flag of a message
_VARIABLE_LENGTH = 9  # class of datatypes
_UNDEFINED = b"\xff" * 8


def string_lengths(stream, address, most):
    """Return the lengths of an object's strings of variable length, as stated.

    Args:
        stream: binary file, whose addresses and sizes have eight bytes.
        address: int. Where the object's header begins.
        most: int. Bytes that the header may have.

    Returns:
        A list of int, and the bytes of the header.

    Raises:
        ValueError: the header is not valid or too long, or its attributes are stored
            elsewhere.
    """
    lengths, total = [], 0
    for head, block in _blocks(stream, address):
        total += len(block)
        if total > most:
            raise ValueError("headers that are longer than the file")
        for kind, flags, message in _messages(head, block):
            if kind == _ATTRIBUTE_INFO:
                # Their heap, after the version, flags and perhaps a number. There is one
                # for more than eight attributes; Keras writes fewer.
                at = 2 + 2 * (message[1] & 1)
                if message[at : at + 8] != _UNDEFINED:
                    raise ValueError("attributes that are stored outside their object")
            if kind == _ATTRIBUTE:
                if flags & _SHARED or (message[0] > 1 and message[1]):
                    raise ValueError("an attribute that is shared between objects")
                lengths += _lengths(message)
    return lengths, total


def _blocks(stream, address):
    """Yield `(form of the messages, bytes)` for each block of an object's header."""
    start = _read(stream, address, 64)
    if start[:4] == b"OHDR":
        flags = start[5]
        at = 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
        width = 1 << (flags & 3)
        size = int.from_bytes(start[at : at + width], "little")
        first = address + at + width, size
        # Type, size, flags and, if it is stored, the order of creation. Further blocks
        # have a signature and a checksum.
        head, before, after = ("<BHB2x" if flags & 4 else "<BHB"), 4, 4
    else:
        first = address + 16, int.from_bytes(start[8:12], "little")
        head, before, after = "<HHB3x", 0, 0
    todo = [first]
    for at, size in todo:  # which grows
        block = _read(stream, at, size)
        yield head, block
        for kind, _, message in _messages(head, block):
            if kind == _CONTINUATION:
                at, size = struct.unpack_from("<QQ", message)
                todo.append((at + before, size - before - after))


def _messages(head, block):
    """Yield `(type, flags, bytes)` of the messages in a block of a header."""
    at, width = 0, struct.calcsize(head)
    while at + width <= len(block):
        kind, size, flags = struct.unpack_from(head, block, at)
        at += width
        yield kind, flags, block[at : at + size]
        at += size


def _read(stream, at, size):
    if size < 0:
        raise ValueError("a header of negative size")
    stream.seek(at)
    return stream.read(size)


def _lengths(message):
    """Return the lengths of an attribute's strings of variable length."""
    version = message[0]
    # Of the name, the datatype and the shape, which version 1 pads to eight bytes.
    sizes = struct.unpack_from("<HHH", message, 2)
    at = 9 if version == 3 else 8
    parts = []
    for size in sizes:
        parts.append(message[at : at + size])
        at += (size + 7) // 8 * 8 if version == 1 else size
    _, datatype, _ = parts
    if datatype[0] & 15 != _VARIABLE_LENGTH:
        return []
    # A string is its length, and the address and the index of its bytes.
    data = message[at : at + (len(message) - at) // 16 * 16]
    return [length for (length,) in struct.iter_unpack("<I12x", data)]
