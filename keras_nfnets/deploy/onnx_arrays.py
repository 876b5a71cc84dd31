"""Arrays that record computations as nodes of an ONNX model."""

import numpy as np
import onnx

# Sizes have 64 bits in ONNX.
_DTYPES = {"int32": "int64"}


def _operator(kind, is_swapped=False, dtype=None):
    def operate(self, other):
        operands = [self, self.ops.convert_to_tensor(other, self.dtype)]
        return self.ops.node(kind, *operands[:: -1 if is_swapped else 1], dtype=dtype)

    return operate


class Array:
    """Array with the usual operators.

    Args:
        ops: `Ops`.
        name: str. Name in the ONNX model.
        dtype: str.
    """

    def __init__(self, ops, name, dtype):
        self.ops, self.name, self.dtype = ops, name, dtype

    __add__ = __radd__ = _operator("Add")
    __sub__, __rsub__ = _operator("Sub"), _operator("Sub", is_swapped=True)
    __mul__ = __rmul__ = _operator("Mul")
    __truediv__ = _operator("Div")
    __floordiv__ = _operator("Div")  # the same for integers that are not negative
    __lt__ = _operator("Less", dtype="bool")
    __ge__ = _operator("GreaterOrEqual", dtype="bool")


def _function(kind):
    def function(self, x, *others):
        others = [self.convert_to_tensor(y, x.dtype) for y in others]
        return self.node(kind, x, *others)

    return function


class Ops:
    """The functions of `keras.ops` that preprocessing calls.

    Args:
        writer: `onnx_model.Writer`.
        name: str. Prefix of the names of the nodes.
    """

    def __init__(self, writer, name):
        self._writer, self._name = writer, name

    abs, floor, round, sqrt = map(_function, ("Abs", "Floor", "Round", "Sqrt"))
    maximum, minimum = _function("Max"), _function("Min")
    matmul, logical_and = _function("MatMul"), _function("And")

    def node(self, kind, *inputs, dtype=None, **attributes):
        """Add a node; return its output, by default of the dtype of the first input."""
        names, name = [x.name for x in inputs], f"{self._name}/{kind.lower()}"
        name = self._writer.node(kind, names, name, **attributes)
        return Array(self, name, dtype or inputs[0].dtype)

    def convert_to_tensor(self, x, dtype="float32"):
        if isinstance(x, Array):
            return x
        dtype = _DTYPES.get(dtype, dtype)
        name = self._writer.constant(np.asarray(x, dtype), f"{self._name}/constant")
        return Array(self, name, dtype)

    def cast(self, x, dtype):
        if not isinstance(x, Array):
            return self.convert_to_tensor(x, dtype)
        dtype = _DTYPES.get(dtype, dtype)
        to = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.node("Cast", x, dtype=dtype, to=to)

    def shape(self, images):
        return [
            self.node("Shape", images, dtype="int64", start=axis, end=axis + 1)
            for axis in range(4)
        ]

    def arange(self, stop, dtype="int64"):
        if not isinstance(stop, Array):
            return self.convert_to_tensor(np.arange(stop), dtype)
        zero, one = (self.convert_to_tensor(n, "int64") for n in (0, 1))
        return self.node("Range", zero, self.node("Squeeze", stop), one)

    def reshape(self, x, shape):
        sizes = [
            self.convert_to_tensor(n if isinstance(n, Array) else [n], "int64")
            for n in shape
        ]
        return self.node("Reshape", x, self.node("Concat", *sizes, axis=0))

    def expand_dims(self, x, axis):
        return self.node("Unsqueeze", x, self.convert_to_tensor([axis], "int64"))

    def sum(self, x, axis, keepdims):
        axes = self.convert_to_tensor(np.ravel(axis), "int64")
        return self.node("ReduceSum", x, axes, keepdims=int(keepdims))

    def where(self, condition, x, y):
        y = self.convert_to_tensor(y, x.dtype)
        return self.node("Where", condition, x, y, dtype=x.dtype)
