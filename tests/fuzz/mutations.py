"""Random changes of small valid files."""

import collections
import json
import pathlib
import pickle
import struct
import tempfile
import typing

import files
import h5py
import numpy as np

# Values that a size, a number or an offset could be given.
_NUMBERS = [0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]


class Kind(typing.NamedTuple):
    """Valid files of a kind.

    Attributes:
        ending: str. Ending of their names.
        function: str. What reads them, see `reading`.
        content: bytes. What is changed.
        write: function of a path and of the changed content.
    """

    ending: str
    function: str
    content: bytes
    write: typing.Callable = pathlib.Path.write_bytes


def kinds():
    """Return a list of `Kind`s."""
    old = _content(files.weights)
    new = _content(lambda path: files.weights(path, libver="latest"))
    chunked = _content(_chunked)
    settings = json.dumps(files.config()).encode()
    return [
        Kind(".weights.h5", "recognize", old),
        Kind(".weights.h5", "recognize", new),
        Kind(".weights.h5", "load_weights", chunked),
        Kind(".keras", "load_model", _content(files.keras_file)),
        Kind(".keras", "load_model", old, _keras_of_weights),
        Kind(".keras", "recognize", chunked, _keras_of_weights),
        Kind(".keras", "load_model", settings, files.keras_file),
        Kind(".safetensors", "recognize", _content(files.safetensors_file)),
        Kind(".npz", "recognize", _content(_pickle)),
        Kind(".npz", "restore", _content(_checkpoint)),
    ]


def _content(write):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "a.npz")
        write(path)
        return path.read_bytes()


def _keras_of_weights(path, content):
    files.keras_file(path, content=content)


def _chunked(path):
    def change(file):
        variables = file["layers/dense/vars"]
        values = np.arange(600, dtype="float32").reshape(20, 30)
        variables.create_dataset("2", data=values, chunks=(4, 5))
        for i, packing in enumerate(["gzip", "lzf"], 3):
            options = {"compression": packing, "shuffle": True, "fletcher32": True}
            variables.create_dataset(str(i), data=values, chunks=(4, 5), **options)
        variables.create_dataset("5", (7,), "int8", chunks=(2,), maxshape=(None,))
        file.attrs.create("names", ["a", "bc"], dtype=h5py.string_dtype())

    files.weights(path, change)


def _pickle(path):
    modules = collections.OrderedDict()
    for name in ("NFNet/~/nf_block/~/conv0", "NFNet/~/linear"):
        modules[name] = {"w": np.ones((3, 4), "float32"), "b": np.zeros(4, "float16")}
    path.write_bytes(pickle.dumps(modules, protocol=4))


def _checkpoint(path):
    np.savez(
        path, about=np.array('{"settings": {}}'), model0=np.ones((2, 1), "float32")
    )


def mutated(random, content):
    """Return a content with one to sixteen changes.

    Args:
        random: `random.Random`.
        content: bytes.
    """
    content = bytearray(content)
    for _ in range(random.choice([1, 1, 1, 2, 4, 16])):
        if content:
            random.choice(_CHANGES)(random, content, random.randrange(len(content)))
    return bytes(content)


def _flip(random, content, at):
    content[at] ^= 1 << random.randrange(8)


def _set_byte(random, content, at):
    content[at] = random.choice([0, 1, 127, 128, 255, random.randrange(256)])


def _set_number(random, content, at):
    form = random.choice(["<B", "<H", "<I", "<Q", ">I", ">Q"])
    size = struct.calcsize(form)
    number = random.choice([*_NUMBERS, random.randrange(len(content))])
    content[at : at + size] = struct.pack(form, number % 256**size)


def _double(random, content, at):
    size = random.choice([1, 2, 4, 8])
    number = int.from_bytes(content[at : at + size], "little")
    content[at : at + size] = (2 * number % 256**size).to_bytes(size, "little")


def _copy(random, content, at):
    size, other = random.randrange(1, 65), random.randrange(len(content))
    content[at : at + size] = content[other : other + size]


def _repeat(random, content, at):
    size = random.randrange(1, 1025)
    content[at:at] = content[at : at + size] * random.choice([1, 1, 10, 100])


def _remove(random, content, at):
    del content[at : at + random.randrange(1, 65)]


def _truncate(random, content, at):
    del content[at:]


_CHANGES = [_flip, _flip, _set_byte, _set_number, _set_number, _double]
_CHANGES += [_copy, _repeat, _remove, _truncate]
