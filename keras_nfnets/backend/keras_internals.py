"""Private and undocumented names of Keras, each used by one function here.

A new Keras may break these functions and `tests/backend/test_keras_internals.py`, and
nothing else. Seen to work: Keras 3.15.
"""


def layers_of(layer, include_self=True, recursive=True):
    """List the layers inside a layer or model, each once.

    The public `model.layers` leaves out layers inside of layers, and layers that are not
    models have no such list.

    Args:
        layer: `keras.Layer` or `keras.Model`.
        include_self: bool. Whether the list begins with `layer` itself.
        recursive: bool. Whether to list layers inside of those inside.

    Returns:
        A list of layers.
    """
    return list(layer._flatten_layers(include_self=include_self, recursive=recursive))


def operation_of(tensor):
    """Return the layer or operation whose output a symbolic tensor is.

    Args:
        tensor: `keras.KerasTensor` of a functional graph.
    """
    return tensor._keras_history.operation


def node_of(tensor):
    """Return the call whose output a symbolic tensor is.

    No public name leads from a tensor to the arguments of the call.

    Args:
        tensor: `keras.KerasTensor` of a functional graph.

    Returns:
        A node with `operation`, `arguments.args`, `arguments.kwargs`, `input_tensors` and
        `outputs`.
    """
    operation, index, _ = tensor._keras_history
    return operation._inbound_nodes[index]


def built_shapes(model):
    """Return the shapes with which a subclassed model was built.

    `model.input_shape` is for models with a graph only.

    Args:
        model: a built `keras.Model`.

    Returns:
        A dict from argument names of `call` to shapes, or a shape.
    """
    return model._build_shapes_dict


def variable_index(optimizer, variable):
    """Return the index of a variable in the lists of an optimizer.

    On TensorFlow an optimizer's `update_step` is given the variable inside Keras's own,
    which cannot be looked up by identity.

    Args:
        optimizer: a built `keras.optimizers.Optimizer`.
        variable: as `update_step` receives it.
    """
    return optimizer._get_variable_index(variable)


def optimized_variables(optimizer):
    """Return the variables that an optimizer was built for, in its order."""
    return optimizer._trainable_variables


def accumulated_gradients(optimizer):
    """Return the variables in which an optimizer accumulates gradients.

    Args:
        optimizer: a built `keras.optimizers.Optimizer` with
            `gradient_accumulation_steps`.

    Returns:
        A list in the order of `optimized_variables`.
    """
    return optimizer._accumulated_gradients


def calls_of_apply(optimizer):
    """Return the number of calls of `apply`, a variable.

    The public `iterations` counts updates: one per `gradient_accumulation_steps` calls.
    """
    return optimizer._iterations


def has_weight_decay(optimizer, variable):
    """Whether `exclude_from_weight_decay` leaves a variable its decay."""
    return optimizer._use_weight_decay(variable)


def synchronize(model):
    """Write the state of JAX's training step into the variables of a model.

    During an epoch, `fit` keeps it outside of them. Other backends need nothing.
    """
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
