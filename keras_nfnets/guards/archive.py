"""ZIP archives of unknown origin, such as `.keras` and `.npz` files."""

import contextlib
import io
import os
import struct
import zipfile
import zlib

from keras_nfnets.guards.limits import check_content, most_content

_MAX_MEMBERS = 20_000
_ENCRYPTED = 1  # flag of a member
_PIECE = 2**20


class Archive:
    """ZIP archive whose members have been compared with its directory.

    Python's `zipfile` unpacks a member completely before it looks at the size.

    Attributes:
        names: set of str. Names of the members.

    Raises:
        OSError, ValueError: in `opened`, the file cannot be read, or has members that
            are compressed other than by deflate, encrypted, have the same name or are
            larger than stated; or its content is larger than `most_content`.
    """

    def __init__(self, file, members):
        self._file, self._members = file, members
        self.names = members.keys()

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path):
        """Context in which an archive is open."""
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            try:
                with zipfile.ZipFile(file) as archive:
                    members = archive.infolist()
            except (zipfile.BadZipFile, NotImplementedError, UnicodeError) as error:
                raise ValueError(f"no complete ZIP archive: {error}") from error
            _check_directory(members, size)
            yield cls(file, {member.filename: member for member in members})

    def check(self):
        """Unpack all members that are compressed, without keeping anything of them."""
        for member in self._members.values():
            if member.compress_type != zipfile.ZIP_STORED:
                for _ in _unpacked(self._file, member):
                    pass

    def read(self, name, most=None):
        """Return the content of a member, bytes.

        Args:
            name: str.
            most: int or None. Number of bytes that it may have.

        Raises:
            ValueError: there is no such member, or it is larger or broken.
        """
        return self.stream(name, most).getvalue()

    def stream(self, name, most=None):
        """Return the content of a member, as `io.BytesIO`; see `read`."""
        member = self._members.get(name)
        if member is None:
            raise ValueError(f"an archive without {name}")
        if most is not None and member.file_size > most:
            raise ValueError(
                f"{name} of {member.file_size:,} bytes, more than the limit of {most:,}"
            )
        content = io.BytesIO()
        for piece in _unpacked(self._file, member):
            content.write(piece)
        content.seek(0)
        return content


def _check_directory(members, size):
    """Check the directory of an archive of `size` bytes."""
    if len(members) > _MAX_MEMBERS:
        raise ValueError(f"an archive of {len(members):,} members")
    if len({member.filename for member in members}) < len(members):
        raise ValueError("an archive with two members of one name")
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{member.filename}, which is not compressed by deflate")
        if member.flag_bits & _ENCRYPTED:
            raise ValueError(f"{member.filename}, which is encrypted")
        is_stored = member.compress_type == zipfile.ZIP_STORED
        if is_stored and member.compress_size != member.file_size:
            raise ValueError(f"{member.filename}, which has two sizes")
    if sum(member.compress_size for member in members) > size:
        raise ValueError("an archive whose members overlap or are missing")
    check_content(sum(member.file_size for member in members), most_content(size))


def _unpacked(file, member):
    """Yield the content of a member in pieces.

    Raises:
        ValueError: it has another size or checksum than is stated.
    """
    # Signature, ..., the lengths of the name and of a field in between.
    file.seek(member.header_offset)
    name, extra = struct.unpack("<26xHH", _exactly(file, 30))
    file.seek(name + extra, os.SEEK_CUR)
    is_stored = member.compress_type == zipfile.ZIP_STORED
    size = checksum = 0
    for piece in (_stored if is_stored else _inflated)(file, member.compress_size):
        size += len(piece)
        if size > member.file_size:
            break
        checksum = zlib.crc32(piece, checksum)
        yield piece
    if size != member.file_size or checksum != member.CRC:
        raise ValueError(f"{member.filename}, which differs from its size or checksum")


def _stored(file, left):
    while left:
        piece = _exactly(file, min(left, _PIECE))
        left -= len(piece)
        yield piece


def _inflated(file, left):
    decoder = zlib.decompressobj(-zlib.MAX_WBITS)
    while not decoder.eof:
        packed = decoder.unconsumed_tail
        if not packed and left:
            packed = _exactly(file, min(left, _PIECE))
            left -= len(packed)
        try:
            piece = decoder.decompress(packed, _PIECE)
        except zlib.error as error:
            raise ValueError(f"broken compressed content: {error}") from error
        if not (piece or packed):
            raise ValueError("an archive that is not complete")
        yield piece


def _exactly(file, size):
    content = file.read(size)
    if len(content) < size:
        raise ValueError("an archive that is not complete")
    return content
