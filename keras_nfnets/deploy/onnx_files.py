"""Folded networks as ONNX files, by our writer or by Keras's converter."""

import importlib.util
import pathlib
import warnings

import keras
import numpy as np
import onnx
from keras import ops

from keras_nfnets import checks
from keras_nfnets.backend import keras_internals
from keras_nfnets.backend.graph import ends, plain_name, unique_name
from keras_nfnets.deploy.onnx_layers import UnknownOperation
from keras_nfnets.deploy.onnx_model import (
    DEFAULT_OPSET,
    OLDEST_OPSET,
    check_size,
    dimensions,
    onnx_model,
)

# Tensor between preprocessing and network, and prefix of the names before it.
_FRONT = "preprocessing"
# Relative to the largest output. Deep networks differ by 1e-5.
_LARGEST_DIFFERENCE = 1e-3


def options(model, input_name=None, output_name=None, opset=None):
    """Return the arguments of `write_onnx` for the file of a model.

    Args:
        model: `keras.Model` with a graph.
        input_name, output_name: str or None, for `"image"` and `"predictions"`. Several
            inputs or outputs have their names in Keras.
        opset: int or None. See `write_onnx`.

    Raises:
        ValueError: a name is given for several, or ONNX has no such opset.
    """
    newest = onnx.defs.onnx_opset_version()
    known = range(OLDEST_OPSET, newest + 1)
    if opset is not None and not (isinstance(opset, int) and opset in known):
        raise ValueError(
            f"`opset` must be an integer from {OLDEST_OPSET} to {newest}. "
            f"Received: opset={opset!r}"
        )
    input_names, output_names = _tensor_names(model, input_name, output_name)
    return {"input_names": input_names, "output_names": output_names, "opset": opset}


def _tensor_names(model, input_name, output_name):
    """Return the names of the inputs and those of the outputs."""
    inputs, outputs = ends(model)
    names = []
    for structure, argument, name, default in (
        (inputs, "input_name", input_name, "image"),
        (outputs, "output_name", output_name, "predictions"),
    ):
        tensors = keras.tree.flatten(structure)
        if len(tensors) == 1:
            names.append([default if name is None else name])
            continue
        if name is not None:
            raise ValueError(
                f"`{argument}` needs a model with only one {argument.removesuffix('_name')}; "
                "several keep their Keras names. "
                f"Received: {argument}={name!r}, a model of {len(tensors)}"
            )
        taken = {name for earlier in names for name in earlier}
        keras_names = _keras_names(structure, tensors)
        names.append([unique_name(plain_name(name), taken) for name in keras_names])
    twice = set(names[0]) & set(names[1])
    if twice:
        raise ValueError(
            "Inputs and outputs must have different names; see `input_name` and "
            f"`output_name`. Received: {twice.pop()!r} for both"
        )
    return names


def _keras_names(structure, tensors):
    if isinstance(structure, dict) and len(structure) == len(tensors):
        # In the order of the tensors.
        return keras.tree.flatten({key: str(key) for key in structure})
    return [keras_internals.operation_of(x).name for x in tensors]


def write_onnx(model, file, convert, input_names, output_names, opset=None):
    """Write a folded network as an ONNX file, and compare it in ONNX Runtime.

    Args:
        model: `keras.Model`, with dtype policy float32.
        file: str. Path of the file.
        convert: callable `(model, file, opset)` that writes a model by Keras's converter.
            It is called if the network has layers that `onnx_model` does not know.
        input_names, output_names: lists of str.
        opset: int, or None for the newest that common versions of ONNX Runtime read.
    """
    check_size(model)
    try:
        result = onnx_model(model, input_names, output_names, opset or DEFAULT_OPSET)
    except UnknownOperation as error:
        _check_converter(error, opset)
        result = _converted(model, file, convert, input_names, output_names, opset)
    _write(result, file)
    if importlib.util.find_spec("onnxruntime"):
        compare(model, file, runtime_outputs)


def put_before(front, file, input_names):
    """Put a model in front of the network in an ONNX file of one input.

    Args:
        front: `keras.Model` of one input and one output.
        file: str. Path of the file.
        input_names: list of one str. Name of the input of the file.
    """
    network = onnx.load(file)
    [opset] = [x.version for x in network.opset_import if x.domain in ("", "ai.onnx")]
    names = {name for node in network.graph.node for name in node.output}
    name = unique_name(_FRONT, {*names, *input_names})
    before = onnx_model(front, input_names, [name], opset)
    _sort_nodes(before.graph)  # without sizes that are not used
    _write(before, file)
    if importlib.util.find_spec("onnxruntime"):
        compare(front, file, runtime_outputs)
    before.ir_version = network.ir_version
    before = onnx.compose.add_prefix(
        before, f"{name}/", rename_inputs=False, rename_outputs=False
    )
    network_input = network.graph.input[0].name
    result = onnx.compose.merge_models(before, network, [(name, network_input)])
    del result.opset_import[:]  # of both
    result.opset_import.extend(network.opset_import)
    result.graph.name = network.graph.name
    result.producer_name = network.producer_name
    result.producer_version = network.producer_version
    _write(result, file)


def _write(result, file):
    pathlib.Path(file).write_bytes(result.SerializeToString(deterministic=True))
    _check_operations(file)


def _converted(model, file, convert, input_names, output_names, opset):
    """Convert a model by Keras's converter, with names that are always the same."""
    convert(model, file, opset)
    result = onnx.load(file)
    _rename(result.graph, input_names, output_names)
    _set_dimensions(result.graph, model)
    return result


def _newest_converted():
    """Return the newest opset that Keras's converter knows."""
    from tf2onnx.constants import OPSET_TO_IR_VERSION

    return max(OPSET_TO_IR_VERSION)


def _check_converter(unknown, opset=None):
    """Raise an error if Keras's converter cannot be used for an unknown operation."""
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"{unknown} is no layer or operation that is written as ONNX on every backend. "
            "Keras's converter for others runs on its TensorFlow backend: save the model, "
            "set KERAS_BACKEND=tensorflow and load it there. Received: "
            f"{keras.backend.backend()!r}"
        ) from unknown
    for package in ("tensorflow", "tf2onnx"):
        converter = f"Keras's converter to ONNX, for {unknown},"
        checks.installed(converter, package, '"keras_nfnets[export]"')
    if opset is not None and opset > _newest_converted():
        raise ValueError(
            f"{unknown} needs Keras's converter to ONNX, which knows `opset` up to "
            f"{_newest_converted()}. Received: opset={opset}"
        ) from unknown


def _rename(graph, input_names, output_names):
    """Give the names in a converted graph that do not depend on the process."""
    if len(graph.input) != len(input_names):
        raise ValueError(
            "Keras's converter to ONNX cannot write this network: the file would have "
            f"{len(graph.input)} inputs. A SavedModel or LiteRT file can hold it. "
            f"Received: a network of {len(input_names)}"
        )
    names = dict(zip((x.name for x in graph.input), input_names, strict=True))
    names |= zip((x.name for x in graph.output), output_names, strict=True)
    graph.name, graph.doc_string = "network", ""
    _sort_nodes(graph)
    _rename_tensors(graph, names, {*names.values()})
    order = {name: index for index, name in enumerate(names.values())}
    initializers = sorted(graph.initializer, key=lambda x: order[x.name])
    del graph.initializer[:]
    graph.initializer.extend(initializers)


def _sort_nodes(graph):
    """Sort the nodes of a graph by their way to the outputs; those without one go."""
    makers = {name: node for node in graph.node for name in node.output if name}
    ordered, seen = [], set()
    stack = [(x.name, False) for x in reversed(graph.output)]
    while stack:
        name, is_after = stack.pop()
        node = makers.get(name)
        if is_after:
            ordered.append(node)
        elif node is not None and id(node) not in seen:
            seen.add(id(node))
            stack.append((name, True))
            stack += [(x, False) for x in reversed(_names_in(node))]
    del graph.node[:]
    graph.node.extend(ordered)


def _names_in(node):
    """Return the names of the tensors that a node, or a graph in it, takes."""
    inner = [x.g for x in node.attribute if x.HasField("g")]  # of a loop or branch
    captured = [_names_in(x) for graph in inner for x in graph.node]
    return sum(captured, [*node.input, *(x.name for g in inner for x in g.output)])


def _rename_tensors(graph, names, taken):
    """Number the tensors of a graph, and of the graphs in it, in their order."""

    def new_name(name):
        if name and name not in names:  # an optional input has no name
            names[name] = unique_name(f"tensor{len(names)}", taken)
        return names.get(name, name)

    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        value.name = new_name(value.name)
    for node in graph.node:
        node.input[:] = map(new_name, node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename_tensors(attribute.g, names, taken)
        node.output[:] = map(new_name, node.output)
        node.name = node.output[0]
        node.doc_string = ""
        node.attribute.sort(key=lambda x: x.name)
    for value in graph.initializer:
        value.name = new_name(value.name)


def _set_dimensions(graph, model):
    for values, tensors in ((graph.input, model.inputs), (graph.output, model.outputs)):
        for value, x in zip(values, tensors, strict=True):
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for size in dimensions(x.shape):
                is_known = isinstance(size, int)
                shape.dim.add(**{"dim_value" if is_known else "dim_param": size})


def _check_operations(file):
    try:
        onnx.checker.check_model(file)
    except onnx.checker.ValidationError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"This network cannot be written as ONNX: {reason}. A SavedModel or LiteRT "
            "file can hold more operations."
        ) from error


def compare(model, file, outputs_of):
    """Raise a ValueError if a file computes something else than its network.

    They are compared on random images, one and three of them, of two sizes if the network
    takes several.

    Args:
        model: `keras.Model`.
        file: str. Path of the file.
        outputs_of: callable `(file, trials)` that runs a file on several lists of inputs;
            it returns a list of lists of outputs.
    """
    trials, expected = [], []
    for inputs in (_random_inputs(model, 1, 96), _random_inputs(model, 3, 128)):
        given = keras.tree.pack_sequence_as(model.input, inputs)
        try:
            outputs = keras.tree.flatten(model(given, training=False))
        except Exception as error:  # noqa: BLE001  (depends on the backend)
            warnings.warn(
                f"The file was not compared with the network on inputs of shape "
                f"{inputs[0].shape}: the network fails there. {str(error)[:500]}",
                stacklevel=2,
            )
            continue
        trials.append(inputs)
        expected.append([ops.convert_to_numpy(x) for x in outputs])
    try:
        found = outputs_of(file, trials)
    except Exception as error:  # runtimes raise exceptions of many types
        raise ValueError(
            "The written file fails in its runtime and was deleted. A SavedModel or LiteRT "
            f"file can hold more operations. Received: {str(error)[:500]}"
        ) from error
    for inputs, *both in zip(trials, found, expected):
        for a, b in zip(*both, strict=True):
            largest = np.abs(b).max(initial=1e-30)
            if a.shape != b.shape or not np.allclose(
                a / largest,
                b / largest,
                rtol=0,
                atol=_LARGEST_DIFFERENCE,
                equal_nan=True,
            ):
                raise ValueError(
                    "The written file does not compute the outputs of the network and was "
                    "deleted. Please report it, with the network's layers. Received: outputs of "
                    f"shape {a.shape}, for inputs of shape {inputs[0].shape}, that differ "
                    f"from those of shape {b.shape} by more than {_LARGEST_DIFFERENCE} of "
                    "the largest"
                )


def _random_inputs(model, batch, side):
    """Return arrays that a model takes, with `side` and more pixels where it is free."""
    rng = np.random.default_rng(0)
    inputs = []
    for x in model.inputs:
        # Sides that differ, of a size that can be halved five times.
        sizes = [batch, *(side + 32 * (axis - 1) for axis in range(1, len(x.shape)))]
        shape = [n if size is None else size for size, n in zip(x.shape, sizes)]
        if "float" in x.dtype:
            inputs.append(rng.normal(size=shape).astype(x.dtype))
        else:
            most = 2 if x.dtype == "bool" else 128
            inputs.append(rng.integers(0, most, shape).astype(x.dtype))
    return inputs


def runtime_outputs(file, trials):
    """Run an ONNX file on several lists of inputs; return lists of outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    return [session.run(None, dict(zip(names, inputs))) for inputs in trials]
