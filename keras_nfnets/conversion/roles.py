"""Search for residual additions, gates, heads and outputs in a graph."""

import functools
import operator

import keras

from keras_nfnets.backend import keras_internals
from keras_nfnets.layers.kernels import KERNELS

NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
)
# Layers whose kernels can be standardized.
WEIGHTED = tuple(KERNELS)
# Final activations of a classifier or a segmentation mask.
_OF_OUTPUTS = ("linear", "softmax", "sigmoid", "tanh", "log_softmax")


def is_normalization(call):
    return isinstance(call.operation, NORMALIZATIONS)


def is_weighted(call):
    return isinstance(call.operation, WEIGHTED)


def activation_of(operation):
    """Return the function of an activation, or of a layer's `activation`, or None."""
    if isinstance(operation, keras.layers.ReLU):
        numbers = operation.max_value, operation.negative_slope, operation.threshold
        plain = {(None, 0.0, 0.0): "relu", (6.0, 0.0, 0.0): "relu6"}
        name = plain.get(numbers)
        return keras.activations.get(name) if name else operation
    if isinstance(operation, (keras.layers.LeakyReLU, keras.layers.ELU)):
        return operation
    if isinstance(operation, keras.layers.Layer):
        return getattr(operation, "activation", None)
    name = keras_internals.kind_of(operation).lower()
    if name in ("relu", "relu6", "silu", "tanh", "sigmoid", "softplus"):
        return keras.activations.get(name)
    return None


def own_ways(calls, before):
    """Return the calls before each input of an operation that not all inputs share.

    Args:
        calls: list, in the order of the calls.
        before: list of ints, one per input. Bit masks of the calls it depends on.
    """
    shared = functools.reduce(operator.and_, before)
    return [
        [call for i, call in enumerate(calls) if (own & ~shared) >> i & 1]
        for own in before
    ]


def count_learning(operations):
    """Count the operations that have kernels or other weights with two or more axes.

    Of the `own_ways` to a residual addition, the shortcut has the fewest of these, and
    the residual branch the most.
    """
    return sum(
        not isinstance(operation, NORMALIZATIONS)
        and any(len(w.shape) >= 2 for w in getattr(operation, "weights", ()))
        for operation in operations
    )


class Residual:
    """Residual addition.

    Attributes:
        shortcut: int. Index of the shortcut in the inputs of the addition.
        is_identity: bool. Whether no layer with kernels is on the shortcut's own path.
    """

    def __init__(self, shortcut, is_identity):
        self.shortcut, self.is_identity = shortcut, is_identity


class Roles:
    """Roles of the calls of a `Graph`.

    Attributes:
        residuals: `{call: Residual}` of residual additions.
        merges: set of calls. Additions of several paths without a shortcut.
        pooled: set of values. Outputs of global pooling, and values computed only from
            these.
        alone: `{call: reason}` of calls that are neither standardized nor scaled.
    """

    def __init__(self, graph):
        self._graph = graph
        self._before = {}  # value: bit mask of the calls it depends on
        self.residuals, self.merges, self.alone = {}, set(), {}
        self.pooled = set()
        for call in graph.calls:
            bits = 1 << call.index
            for value in call.inputs:
                bits |= self._before.get(value, 0)
            self._before |= dict.fromkeys(call.outputs, bits)
        for call in graph.calls:
            if _is_sum(call):
                self._find_shortcut(call)
            elif _is_product(call):
                self._find_gate(call)
        self._find_global()
        self._find_outputs()

    def _own_ways(self, call):
        before = [self._before.get(value, 0) for value in call.inputs]
        return own_ways(self._graph.calls, before)

    def _find_shortcut(self, call):
        learning = [
            count_learning(earlier.operation for earlier in way)
            for way in self._own_ways(call)
        ]
        least = min(learning)
        if max(learning) == 0:
            return
        if learning.count(least) == 1 or least == 0:
            self.residuals[call] = Residual(learning.index(least), least == 0)
        else:
            self.merges.add(call)

    def _find_gate(self, call):
        first, second = call.inputs
        gate = None
        for i, (one, other) in enumerate([(first, second), (second, first)]):
            if _is_broadcast(one.shape, other.shape):
                gate = i
        if gate is None:
            for i, value in enumerate(call.inputs):
                function = value.call and activation_of(value.call.operation)
                if getattr(function, "__name__", "") in ("sigmoid", "hard_sigmoid"):
                    gate = i
        if gate is not None:
            self._leave_alone(self._own_ways(call)[gate], "in a gate")

    def _find_global(self):
        calls = []
        for call in self._graph.calls:
            if _is_global_pooling(call):
                self.pooled.update(call.outputs)
            elif call.inputs and self.pooled.issuperset(call.inputs):
                self.pooled.update(call.outputs)
                calls.append(call)
        self._leave_alone(calls, "after global pooling")

    def _leave_alone(self, calls, where):
        """Leave calls alone, except those followed by a normalization among them."""
        region = set(calls)
        for call in calls:
            if is_normalization(call):
                continue
            if not self._reaches_normalization(call, region):
                self.alone.setdefault(call, f"{where}, with no normalization after it")

    def _reaches_normalization(self, call, region):
        found, stack = set(), [call]
        while stack:
            for value in stack.pop().outputs:
                for later in self._graph.consumers[value]:
                    if is_normalization(later) and later in region:
                        return True
                    learns = count_learning([later.operation])
                    if later in region and later not in found and not learns:
                        found.add(later)
                        stack.append(later)
        return False

    def _find_outputs(self):
        ends = {}  # call: whether only output activations follow
        for call in reversed(self._graph.calls):
            later = [c for v in call.outputs for c in self._graph.consumers[v]]
            ends[call] = all(ends[c] and _may_end(c) for c in later)
            function = activation_of(call.operation)
            if is_weighted(call) and ends[call] and _name(function) in _OF_OUTPUTS:
                self.alone[call] = "computes an output of the model"


def _name(function):
    return "linear" if function is None else getattr(function, "__name__", "")


def _may_end(call):
    if is_weighted(call) or is_normalization(call):
        return False
    return _name(activation_of(call.operation)) in _OF_OUTPUTS


def _is_sum(call):
    shapes = {value.shape for value in call.inputs}
    return (
        keras_internals.kind_of(call.operation) == "Add"
        and len(call.inputs) >= 2
        and len(shapes) == 1
    )


def _is_product(call):
    return (
        keras_internals.kind_of(call.operation) == "Multiply" and len(call.inputs) == 2
    )


def _is_broadcast(shape, other):
    if len(shape) != len(other):
        return len(shape) < len(other)
    return any(a == 1 and b != 1 for a, b in zip(shape[1:], other[1:]))


def _is_global_pooling(call):
    name = keras_internals.kind_of(call.operation)
    if not call.inputs or "Pooling" not in name and name not in ("Mean", "Max"):
        return False
    before, after = call.inputs[0].shape, call.outputs[0].shape
    if len(before) < 3:
        return False
    had = any(size != 1 for size in _positions(before))
    return had and all(size == 1 for size in _positions(after))


def _positions(shape):
    """Return the sizes of a shape without batch and channels, wherever these are."""
    if len(shape) <= 2:
        return ()
    sizes = list(shape[1:])
    # In pooled maps, (1, 1, 64) or (64, 1, 1), the channels are the axis that is not 1.
    sizes.remove(max(sizes, key=lambda size: -1 if size is None else size))
    return sizes
