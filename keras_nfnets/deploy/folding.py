"""Folding of trained networks into plain Keras models without standardization."""

import collections
import inspect

import keras

from keras_nfnets.backend import keras_internals
from keras_nfnets.backend.graph import Graph, copy_state, has_graph
from keras_nfnets.deploy.constants import (
    Affine,
    call_with_constants,
    is_constants,
    other_values,
    takes_constants,
)
from keras_nfnets.deploy.plain_layers import REPLACEMENTS, Plain, Scaled
from keras_nfnets.deploy.portable import write_portably
from keras_nfnets.layers import Dropout, StochasticDepth, WSDense

# Layers that are the identity in inference.
_NOTHING = (
    Dropout,
    StochasticDepth,
    keras.layers.AlphaDropout,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)
# Homogeneous layers: f(a * x) = a * f(x) for every number a.
_LINEAR = (
    keras.layers.AveragePooling2D,
    keras.layers.Flatten,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.Identity,
    keras.layers.ZeroPadding2D,
)


def fold(model):
    """Convert a network to an inference-only model of plain Keras layers.

    Standardized kernels are computed once, and constant factors (the gains of
    activations, alpha, beta and the skip gains of blocks) are multiplied into them.
    Constants per channel go into the dense and attention layers that directly follow.
    Dropout and stochastic depth are removed, and each block becomes a nested model. In
    half precision (`mixed_bfloat16`, ...) constants stay separate, so that rounding is
    the same as in the original.

    Saved as `.keras`, the result can be loaded without this package, by Keras 3.9 and
    newer on every backend. Its `save` refuses `.h5` if it has operations that are not
    layers, which Keras could not load (`keras.saving.save_model` does not check this).
    Its configuration contains zero initializers only: after `clone_model`, copy the
    weights.

    Args:
        model: `keras.Model`. A functional or sequential model: a network of this
            package, or a custom model that contains its layers, also in nested models.
            It is not modified.

    Returns:
        A `keras.Model` with the same inputs and outputs, not compiled. In inference its
        outputs differ from the original's only by rounding.

    Raises:
        ValueError: the model has no graph (a subclass of `keras.Model` with its own
            `call`; fold its functional parts instead), or a layer of another kind hides
            layers of this package, or the input of a `DynamicErf` has a Keras mask.

    Example:

    >>> model = keras_nfnets.NFNetTiny(classes=10)
    >>> folded = fold(model)
    >>> x = np.random.normal(size=(1, 32, 32, 3)).astype("float32")
    >>> np.allclose(model(x), folded(x), atol=1e-5)
    True
    """
    if not has_graph(model):
        raise ValueError(
            "fold needs a functional or sequential Keras model that is built. Fold the "
            f"functional parts of other models separately. Received: {model!r}"
        )
    graph = Graph(model, opens=lambda operation: False)
    inputs, outputs = _Folding(graph).run()
    folded = keras.Model(inputs, outputs, name=model.name)
    write_portably(folded)
    return folded


class _Folding:
    """Repetition of a model's calls with plain layers.

    Args:
        graph: `Graph` of the model, in which nested models are single calls.
    """

    def __init__(self, graph):
        self._graph = graph
        self._signals = {}  # `Scaled` tensors, by value
        self._counterparts = {}  # by operation
        self._times = collections.Counter(call.operation for call in graph.calls)
        kept = [
            call.operation.name
            for call in graph.calls
            if not isinstance(call.operation, _NOTHING)
            and type(call.operation) not in REPLACEMENTS
        ]
        inputs = [value.spec.name for value in keras.tree.flatten(graph.inputs)]
        self._plain = Plain({*kept, *inputs})

    def run(self):
        """Return the inputs and outputs of the folded model."""
        inputs = keras.tree.map_structure(self._input, self._graph.inputs)
        for call in self._graph.calls:
            signals = self._fold(call)
            self._signals |= zip(call.outputs, signals, strict=True)
        return inputs, keras.tree.map_structure(self._exact, self._graph.outputs)

    def _input(self, value):
        spec = value.spec
        tensor = keras.Input(batch_shape=spec.shape, dtype=spec.dtype, name=spec.name)
        self._signals[value] = Scaled(tensor)
        return tensor

    def _exact(self, value):
        return self._plain.exact(self._signals[value])

    def _fold(self, call):
        """Return the signals of the outputs of a call."""
        layer, signals = call.operation, [self._signals[x] for x in call.inputs]
        if isinstance(layer, _NOTHING):
            return [self._plain.cast(layer, signals[0])]
        lacking = {x for x in call.inputs if isinstance(self._signals[x], Affine)}
        takes_them = bool(lacking) and self._takes_constants(call, lacking)
        if type(layer) in REPLACEMENTS:
            x = signals[0]
            if lacking and not takes_them:
                x = Scaled(self._plain.exact(x))
            return [self._plain.replaced(layer, x)]
        if takes_them:
            outputs = call_with_constants(layer, *call.arguments(self._lacking))
            return map(Scaled, keras.tree.flatten(outputs))
        if self._is_taken_over(call):
            tensor = self._exact(call.inputs[0])
            return [Affine.of(layer, tensor)]
        if (
            type(layer) in _LINEAR
            and layer.compute_dtype == signals[0].tensor.dtype
            and not lacking
        ):
            [tensor] = self._repeat(call, lambda value: self._signals[value].tensor)
            return [Scaled(tensor, signals[0].factor)]
        return map(Scaled, self._repeat(call, self._exact))

    def _takes_constants(self, call, values):
        """Whether the layer of a call can take over the constants of these values."""
        # By a copy of its own; a `WSDense` gets one for each of its calls.
        alone = self._times[call.operation] == 1 or isinstance(call.operation, WSDense)
        return (
            alone
            and takes_constants(call.operation)
            and other_values(call).isdisjoint(values)
        )

    def _is_taken_over(self, call):
        """Whether a call only rescales, and all that use its output take that over."""
        value = call.outputs[0]
        is_output = value in keras.tree.flatten(self._graph.outputs)
        consumers = self._graph.consumers[value]
        return (
            is_constants(call.operation, call.inputs)
            and bool(consumers)
            and not is_output
            and all(self._takes_constants(later, {value}) for later in consumers)
        )

    def _lacking(self, value):
        """Return a value's signal if it lacks constants, otherwise its tensor."""
        signal = self._signals[value]
        return signal if isinstance(signal, Affine) else self._plain.exact(signal)

    def _repeat(self, call, tensor_of):
        """Make a call with the counterpart of its operation; return the outputs."""
        operation = call.operation
        args, kwargs = call.arguments(tensor_of)
        training = inspect.signature(operation.call).parameters.get("training")
        if training is not None and training.default is True:
            kwargs["training"] = False  # random flips and the like
        is_new = operation not in self._counterparts
        if is_new:
            self._counterparts[operation] = _counterpart(operation)
        new = self._counterparts[operation]
        outputs = new(*args, **kwargs)
        if is_new and isinstance(new, keras.layers.Layer) and not has_graph(new):
            copy_state(operation, new)
        return keras.tree.flatten(outputs)


def _counterpart(operation):
    """Return the counterpart of an operation: a folded model, a new layer or operation."""
    if has_graph(operation):
        return fold(operation)
    if not isinstance(operation, keras.layers.Layer):
        try:
            return type(operation).from_config(operation.get_config())
        except NotImplementedError:  # it cannot be saved either
            return operation
    for inner in keras_internals.layers_of(operation):
        if isinstance(inner, (*REPLACEMENTS, StochasticDepth, Dropout)):
            hidden = f" inside of {operation!r}" if inner is not operation else ""
            raise ValueError(
                f"{inner!r} cannot be folded{hidden}. Only layers of this package, not of "
                "derived classes, can be folded, and only in functional and sequential "
                "models: fold the other parts of the model separately. Received: "
                f"{type(operation).__name__} {operation.name!r}"
            )
    try:
        return type(operation).from_config(operation.get_config())
    except Exception as error:  # Keras raises exceptions of many types
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{operation!r} cannot be folded, as its configuration cannot be read. "
            "Functions must have a name and be registered, see "
            f"`keras.saving.register_keras_serializable`. Received: {reason}"
        ) from error
