"""Trained networks as plain Keras models: nothing is left to standardize."""

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

# In inference these return what they are given.
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
# Of a multiple of their input these return that multiple of their output.
_LINEAR = (
    keras.layers.AveragePooling2D,
    keras.layers.Flatten,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.Identity,
    keras.layers.ZeroPadding2D,
)


def fold(model):
    """A network for inference alone, of Keras's own layers and operations.

    Convolutions have their standardized kernels baked in and constants (the gains of
    activations, alpha, beta and the learned gains of blocks) multiplied into them.
    Dropout and stochastic depth are gone, and a block is a nested model. The result
    loads wherever Keras is, without this package. In half precision
    (`mixed_bfloat16`, ...) constants stay where they are, so that everything is rounded
    as in the original.

    Args:
        model: a functional or sequential Keras model, such as the networks of this
            package, or one of your own that contains their layers, at any depth of
            nested models. It is left as it is.

    Returns:
        A `keras.Model` of the same inputs and outputs, not compiled; the outputs differ
        from the original's in inference by rounding alone.

    Raises:
        ValueError: a model without a graph (a subclass of `keras.Model` with a `call`
            of its own; fold the functional parts of it), or one in which a layer of
            another kind hides layers of this package.

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
    """The counterparts of a model's layers, and how they are called.

    Some symbolic tensors of the new graph stand for a multiple of themselves. That
    factor goes into the kernel of a convolution of ours that comes next, or else into a
    multiplication.
    """

    def __init__(self, graph):
        self._factors = {}  # id of a tensor: the tensor, to keep it alive, its factor
        self._exact = {}  # id of such a tensor: what stands for itself
        self._originals = {}  # id of a clone: the layer whose weights it gets
        # Names that are taken: those of layers and operations that stay.
        self._names = {
            operation.name
            for operation in graph.operations
            if not isinstance(operation, _NOTHING) and type(operation) not in _FOLDED
        }
        self._made = {}  # what was made of the parts of our layers, if called again

    # Called by Keras for each layer, and for each of its calls.

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
        """An input as the layer sees it: in its compute dtype, if it is of floats."""
        is_float = "float" in keras.backend.standardize_dtype(x.dtype)
        if not layer.autocast or not is_float or x.dtype == layer.compute_dtype:
            return x
        name = self.name(f"{layer.name}_cast")
        return keras.layers.Identity(dtype=layer.compute_dtype, name=name)(
            self.exact(x)
        )

    # Factors.

    def scaled(self, x, factor):
        """A tensor that stands for `factor * x`."""
        if factor != 1.0:
            self._factors[id(x)] = x, factor
        return x

    def factor(self, x):
        """Of what it is, what a tensor stands for."""
        return self._factors[id(x)][1] if id(x) in self._factors else 1.0

    def exact(self, x):
        """A tensor that stands for itself; anything else as it is."""
        if id(x) not in self._factors:
            return x
        if id(x) not in self._exact:
            name = self.name(f"{keras_internals.operation_of(x).name}_scaled")
            rescaling = keras.layers.Rescaling(self.factor(x), dtype=x.dtype, name=name)
            self._exact[id(x)] = rescaling(x)
        return self._exact[id(x)]

    # The layers of ours.

    def name(self, name):
        return unique_name(name, self._names)

    def operation(self, function, x, name):
        """`function(x)` of an operation of Keras, under a name of its own."""
        outputs = function(x)
        first = keras.tree.flatten(outputs)[0]
        keras_internals.rename(keras_internals.operation_of(first), self.name(name))
        return outputs

    def make(self, layer, x, create, weights=(), variant=None):
        """Calls what `create()` makes in place of a layer, the same at each call."""
        key = id(layer), variant
        new = self._made.get(key)
        if new is None:
            new = self._made[key] = create()
            new.build(x.shape)
            new.set_weights(weights)
        return new(x)

    def convolution(self, layer, x, name, scale=1.0):
        """A `WSConv2D`, times `scale`, as a `Conv2D`."""
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

        # (Convolutions of blocks, which alone have a scale here, have no activation.)
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
        """Another layer with standardized kernels, as the one of Keras that it is."""
        kernels = [layer.precise_kernel(name=kernel.name) for kernel in layer.KERNELS]
        bias = layer.precise_bias(*kernels)
        weights = [ops.convert_to_numpy(weight) for weight in (*kernels, bias)]
        weights[0] = weights[0] * self.factor(x)

        def create():
            config = {
                key: value
                for key, value in layer.keras_config().items()
                # Of training, and perhaps of one's own.
                if not re.search("lora|initializer|regularizer|constraint", key)
            }
            config |= {"name": self.name(name), "activation": None}
            plain = layer.keras_class().from_config(config)
            plain.activation = self.inner_activation(layer)
            return plain

        x = self.make(layer, x, create, weights, self.factor(x))
        return self.activated(layer, x)

    def inner_activation(self, layer):
        """What of its `activation` may stay in a layer: none of ours."""
        return None if type(layer.activation) in _FOLDED else layer.activation

    def activated(self, layer, x):
        """Its `activation`, if that is one of ours, after what is left of a layer."""
        ours = type(layer.activation) in _FOLDED
        return self.call(layer.activation, x) if ours else x

    def activation(self, layer, x, name):
        """A `ScaledActivation`: without its gain, which is left for what comes next."""
        x = self.exact(x)
        is_keras_own = keras_internals.is_keras_activation(layer.function)
        if layer.function is keras.activations.glu or (
            isinstance(layer.activation, str) and not is_keras_own
        ):
            # As an operation, which knows its shape, and keeps arguments.
            x = self.operation(layer.function, x, name)
        else:
            x = keras.layers.Activation(
                layer.function, dtype=layer.dtype_policy, name=self.name(name)
            )(x)
        return self.after(layer, x, layer.gain)

    def after(self, layer, x, factor):
        """What stands for `factor * x`, computed where the original computes it."""
        x = self.scaled(x, factor)
        return x if _merges(layer) else self.exact(x)

    def attention(self, layer, x, name, scale=1.0):
        """Channel attention, times `scale`."""
        x = self.exact(x)
        options = {"data_format": layer.data_format}
        # (Its input is cast to float32, as in the original.)
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
        """Keras pads on one side more where there are strides: pool without, then pick."""
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
        """An `NFBlock`, as a model of its own.

        Keras walks through a graph by recursion, when it builds it and when it loads
        it: in one graph the layers of the deepest networks are more than Python allows.
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
    """Alpha times the learned gain, in the dtype in which a layer multiplies them."""
    alpha = ops.cast(layer.alpha, layer.compute_dtype)
    factor = alpha * ops.cast(layer.skip_gain, layer.compute_dtype)
    # Half precision is no number to NumPy, and float64 none to JAX.
    dtype = keras.backend.result_type(layer.compute_dtype, "float32")
    return float(ops.convert_to_numpy(ops.cast(factor, dtype)))


def _merges(layer):
    """Whether constants may be multiplied in another order than the layer does."""
    return layer.compute_dtype in ("float32", "float64")
