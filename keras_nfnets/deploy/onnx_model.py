"""Writer of ONNX models: one node per layer, channels first."""

import keras
import numpy as np
import onnx
from keras import ops
from onnx import helper

from keras_nfnets.backend import keras_internals
from keras_nfnets.backend.graph import Graph, Value, has_graph, unique_name
from keras_nfnets.deploy.onnx_layers import (
    TAKE_INTEGERS,
    TAKE_SEVERAL,
    WRITERS,
    Tensor,
    UnknownOperation,
)
from keras_nfnets.deploy.preprocessing import Preprocessing
from keras_nfnets.version import __version__

# The first with GELU as one operation. ONNX Runtime 1.17 (January 2024) and newer read it.
DEFAULT_OPSET = 20
# Of the operations that are written here. (Opset 15 is of 2021.)
OLDEST_OPSET = 15
_PROTOBUF_LIMIT = 2**31 - 1


class Writer:
    """ONNX nodes of a Keras model.

    Args:
        model: `keras.Model` with a graph, with dtype policy float32.
        input_names, output_names: lists of str.
        opset: int. Version of ONNX's set of operations.
    """

    def __init__(self, model, input_names, output_names, opset):
        self.opset = opset
        self._graph = Graph(model, opens=has_graph)
        self._names = {*input_names, *output_names}
        self._nodes, self._initializers = [], []
        self._constants = {}  # names, by content
        self._left_out = set()  # calls that the layer before them has taken in
        self._made = {}  # tensors of `exact` and of the two layouts
        self._tensors = {}  # by value of the graph
        inputs = keras.tree.flatten(self._graph.inputs)
        for value, name in zip(inputs, input_names, strict=True):
            self._tensors[value] = Tensor(name, value.shape)
        self._ends = set(keras.tree.flatten(self._graph.outputs))

    def run(self):
        """Write all nodes; return them, the initializers and the outputs' tensors."""
        self._walk(self._graph)
        outputs = keras.tree.flatten(self._graph.outputs)
        tensors = [self.plain(self._tensors[value]) for value in outputs]
        return self._nodes, self._initializers, tensors

    def _walk(self, graph):
        for call in graph.calls:
            inputs = [self._tensors[value] for value in call.inputs]
            outputs = inputs if call in self._left_out else self._write(call, inputs)
            self._tensors |= zip(call.outputs, outputs, strict=True)

    def _write(self, call, inputs):
        self.call, operation = call, call.operation
        kind = keras_internals.kind_of(operation)
        takes_inputs = kind in TAKE_INTEGERS or all(map(_is_float, call.inputs))
        # Others may have a mask as a second input.
        takes_inputs &= len(inputs) == 1 or kind in TAKE_SEVERAL
        takes_inputs &= not _is_training(call)
        if kind not in WRITERS or not _is_known(operation) or not takes_inputs:
            raise UnknownOperation(operation)
        return [WRITERS[kind](self, operation, *inputs)]

    def takes_in(self, kind, fits):
        """Return the call after this one, if it is the only one and one that `fits`.

        It is left out then: the caller does what it does.

        Args:
            kind: str. See `keras_internals.kind_of`.
            fits: callable from an operation to a bool.
        """
        [output] = self.call.outputs
        following = self._graph.consumers[output]
        if output in self._ends or len(following) != 1:
            return None
        operation = following[0].operation
        if (
            keras_internals.kind_of(operation) != kind
            or not _is_known(operation)
            or _is_training(following[0])
            or not fits(operation)
        ):
            return None
        self._left_out.add(following[0])
        return following[0]

    def operands(self):
        """Return the tensors and constants in the arguments of this call."""
        given = keras.tree.flatten((self.call.args, self.call.kwargs))
        return [
            self._tensors[x]
            if isinstance(x, Value)
            else np.asarray(ops.convert_to_numpy(x), "float32")
            for x in given
            if x is not None
        ]

    def node(self, kind, inputs, name, **attributes):
        """Add a node of one output; return the name of that."""
        name = unique_name(name, self._names)
        self._nodes.append(
            helper.make_node(kind, inputs, [name], name=name, **attributes)
        )
        return name

    def constant(self, value, name):
        """Add a constant, float32 unless it is an array of integers; return its name."""
        if not isinstance(value, np.ndarray) or value.dtype != "int64":
            value = np.asarray(value, "float32")
        key = value.dtype.str, value.shape, value.tobytes()
        if key not in self._constants:
            name = self._constants[key] = unique_name(name, self._names)
            self._initializers.append(onnx.numpy_helper.from_array(value, name))
        return self._constants[key]

    def exact(self, x):
        """Return a tensor with its factor and its zeros in its values."""
        x = self.padded(x)
        if x.factor != 1.0 and x not in self._made:
            factor = self.constant(x.factor, f"{x.name}/factor")
            name = self.node("Mul", [x.name, factor], f"{x.name}/scaled")
            self._made[x] = x.having(name=name, factor=1.0)
        return self._made.get(x, x)

    def padded(self, x):
        """Return a tensor with its zeros in its values."""
        if x.pads and x not in self._made:
            pads = np.transpose([(0, 0), (0, 0), *x.pads]).ravel()
            pads = self.constant(pads.astype("int64"), f"{x.name}/pads")
            name = self.node("Pad", [x.name, pads], f"{x.name}/padded")
            self._made[x] = x.having(name=name, pads=())
        return self._made[x] if x.pads else x

    def moved(self, x):
        """Return a tensor with the channels moved to the second axis."""
        return x if x.moved else self._in_other_layout(x, "channels_first")

    def plain(self, x):
        """Return the tensor as in the Keras model."""
        x = self.exact(x)
        return self._in_other_layout(x, "channels_last") if x.moved else x

    def _in_other_layout(self, x, suffix):
        if len(x.shape) < 3:
            return x
        x = self.padded(x)
        if (x, suffix) not in self._made:
            axes = list(range(len(x.shape)))
            axes.insert(1, axes.pop()) if not x.moved else axes.append(axes.pop(1))
            made = x.having(moved=not x.moved)
            name = f"{x.name}/{suffix}"
            if x.is_same_in_memory():
                name = self.reshaped(x.name, made, name)
            else:
                name = self.node("Transpose", [x.name], name, perm=axes)
            self._made[x, suffix] = made.having(name=name)
        return self._made[x, suffix]

    def reshaped(self, name, wanted, new_name):
        """Add a reshape to the shape of a tensor, in its layout; return its name."""
        shape = [-1 if size is None else size for size in wanted.shape[1:]]
        if wanted.moved:
            shape.insert(0, shape.pop())
        if shape.count(-1) > 1:
            raise UnknownOperation(self.call.operation)
        # ONNX's 0: as in the input.
        shape = self.constant(np.array([0, *shape], "int64"), f"{new_name}/shape")
        return self.node("Reshape", [name, shape], new_name)

    def activated(self, function, x, name):
        """Apply an activation function, whatever operations it calls."""
        if function is keras.activations.hard_silu:  # takes no symbolic tensors
            function = ops.hard_silu
        call = self.call
        inputs = keras.Input(batch_shape=x.shape, dtype="float32")
        try:
            model = keras.Model(inputs, function(inputs))
        except ValueError as error:  # it takes no symbolic tensors, either
            raise UnknownOperation(call.operation) from error
        graph = Graph(model, opens=has_graph)
        for inner in graph.calls:
            if isinstance(inner.operation, keras.Layer):
                raise UnknownOperation(inner.operation)
            # Keras numbers operations in the order of their creation in the process.
            keras_internals.rename(inner.operation, name)
        self._tensors[graph.inputs] = x
        self._walk(graph)
        self.call = call
        return self._tensors[graph.outputs]


def _is_known(operation):
    # Custom classes may have the names of Keras's.
    kind = type(operation)
    return kind is Preprocessing or kind.__module__.startswith("keras.")


def _is_training(call):
    """Whether a call is made with `training=True`."""
    return any(x is True for x in keras.tree.flatten((call.args, call.kwargs)))


def _is_float(value):
    return "float" in value.spec.dtype


def onnx_model(model, input_names, output_names, opset=DEFAULT_OPSET):
    """Write a folded network as an ONNX model.

    Args:
        model: `keras.Model` with a graph, with dtype policy float32.
        input_names, output_names: lists of str.
        opset: int. Version of ONNX's set of operations.

    Returns:
        `onnx.ModelProto`, the same for the same model, and with the weights in it.

    Raises:
        UnknownOperation: a layer or operation has no writer in `WRITERS`.
        ValueError: the file would be larger than ONNX files can be.
    """
    check_size(model)
    writer = Writer(model, input_names, output_names, opset)
    nodes, initializers, tensors = writer.run()
    nodes = _with_outputs(nodes, [x.name for x in tensors], output_names)
    graph = helper.make_graph(
        nodes,
        model.name,
        list(map(_value_info, input_names, model.inputs)),
        list(map(_value_info, output_names, model.outputs)),
        initializers,
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(
        graph,
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="keras_nfnets",
        producer_version=__version__,
    )


def check_size(model):
    """Raise a ValueError if the weights of a model are too large for an ONNX file."""
    size = 4 * model.count_params()
    if size > _PROTOBUF_LIMIT:
        raise ValueError(
            "An ONNX file cannot have more than 2 GB. A SavedModel can. Received: a model "
            f"with {size / 1e9:.1f} GB of weights"
        )


def _with_outputs(nodes, names, output_names):
    """Give the tensors of the outputs their names; return all nodes."""
    new_names = {}
    made = {output for node in nodes for output in node.output}
    copies = []
    for name, output in zip(names, output_names):
        if name in made and name not in new_names:
            new_names[name] = output
        else:  # an input, or an output a second time
            name = new_names.get(name, name)
            copies.append(helper.make_node("Identity", [name], [output], name=output))
    for node in nodes:
        for tensors in (node.input, node.output):
            tensors[:] = [new_names.get(name, name) for name in tensors]
    return [*nodes, *copies]


def _value_info(name, x):
    # The network computes in float32, although its last constant may be float64.
    dtype = "float32" if "float" in x.dtype else x.dtype
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, dtype, dimensions(x.shape))


def dimensions(shape):
    """Return a shape with names for unknown sizes."""
    names = ["batch", *(f"size{axis}" for axis in range(1, len(shape)))]
    if len(shape) == 4:
        # Whichever axis has the channels is known.
        sides = ["height", "width"] if shape[1] is None else ["", "height", "width"]
        names[1 : 1 + len(sides)] = sides
    return [names[axis] if size is None else size for axis, size in enumerate(shape)]
