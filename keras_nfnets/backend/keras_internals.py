"""Private and undocumented names of Keras, each used by one function here.

A new version of Keras may break these functions and
`tests/backend/test_keras_internals.py`, but nothing else. They work with Keras 3.9 and 3.15.
"""

import contextlib
import functools
import gc
import io
import itertools
import math
import threading
import time
import types
import typing
import zipfile

import keras
from keras.src.backend.common.global_state import get_global_attribute
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.backend.common.stateless_scope import (
    get_stateless_scope,
    in_stateless_scope,
)
from keras.src.saving import saving_lib
from keras.src.utils.dtype_utils import dtype_size

# Models.

# The class of functional models. It has no public name; this is how Keras chooses it.
FunctionalModel = type(keras.Model.__new__(keras.Model, None, None))


def is_functional_call(args, kwargs):
    """Whether these arguments of a model's constructor are `(inputs, outputs)`."""
    given = [*args[:2], *(kwargs[n] for n in ("inputs", "outputs") if n in kwargs)]
    tensors = keras.tree.flatten(given)
    return len(given) == 2 and all(isinstance(t, keras.KerasTensor) for t in tensors)


def replace_base(cls, base, new):
    """Replace a base of a class, so that its instances can be functional models.

    Keras does so too, but with the bases of all ancestors, after which these can no longer
    be subclassed.

    Args:
        cls: class, which is changed.
        base: class, one of its bases.
        new: class, a subclass of `base` and of `FunctionalModel`.
    """
    cls.__bases__ = (*(b for b in cls.__bases__ if b is not base), new)


class ModelWithHooks(keras.Model):
    """Base class that gives private hooks of Keras's trainers public names."""

    def built_for_training(self):
        """Called when layers, metrics and loss have their variables."""

    def symbolic_batch(self, iterator, is_distributed):
        """Return a batch of an epoch's data as `KerasTensor`s to build with, or None.

        Under a `tf.distribute` strategy Keras otherwise reads a batch, which shuffles the
        data once more and is impossible with several workers. Without a strategy it
        otherwise waits for the first step, which is then traced twice.

        Args:
            iterator: Keras's iterator over an epoch.
            is_distributed: bool. Whether there is a strategy.
        """

    def finished_logs(self, logs, metrics_of):
        """Return what `fit` or `evaluate` logs when an epoch ends.

        Args:
            logs: dict. The logs of the last step.
            metrics_of: callable from such a dict to the logs that Keras would return: the
                results of the compiled metrics if these have the keys of the dict.
        """
        return metrics_of(logs)

    def logs_as_list(self, logs):
        """Return logs as `evaluate(return_dict=False)` does: in the order of metrics."""
        return self._flatten_metrics_in_order(logs)

    def _symbolic_build(self, *args, **kwargs):
        super()._symbolic_build(*args, **kwargs)
        self.built_for_training()

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if iterator is not None:
            is_distributed = self._distribute_strategy is not None
            data_batch = self.symbolic_batch(iterator, is_distributed)
            if data_batch is not None and not is_distributed:
                self._symbolic_build(data_batch=data_batch)
        super()._maybe_symbolic_build(data_batch=data_batch)

    def _get_metrics_result_or_logs(self, logs):
        return self.finished_logs(logs, super()._get_metrics_result_or_logs)


def strategy_scope(model):
    """Return the scope of the `tf.distribute` strategy of a model, if it has one.

    Only on TensorFlow does Keras have the public `model.distribute_strategy`.
    """
    strategy = getattr(model, "_distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def loss_metric(model):
    """Return the metric of a compiled model that averages the loss, `loss` in the logs.

    `model.metrics` need not contain it: a subclass may list its own metrics only.
    """
    return model._loss_tracker


def as_if_not_overridden(method):
    """Decorate a `get_config` that changes nothing.

    Keras clones a model, and writes the layers of a subclass with the constructor of a
    functional model, only if `get_config` is its own.
    """
    method._is_default = True
    return method


def is_saving_as_h5():
    """Whether Keras is writing a complete model to the old format, `.h5`."""
    return bool(get_global_attribute("use_legacy_config", False))


# Layers and graphs.


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


def per_channel(values, axis, rank):
    """Return constants per channel for a `Rescaling` of tensors of this rank, as lists.

    With the image data format `"channels_first"`, `Rescaling` adds axes to constants with
    fewer than three.
    """
    axis %= rank
    before = axis if keras.config.image_data_format() == "channels_first" else 0
    return values.reshape(*[1] * before, -1, *[1] * (rank - 1 - axis)).tolist()


def mask_of(x):
    """Return the Keras mask of a tensor, or None."""
    return get_keras_mask(x)


def detached(x):
    """Return a tensor without its gradient, but with its Keras mask.

    `keras.ops.stop_gradient` returns one without the mask, which the next layers need.
    """
    result = keras.ops.stop_gradient(x)
    if mask_of(x) is not None:
        set_keras_mask(result, mask_of(x))
    return result


def freeze_inside(layer):
    """Freeze the layers inside a frozen layer, at the end of its `build`.

    The config of a layer says whether it is frozen, but a copy creates the layers inside
    anew, and a model counts their variables as trainable.
    """
    if not layer.trainable:
        for inner in layers_of(layer, include_self=False, recursive=False):
            inner.trainable = False


def state_variables(model):
    """List the variables that layers change themselves.

    They are statistics, states of RNNs and of random numbers. `non_trainable_variables`
    has frozen weights too, but no states of RNNs.

    Args:
        model: a built `keras.Model`.
    """
    weights = {id(variable) for variable in model.weights}
    variables = [v for v in model.non_trainable_variables if id(v) not in weights]
    for layer in layers_of(model):
        variables += layer._non_trainable_variables
        if isinstance(layer, keras.layers.RNN) and layer.stateful:
            variables += keras.tree.flatten(layer.states)
    return variables


def layers_with(variables):
    """List the layers that own some of the variables, and the layers that contain these.

    Keras gives no way from a variable to its layer, nor from an optimizer to a model.
    Python's garbage collector knows all layers (not those from before `gc.freeze()`).

    Args:
        variables: list of `keras.Variable`s.
    """
    is_other = functools.partial(_is_other, {id(variable) for variable in variables})
    # Not in a loop here, which TensorFlow would convert in the `tf.function` of a user.
    return list(itertools.filterfalse(is_other, gc.get_objects()))


def _is_other(wanted, o):
    """Whether an object is no layer that owns a variable with an id in `wanted`."""
    if not (issubclass(type(o), keras.Layer) and getattr(o, "built", False)):
        return True
    return wanted.isdisjoint([id(variable) for variable in o.variables])


def operation_of(tensor):
    """Return the layer or operation whose output a symbolic tensor is.

    Args:
        tensor: `keras.KerasTensor` of a functional graph.
    """
    return tensor._keras_history.operation


def inner_output_of(tensor):
    """Return the symbolic tensor inside a nested model that a call of it gives.

    Args:
        tensor: `keras.KerasTensor`, an output of a functional model in another graph.
    """
    operation, _, index = tensor._keras_history
    return operation.outputs[index]


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


def runs_its_graph(model):
    """Whether the `call` of a model is Keras's own, that of its graph, and no override."""
    return type(model).call.__module__.startswith("keras.")


def kind_of(operation):
    """Return the name of the class of a layer or operation, such as `"Add"`.

    Operations of `keras.ops` have no public classes. The class of an operation that also
    exists as a layer has the name of the layer.
    """
    return type(operation).__name__


@contextlib.contextmanager
def intercepted(operations, intercept):
    """Context in which calls of layers and operations go through a function.

    Args:
        operations: iterable of `keras.Operation`s.
        intercept: callable `(operation, call)` that returns what to call in place of
            `call`, a method of the operation.
    """
    changed = []
    try:
        for operation in operations:
            operation.call = intercept(operation, operation.call)
            changed.append(operation)
        yield
    finally:
        for operation in changed:
            del operation.call


def kernel_of(layer, name):
    """Return the weights of a layer as trained: a variable, or a tensor with LoRA.

    With LoRA, Keras's own `kernel` is cast to the compute dtype before it is returned.

    Args:
        layer: a built layer of Keras.
        name: str. Name of the kernel, such as `"kernel"`, or `"embeddings"`; LoRA adapts
            only these.
    """
    if not getattr(layer, "lora_enabled", False):
        return getattr(layer, name)
    a, b = (getattr(layer, f"lora_{name}_{factor}") for factor in "ab")
    # Keras has `lora_alpha` since 3.10.
    alpha = getattr(layer, "lora_alpha", layer.lora_rank)
    return getattr(layer, f"_{name}") + alpha / layer.lora_rank * keras.ops.matmul(a, b)


def has_kernel(layer, name):
    """Whether `kernel_of` can compute the kernel of a layer with LoRA.

    It cannot if the kernel is quantized, or if this is a step on JAX that is not given
    the frozen weights: while `fit` runs, Keras keeps their values outside of them.
    """
    if getattr(layer, "quantization_mode", None) not in (None, "float8"):
        return False
    kernel = getattr(layer, f"_{name}")
    scope = get_stateless_scope() if in_stateless_scope() else None
    given = scope and scope.get_current_value(kernel)
    return given is not None or kernel._value is not None


@contextlib.contextmanager
def lora_after(layer):
    """Context for the `build` of a layer of Keras, at whose end LoRA is enabled.

    Keras enables it, and so locks the layer, in its own `build`: a subclass could not add
    weights after that.
    """
    rank = getattr(layer, "lora_rank", None)
    if rank:
        layer.lora_rank = None
    yield
    if rank:
        has_alpha = hasattr(layer, "lora_alpha")
        layer.enable_lora(
            rank, **({"lora_alpha": layer.lora_alpha} if has_alpha else {})
        )


def is_keras_activation(function):
    """Whether a callable is one of Keras's activation functions.

    A layer that has one is saved with its name.
    """
    return function in vars(keras.activations).values()


def is_layer_scale(operation):
    """Whether a layer is the `LayerScale` of Keras's ConvNeXts, which is not public."""
    cls = type(operation)
    return cls.__name__ == "LayerScale" and cls.__module__.startswith("keras.")


def rename(operation, name):
    """Change the name of an operation, which its constructor cannot be given.

    Args:
        operation: `keras.Operation` that a function of `keras.ops` has made.
        name: str.
    """
    operation.name = name


def weights_in_memory(model):
    """Return the content of the file that `model.save_weights` writes, in memory.

    If libhdf5 writes to a disk that gets full, it crashes when the process ends.

    Returns:
        A memoryview of bytes.
    """
    content = io.BytesIO()
    store = saving_lib.H5IOStore(content, mode="w")
    saving_lib._save_state(
        model,
        weights_store=store,
        assets_store=None,
        inner_path="",
        visited_saveables=set(),
    )
    store.close()
    return content.getbuffer()


# Held while an attribute of another package is replaced, so that originals are restored.
_REPLACING = threading.RLock()


@contextlib.contextmanager
def replacing(owner, name, replacement):
    """Context in which an attribute of another package's module or class is replaced.

    Args:
        owner: module or class.
        name: str. Name of the attribute.
        replacement: callable from the original value to the new one.
    """
    with _REPLACING:
        original = getattr(owner, name)
        setattr(owner, name, replacement(original))
        try:
            yield
        finally:
            setattr(owner, name, original)


@contextlib.contextmanager
def dates_of_archives():
    """Context in which Keras can save models even if the clock is before 1980.

    Dates in ZIP archives begin with 1980, and the clock of a machine without a battery for
    it starts in 1970.
    """
    earliest = time.struct_time((1980, 1, 1, 0, 0, 0, 1, 1, 0))
    if time.localtime(time.time()) >= earliest:
        yield
        return
    clock = types.SimpleNamespace(
        time=time.time, localtime=lambda seconds: max(time.localtime(seconds), earliest)
    )
    with replacing(zipfile, "time", lambda original: clock):
        yield


@contextlib.contextmanager
def limited_variables(most):
    """Context in which variables of at most `most` bytes in all can be created.

    A configuration of a few bytes can ask for any number of them. Keras creates them
    before it reads their values.

    Args:
        most: int.

    Raises:
        ValueError: when a variable is created, before its memory is allocated, if there
            are more. Keras may wrap it in another error.
    """
    thread, total = threading.get_ident(), 0

    def limit(original):
        @functools.wraps(original)
        def limited(self, initializer, shape=None, dtype=None, *args, **kwargs):
            nonlocal total
            if shape is not None and threading.get_ident() == thread:
                bits = dtype_size(keras.backend.standardize_dtype(dtype))
                total += math.prod(shape) * bits // 8
                if total > most:
                    raise ValueError(
                        f"a model of more than {total:,} bytes of variables, far more than "
                        f"the size of the file allows ({most:,})"
                    )
            original(self, initializer, shape, dtype, *args, **kwargs)

        return limited

    with replacing(keras.Variable, "__init__", limit):
        yield


class WeightFile:
    """Names in the HDF5 file of `save_weights`, which is in a `.keras` archive too.

    Keras documents no way to read a file except into a model, by the order of layers. Each
    layer is a group inside the group of its model or layer. The name of the group is not
    that of the layer, which is an attribute of the group of its variables.

    Attributes:
        IN_ARCHIVE: name of the file in the archive.
        LAYERS: group of the layers of a model.
        VARIABLES: group of the variables of a layer, with the names that
            `save_own_variables` gives: `"0"`, `"1"`, ...
        LAYER_NAME: attribute of that group.
        DTYPE: attribute of a variable with a dtype that HDF5 lacks, such as
            `"bfloat16"`; its values are stored as bytes.
    """

    IN_ARCHIVE = "model.weights.h5"
    LAYERS = "layers"
    VARIABLES = "vars"
    LAYER_NAME = "name"
    DTYPE = "dtype"


# Optimizers.


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


def optimizes(optimizer, variable):
    """Whether a built optimizer was built for `variable`."""
    return optimizer._var_key(variable) in optimizer._trainable_variables_indices


def accumulated_gradient(optimizer, variable):
    """Return the variable in which an optimizer accumulates the gradient of `variable`.

    Args:
        optimizer: a built `keras.optimizers.Optimizer` with
            `gradient_accumulation_steps`.
        variable: one of `optimized_variables(optimizer)`.
    """
    return optimizer._accumulated_gradients[variable_index(optimizer, variable)]


def calls_of_apply(optimizer):
    """Return the number of calls of `apply`, a variable.

    The public `iterations` counts updates: one per `gradient_accumulation_steps` calls.
    """
    return optimizer._iterations


def delete_variables(optimizer, variables):
    """Delete variables of an optimizer that `add_variable...` has created."""
    for variable in variables:
        optimizer._untrack_variable(variable)


def has_weight_decay(optimizer, variable):
    """Whether `exclude_from_weight_decay` leaves a variable its decay."""
    return optimizer._use_weight_decay(variable)


# JAX.


class JaxState(typing.NamedTuple):
    """State that a training step on JAX takes and returns, lists of arrays."""

    trainable: list
    non_trainable: list
    optimizer: list
    metrics: list


class JaxUpdates(typing.NamedTuple):
    """Results of `jax_loss` besides the scaled loss: loss, predictions and new state."""

    loss: typing.Any
    y_pred: typing.Any
    non_trainable: list
    metrics: list


def jax_loss(model, state, x, y, sample_weight):
    """Compute the loss of a batch without side effects, also by an overridden `compute_loss`.

    Args:
        model: a compiled `keras.Model`.
        state: `JaxState`.
        x, y, sample_weight: the batch.

    Returns:
        The loss times the loss scale of the optimizer, and `JaxUpdates`.
    """
    scaled_loss, updates = model.compute_loss_and_updates(
        state.trainable,
        state.non_trainable,
        state.metrics,
        x,
        y,
        sample_weight,
        training=True,
        optimizer_variables=state.optimizer,
    )
    return scaled_loss, JaxUpdates(*updates)


def synchronize(model):
    """Write the state of JAX's training step into the variables of a model.

    During an epoch, `fit` keeps it outside of them. Other backends need nothing.
    """
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
