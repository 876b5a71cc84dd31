"""Graph of a Keras model as a list of calls."""

import collections
import re
import tempfile

import keras

from keras_nfnets.backend import keras_internals


def has_graph(layer):
    """Whether a layer is a built functional or sequential model."""
    return (
        isinstance(layer, keras.Model)
        and bool(getattr(layer, "inputs", None))
        and keras_internals.runs_its_graph(layer)
    )


def ends(model):
    """Return the inputs and outputs of a model with a graph, in their structure."""
    if isinstance(model, keras.Sequential):  # its `input` is that of its first call
        return model.inputs[0], model.outputs[0]
    return model.input, model.output


def outputs_by_name(model):
    """Return the output of each operation in the graph of a model, by its name.

    `layer.output` of a nested model would be the tensor inside it. An operation with several
    outputs has a list of them. If an operation is called more than once, the last call
    counts.
    """
    inputs, outputs = ends(model)
    known = {id(x) for x in keras.tree.flatten(inputs)}
    found = {node.operation.name: node.outputs for node in _nodes(outputs, known)}
    return {name: x[0] if len(x) == 1 else x for name, x in found.items()}


def copy_state(source, target):
    """Copy weights, adapted statistics and assets to a layer of the same config."""
    if len(source.weights) != len(target.weights):
        raise ValueError(
            f"{source.name!r} ({type(source).__name__}) cannot be copied, because it has "
            "weights that its configuration does not mention, such as those of LoRA inside "
            "an attention layer. Copy the model without them. Received: "
            f"{len(source.weights)} weights instead of {len(target.weights)}"
        )
    target.set_weights(source.get_weights())
    # The config of a frozen layer does not freeze the layers inside its copy.
    for old, new in zip(source.weights, target.weights, strict=True):
        new.trainable = old.trainable
    layers = map(keras_internals.layers_of, (source, target))
    for old, new in zip(*layers, strict=True):
        if isinstance(new, keras.layers.Normalization):
            new.finalize_state()  # derives constants from its weights
        if hasattr(old, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                old.save_assets(folder)
                new.load_assets(folder)


def unique_name(name, taken):
    """Return `name`, or if taken `name_1`, `name_2`, ..., and add it to `taken`."""
    count, unique = 0, name
    while unique in taken:
        count += 1
        unique = f"{name}_{count}"
    taken.add(unique)
    return unique


def plain_name(name):
    """Replace the characters of a name that Keras accepts but other runtimes do not."""
    return re.sub(r"[^A-Za-z0-9_]", "_", name)


class Value:
    """Tensor of a graph.

    Attributes:
        spec: `keras.KerasTensor` with its shape and dtype.
        call: `Call` that returns it; None for an input of the graph.
    """

    def __init__(self, spec, call=None):
        self.spec, self.call = spec, call

    @property
    def shape(self):
        return tuple(self.spec.shape)


class Call:
    """Call of an operation in a graph.

    Attributes:
        operation: layer or other `keras.Operation`.
        args, kwargs: tuple and dict. Its arguments, with `Value`s in place of tensors.
        inputs: list of the `Value`s in the arguments.
        outputs: list of `Value`s.
        index: int. Index in the graph's list of calls.
    """

    def __init__(self, operation, args, kwargs, outputs, index):
        self.operation, self.args, self.kwargs = operation, args, kwargs
        self.inputs = values_of((args, kwargs))
        self.outputs = [Value(x, self) for x in outputs]
        self.index = index

    def arguments(self, tensor_of):
        """Return `args` and `kwargs` with `tensor_of(value)` in place of `Value`s."""
        return keras.tree.map_structure(
            lambda x: tensor_of(x) if isinstance(x, Value) else x,
            (self.args, self.kwargs),
        )


def values_of(structure):
    return [x for x in keras.tree.flatten(structure) if isinstance(x, Value)]


class Graph:
    """Computation of a model as a list of calls.

    Operations for which `opens(operation)` is true are replaced by the calls inside
    them: nested models, and layers whose `call` can be traced.

    Attributes:
        inputs, outputs: `Value`s in the structure of the model's inputs and outputs.
        calls: list of `Call`s in topological order.
        consumers: `{value: [call, ...]}`, the calls that use each value.
    """

    def __init__(self, model, opens):
        self.calls = []
        self._opens = opens
        inputs, outputs = self._ends(model)
        self.inputs = keras.tree.map_structure(Value, inputs)
        self.outputs = self._expand(inputs, outputs, keras.tree.flatten(self.inputs))
        self.consumers = collections.defaultdict(list)
        for call in self.calls:
            for value in call.inputs:
                self.consumers[value].append(call)

    def _ends(self, model):
        if has_graph(model):
            return ends(model)
        shape = getattr(model, "input_shape", None)
        shape = shape or keras_internals.built_shapes(model)
        if isinstance(shape, dict):
            [shape] = shape.values()
        inputs = keras.Input(batch_shape=shape)
        return inputs, _traced(model, inputs)

    def _expand(self, inputs, outputs, given):
        """Add the calls from `inputs` to `outputs`; return the values of `outputs`."""
        found = {id(x): value for x, value in zip(keras.tree.flatten(inputs), given)}

        def own(structure):
            return keras.tree.map_structure(
                lambda x: found[id(x)] if isinstance(x, keras.KerasTensor) else x,
                structure,
            )

        for node in _nodes(outputs, found):
            args, kwargs = own((node.arguments.args, node.arguments.kwargs))
            results = self._call(node, args, kwargs)
            found |= {id(x): value for x, value in zip(node.outputs, results)}
        return own(outputs)

    def _call(self, node, args, kwargs):
        operation = node.operation
        if not self._opens(operation):
            call = Call(operation, args, kwargs, node.outputs, len(self.calls))
            self.calls.append(call)
            return call.outputs
        if has_graph(operation):
            inside = ends(operation)
        else:
            given = keras.tree.map_structure(
                lambda x: (
                    keras.Input(batch_shape=x.shape, dtype=x.dtype)
                    if isinstance(x, keras.KerasTensor)
                    else x
                ),
                (node.arguments.args, node.arguments.kwargs),
            )
            inside = given, _traced(operation, *given[0], **given[1])
        specs = [
            x for x in keras.tree.flatten(inside[0]) if isinstance(x, keras.KerasTensor)
        ]
        return values_of(self._expand(specs, inside[1], values_of((args, kwargs))))


def own_weights(layer):
    """Return the weights of a layer without those of layers inside."""
    inner = keras_internals.layers_of(layer, include_self=False)
    of_inner = {id(weight) for other in inner for weight in other.weights}
    return [weight for weight in layer.weights if id(weight) not in of_inner]


def _traced(layer, *args, **kwargs):
    """Trace the `call` of a layer with symbolic tensors and return its outputs.

    Weights of the layer itself would become constants, so it may have none.
    """
    if own := own_weights(layer):
        raise ValueError(
            f"{layer.name!r} ({type(layer).__name__}) contains layers to convert, so it is "
            "replaced by them, and weights of its own, which would be lost. Move these "
            f"weights to a layer of their own. Received: {', '.join(w.name for w in own)}"
        )
    try:
        outputs = layer.call(*args, **kwargs)
        tensors = keras.tree.flatten(outputs)
        if not tensors or not all(isinstance(x, keras.KerasTensor) for x in tensors):
            raise TypeError(f"it returns {outputs!r}")
    except Exception as error:  # custom code can raise anything
        raise ValueError(
            f"The graph of {layer.name!r} ({type(layer).__name__}) cannot be traced. Write "
            "its `call` with Keras layers and `keras.ops` only, so that it accepts "
            "symbolic tensors. "
            f"Received: {type(error).__name__}: {str(error)[:500]}"
        ) from error
    return outputs


def _nodes(outputs, known):
    """Return the nodes between `known` (ids) and `outputs` in topological order."""
    ordered, seen = [], set()
    stack = [(x, False) for x in reversed(keras.tree.flatten(outputs))]
    while stack:
        x, after = stack.pop()
        if id(x) in known:
            continue
        node = keras_internals.node_of(x)
        if after:
            ordered.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((x, True))
            stack += [(tensor, False) for tensor in reversed(node.input_tensors)]
    return ordered


# Layers after a classifier that do not change its outputs.
_PASSED = ("flatten", "reshape", "squeeze", "identity", "dropout", "cast")


def activation_of_outputs(model):
    """Return `"softmax"`, `"sigmoid"` or `"linear"`, the last activation of a model.

    Returns:
        A string, or None if it is another or cannot be found.
    """
    models = keras_internals.FunctionalModel, keras.Sequential
    if not isinstance(model, models):
        return None
    tensor = model.outputs[0]
    while True:
        operation = keras_internals.operation_of(tensor)
        if isinstance(operation, models):
            tensor = keras_internals.inner_output_of(tensor)
            continue
        kind = keras_internals.kind_of(operation).lower()
        if kind in ("softmax", "sigmoid"):
            return kind
        function = getattr(operation, "activation", None)
        for name in ("softmax", "sigmoid"):
            if function is getattr(keras.activations, name):
                return name
        if function not in (None, keras.activations.linear):
            return None
        if getattr(operation, "kernel", None) is not None:
            return "linear"
        inputs = keras_internals.node_of(tensor).input_tensors
        if not (function or kind in _PASSED) or len(inputs) != 1:
            return None
        [tensor] = inputs
