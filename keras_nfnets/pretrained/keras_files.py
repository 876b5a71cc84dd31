"""Reader of Keras weight files, which executes nothing in them.

Variables are matched by the names of layers. The loader of Keras matches them by order,
assigns weights one by one and ignores those that are left over.
"""

import ml_dtypes

from keras_nfnets.backend.keras_internals import WeightFile
from keras_nfnets.guards import model_files
from keras_nfnets.pretrained.assign import named_variables, with_input_channels


def match(model, arrays):
    """Return the model's variables, and the arrays, under the same keys."""
    variables = named_variables(model)
    return variables, with_input_channels(variables, arrays)


def read(path):
    """Read the arrays of a Keras weight file, under the keys of `named_variables`."""
    try:
        with model_files.weights(path) as file:
            return _read_layers(file)
    # For a broken file, the libraries raise errors of many types: OSError, KeyError,
    # RuntimeError, zlib.error, ...
    except Exception as error:
        raise ValueError(
            f"{path} is not a complete .weights.h5 or .keras file; nothing was changed. "
            f"Save or download it again. Received: {model_files.reason(error)}"
        ) from error


def _read_layers(file):
    arrays = {}

    def visit(group, prefix):
        variables = group.get(WeightFile.VARIABLES)
        if variables is not None and WeightFile.LAYER_NAME in variables.attrs:
            prefix = [*prefix, _text(variables.attrs[WeightFile.LAYER_NAME])]
        for index in variables or ():
            key = "/".join([*prefix, index])
            if key in arrays:
                raise ValueError(f"{key} twice")
            arrays[key] = array_of(variables[index])
        for name in group:
            if name != WeightFile.VARIABLES:
                inner = prefix if name != "seed_generator" else [*prefix, name]
                visit(group[name], inner)

    def array_of(dataset):
        array = dataset[()]
        if dataset.attrs.get(WeightFile.DTYPE) == "bfloat16":
            array = array.view(ml_dtypes.bfloat16)
        return array

    visit(file[WeightFile.LAYERS], [])
    return {key: a for key, a in arrays.items() if not _is_random_state(key, a)}


def _text(name):
    if not (isinstance(name, str) and name.isprintable()):
        raise ValueError(f"a layer name that is not printable text: {name!a:.100}")
    return name


def _is_random_state(key, array):
    """Whether an array is the state of a `keras.random.SeedGenerator`, not a weight.

    Keras 3.15 does not save it.
    """
    parts = key.split("/")
    return (
        "seed_generator" in parts and array.shape == (2,) and array.dtype.kind in "iu"
    )
