"""Reader of the authors' parameter files, pickles, without executing anything."""

import io
import math
import os
import pathlib
import pickletools
import types

import ml_dtypes
import numpy as np

# A pickle is a program for a stack machine. The standard library's machine can restrict
# the names that are imported, but it still calls and modifies any object that it has
# built, and does not check lengths. So this module has its own machine: the standard
# library (`pickletools`) only splits the file into opcodes, and the machine supports
# only the few that a mapping of arrays needs. All objects that it can reach are of
# types that only hold data.

# NFNet-F6 takes some 60 thousand. The limit bounds the time, and the memory of objects
# that take one byte in the file.
_MAX_OPCODES = 500_000
_MAX_DEPTH = 16
_MAX_AXES = 32  # limit of NumPy 1.x
_MAX_REASON = 200  # characters of a reason, which may quote the file

_NUMERIC_DTYPES = (
    "f2",
    "f4",
    "f8",
    "i1",
    "i2",
    "i4",
    "i8",
    "u1",
    "u2",
    "u4",
    "u8",
    "b1",
)

# Opcodes that push a constant onto the stack, and those that push their argument.
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {"BININT", "BININT1", "BININT2", "SHORT_BINUNICODE", "BINUNICODE"}
_LITERALS |= {"SHORT_BINBYTES", "BINBYTES", "BYTEARRAY8"}


def read_pickle(path):
    """Read a parameter file of the authors, such as `F0_haiku.npz`.

    Despite its name it is not a NumPy archive but a pickle, written with dill, of a
    mapping from modules to mappings from parameters to arrays. A pickle can run any
    code; this function runs none. It knows the few names by which arrays and mappings
    (including Haiku's) are pickled, replaces them by harmless versions, and refuses
    everything else. It needs neither dill nor Haiku nor JAX.

    Args:
        path: str or `pathlib.Path`. Path of the file.

    Returns:
        The mapping as plain dicts, nested as in the file: mostly
        `{module: {parameter: array}}`, with modules such as `"NFNet/~/final_conv"`.
        Keys are strings. Leaves are arrays with the shapes and dtypes of the file:
        floating point (float16, float32, float64, bfloat16), integer or bool. A NumPy
        scalar becomes an array of shape `()`.

    Raises:
        ValueError: the file does not exist, is truncated, continues after its end, or
            contains anything other than such a mapping.

    Source: https://github.com/google-deepmind/deepmind-research/tree/master/nfnets

    Example:

    >>> import pickle, tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     pickle.dump({"NFNet/~/linear": {"b": np.zeros(2)}}, file)
    ...     file.flush()
    ...     read_pickle(file.name)
    {'NFNet/~/linear': {'b': array([0., 0.])}}
    """
    try:
        full = pathlib.Path(path).expanduser()
        exists = full.is_file()
    except (OSError, RuntimeError, TypeError, ValueError):
        exists = False
    if not exists:
        raise ValueError(
            "`path` must be the path of a file of the authors' parameters, such as "
            f"F0_haiku.npz. Received: path={str(path)!r}, where there is no file"
        )
    try:
        with _File(io.FileIO(full)) as file:
            return _finish(_run(file), file.size)
    # Errors of an invalid sequence of opcodes: an empty stack, a missing memo entry, or
    # arguments that our functions do not have.
    except (IndexError, KeyError, OSError, TypeError, ValueError) as error:
        reason = str(error)
        if isinstance(error, (IndexError, KeyError, TypeError)):
            reason = (
                f"an invalid sequence of opcodes ({type(error).__name__}: {reason})"
            )
        raise ValueError(
            f"{full} must be a pickle of the authors' parameters: a mapping from names "
            "to numeric arrays, and nothing else. Nothing in it was executed. "
            f"Received: {reason[:_MAX_REASON]}"
        ) from error


class _File(io.BufferedReader):
    """File that refuses to read more bytes than it has left.

    Python's own file would first allocate memory, even for 2 ** 60 bytes.
    """

    def __init__(self, raw):
        super().__init__(raw)
        self.size = self.left = os.fstat(raw.fileno()).st_size

    def read(self, count):
        if count > self.left:
            raise ValueError("a file that is truncated, or not a pickle")
        self.left -= count
        return super().read(count)

    def read_line(self):
        line = self.readline()
        self.left -= len(line)
        return line.decode().removesuffix("\n")


class _DType:
    def __init__(self, value):
        self.value = value

    def build(self, state):
        version, order, *fields, _, _, _ = state
        # The byte order of one-byte types is "|".
        if version != 3 or order not in ("<", "|") or fields != [None, None, None]:
            raise ValueError("a dtype that is not of plain little-endian numbers")


class _Array:
    """Array under construction, whose content the opcode BUILD sets later."""

    value = None

    def build(self, state):
        version, shape, dtype, is_fortran, data = state
        if version != 1 or type(dtype) is not _DType:
            raise ValueError("an array of an unknown form")
        if type(shape) is not tuple or len(shape) > _MAX_AXES:
            raise ValueError("an array whose shape is not a tuple, or is too long")
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError("an array whose shape does not consist of sizes")
        if type(data) not in (bytes, bytearray) or (
            len(data) != math.prod(shape) * dtype.value.itemsize
        ):
            raise ValueError("an array whose shape and bytes do not agree")
        order = "F" if is_fortran is True else "C"
        self.value = np.ndarray(shape, dtype.value, buffer=data, order=order)


class _Module:
    """Name of a module, which is not imported."""

    def __init__(self, name):
        self.name = name


_NDARRAY = object()
_BFLOAT16 = object()


def _reconstruct(kind, shape, code):
    if kind is not _NDARRAY or shape != (0,) or code != b"b":
        raise ValueError("an array of an unknown form")
    return _Array()


def _frombuffer(data, dtype, shape, order):
    array = _Array()
    array.build((1, shape, dtype, order == "F", data))
    return array


def _scalar(dtype, data):
    return _frombuffer(data, dtype, (), "C")


def _dtype(name, align=False, copy=False):
    if name is _BFLOAT16:
        return _DType(np.dtype(ml_dtypes.bfloat16))
    if type(name) is not str or name not in _NUMERIC_DTYPES:
        shown = repr(name) if type(name) is str else type(name).__name__
        raise ValueError(f"the dtype {shown}, which is not numeric")
    return _DType(np.dtype(f"<{name}"))


def _mapping(mapping=None):
    if mapping is None:
        return {}
    if type(mapping) is not dict:
        raise ValueError(f"a mapping made of {type(mapping).__name__}")
    return mapping


def _import_module(name):
    return _Module(name)


def _get_attr(module, name):
    if type(module) is not _Module:
        raise ValueError(f"an attribute of {type(module).__name__}")
    return _known(module.name, name)


_KNOWN = {
    "numpy.ndarray": _NDARRAY,
    "numpy.dtype": _dtype,
    "ml_dtypes.bfloat16": _BFLOAT16,
    "collections.OrderedDict": _mapping,
    "haiku._src.data_structures.FlatMapping": _mapping,
    "haiku._src.data_structures.frozendict": _mapping,
    # dill uses these to name objects of C modules.
    "dill._dill._import_module": _import_module,
    "dill._dill._get_attr": _get_attr,
}
for _core in ("numpy.core", "numpy._core"):
    for _module in ("multiarray", "_multiarray_umath"):
        _KNOWN[f"{_core}.{_module}._reconstruct"] = _reconstruct
        _KNOWN[f"{_core}.{_module}.scalar"] = _scalar
    _KNOWN[f"{_core}.numeric._frombuffer"] = _frombuffer


def _known(module, name):
    """Return our version of the object that the pickle names."""
    # (Only strings: printing, comparing or hashing nested tuples can take forever.)
    if type(module) is not str or type(name) is not str:
        raise ValueError("a name that is not a string")
    name = f"{module}.{name}"
    if name not in _KNOWN:
        raise ValueError(f"the name {name!r}")
    return _KNOWN[name]


def _run(file):
    """Run the pickle; return what it builds, with `_Array` for arrays."""
    if file.peek(2)[:2] == b"PK":
        raise ValueError(
            "a zip archive, as NumPy writes .npz files; the authors' are pickles"
        )
    if file.peek(1)[:1] != b"\x80":
        raise ValueError("a file that does not begin like a pickle")
    stack, below, memo = [], [], {}

    def argument():
        return opcode.arg.reader(file)

    for _ in range(_MAX_OPCODES):
        code = file.read(1)
        opcode = pickletools.code2op.get(code.decode("latin-1"))
        match opcode and opcode.name:
            case "STOP":
                break
            case "PROTO":
                if (protocol := argument()) > 5:
                    raise ValueError(f"a pickle of protocol {protocol}")
            case "FRAME":
                if argument() > file.left:
                    raise ValueError("a truncated file")
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case name if name in _LITERALS:
                stack.append(argument())
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(opcode.name[-1]))]
                stack.append(tuple(reversed(items)))
            case "MARK":
                below.append(stack)
                stack = []
            case "TUPLE":
                items, stack = stack, below.pop()
                stack.append(tuple(items))
            case "SETITEMS":
                items, stack = stack, below.pop()
                _set_items(stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set_items(stack[-1], [key, value])
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINPUT" | "LONG_BINPUT":
                memo[argument()] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument()])
            case "GLOBAL":
                stack.append(_known(file.read_line(), file.read_line()))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_known(module, name))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                # The only functions that can be on the stack are those of _KNOWN.
                if type(function) is not types.FunctionType:
                    raise ValueError(f"a call of {type(function).__name__}")
                if type(arguments) is not tuple:
                    raise ValueError("a call without a tuple of arguments")
                stack.append(function(*arguments))
            case "BUILD":
                state, target = stack.pop(), stack[-1]
                if type(target) not in (_Array, _DType) or type(state) is not tuple:
                    raise ValueError(f"a state for {type(target).__name__}")
                target.build(state)
            case name:
                # Its argument is not even read.
                raise ValueError(f"the opcode {name or code}")
    else:
        raise ValueError(f"more than {_MAX_OPCODES} opcodes")
    if file.left:
        raise ValueError(f"a pickle with {file.left} bytes after its end")
    if len(stack) != 1 or below:
        raise ValueError("a pickle that leaves unused objects")
    return stack[0]


def _set_items(mapping, items):
    if type(mapping) is not dict or len(items) % 2:
        raise ValueError(f"items for {type(mapping).__name__}")
    for key, value in zip(items[::2], items[1::2]):
        if type(key) is not str:
            raise ValueError(f"a key that is not a string but {type(key).__name__}")
        if key in mapping:
            raise ValueError(f"the key {key!r} twice")
        mapping[key] = value


def _finish(tree, size):
    """Replace each `_Array` in a tree of dicts by a writable array, in place."""
    if type(tree) is not dict:
        raise ValueError(f"{type(tree).__name__} in place of the mapping")
    todo, seen = [(tree, 1)], set()
    for mapping, depth in todo:
        # A mapping that contains itself would be endless. One that occurs twice, and
        # whose values do so too, can double the work at every level.
        if id(mapping) in seen or depth > _MAX_DEPTH:
            raise ValueError("a mapping that occurs twice, or is nested too deep")
        seen.add(id(mapping))
        for key, value in mapping.items():
            if type(value) is dict:
                todo.append((value, depth + 1))
                continue
            if type(value) is not _Array or value.value is None:
                raise ValueError(
                    f"{type(value).__name__} in place of an array, at {key!r}"
                )
            # Copies of bytes that many arrays share would multiply the memory.
            size -= value.value.nbytes
            if size < 0:
                raise ValueError("arrays with more bytes than the file")
            # In place, so that the original bytes are freed before the next copy.
            mapping[key] = value.value.copy()
    return tree
