"""The authors' parameters into our networks."""

import collections
import re
from collections.abc import Mapping

from keras_nfnets.layers import NFBlock
from keras_nfnets.pretrained.assign import assign, existing_file, variables_by_name

# Their names of layers and parameters, where ours differ.
_LAYERS = {
    "initial_conv": "stem_conv",
    "linear": "predictions",
    "conv_shortcut": "shortcut_conv",
    "squeeze_excite/linear": "squeeze_excite/fc0",
    "squeeze_excite/linear_1": "squeeze_excite/fc1",
}
_PARAMETERS = {"w": "kernel", "b": "bias"}


def load_deepmind(model, source):
    """Loads the parameters of the authors' Haiku networks, all of them or none.

    Args:
        model: a network of this package, of the same shape. If it has no classifier
            (`include_top=False`), that of the source is left out; if it has one of
            another number of classes, it stays as it is, with a warning.
        source: path of one of their files (`F0_haiku.npz`: despite the ending a pickle,
            which is read without executing anything), or the parameters in memory as
            Haiku has them, `{module: {parameter: array}}` with modules such as
            `"NFNet/~/nf_block_1/~/conv0"`, or flat, `{"module/parameter": array}`.

    Raises:
        ValueError: `source` is no such file or mapping, or its parameters are not those of
            the model: missing, left over or of other shapes. The model is then as it
            was.

    Example:

    >>> network = keras_nfnets.NFNetTiny()
    >>> try:
    ...     load_deepmind(network, {"NFNet/~/linear": {"b": np.zeros(10)}})
    ... except ValueError as error:
    ...     print(str(error).splitlines()[0])
    The weights in the mapping are of another network; nothing was changed. Of 97 parameters these do not fit, or are not there:

    Reference: nfnet.py, nf_resnet.py and nf_regnet.py of the authors' code.
    """
    name = "the mapping" if isinstance(source, Mapping) else str(source)
    parameters = source if isinstance(source, Mapping) else read(existing_file(source))
    assign(*match(model, parameters), name)


def read(path):
    """The parameters in one of the authors' files, `{module: {parameter: array}}`."""
    from keras_nfnets.pretrained.pickles import read_pickle

    return read_pickle(path)


def match(model, parameters):
    """The model's variables and the parameters under the same keys."""
    blocks = [layer.name for layer in model.layers if isinstance(layer, NFBlock)]
    arrays, given = {}, collections.defaultdict(list)
    for name, array in _flatten(parameters):
        ours = _our_name(name, blocks)
        arrays[ours] = array
        given[ours].append(name)
    twice = sorted(name for names in given.values() if len(names) > 1 for name in names)
    if twice:
        raise ValueError(
            "Some parameters are given twice, under names that mean the same. "
            f"Received: {', '.join(twice)}"
        )
    return variables_by_name(model), arrays


def _flatten(source):
    """`[("module/parameter", array)]` of a mapping of either form."""
    items = []
    for name, value in source.items():
        if isinstance(value, Mapping):
            items += [(f"{name}/{leaf}", array) for leaf, array in value.items()]
        else:
            items.append((str(name), value))
    return items


def _our_name(name, blocks):
    """`"stage1_block2/conv0/kernel"` for `"NFNet/~/nf_block_1/~/conv0/w"`.

    A name that means nothing here comes back as it is.
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
