"""Reading the authors' parameter files, without executing anything in them."""

import collections
import contextlib
import os
import pathlib
import pickle
import pickletools
import random
import struct
import sys
import time
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from keras_nfnets.pretrained.pickles import read_pickle

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
SAMPLES = [
    GOLDEN / "deepmind_release_dict.npz",
    GOLDEN / "deepmind_release_flatmapping.npz",
]


def assert_same(tree, expected):
    assert type(tree) is dict
    assert list(tree) == list(expected)
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_same(tree[key], value)
        else:
            assert type(tree[key]) is np.ndarray
            assert tree[key].dtype == value.dtype
            np.testing.assert_array_equal(tree[key], value)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_file_as_the_authors_made_it_loads_exactly(path, golden, monkeypatch):
    for module in ("dill", "haiku", "jax", "jaxlib"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    before = set(sys.modules)
    tree = read_pickle(path)
    assert set(sys.modules) == before
    expected = golden("haiku_nfnet_tiny").parameters
    assert tree.keys() == expected.keys()
    for module, leaves in tree.items():
        assert leaves.keys() == expected[module].keys()
        for leaf, array in leaves.items():
            assert array.dtype == "float32"
            assert array.shape == expected[module][leaf].shape
            assert array.flags.writeable
            # NumPy 1.x, which made the file, rounds the division of kernels differently.
            np.testing.assert_array_max_ulp(
                array, expected[module][leaf], maxulp=1 if leaf == "w" else 0
            )
    assert_same(tree, read_pickle(str(path)))


def test_reading_takes_little_more_memory_than_the_file(tmp_path):
    path = tmp_path / "big"
    path.write_bytes(pickle.dumps({f"w{i}": np.ones(200_000, "f4") for i in range(10)}))
    _, peak = read_with_peak(path)
    assert peak < 1.2 * path.stat().st_size


def read_with_peak(path):
    """Read a file; return the tree or the ValueError, and the peak memory."""
    tracemalloc.start()
    try:
        return read_pickle(path), tracemalloc.get_traced_memory()[1]
    except ValueError as error:
        return error, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


ALL_KINDS = {
    "deeper": {"down": {"w": np.arange(6.0, dtype="f4").reshape(1, 2, 3)}},
    "flat": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "ü/~/gain": np.array(0.5, "f2"),
    "bfloat16": np.ones(3, ml_dtypes.bfloat16),
    "integers": np.array([1, -1], "i8"),
    "bytes": np.array([1, 255], "u1"),
    "bool": np.array([True, False]),
    "nothing": np.zeros((0, 3), "f4"),
    "empty": {},
}


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_other_shapes_dtypes_and_protocols_load(protocol, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(pickle.dumps(ALL_KINDS, protocol))
    assert_same(read_pickle(path), ALL_KINDS)
    ordered = collections.OrderedDict(ALL_KINDS, scalar=np.float32(2))
    path.write_bytes(pickle.dumps(ordered, protocol))
    assert_same(read_pickle(path), {**ALL_KINDS, "scalar": np.array(2, "f4")})


# Pickles made by hand: opcodes that leave one value on the stack.


def text(string):
    return b"X" + struct.pack("<I", len(string.encode())) + string.encode()


def name(module, attribute):
    return text(module) + text(attribute) + b"\x93"


def call(function, *arguments):
    return function + b"(" + b"".join(arguments) + b"tR"


W = text("w")


def item(value, key=W):
    """Return a complete pickle of a mapping with one item."""
    return b"\x80\x04}" + key + value + b"s."


def dtype(string="f4"):
    return call(name("numpy", "dtype"), text(string), b"\x89", b"\x88")


F4 = dtype()
TWO = b"C\x08" + bytes(8)


def array(shape=b"K\x02\x85", dtype=F4, data=TWO, version=b"K\x01"):
    """Return the opcodes of an array, by default of two float32."""
    state = b"(" + version + shape + dtype + b"\x89" + data + b"t"
    return UNBUILT + state + b"b"


NDARRAY = name("numpy", "ndarray")
RECONSTRUCT = name("numpy.core.multiarray", "_reconstruct")
UNBUILT = call(RECONSTRUCT, NDARRAY, b"K\x00\x85", b"C\x01b")
GET_ATTR = name("dill._dill", "_get_attr")
IMPORT = name("dill._dill", "_import_module")
FLAT_MAPPING = name("haiku._src.data_structures", "FlatMapping")
NO_STATE = b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"


def test_handmade_pickles_load(tmp_path):
    # Otherwise the tests of rejected pickles below would prove nothing.
    path = tmp_path / "x"
    for one in (
        array(),
        array(dtype=dtype() + b"(K\x03" + text("<") + NO_STATE + b"tb"),
        array().replace(
            RECONSTRUCT,
            call(
                GET_ATTR,
                call(IMPORT, text("numpy.core._multiarray_umath")),
                text("_reconstruct"),
            ),
        ),
    ):
        path.write_bytes(item(one))
        assert_same(read_pickle(path), {"w": np.zeros(2, "f4")})
    path.write_bytes(item(call(FLAT_MAPPING, b"}" + text("b") + array() + b"s")))
    assert_same(read_pickle(path), {"w": {"b": np.zeros(2, "f4")}})


class Call:
    """Object that is pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


CODE = "__import__('os').mkdir('ran')"
MKDIR = name(os.mkdir.__module__, "mkdir")
EXEC = call(name("builtins", "exec"), text(CODE))
HARMFUL = {
    "mkdir": pickle.dumps(Call(os.mkdir, "ran"), 4),
    "mkdir at protocol 2": pickle.dumps(Call(os.mkdir, "ran"), 2),
    "system": pickle.dumps(Call(os.system, "mkdir ran"), 4),
    "eval": pickle.dumps(Call(eval, CODE), 4),
    "getattr": item(
        call(
            call(
                name("builtins", "getattr"),
                call(name("builtins", "__import__"), text("os")),
                text("mkdir"),
            ),
            text("ran"),
        )
    ),
    "partial": item(call(call(name("functools", "partial"), MKDIR, text("ran")))),
    "in an array": pickle.dumps({"w": np.array([Call(exec, CODE)])}, 4),
    "in a key": item(array(), key=EXEC),
    "in a shape": item(array(shape=EXEC)),
    "in a dtype": item(array(dtype=call(name("numpy", "dtype"), EXEC))),
    "in a state": b"\x80\x04" + UNBUILT + EXEC + b"b.",
    "by a name with dots": item(
        call(name("numpy._core.numeric", "builtins.exec"), text(CODE))
    ),
    "INST": item(b"(" + text(CODE) + b"ibuiltins\nexec\n"),
    "OBJ": item(b"(" + name("builtins", "exec") + text(CODE) + b"o"),
    "POP": item(EXEC + b"0" + array()),
}


@pytest.mark.parametrize("content", HARMFUL.values(), ids=HARMFUL)
def test_nothing_is_executed(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x"
    path.write_bytes(content)
    before = set(sys.modules)
    with pytest.raises(ValueError, match="Nothing in it was executed"):
        read_pickle(path)
    assert set(sys.modules) == before
    assert not os.path.exists("ran")
    # The attack is real: `pickle` executes it. (Other errors do not matter.)
    with contextlib.suppress(Exception):
        pickle.loads(content)
    assert os.path.exists("ran")


def number(value, size):
    return value.to_bytes(size, "little")


def doubling(depth):
    """Return the opcodes of a mapping that has a less deep one twice, and so on."""
    if depth == 0:
        return b"}q\x00"
    twice = text("a") + doubling(depth - 1) + text("b") + b"h%c" % (depth - 1)
    return b"}(" + twice + b"uq%c" % depth


REFUSED = {
    "os.system": (item(call(name("os", "system"), text("true"))), "name 'os.system'"),
    "os.system, old": (item(b"cos\nsystem\n"), "the name 'os.system'"),
    "dill function": (item(name("dill._dill", "_create_function")), "_create_function"),
    "dill code": (item(name("dill._dill", "_create_code")), "_create_code'"),
    "dill type": (item(name("dill._dill", "_load_type")), "_load_type'"),
    "reconstructor": (item(name("copyreg", "_reconstructor")), "copyreg._reconst"),
    "numpy.load": (item(name("numpy", "load")), "the name 'numpy.load'"),
    "numpy.f2py": (item(name("numpy.f2py", "compile")), "the name 'numpy.f2py"),
    "globals": (
        item(name("numpy.core.multiarray", "_reconstruct.__globals__")),
        "the name '.*__globals__'",
    ),
    "attribute of os": (
        item(call(GET_ATTR, call(IMPORT, text("os")), text("system"))),
        "the name 'os.system'",
    ),
    "attribute of a function": (
        item(call(GET_ATTR, RECONSTRUCT, text("__globals__"))),
        "an attribute of function",
    ),
    "attribute of an attribute": (
        item(call(GET_ATTR, call(GET_ATTR, NDARRAY, text("mro")), text("x"))),
        "an attribute of object",
    ),
    "NEWOBJ": (item(NDARRAY + b")\x81"), "NEWOBJ"),
    "NEWOBJ_EX": (item(NDARRAY + b")}\x92"), "NEWOBJ_EX"),
    "EXT1": (item(b"\x82\x01"), "EXT1"),
    "EXT4": (item(b"\x84\x01\x00\x00\x00"), "EXT4"),
    "PERSID": (item(b"Pos.system\n"), "PERSID"),
    "BINPERSID": (item(text("os.system") + b"Q"), "BINPERSID"),
    "NEXT_BUFFER": (item(b"\x97"), "NEXT_BUFFER"),
    "no opcode": (item(b"\xff"), r"the opcode b'.xff'"),
    "call of text": (item(call(text("x"))), "a call of str"),
    "call of a class": (item(call(NDARRAY, b"K\x02\x85")), "a call of object"),
    "call without tuple": (item(RECONSTRUCT + text("x") + b"R"), "without a tuple"),
    "call with too much": (item(call(RECONSTRUCT, b"N" * 9)), "invalid sequence"),
    "no stack": (b"\x80\x04R.", "invalid sequence"),
    "no mark": (b"\x80\x04u.", "invalid sequence"),
    "no memo": (item(b"h\x07"), "invalid sequence"),
    "mark too many": (b"\x80\x04(" + item(array())[2:], "unused"),
    "nothing": (b"\x80\x04.", "unused"),
    "state of a function": (item(RECONSTRUCT + b")b"), "a state for function"),
    "state of a mapping": (item(b"})b"), "a state for dict"),
    "attributes": (item(UNBUILT + b"}" + text("a") + b"Nsb"), "a state for _Array"),
    "slots": (item(UNBUILT + b"N}" + text("a") + b"Ns\x86b"), "not enough values"),
    "other class": (
        item(call(RECONSTRUCT, FLAT_MAPPING, b"K\x00\x85", b"C\x01b")),
        "an array of an unknown form",
    ),
    "objects": (item(array(dtype=dtype("O"))), "the dtype 'O'"),
    "text": (item(array(dtype=dtype("U1"))), "the dtype 'U1'"),
    "void": (item(array(dtype=dtype("V4"))), "the dtype 'V4'"),
    "complex": (item(array(dtype=dtype("c8"))), "the dtype 'c8'"),
    "fields": (item(array(dtype=dtype("f4,O"))), "the dtype 'f4,O'"),
    "dtype of a class": (
        item(array(dtype=call(name("numpy", "dtype"), NDARRAY))),
        "the dtype object",
    ),
    "fields by state": (
        item(array(dtype=dtype() + b"(K\x03" + text("<") + b"N)}NNNtb")),
        "not of plain",
    ),
    "big-endian": (
        item(array(dtype=dtype() + b"(K\x03" + text(">") + NO_STATE + b"tb")),
        "not of plain little-endian",
    ),
    "no dtype": (item(array(dtype=text("f4"))), "unknown form"),
    "unknown version": (item(array(version=b"K\x02")), "unknown form"),
    "too few bytes": (item(array(data=b"C\x04" + bytes(4))), "do not agree"),
    "too many bytes": (item(array(data=b"C\x0c" + bytes(12))), "do not agree"),
    "text for bytes": (item(array(data=text("x" * 8))), "do not agree"),
    "huge": (item(array(b"J\xff\xff\xff\x7f" * 3 + b"\x87")), "do not agree"),
    "huge and empty": (
        item(array(b"(" + b"J\xff\xff\xff\x7f" * 9 + b"K\x00t", data=b"C\x00")),
        "",
    ),
    "negative": (item(array(b"J\xff\xff\xff\xff\x85")), "does not consist of sizes"),
    "shape of text": (item(array(text("x") + b"\x85")), "does not consist of sizes"),
    "too many axes": (item(array(b"(" + b"K\x01" * 99 + b"t")), "too long"),
    "unbuilt": (item(UNBUILT), "_Array in place of an array"),
    "text as leaf": (item(text("x")), "str in place of an array, at 'w'"),
    "None as leaf": (item(b"N"), "NoneType in place"),
    "class as leaf": (item(NDARRAY), "object in place"),
    "function as leaf": (item(RECONSTRUCT), "function in place"),
    "number as key": (item(array(), key=b"K\x01"), "not a string but int"),
    "list on top": (b"\x80\x04].", "EMPTY_LIST"),
    "array on top": (b"\x80\x04" + array() + b".", "_Array in place of the mapping"),
    "leaves and structure": (item(call(FLAT_MAPPING, b"))\x86")), "made of tuple"),
    "item of a tuple": (b"\x80\x04)" + text("w") + b"Ns.", "items for tuple"),
    "odd items": (b"\x80\x04}(" + text("w") + b"u.", "items for dict"),
    "cycle": (b"\x80\x04}q\x01" + text("w") + b"h\x01s.", "occurs twice"),
    "doubling": (b"\x80\x04" + doubling(9) + b".", "occurs twice"),
    "other protocol": (b"\x80\xc8" + item(array())[2:], "protocol 200"),
}


@pytest.mark.parametrize("content, what", REFUSED.values(), ids=REFUSED)
def test_anything_but_arrays_is_an_error(content, what, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"x must be .* Received: .*{what}"):
        read_pickle(path)


DEEP = b")" + b"\x85" * 100_000
# Its repr, == or hash would never end.
DOUBLED = b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(100))
SHARED = b"B" + number(100_000, 4) + bytes(100_000)
LARGE = {
    "bytes": item(b"\x8e" + number(2**60, 8)),
    "less bytes": item(b"B" + number(2**32 - 1, 4)),
    "bytearray": item(b"\x96" + number(2**60, 8)),
    "text": item(b"\x8d" + number(2**40, 8)),
    "integer": item(b"\x8b" + number(2**31 - 1, 4)),
    "digits": item(b"I" + b"9" * 1_000_000 + b"\n"),
    "frame": b"\x80\x04\x95" + number(2**62, 8) + item(array())[2:],
    "memo": item(b"Nr" + number(2**32 - 1, 4)),
    "opcodes": b"\x80\x04" + b"}" * 1_000_000,
    "bytes of many arrays": b"\x80\x04}"
    + W
    + array(b"M\xa8\x61\x85", data=SHARED)
    + b"q\x09s"
    + b"".join(text(str(i)) + b"h\x09s" for i in range(10_000))
    + b".",
}


@pytest.mark.parametrize("content", LARGE.values(), ids=LARGE)
def test_declared_sizes_allocate_no_memory(content, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(content)
    error, peak = read_with_peak(path)
    assert isinstance(error, ValueError)
    assert peak < 50e6


ENDLESS = {
    "deep mappings": b"\x80\x04" + (b"}" + W) * 100_000 + b"}" + b"s" * 100_000 + b".",
    **{
        f"{kind} {place}": content
        for kind, value in (("deep", DEEP), ("doubled", DOUBLED))
        for place, content in {
            "top": b"\x80\x04" + value + b".",
            "leaf": item(value),
            "key": item(array(), key=value),
            "name": item(value + W + b"\x93"),
            "module": item(call(GET_ATTR, call(IMPORT, value), W)),
            "call": item(value + b")R"),
            "arguments": item(RECONSTRUCT + value + b"R"),
            "class": item(call(RECONSTRUCT, value, b")", b"C\x01b")),
            "state": item(UNBUILT + value + b"b"),
            "shape": item(array(value)),
            "dtype": item(array(dtype=call(name("numpy", "dtype"), value))),
            "byte order": item(F4 + b"(K\x03" + value + b"NNNNNNtb"),
            "data": item(array(data=value)),
            "mapping": item(call(FLAT_MAPPING, value)),
        }.items()
    },
}


@pytest.mark.parametrize("content", ENDLESS.values(), ids=ENDLESS)
def test_nested_tuples_are_not_followed(content, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(content)
    start = time.monotonic()
    with pytest.raises(ValueError, match="x must be") as caught:
        read_pickle(path)
    assert time.monotonic() - start < 60  # not exponential
    assert len(str(caught.value)) < 1000


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "F0_haiku.npz"

    def refused(content, what):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"F0_haiku.npz must be .*{what}"):
            read_pickle(path)

    refused(b"", "does not begin like a pickle")
    refused(b"<html>404 Not Found</html>", "does not begin like a pickle")
    refused(item(array()) + b"more", "4 bytes after its end")
    refused(item(array()) + item(array()), "bytes after its end")
    refused((GOLDEN / "haiku_nfnet_tiny.npz").read_bytes(), "a zip archive")
    sample = SAMPLES[0].read_bytes()
    for cut in (1, 2, 9, 100, 600, 100_000, len(sample) - 1):
        refused(sample[:cut], "Received: ")
    for nowhere in (tmp_path, tmp_path / "missing", "", "x" * 5000, "~nobody/x", None):
        with pytest.raises(ValueError, match="where there is no file"):
            read_pickle(nowhere)


SNIPPETS = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
SNIPPETS += [NDARRAY, RECONSTRUCT, UNBUILT, array(), dtype(), call(FLAT_MAPPING, b"}")]
SNIPPETS += [EXEC, b")R", b"}b", b"N}" + text("a") + b"Ns\x86b", b"h\x01", b"q\x01"]


def mutated(content, places, chance):
    """Return the content with one to three opcodes changed."""
    content = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 3])):
        at = min(chance.choice(places) + chance.randrange(4), len(content) - 1)
        other = chance.choice(places)
        match chance.randrange(7):
            case 0:
                content[at] ^= 1 << chance.randrange(8)
            case 1:
                content[at] = chance.randrange(256)
            case 2:
                del content[at + 1 :]
            case 3:
                del content[at : at + chance.randrange(1, 9)]
            case 4:
                content[at:at] = chance.choice(SNIPPETS)
            case 5:
                content[at : at + 1] = chance.choice(SNIPPETS)
            case 6:
                content[at : at + chance.randrange(9)] = content[
                    other : other + chance.randrange(40)
                ]
    return bytes(content)


def assert_plain(tree):
    assert type(tree) is dict
    for key, value in tree.items():
        assert type(key) is str
        if type(value) is not np.ndarray:
            assert_plain(value)
        elif value.dtype != ml_dtypes.bfloat16:
            assert value.dtype.kind in "fiub"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "content, count",
    [
        (SAMPLES[0].read_bytes(), 800),
        (SAMPLES[1].read_bytes(), 800),
        (pickle.dumps(ALL_KINDS, 3), 500),
        (pickle.dumps(ALL_KINDS, 4), 500),
        (pickle.dumps(ALL_KINDS, 5), 500),
        (item(call(FLAT_MAPPING, b"}" + text("b") + array() + b"s")), 500),
    ],
    ids=["dict", "flatmapping", "protocol 3", "protocol 4", "protocol 5", "tiny"],
)
def test_changed_files_are_refused_or_harmless(content, count, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x"
    places = [at for _, _, at in pickletools.genops(content)]
    before, loaded = set(sys.modules), 0
    for seed in range(count):
        path.write_bytes(mutated(content, places, random.Random(seed)))
        start = time.monotonic()
        try:
            assert_plain(read_pickle(path))
            loaded += 1
        except ValueError as error:
            assert "Received: " in str(error)
        assert time.monotonic() - start < 60  # not exponential
    assert set(sys.modules) == before
    assert os.listdir() == ["x"]
    # Some files load and some do not; otherwise the mutations are too weak or too strong.
    assert 0 < loaded < count
