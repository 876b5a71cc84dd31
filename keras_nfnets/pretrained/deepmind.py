"""Loader for the authors' parameters."""

import collections
import re
from collections.abc import Mapping

from keras_nfnets.layers import NFBlock
from keras_nfnets.pretrained.assign import (
    assign,
    existing_file,
    variables_by_name,
    with_input_channels,
)

# The authors' names of layers and parameters, and ours where they differ.
_LAYERS = {
    "initial_conv": "stem_conv",
    "linear": "predictions",
    "conv_shortcut": "shortcut_conv",
    "squeeze_excite/linear": "squeeze_excite/fc0",
    "squeeze_excite/linear_1": "squeeze_excite/fc1",
}
_PARAMETERS = {"w": "kernel", "b": "bias"}


def load_deepmind(model, source):
    """Load the parameters of the authors' Haiku networks, all of them or none.

    Args:
        model: a network of this package, of the same architecture. If it has no
            classifier (`include_top=False`), that of the source is skipped. If its
            classifier has another number of classes, it stays unchanged, with a
            warning. If it has other than three input channels, the first kernel is
            adapted, see `pretrained.load`.
        source: str, path or mapping. Path of one of their files (`F0_haiku.npz`:
            despite its extension a pickle, which is read without executing anything),
            or the parameters in memory, as Haiku has them:
            `{module: {parameter: array}}` with modules such as
            `"NFNet/~/nf_block_1/~/conv0"`, or flat, `{"module/parameter": array}`.

    Raises:
        ValueError: `source` is no such file or mapping, or its parameters do not match
            the model: missing, left over or of other shapes. The model is then
            unchanged.

    Example:

    >>> network = keras_nfnets.NFNetTiny()
    >>> try:
    ...     load_deepmind(network, {"NFNet/~/linear": {"b": np.zeros(10)}})
    ... except ValueError as error:
    ...     print(str(error).partition(";")[0])
    The weights in the mapping are those of another network

    Reference: nfnet.py, nf_resnet.py and nf_regnet.py of the authors' code.
    """
    name = "the mapping" if isinstance(source, Mapping) else str(source)
    parameters = source if isinstance(source, Mapping) else read(existing_file(source))
    assign(*match(model, parameters), name)


def read(path):
    """Read one of the authors' files, as `{module: {parameter: array}}`."""
    from keras_nfnets.pretrained.pickles import read_pickle

    return read_pickle(path)


def match(model, parameters):
    """Return the model's variables, and the parameters under the same names."""
    blocks = [layer.name for layer in model.layers if isinstance(layer, NFBlock)]
    arrays, given = {}, collections.defaultdict(list)
    for name, array in _flatten(parameters):
        ours = _our_name(name, blocks)
        arrays[ours] = array
        given[ours].append(name)
    repeated = sorted(
        name for names in given.values() if len(names) > 1 for name in names
    )
    if repeated:
        raise ValueError(
            "Some parameters are given twice, under equivalent names. "
            f"Received: {', '.join(repeated)}"
        )
    variables = variables_by_name(model)
    return variables, with_input_channels(variables, arrays)


def _flatten(source):
    """Return `[("module/parameter", array)]` for a nested or flat mapping."""
    items = []
    for name, value in source.items():
        if isinstance(value, Mapping):
            items += [(f"{name}/{leaf}", array) for leaf, array in value.items()]
        else:
            items.append((str(name), value))
    return items


def _our_name(name, blocks):
    """Translate `"NFNet/~/nf_block_1/~/conv0/w"` to `"stage1_block2/conv0/kernel"`.

    Unknown names are returned unchanged.
    """
    if "/~/" not in name:
        return name
    _, *modules, last = name.split("/~/")
    layer, _, parameter = last.rpartition("/")
    prefix = []
    block = re.fullmatch(r"nf_(?:res_)?block(?:_(\d+))?", (modules or [layer])[0])
    if block:
        index = int(block[1] or 0)
        if index >= len(blocks):
            return name
        prefix = [blocks[index]]
        modules, layer = (modules[1:], layer) if modules else ([], "")
    layer = "/".join([*modules, layer])
    layers = [*prefix, _LAYERS.get(layer, layer)]
    return "/".join([*filter(None, layers), _PARAMETERS.get(parameter, parameter)])
