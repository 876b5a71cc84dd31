"""Small files that take much memory or time, or more, if they are believed.

Each function of `HDF5`, `KERAS` and `SAFETENSORS` writes one, given a path. They need
neither Keras nor this package. The valid files that they start from are those of
`weights`, `keras_file` and `safetensors_file`.
"""

import io
import json
import pathlib
import struct
import zipfile
import zlib

import h5py
import numpy as np

GIB = 2**30

CLASSES = 3
_SHAPE = (8, 8, 3)
_FEATURES = 192


def kernel():
    return np.linspace(-1, 1, _FEATURES * CLASSES, dtype="float32").reshape(-1, CLASSES)


def weights(path, change=lambda file: None, **options):
    """Write the weights of a model, as Keras does, and change them."""
    with h5py.File(path, "w", **options) as file:
        variables = file.create_group("layers/dense/vars")
        variables.attrs["name"] = "dense"
        variables["0"] = kernel()
        variables["1"] = np.zeros(CLASSES, "float32")
        change(file)


def config(units=CLASSES, shape=_SHAPE, inserted=()):
    """Return the configuration of that model, as in a `.keras` file.

    Args:
        units: int. Number of classes.
        shape: tuple. That of its images.
        inserted: iterable of `(class, arguments)`. Layers after the input.
    """

    def layer(cls, **arguments):
        return {"module": "keras.layers", "class_name": cls, "config": arguments}

    layers = [
        layer("InputLayer", batch_shape=[None, *shape], dtype="float32", name="input"),
        *(layer(cls, **arguments) for cls, arguments in inserted),
        layer("Flatten", name="flatten"),
        layer("Dense", units=units, name="dense"),
    ]
    return {
        "module": "keras",
        "class_name": "Sequential",
        "config": {"name": "sequential", "layers": layers},
        "build_config": {"input_shape": [None, *shape]},
    }


def keras_file(
    path, settings=None, content=None, members=(), write=lambda archive: None
):
    """Write a `.keras` file of that model.

    Args:
        path: path of the file.
        settings: str. Its configuration, if not that of the model.
        content: bytes. Its weights, if not those of the model.
        members: iterable of `(name, content)`. Further members.
        write: function. Further changes of the archive.
    """
    if content is None:
        stream = io.BytesIO()
        weights(stream)
        content = stream.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        archive.writestr("config.json", settings or json.dumps(config()))
        if content:
            archive.writestr("model.weights.h5", content)
        for name, member in members:
            archive.writestr(name, member)
        write(archive)


def safetensors_file(path, header=None, data=None):
    """Write a `.safetensors` file with an array `"a"`."""
    data = kernel().tobytes() if data is None else data
    described = {
        "dtype": "F32",
        "shape": [len(data) // 4],
        "data_offsets": [0, len(data)],
    }
    header = json.dumps({"a": described}).encode() if header is None else header
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def zeros(size, wbits=zlib.MAX_WBITS):
    """Return zeros as deflate packs them: `size` bytes, a multiple of 1 MiB."""
    packer = zlib.compressobj(9, wbits=wbits)
    start = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    # After this, the same input gives the same output.
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + block * (size // 2**20 - 1) + packer.flush()


# HDF5.


def _replaced(**options):
    """Return a function that puts another array in the place of the bias."""

    def change(file):
        variables = file["layers/dense/vars"]
        del variables["1"]
        variables.create_dataset("1", **options)

    return change


def huge_array(path):
    weights(path, _replaced(shape=(GIB,), dtype="float32"))


def huge_chunk(path):
    """An array of three values, in a chunk of 2 GiB, of which little is there."""

    def change(file):
        options = {"shape": (3,), "maxshape": (None,), "chunks": (GIB // 2 - 1,)}
        _replaced(**options, dtype="float32", compression="gzip")(file)
        file["layers/dense/vars/1"].id.write_direct_chunk((0,), zeros(2**20))

    weights(path, change)


def chunk_that_unpacks_to_less(path):
    """Chunks of 4 MiB of which libhdf5 unpacks 1 MiB, and reads 4 MiB."""

    def change(file):
        options = {"shape": (2**20,), "chunks": (2**20,), "dtype": "float32"}
        _replaced(**options, compression="gzip")(file)
        file["layers/dense/vars/1"].id.write_direct_chunk(
            (0,), zlib.compress(bytes(2**20))
        )

    weights(path, change)


def chunk_shorter_than_its_checksum(path):
    """libhdf5 subtracts the size of the checksum and gets a size below zero."""

    def change(file):
        options = {"shape": (20,), "chunks": (20,), "dtype": "float32"}
        _replaced(**options, compression="lzf", fletcher32=True)(file)
        file["layers/dense/vars/1"].id.write_direct_chunk((0,), b"abc")

    weights(path, change)


def huge_plain_chunk(path):
    weights(
        path,
        _replaced(shape=(3,), maxshape=(None,), chunks=(GIB // 2,), dtype="float32"),
    )


def many_chunks(path):
    weights(path, _replaced(shape=(5 * 10**7,), chunks=(1,), dtype="int8"))


def many_packed_chunks(path):
    options = {"chunks": (1,), "dtype": "int8", "compression": "gzip"}
    weights(path, _replaced(shape=(5 * 10**7,), **options))


def chunk_that_unpacks_to_more(path):
    def change(file):
        options = {"shape": (2**20,), "chunks": (2**20,), "dtype": "float32"}
        _replaced(**options, compression="gzip")(file)
        file["layers/dense/vars/1"].id.write_direct_chunk((0,), zeros(2 * GIB))

    weights(path, change)


def chunk_of_lzf_that_unpacks_to_more(path):
    def change(file):
        options = {"shape": (2**22,), "chunks": (2**22,), "dtype": "float32"}
        _replaced(**options, compression="lzf")(file)
        # A zero, then references to it, each of 264 bytes.
        packed = b"\0\0" + b"\xe0\xff\0" * 2**22
        file["layers/dense/vars/1"].id.write_direct_chunk((0,), packed)

    weights(path, change)


def elements_of_a_gibibyte(path):
    weights(path, _replaced(shape=(1,), dtype=f"S{GIB}"))


def arrays_of_arrays(path):
    weights(path, _replaced(shape=(1,), dtype=np.dtype(("float32", (2**28,)))))


def records(path):
    weights(path, _replaced(shape=(3,), dtype=[("a", "f8"), ("b", "f8")]))


def arrays_that_share_their_bytes(path):
    """A thousand arrays of 4 MiB, of which only the first is there."""
    size = 2**22

    def change(file):
        variables = file["layers/dense/vars"]
        variables["2"] = np.zeros(size, "int8")
        for i in range(3, 1000):
            variables.create_dataset(str(i), (size,), "int8")
        at.append(variables["2"].id.get_offset())

    at = []
    weights(path, change)
    absent = b"\xff" * 8 + struct.pack("<Q", size)
    shared = struct.pack("<QQ", at[0], size)
    path.write_bytes(path.read_bytes().replace(absent, shared))


def strings_in_place_of_numbers(path):
    """65,536 strings, which are all the same 64 KiB."""
    offsets = []

    def change(file):
        _replaced(shape=(2**16,), dtype=h5py.string_dtype())(file)
        array = file["layers/dense/vars/1"]
        array[0] = "x" * 2**16
        offsets.append(array.id.get_offset())

    weights(path, change)
    content = bytearray(path.read_bytes())
    [at] = offsets
    content[at : at + 16 * 2**16] = content[at : at + 16] * 2**16
    path.write_bytes(content)


def _change_strings(path, length, changed):
    """Change the references to strings of a length: each is it, an address and an index.

    Args:
        path: path of the file.
        length: int.
        changed: function of such a reference and of the bytes from there on, which
            returns the bytes from there on.
    """
    content = path.read_bytes()
    heap = content.find(b"GCOL")
    while heap >= 0:
        start = struct.pack("<IQ", length, heap)
        if start in content:
            at = content.index(start)
            path.write_bytes(
                content[:at] + changed(content[at : at + 16], content[at:])
            )
            return
        heap = content.find(b"GCOL", heap + 1)
    raise AssertionError("no such string")


def strings_in_an_attribute(path):
    """4,000 strings, which are all the same megabyte."""

    def change(file):
        text = h5py.string_dtype()
        file["layers"].attrs.create("names", ["x" * 2**20] + [""] * 3999, dtype=text)

    weights(path, change)
    _change_strings(path, 2**20, lambda one, rest: one * 4000 + rest[16 * 4000 :])


def _is_too_long(one, rest):
    return struct.pack("<I", 2**32 - 1) + rest[4:]


def string_that_is_too_long(path, **options):
    """The name of a layer, which says that it has 4 GiB."""

    def change(file):
        file["layers/dense/vars"].attrs["name"] = "y" * 77

    weights(path, change, **options)
    _change_strings(path, 77, _is_too_long)


def string_that_is_too_long_in_the_new_format(path):
    string_that_is_too_long(path, libver="latest")
    content = bytearray(path.read_bytes())
    at = content.index(
        struct.pack("<I", 2**32 - 1) + struct.pack("<Q", content.index(b"GCOL"))
    )
    # The block of the header around it ends with a checksum, which was right before.
    start = max(content.rfind(name, 0, at) for name in (b"OHDR", b"OCHK"))
    before = content[:at] + struct.pack("<I", 77) + content[at + 4 :]
    for end in range(at + 16, len(content)):
        if before[end : end + 4] == _checksum(before[start:end]):
            content[end : end + 4] = _checksum(content[start:end])
            path.write_bytes(content)
            return
    raise AssertionError("no such checksum")


def _checksum(content):
    """Return the checksum of HDF5's metadata, `lookup3` of Bob Jenkins."""
    words = [0xDEADBEEF + len(content)] * 3

    def mix(changes):
        for i, j, sign, shift in changes:
            rotated = words[j] << shift | (words[j] & 0xFFFFFFFF) >> 32 - shift
            if sign:
                words[i] = (words[i] - words[j] ^ rotated) & 0xFFFFFFFF
                words[j] = words[j] + words[3 - i - j] & 0xFFFFFFFF
            else:
                words[i] = (words[i] ^ words[j]) - rotated & 0xFFFFFFFF

    padded = bytes(content) + bytes(-len(content) % 12)
    for at in range(0, len(padded), 12):
        given = struct.unpack_from("<III", padded, at)
        words[:] = [(word + more) & 0xFFFFFFFF for word, more in zip(words, given)]
        if at + 12 < len(padded):
            pairs = [(0, 2), (1, 0), (2, 1)] * 2
            mix((i, j, True, s) for (i, j), s in zip(pairs, (4, 6, 8, 16, 19, 4)))
    pairs = [(2, 1), (0, 2), (1, 0), (2, 1), (0, 2), (1, 0), (2, 1)]
    mix((i, j, False, s) for (i, j), s in zip(pairs, (14, 11, 25, 16, 4, 14, 24)))
    return struct.pack("<I", words[2])


def dtype_that_is_too_long(path):
    """The dtype of an array, which Keras reads too."""

    def change(file):
        file["layers/dense/vars/0"].attrs["dtype"] = "z" * 77

    weights(path, change)
    _change_strings(path, 77, _is_too_long)


def heaps_in_heaps(path):
    """32 thousand heaps of strings, each of which reaches to the end."""
    count = 2**15

    def change(file):
        file["layers/dense/vars/2"] = np.zeros(32 * count, "uint8")
        offsets.append(file["layers/dense/vars/2"].id.get_offset())

    offsets = []
    weights(path, change)
    content = bytearray(path.read_bytes())
    [at] = offsets
    end = at + 32 * count
    # Each has an object of 16 bytes, which begins the next.
    for start in range(at, end, 32):
        begin = b"GCOL\1\0\0\0" + struct.pack("<Q", end - start)
        size = 16 if start + 32 < end else 0
        content[start : start + 32] = begin + struct.pack("<HHIQ", 1, 1, 0, size)
    path.write_bytes(content)


def groups_in_groups(path):
    weights(path, lambda file: file.create_group("layers/" + "a/" * 3000))


def circle_of_groups(path):
    def change(file):
        file["layers/dense/again"] = file["layers"]

    weights(path, change)


HDF5 = [
    huge_array,
    huge_chunk,
    chunk_that_unpacks_to_less,
    huge_plain_chunk,
    chunk_shorter_than_its_checksum,
    many_chunks,
    many_packed_chunks,
    chunk_that_unpacks_to_more,
    chunk_of_lzf_that_unpacks_to_more,
    elements_of_a_gibibyte,
    arrays_of_arrays,
    records,
    arrays_that_share_their_bytes,
    strings_in_place_of_numbers,
    strings_in_an_attribute,
    string_that_is_too_long,
    string_that_is_too_long_in_the_new_format,
    dtype_that_is_too_long,
    heaps_in_heaps,
    groups_in_groups,
    circle_of_groups,
]


# Archives.


def bomb(name, method, packed, stated):
    """Return a function that writes a member which unpacks to more than it states."""

    def write(archive):
        info = zipfile.ZipInfo(name)
        archive.writestr(info, packed)
        # In the directory, which is written at the end and believed.
        info.compress_type, info.file_size = method, stated
        info.CRC = zlib.crc32(bytes(min(stated, 1000)))

    return write


def _packed_zeros(method, size):
    if method == zipfile.ZIP_DEFLATED:
        return zeros(size, -zlib.MAX_WBITS)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        with archive.open("a", "w") as member:
            for _ in range(size // 2**20):
                member.write(bytes(2**20))
        info = archive.getinfo("a")
    content = stream.getvalue()
    start = info.header_offset + 30 + len(info.filename)
    return content[start : start + info.compress_size]


def _member_that_unpacks_to_more(name, method=zipfile.ZIP_DEFLATED, size=2 * GIB):
    def write_file(path):
        packed = _packed_zeros(method, size)
        content = b"" if name == "model.weights.h5" else None
        keras_file(path, content=content, write=bomb(name, method, packed, 1000))

    return write_file


def weights_that_unpack_to_more(path):
    _member_that_unpacks_to_more("model.weights.h5")(path)


def metadata_that_unpack_to_more(path):
    _member_that_unpacks_to_more("keras_nfnets.json")(path)


def assets_that_unpack_to_more(path):
    _member_that_unpacks_to_more("assets/vocabulary.txt")(path)


def weights_of_lzma(path):
    _member_that_unpacks_to_more("model.weights.h5", zipfile.ZIP_LZMA, GIB // 16)(path)


def metadata_of_bzip2(path):
    _member_that_unpacks_to_more("keras_nfnets.json", zipfile.ZIP_BZIP2, GIB // 16)(
        path
    )


def weights_of_zeros(path):
    """Weights that unpack to as many bytes as they state, 2 GiB."""
    packed = _packed_zeros(zipfile.ZIP_DEFLATED, 2 * GIB)
    write = bomb("model.weights.h5", zipfile.ZIP_DEFLATED, packed, 2 * GIB)
    keras_file(path, content=b"", write=write)


def long_metadata(path):
    def write(archive):
        content = b"[" + b"[]," * 2**23 + b"[]]"
        archive.writestr("keras_nfnets.json", content, zipfile.ZIP_DEFLATED)

    keras_file(path, write=write)


def deep_metadata(path):
    keras_file(path, members=[("keras_nfnets.json", "[" * 10**5 + "]" * 10**5)])


def deep_configuration(path):
    keras_file(path, '{"config": ' * 10**5 + "1" + "}" * 10**5)


def huge_layer(path):
    """A configuration of a layer with 1.5 TB of weights."""
    keras_file(path, json.dumps(config(units=2 * 10**9)))


def rather_huge_layer(path):
    keras_file(path, json.dumps(config(units=2 * 10**6)))


# To as many values as an image has.
_MEAN = ("AdaptiveAveragePooling2D", {"output_size": list(_SHAPE[:2])})


def huge_images(path):
    """A model of images of 12 GB, whose mean it takes."""
    settings = config(shape=(32_000, 32_000, 3), inserted=[_MEAN])
    keras_file(path, json.dumps(settings))


def huge_output(path):
    """A model that enlarges images to 12 GB, and takes their mean."""
    enlarged = ("UpSampling2D", {"size": [4000, 4000]})
    settings = config(inserted=[enlarged, _MEAN])
    keras_file(path, json.dumps(settings))


def many_members(path):
    keras_file(path, members=((f"assets/{i}", "") for i in range(20_001)))


def members_of_one_name(path):
    stream = io.BytesIO()
    weights(stream)

    def write(archive):
        archive.filelist.append(archive.getinfo("config.json"))

    keras_file(path, write=write)


def infinite_weights(path):
    def change(file):
        file["layers/dense/vars/1"][1] = np.inf

    stream = io.BytesIO()
    weights(stream, change)
    keras_file(path, content=stream.getvalue())


def weights_that_are_nan(path):
    def change(file):
        file["layers/dense/vars/0"][3, 1] = np.nan

    stream = io.BytesIO()
    weights(stream, change)
    keras_file(path, content=stream.getvalue())


KERAS = [
    weights_that_unpack_to_more,
    metadata_that_unpack_to_more,
    assets_that_unpack_to_more,
    weights_of_lzma,
    metadata_of_bzip2,
    weights_of_zeros,
    long_metadata,
    deep_metadata,
    deep_configuration,
    huge_layer,
    rather_huge_layer,
    huge_images,
    huge_output,
    many_members,
    members_of_one_name,
    infinite_weights,
    weights_that_are_nan,
]


def hdf5_in_keras(write):
    """Return a function that writes a `.keras` file with the weights of an HDF5 file."""

    def write_file(path):
        inner = pathlib.Path(path).with_suffix(".h5")
        write(inner)
        keras_file(path, content=inner.read_bytes())
        inner.unlink()

    write_file.__name__ = write.__name__
    return write_file


# Safetensors.


def deep_header(path):
    safetensors_file(path, b'{"__metadata__": ' + b'{"a":' * 10**5 + b"}" * 10**5)


def long_header(path):
    """A header of a million arrays without values."""
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"a{i}": empty for i in range(10**6)}).encode()
    safetensors_file(path, header, b"")


def header_longer_than_the_file(path):
    path.write_bytes(struct.pack("<Q", 2**26) + b"{}")


def huge_shape(path):
    described = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]}
    safetensors_file(path, json.dumps({"a": described}).encode(), bytes(8))


SAFETENSORS = [deep_header, long_header, header_longer_than_the_file, huge_shape]
