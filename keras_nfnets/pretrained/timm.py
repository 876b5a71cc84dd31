"""Loader for timm's parameters."""

import re
from collections.abc import Mapping

import numpy as np

from keras_nfnets.backend import keras_internals
from keras_nfnets.layers import CONVENTIONS, WSConv2D
from keras_nfnets.pretrained.assign import (
    assign,
    existing_file,
    variables_by_name,
    with_input_channels,
)

# timm's names of layers and parameters, and ours where they differ.
_LAYERS = [
    (r"stem\.conv(\d)", lambda found: f"stem_conv{int(found[1]) - 1}"),
    (r"stem\.conv", "stem_conv"),
    (r"head\.fc", "predictions"),
]
_LAYERS_OF_BLOCKS = {
    "": "",
    "conv1": "conv0",
    "conv2": "conv1",
    "conv2b": "conv1b",
    "conv3": "conv2",
    "downsample.conv": "shortcut_conv",
    "attn.conv": "channel_attention/conv",
    "attn.fc1": "squeeze_excite/fc0",
    "attn.fc2": "squeeze_excite/fc1",
}
_PARAMETERS = {"weight": "kernel", "skipinit_gain": "skip_gain"}

# That of the largest published network has 0.1 MB. The library accepts 100 MB, which can
# name millions of arrays.
_MAX_HEADER = 4 * 2**20


def load_timm(model, source):
    """Load the parameters of timm's normalizer-free networks, all of them or none.

    Args:
        model: a network of this package, of the same architecture. If it has no
            classifier, that of the source is skipped. If its classifier has another
            number of classes, it stays unchanged, with a warning. If it has other than
            three input channels, the first kernel is adapted, see `pretrained.load`.
        source: str, path or mapping. Path of a `.safetensors` file, or a mapping in
            memory, such as a `state_dict()`:
            `{"stages.0.0.conv1.weight": array, ...}` of real numbers.

    Raises:
        ValueError: `source` is no such file or mapping, or its parameters do not match
            the model: missing, left over or of other shapes. The model is then
            unchanged.

    Example:

    >>> network = keras_nfnets.NFNetTest(classes=10)
    >>> try:
    ...     load_timm(network, {"head.fc.bias": np.zeros(10)})
    ... except ValueError as error:
    ...     print(str(error).partition(";")[0])
    The weights in the mapping are those of another network

    The authors' networks (timm's `dm_nfnet_f0` to `f6`) standardize weights with
    another epsilon here than in timm. Loading rescales their gains, so that each
    convolution has the same filters as in timm.

    Reference: `NormFreeNet` of timm 1.0, models/nfnet.py.
    """
    name = "the mapping" if isinstance(source, Mapping) else str(source)
    arrays = source if isinstance(source, Mapping) else read(existing_file(source))
    assign(*match(model, arrays), name)


def read(path):
    """Read the arrays of a `.safetensors` file, as `{name: array}`."""
    from safetensors.numpy import load_file

    try:
        with open(path, "rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > _MAX_HEADER:
            raise ValueError(f"a header of {header:,} bytes")
        # A file that is mapped into memory ends the process if it becomes shorter.
        return load_file(path, backend="pread")
    # The library raises errors of many types: SafetensorError, OSError, KeyError, ...
    except Exception as error:
        raise ValueError(
            f"{path} is not a complete .safetensors file; nothing was changed. "
            f"Download it again. Received: {error}"
        ) from error


def match(model, arrays):
    """Return the model's variables, and the arrays under the same names."""
    ours = {}
    for name, array in arrays.items():
        key = _our_name(str(name))
        ours[key if key not in ours else str(name)] = _our_layout(key, array)
    variables = variables_by_name(model)
    # Before the gains, which depend on the kernels.
    ours = with_input_channels(variables, ours)
    keys = {id(variable): key for key, variable in variables.items()}
    for layer in keras_internals.layers_of(model):
        if isinstance(layer, WSConv2D):
            gain = keys[id(layer.gain)]
            kernel = gain.removesuffix("gain") + "kernel"
            if gain in ours and kernel in ours:
                ours[gain] = _our_gain(layer, ours[gain], ours[kernel])
    return variables, ours


def _our_gain(layer, gain, kernel):
    """Rescale a gain, so that `layer` has the same filters as timm's layer."""
    theirs = CONVENTIONS["timm"]
    if (layer.eps, layer.variance_eps) == (theirs.eps, theirs.variance_eps):
        return gain
    try:
        kernel, scale = np.asarray(kernel, "float64"), np.asarray(gain, "float64")
        fan_in = np.prod(kernel.shape[:-1])
        variance = np.var(kernel, axis=(0, 1, 2))
        return scale * np.sqrt(
            np.maximum((variance + layer.variance_eps) * fan_in, layer.eps)
            / np.maximum((variance + theirs.variance_eps) * fan_in, theirs.eps)
        )
    except (TypeError, ValueError):  # not numeric, or wrong shapes: `assign` fails
        return gain


def _our_name(name):
    """Translate `"stages.0.1.conv1.weight"` to `"stage1_block2/conv0/kernel"`.

    Unknown names are returned unchanged.
    """
    layer, _, parameter = name.rpartition(".")
    parameter = _PARAMETERS.get(parameter, parameter)
    block = re.fullmatch(r"stages\.(\d+)\.(\d+)\.?(.*)", layer)
    if block:
        inner = _LAYERS_OF_BLOCKS.get(block[3].replace("attn_last", "attn"))
        if inner is None:
            return name
        prefix = f"stage{int(block[1]) + 1}_block{int(block[2]) + 1}"
        return "/".join(filter(None, [prefix, inner, parameter]))
    for pattern, replacement in _LAYERS:
        if re.fullmatch(pattern, layer):
            layer = re.sub(pattern, replacement, layer)
            break
    return f"{layer}/{parameter}"


def _our_layout(key, array):
    """Convert PyTorch's (out, in, height, width) to (height, width, in, out), etc.

    Arrays of unexpected shapes are returned unchanged; `assign` rejects them.
    """
    try:
        array = np.asarray(array)
    except Exception:  # noqa: BLE001 (of any type; `assign` reports the problem)
        return array
    if key.endswith("/gain"):
        return array.reshape(-1) if array.shape[1:] == (1, 1, 1) else array
    if not key.endswith("/kernel"):
        return array
    # timm's 1x1 convolutions that are dense layers here.
    if "/fc" in key and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]
    axes = {2: (1, 0), 3: (2, 1, 0), 4: (2, 3, 1, 0)}.get(array.ndim)
    return array if axes is None else array.transpose(axes)
