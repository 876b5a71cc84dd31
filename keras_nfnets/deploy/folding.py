"""Folding of trained networks into plain Keras models without standardization."""

import inspect
import re

import keras
import numpy as np
from keras import ops

from keras_nfnets.backend import keras_internals
from keras_nfnets.backend.convolution import one_convolution_per_group
from keras_nfnets.backend.graph import copy_state, ends, has_graph, unique_name
from keras_nfnets.layers import (
    Dropout,
    EfficientChannelAttention,
    NFBlock,
    ScaledActivation,
    SkipGain,
    SqueezeExcite,
    StochasticDepth,
    SymmetricMaxPooling2D,
    WSConv1D,
    WSConv2D,
    WSConv2DTranspose,
    WSConv3D,
    WSDense,
    WSDepthwiseConv2D,
    WSSeparableConv2D,
)

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
    Dropout and stochastic depth are removed, and each block becomes a nested model. The
    result can be loaded without this package. In half precision (`mixed_bfloat16`, ...)
    constants stay separate, so that rounding is the same as in the original.

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
            layers of this package.

    Example:

    >>> model = keras_nfnets.NFNetTiny(classes=10)
    >>> folded = fold(model)
    >>> x = np.random.normal(size=(1, 32, 32, 3)).astype("float32")
    >>> np.allclose(model(x), folded(x), atol=1e-5)
    True
    """
    if not has_graph(model):
        raise ValueError(
            "fold takes functional and sequential Keras models, built: the graph of "
            f"others is not known. Received: {model!r}"
        )
    graph = keras.Model(*ends(model))
    folding = _Folding(graph)
    plain = keras.models.clone_model(
        graph,
        clone_function=folding.counterpart,
        call_function=folding.call,
    )
    outputs = keras.tree.map_structure(folding.exact, plain.output)
    return keras.Model(plain.input, outputs, name=model.name)


class _Folding:
    """Replacement of a model's layers and of their calls.

    Some symbolic tensors of the new graph lack a constant factor of the original ones.
    This factor goes into the kernel of the next layer if that is a standardized one of
    this package, otherwise into a multiplication.
    """

    def __init__(self, graph):
        self._factors = {}  # id of a tensor: the tensor, kept alive, and its factor
        self._exact = {}  # id of such a tensor: the tensor times its factor
        self._originals = {}  # id of a clone: the layer whose weights it gets
        # Names in use: those of the layers and operations that are not replaced.
        self._names = {
            operation.name
            for operation in graph.operations
            if not isinstance(operation, _NOTHING) and type(operation) not in _FOLDED
        }
        self._made = {}  # replacements of our layers' parts, for later calls

    # Functions that `clone_model` calls for each layer, and for each of its calls.

    def counterpart(self, layer):
        if isinstance(layer, _NOTHING) or type(layer) in _FOLDED:
            return layer
        if has_graph(layer):
            return fold(layer)
        if not isinstance(layer, keras.layers.Layer):
            return layer  # an operation such as `+`
        for inner in keras_internals.layers_of(layer):
            if isinstance(inner, (*_FOLDED, StochasticDepth, Dropout)):
                hidden = f" inside of {layer!r}" if inner is not layer else ""
                raise ValueError(
                    f"{inner!r} cannot be folded{hidden}: only layers of this package "
                    "itself (not of classes derived from them) in functional and "
                    "sequential models can."
                )
        clone = type(layer).from_config(layer.get_config())
        self._originals[id(clone)] = layer
        return clone

    def call(self, layer, *args, **kwargs):
        if isinstance(layer, _NOTHING) or type(layer) in _FOLDED:
            given = (*args, *kwargs.values())
            x = next(x for x in given if isinstance(x, keras.KerasTensor))
            x = self.cast(layer, x)
            if isinstance(layer, _NOTHING):
                return x
            return _FOLDED[type(layer)](self, layer, x, layer.name)
        if type(layer) in _LINEAR and layer.compute_dtype == args[0].dtype:
            return self.scaled(self._plain(layer, *args), self.factor(args[0]))
        args, kwargs = keras.tree.map_structure(self.exact, (args, kwargs))
        return self._plain(layer, *args, **kwargs)

    def _plain(self, layer, *args, **kwargs):
        training = inspect.signature(layer.call).parameters.get("training")
        if training is not None and training.default is True:
            kwargs["training"] = False  # random flips and the like
        outputs = layer(*args, **kwargs)
        original = self._originals.pop(id(layer), None)
        if original is not None:
            copy_state(original, layer)
        return outputs

    def cast(self, layer, x):
        """Cast a float input to a layer's compute dtype, as the layer would."""
        is_float = "float" in keras.backend.standardize_dtype(x.dtype)
        if not layer.autocast or not is_float or x.dtype == layer.compute_dtype:
            return x
        name = self.name(f"{layer.name}_cast")
        return keras.layers.Identity(dtype=layer.compute_dtype, name=name)(
            self.exact(x)
        )

    # Factors.

    def scaled(self, x, factor):
        """Record that a tensor stands for `factor * x`."""
        if factor != 1.0:
            self._factors[id(x)] = x, factor
        return x

    def factor(self, x):
        """Return the factor between a tensor and the one that it stands for."""
        return self._factors[id(x)][1] if id(x) in self._factors else 1.0

    def exact(self, x):
        """Multiply a tensor by its factor; return anything else unchanged."""
        if id(x) not in self._factors:
            return x
        if id(x) not in self._exact:
            name = self.name(f"{keras_internals.operation_of(x).name}_scaled")
            rescaling = keras.layers.Rescaling(self.factor(x), dtype=x.dtype, name=name)
            self._exact[id(x)] = rescaling(x)
        return self._exact[id(x)]

    # Layers of this package.

    def name(self, name):
        return unique_name(name, self._names)

    def operation(self, function, x, name):
        """Call a Keras operation, `function(x)`, and give it a unique name."""
        outputs = function(x)
        first = keras.tree.flatten(outputs)[0]
        keras_internals.rename(keras_internals.operation_of(first), self.name(name))
        return outputs

    def make(self, layer, x, create, weights=(), variant=None):
        """Call the replacement of a layer; `create()` makes it once."""
        key = id(layer), variant
        new = self._made.get(key)
        if new is None:
            new = self._made[key] = create()
            new.build(x.shape)
            new.set_weights(weights)
        return new(x)

    def convolution(self, layer, x, name, scale=1.0):
        """Replace a `WSConv2D`, times `scale`, by a `Conv2D` or by one per group."""
        factor = self.factor(x)
        padding = layer.padding
        if layer.symmetric and max(layer.strides) > 1:
            [top_bottom, left_right] = layer.symmetric_padding()
            x = keras.layers.ZeroPadding2D(
                (top_bottom, left_right),
                data_format=layer.data_format,
                dtype=layer.dtype_policy,
                name=self.name(f"{name}_pad"),
            )(x)
            padding = "valid"
        kernel = layer.precise_kernel()
        bias = ops.convert_to_numpy(layer.precise_bias(kernel))
        kernel = ops.convert_to_numpy(kernel)

        # Only convolutions of blocks have a scale here, and these have no activation.
        kernel, bias = kernel * (factor * scale), bias * scale
        split = layer.groups > 1 and one_convolution_per_group()
        parts = layer.groups if split else 1
        axis = -1 if layer.data_format == "channels_last" else 1

        def convolve(x, kernel, bias, part):
            def create():
                return keras.layers.Conv2D(
                    layer.filters // parts,
                    layer.kernel_size,
                    strides=layer.strides,
                    padding=padding,
                    data_format=layer.data_format,
                    dilation_rate=layer.dilation_rate,
                    groups=layer.groups // parts,
                    activation=self.inner_activation(layer),
                    dtype=layer.dtype_policy,
                    name=self.name(name if parts == 1 else f"{name}_group{part}"),
                )

            return self.make(layer, x, create, [kernel, bias], (factor, part))

        if parts == 1:
            x = convolve(x, kernel, bias, 0)
        else:
            groups = self.operation(
                lambda x: ops.split(x, parts, axis=axis), x, f"{name}_groups"
            )
            kernels, biases = np.split(kernel, parts, axis=-1), np.split(bias, parts)
            outputs = map(convolve, groups, kernels, biases, range(parts))
            x = keras.layers.Concatenate(
                axis=axis, dtype=layer.dtype_policy, name=self.name(name)
            )(list(outputs))
        return self.activated(layer, x)

    def other_standardized(self, layer, x, name):
        """Replace another layer with standardized kernels by its Keras counterpart."""
        kernels = [layer.precise_kernel(name=kernel.name) for kernel in layer.KERNELS]
        bias = layer.precise_bias(*kernels)
        weights = [ops.convert_to_numpy(weight) for weight in (*kernels, bias)]
        weights[0] = weights[0] * self.factor(x)

        def create():
            config = {
                key: value
                for key, value in layer.keras_config().items()
                # For training only, and perhaps custom objects.
                if not re.search("lora|initializer|regularizer|constraint", key)
            }
            config |= {"name": self.name(name), "activation": None}
            plain = layer.keras_class().from_config(config)
            plain.activation = self.inner_activation(layer)
            return plain

        x = self.make(layer, x, create, weights, self.factor(x))
        return self.activated(layer, x)

    def inner_activation(self, layer):
        """Return the `activation` to leave in a layer; None if it is one of ours."""
        return None if type(layer.activation) in _FOLDED else layer.activation

    def activated(self, layer, x):
        """Apply a layer's `activation` if `inner_activation` has left it out."""
        ours = type(layer.activation) in _FOLDED
        return self.call(layer.activation, x) if ours else x

    def activation(self, layer, x, name):
        """Replace a `ScaledActivation`; its gain becomes the factor of the result."""
        x = self.exact(x)
        is_keras_own = keras_internals.is_keras_activation(layer.function)
        if layer.function is keras.activations.glu or (
            isinstance(layer.activation, str) and not is_keras_own
        ):
            # An operation infers its output shape (GLU) and saves its arguments.
            x = self.operation(layer.function, x, name)
        else:
            x = keras.layers.Activation(
                layer.function, dtype=layer.dtype_policy, name=self.name(name)
            )(x)
        return self.after(layer, x, layer.gain)

    def after(self, layer, x, factor):
        """Record a factor of `x`, or multiply if constants must not be merged."""
        x = self.scaled(x, factor)
        return x if _merges(layer) else self.exact(x)

    def attention(self, layer, x, name, scale=1.0):
        """Replace channel attention, times `scale`."""
        x = self.exact(x)
        options = {"data_format": layer.data_format}
        # The mean is computed in float32, as in the original.
        gate = keras.layers.GlobalAveragePooling2D(
            dtype=keras.backend.result_type(layer.compute_dtype, "float32"),
            name=self.name(f"{name}_mean"),
            **options,
        )(x)
        if isinstance(layer, SqueezeExcite):
            parts = [layer.fc0, layer.fc1]
        else:
            gate = self.reshaped(layer, gate, (-1, 1), f"{name}_sequence")
            parts = [layer.conv]
        for part in parts:

            def create(part=part):
                new_name = self.name(f"{name}_{part.name}")
                config = {**part.get_config(), "name": new_name}
                return type(part).from_config(config)

            gate = self.make(part, gate, create, part.get_weights())
        shape = (1, 1, -1) if layer.data_format == "channels_last" else (-1, 1, 1)
        gate = self.reshaped(layer, gate, shape, f"{name}_gate")
        for factor in [2.0 * scale] if _merges(layer) else [2.0, scale]:
            if factor != 1.0:
                gate = self.rescaled(layer, gate, factor, f"{name}_gate_scaled")
        return keras.layers.Multiply(dtype=layer.dtype_policy, name=self.name(name))(
            [x, gate]
        )

    def reshaped(self, layer, x, shape, name):
        return keras.layers.Reshape(
            shape, dtype=layer.dtype_policy, name=self.name(name)
        )(x)

    def rescaled(self, layer, x, factor, name):
        return keras.layers.Rescaling(
            factor, dtype=layer.dtype_policy, name=self.name(name)
        )(x)

    def max_pooling(self, layer, x, name):
        """Replace a `SymmetricMaxPooling2D`.

        Keras pads strided pooling asymmetrically: pool without strides, then subsample.
        """
        options = {"data_format": layer.data_format, "dtype": layer.dtype_policy}
        factor = self.factor(x)
        if factor < 0:
            x, factor = self.exact(x), 1.0
        x = keras.layers.MaxPooling2D(
            layer.pool_size,
            strides=1,
            padding="same",
            name=self.name(f"{name}_dense"),
            **options,
        )(x)
        x = keras.layers.MaxPooling2D(
            1, strides=layer.strides, name=self.name(name), **options
        )(x)
        return self.scaled(x, factor)

    def block(self, block, x, name):
        """Replace an `NFBlock` by a nested model.

        Keras traverses a graph recursively when it builds or loads it. In one graph,
        the deepest networks would exceed Python's recursion limit.
        """
        outside = self.exact(x)
        inside = keras.Input(batch_shape=outside.shape, dtype=outside.dtype)
        outputs = self._inside_of_block(block, inside, name)
        return keras.Model(inside, outputs, name=self.name(name))(outside)

    def skip_gain(self, layer, x, name):
        return self.rescaled(layer, self.exact(x), _skip(layer), name)

    def _inside_of_block(self, block, x, name):
        skip = block.alpha if block.skip_gain is None else _skip(block)
        shortcut = x
        x = self.activation(block.input_activation, x, f"{name}_input_activation")
        if block.shortcut_conv is not None:
            shortcut = x
            if block.shortcut_pool is not None:
                options = {
                    **block.shortcut_pool.get_config(),
                    "name": self.name(f"{name}_shortcut_pool"),
                }
                pool = keras.layers.AveragePooling2D.from_config(options)
                shortcut = self.scaled(pool(x), self.factor(x))
            shortcut = self.convolution(
                block.shortcut_conv, shortcut, f"{name}_shortcut_conv"
            )
        branch = block.branch()
        for layer in branch[:-1]:
            x = _FOLDED[type(layer)](self, layer, x, f"{name}_{layer.name}")
        last = branch[-1]
        if isinstance(last, WSConv2D) and not _merges(block):
            x = self.convolution(last, x, f"{name}_{last.name}")
            x = self.rescaled(block, x, skip, f"{name}_residual")
        else:
            x = _FOLDED[type(last)](self, last, x, f"{name}_{last.name}", skip)
        return keras.layers.Add(
            dtype=block.dtype_policy, name=self.name(f"{name}_sum")
        )([x, shortcut])


_FOLDED = {
    EfficientChannelAttention: _Folding.attention,
    NFBlock: _Folding.block,
    ScaledActivation: _Folding.activation,
    SkipGain: _Folding.skip_gain,
    SqueezeExcite: _Folding.attention,
    SymmetricMaxPooling2D: _Folding.max_pooling,
    WSConv1D: _Folding.other_standardized,
    WSConv2D: _Folding.convolution,
    WSConv2DTranspose: _Folding.other_standardized,
    WSConv3D: _Folding.other_standardized,
    WSDense: _Folding.other_standardized,
    WSDepthwiseConv2D: _Folding.other_standardized,
    WSSeparableConv2D: _Folding.other_standardized,
}


def _skip(layer):
    """Return alpha times the skip gain, computed in the layer's compute dtype."""
    alpha = ops.cast(layer.alpha, layer.compute_dtype)
    factor = alpha * ops.cast(layer.skip_gain, layer.compute_dtype)
    # NumPy has no bfloat16, and JAX by default no float64.
    dtype = keras.backend.result_type(layer.compute_dtype, "float32")
    return float(ops.convert_to_numpy(ops.cast(factor, dtype)))


def _merges(layer):
    """Whether constants may be multiplied in another order than in the layer."""
    return layer.compute_dtype in ("float32", "float64")
