"""Mean and variance of the signal from block to block."""

import contextlib
import functools
import operator
import weakref

import keras
import numpy as np
from keras import ops

from keras_nfnets import checks, plotting
from keras_nfnets.backend import keras_internals
from keras_nfnets.backend.graph import unique_name
from keras_nfnets.conversion.roles import count_learning, own_ways
from keras_nfnets.layers import DynamicErf, DynamicTanh, NFBlock


def signal_propagation(model, images, training=False, layers=None):
    """Measure mean and variance after the stem and after each residual block.

    Residual blocks are `NFBlock`s, and additions of two tensors of the same shape by
    `keras.layers.Add` or, in a functional model, by `+`. The stem is the layer named
    `"stem"`, or else the first convolution or dense layer. In a model without blocks,
    all convolutions and dense layers are measured instead.

    Args:
        model: `keras.Model`: functional, sequential, nested or subclassed.
        images: array, tensor or structure of these. One batch of model inputs, such as
            float images `(batch, height, width, channels)`.
        training: bool. Whether to run the model in training mode, for networks whose
            normalization needs batch statistics. Its state is restored afterwards.
        layers: list of str. Names of layers to measure instead, in this order. They may
            be inside nested models.

    Returns:
        A dict of float arrays under the authors' names. With `n` blocks:
        `"avg_sq_mean"`, `(n + 1,)`: the squared mean of a channel, averaged over
        channels, after the stem and each block; `"avg_var"`, `(n + 1,)`: the variance
        of a channel, averaged likewise; `"res_avg_var"`, `(n,)`: the variance of each
        residual branch when it is added, or of an `NFBlock` before its gains. Without
        blocks the last is `(0,)`. With `layers` the first two are `(len(layers),)` and
        the last is `(0,)`. For models with `DynamicTanh` or `DynamicErf`, `"saturated"`
        is a dict from the names of these layers to the share of their inputs `x` with
        `abs(alpha * x + shift)` above 2.

    Raises:
        ValueError: the model has nothing to measure, or no layer of a given name.

    Example:

    >>> model = keras_nfnets.NFNetTiny(classes=10)
    >>> signal = signal_propagation(model, np.random.normal(size=(8, 32, 32, 3)))
    >>> signal["avg_var"].shape
    (5,)

    Reference: Brock, De, Smith (2021), arXiv 2101.08692, section 3; `signal_metrics`
    in the authors' base.py.
    """
    recorder = _recorded(model, images, training, layers or ())
    if layers is not None:
        if missing := [name for name in layers if not recorder.named[name]]:
            raise ValueError(
                "`layers` must be names of layers with one output, a tensor of floats. "
                f"Received: {missing[:10]}, which {model.name!r} does not have"
            )
        means, variances = np.array([recorder.named[name] for name in layers]).T
        return recorder.result(means, variances, [])
    points = recorder.blocks or recorder.weighted[1:]
    stems = recorder.stems or recorder.weighted[:1]
    if not points or not stems:
        raise ValueError(
            "signal_propagation needs a model with residual blocks, or with two or more "
            "convolutions or dense layers. Received: a model of "
            f"{sorted({type(layer).__name__ for layer in model.layers})}"
        )
    means, variances = np.array([*stems[:1], *points]).T
    return recorder.result(means, variances, recorder.residual_variances)


def _recorded(model, images, training=False, names=()):
    if not model.built:
        model(images)
    recorder = _Recorder(names)
    with _unchanged(model), recorder.listening_to(model):
        model(images, training=training)
    return recorder


class _Recorder:
    """Recorder of the moments of operations' outputs while a model is called.

    Attributes:
        stems, blocks, weighted: lists of (squared mean, variance), averaged over
            channels, in the order of calls: of layers named "stem", of outputs of
            residual blocks, and of convolutions and dense layers.
        named: dict from `names` to such a pair, of the layer's last call.
        residual_variances: list of floats. Variances of the residual branches of
            `blocks`.
        saturated: dict from names of dynamic functions to the saturated share of their
            inputs, of the last call.
    """

    def __init__(self, names):
        self.named = dict.fromkeys(names)
        self.stems, self.blocks, self.weighted = [], [], []
        self.residual_variances, self.saturated = [], {}
        self._names, self._taken = {}, set()  # of dynamic functions
        self._within_block = False
        self._operations = []  # in the order of their calls
        # Calls that a tensor depends on: `{id: (weak reference, bit mask)}`.
        self._made = {}

    def result(self, means, variances, residual_variances):
        """Return the dict of `signal_propagation`."""
        signal = {
            "avg_sq_mean": means,
            "avg_var": variances,
            "res_avg_var": np.array(residual_variances),
        }
        return {**signal, "saturated": self.saturated} if self.saturated else signal

    def listening_to(self, model):
        return keras_internals.intercepted(_operations(model), self._listener)

    def _listener(self, operation, call):
        def listen(*args, **kwargs):
            if self._within_block:
                return call(*args, **kwargs)
            self._within_block = isinstance(operation, NFBlock)
            try:
                outputs = call(*args, **kwargs)
                given = keras.tree.flatten((args, kwargs))
                self._take_down(operation, list(filter(_is_signal, given)), outputs)
            finally:
                self._within_block = False
            return outputs

        return listen

    def _take_down(self, operation, inputs, outputs):
        if not _is_signal(outputs):
            return
        axis = _channel_axis(operation, outputs)
        if operation.name in self.named:
            self.named[operation.name] = _moments(outputs, axis)
        if isinstance(operation, DynamicTanh | DynamicErf):
            share = float(ops.convert_to_numpy(operation.saturated_share(inputs[0])))
            self.saturated[self._unique_name(operation)] = share
        if operation.name == "stem":
            self.stems.append(_moments(outputs, axis))
        if isinstance(operation, NFBlock):
            self.blocks.append(_moments(outputs, axis))
            residual = operation.residual(inputs[0])
            self.residual_variances.append(_moments(residual, axis)[1])
        elif keras_internals.kind_of(operation) == "Add":
            if len(inputs) == 2 and all(
                tuple(x.shape) == tuple(outputs.shape) for x in inputs
            ):
                self.blocks.append(_moments(outputs, axis))
                residual = self._residual_branch(inputs)
                self.residual_variances.append(_moments(residual, axis)[1])
        elif getattr(getattr(operation, "kernel", None), "ndim", 0) >= 2:
            self.weighted.append(_moments(outputs, axis))
        if self._calls_before(outputs) is None:  # not made by a layer inside this one
            calls = self._before(inputs)
            before = functools.reduce(operator.or_, calls, 1 << len(self._operations))
            self._made[id(outputs)] = weakref.ref(outputs), before
            self._operations.append(operation)

    def _unique_name(self, layer):
        """Return the name of a layer, with a number if another one has the same."""
        if id(layer) not in self._names:
            self._names[id(layer)] = unique_name(layer.name, self._taken)
        return self._names[id(layer)]

    def _residual_branch(self, inputs):
        ways = own_ways(self._operations, self._before(inputs))
        # If both have the same number of kernels, the branch is the longer one.
        sizes = [(count_learning(way), len(way)) for way in ways]
        return inputs[sizes.index(max(sizes))]

    def _before(self, tensors):
        # A tensor that no operation has returned comes from custom code in between.
        every = (1 << len(self._operations)) - 1
        known = map(self._calls_before, tensors)
        return [every if calls is None else calls for calls in known]

    def _calls_before(self, tensor):
        reference, calls = self._made.get(id(tensor), (lambda: None, None))
        return calls if reference() is tensor else None


@contextlib.contextmanager
def _unchanged(model):
    """Context at whose end the non-trainable variables of a model are restored."""
    state = [variable for variable in model.variables if not variable.trainable]
    before = [ops.convert_to_numpy(variable) for variable in state]
    try:
        yield
    finally:
        for variable, value in zip(state, before):
            variable.assign(value)


def _operations(model):
    """List the layers inside a model, and the operations of functional models."""
    found = {}
    for layer in keras_internals.layers_of(model, include_self=False):
        found[id(layer)] = layer
    for layer in [model, *found.values()]:
        for operation in getattr(layer, "operations", ()):
            found.setdefault(id(operation), operation)
    return list(found.values())


def _is_signal(x):
    return (
        hasattr(x, "shape")
        and len(x.shape) >= 2
        and keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype))
    )


def _channel_axis(operation, x):
    data_format = getattr(operation, "data_format", keras.config.image_data_format())
    return 1 if data_format == "channels_first" and len(x.shape) > 2 else -1


def _moments(x, axis):
    """Compute squared mean and variance of a channel, averaged over channels."""
    flat = np.moveaxis(ops.convert_to_numpy(x), axis, -1)
    flat = flat.reshape(-1, flat.shape[-1]).astype("float64")
    return np.mean(flat.mean(axis=0) ** 2), np.mean(flat.var(axis=0))


class SaturationLog(keras.callbacks.Callback):
    """Callback that adds the saturated shares of dynamic functions to the logs of epochs.

    It adds `saturated_share_<layer>` for each `DynamicTanh` and `DynamicErf`, and their
    mean, `saturated_share`, see `signal_propagation`. A large share means that `alpha` is
    too large for the inputs. Put it before callbacks that write logs, such as
    `keras.callbacks.TensorBoard`.

    Args:
        inputs: array, tensor or structure of these. One batch of model inputs to measure
            on.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4, 8)),
    ...     keras_nfnets.DynamicTanh(name="norm"),
    ...     keras.layers.Dense(1),
    ... ])
    >>> model.compile("sgd", "mse")
    >>> x = np.random.normal(size=(16, 4, 8))
    >>> log = keras_nfnets.models.SaturationLog(x)
    >>> history = model.fit(x, np.zeros((16, 4, 1)), verbose=0, callbacks=[log]).history
    >>> list(history)
    ['loss', 'saturated_share_norm', 'saturated_share']
    """

    def __init__(self, inputs):
        super().__init__()
        self.inputs = inputs

    def on_epoch_end(self, epoch, logs=None):
        shares = _recorded(self.model, self.inputs).saturated
        logs.update({f"saturated_share_{name}": x for name, x in shares.items()})
        if shares:
            logs["saturated_share"] = float(np.mean(list(shares.values())))


def plot_signal_propagation(signals, path, title=None):
    """Plot the results of `signal_propagation`, one panel per statistic.

    Args:
        signals: dict. Result of `signal_propagation`, or `{label: signal}` to compare
            several models.
        path: str or path. Image file to write, such as `"signal.png"`.
        title: str. Title of the figure.

    Raises:
        ValueError: matplotlib cannot write files with this extension.
        OSError: the file cannot be written; what was there before is kept.

    Example:

    >>> model = keras_nfnets.NFNetTiny(classes=10)
    >>> signal = signal_propagation(model, np.random.normal(size=(8, 32, 32, 3)))
    >>> plot_signal_propagation({"NFNetTiny": signal}, "signal.png")

    Reference: Brock, De, Smith (2021), arXiv 2101.08692, figures 1 to 3.
    """
    checks.installed("plot_signal_propagation", "matplotlib")
    from matplotlib.figure import Figure

    if "avg_var" in signals:
        signals = {None: signals}
    figure = Figure(figsize=(13, 4), layout="constrained")
    draw_signal_propagation(figure, signals)
    if title:
        figure.suptitle(title, parse_math=False)
    plotting.save(figure, path)


def draw_signal_propagation(figure, signals):
    """Plot the results of `signal_propagation` into an existing figure.

    Args:
        figure: `matplotlib.figure.Figure` or `SubFigure`.
        signals: dict `{label: signal}`, see `plot_signal_propagation`. With the label
            None there is no legend.

    The panels are side by side, or in a figure that is taller than wide one below another.

    Example:

    >>> from matplotlib.figure import Figure
    >>> figure = Figure(figsize=(13, 4), layout="constrained")
    >>> model = keras_nfnets.NFNetTiny(classes=10)
    >>> signal = signal_propagation(model, np.random.normal(size=(8, 32, 32, 3)))
    >>> draw_signal_propagation(figure, {"NFNetTiny": signal})
    >>> len(figure.axes)
    3

    Reference: Brock, De, Smith (2021), arXiv 2101.08692, figures 1 to 3.
    """
    from matplotlib.ticker import MaxNLocator

    panels = {
        "avg_sq_mean": "squared mean of a channel",
        "avg_var": "variance of a channel",
        "res_avg_var": "variance of the residual branch",
    }
    shape = (1, len(panels))
    if figure.bbox.height > figure.bbox.width:
        shape = shape[::-1]
    for axes, (name, label) in zip(figure.subplots(*shape), panels.items()):
        for model, signal in signals.items():
            values = np.asarray(signal[name])
            # The stem is block 0; it has no residual branch.
            blocks = np.arange(len(values)) + (name == "res_avg_var")
            axes.plot(blocks, values, marker=".", linewidth=1, label=model)
        axes.set(xlabel="block", title=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        values = np.concatenate([signal[name] for signal in signals.values()])
        if len(values) and values.max() > 30 * max(values.min(), 1e-9):
            axes.set_yscale("symlog", linthresh=1e-2)
        else:
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if None not in signals:
            axes.legend(fontsize=8)
