"""Configurations of folded models that Keras 3.9 and all later versions can read."""

import functools
import inspect
import json
import pathlib

import keras

from keras_nfnets.backend import keras_internals
from keras_nfnets.backend.graph import has_graph

# The names of the constructors' parameters in Keras 3.9.2, by the names of the classes.
# (Layers and operations of `keras.ops` with the same name are different classes.)
_PARAMETERS = {
    kind: {name: set(parameters.split()) for name, parameters in classes.items()}
    for kind, classes in json.loads(
        pathlib.Path(__file__).with_name("keras39.json").read_text("utf-8")
    ).items()
}


def write_portably(model):
    """Let a model without custom layers be saved as Keras 3.9 would save it.

    Later versions write the values of all parameters of a layer, also of those that have
    been added since, and earlier ones refuse a parameter that they do not know. All
    versions read what Keras 3.9 writes.

    Args:
        model: `keras.Model`. Its layers and operations are changed, also in nested models.
    """
    for operation in (*keras_internals.layers_of(model), *_other_operations(model)):
        if type(operation).__module__.startswith("keras."):
            operation.get_config = _portable_config(operation)
    model.save = _save(model)


def _other_operations(model):
    """List the operations of a model that are not layers, also in nested models."""
    graphs = filter(has_graph, keras_internals.layers_of(model))
    operations = [operation for graph in graphs for operation in graph.operations]
    return [o for o in operations if not isinstance(o, keras.Layer)]


def _save(model):
    """Return a replacement of the method `save` of a model."""

    @functools.wraps(keras.Model.save)
    def save(filepath, *args, **kwargs):
        others = {operation.name for operation in _other_operations(model)}
        if others and str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(
                f"{model.name!r} has operations that are not layers, "
                f"{', '.join(sorted(others))}, and Keras cannot load these from .h5 "
                f"files. Save it as .keras. Received: filepath={filepath}"
            )
        return keras.Model.save(model, filepath, *args, **kwargs)

    return save


def _portable_config(operation):
    """Return a replacement of the method `get_config` of an operation."""

    @functools.wraps(type(operation).get_config)
    def get_config():
        config = type(operation).get_config(operation)
        # Not when this module is imported, as it imports TensorFlow.
        zeros = keras.initializers.serialize(keras.initializers.Zeros())
        return {
            key: zeros if _is_initializer(value) else value
            for key, value in config.items()
            if not _is_unknown(operation, key, value)
        }

    return get_config


def _is_initializer(value):
    """Whether a value is the configuration of an initializer of Keras.

    They have parameters of their own, and a model with weights does not need them.
    """
    return isinstance(value, dict) and value.get("module") == "keras.initializers"


def _is_unknown(operation, key, value):
    """Whether Keras 3.9 lacks a parameter, and it has the default value."""
    kind = "layers" if isinstance(operation, keras.Layer) else "operations"
    known = _PARAMETERS[kind].get(type(operation).__name__)
    if known is None or key in known:
        return False
    if key == "name":  # a model's configuration has it next to that of the operation
        return True
    parameter = inspect.signature(type(operation)).parameters.get(key)
    return parameter is not None and bool(value == parameter.default)
