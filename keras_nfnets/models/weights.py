"""Weights into a network: all of them or none, with an account of what does not fit."""

import io
import os
import pathlib
import zipfile

import h5py
import ml_dtypes
import numpy as np


def load_weights(model, path):
    """Loads a `.weights.h5` or `.keras` file of the same network.

    Every weight of the model must be in the file once, and nothing else may be (but
    the classifier, where the model has none). Until that is certain nothing in the
    model is changed; nothing in the file is executed.

    Args:
        model: a network of this package, or another functional model whose layers
            have names.
        path: of a file that `model.save_weights` or `model.save` wrote.

    Raises:
        ValueError: there is no such file, it is cut short or of another kind, or it
            belongs to another network; the message lists what differs.
    """
    given = path
    try:
        path = pathlib.Path(given).expanduser()
    except TypeError:
        path = None
    if path is None or not path.is_file():
        raise ValueError(
            "`weights` must be None or the path of a .weights.h5 or .keras file. "
            f"Received: weights={str(given)!r}, where there is no file"
        )
    arrays = _read_file(path)
    variables = named_variables(model)
    if "predictions" not in [layer.name for layer in model.layers]:
        arrays = {k: a for k, a in arrays.items() if not k.startswith("predictions/")}
    assign(variables, arrays, source=str(path))


def named_variables(model):
    """`{"layer/.../layer/index": variable}` of a functional model's weights.

    The index is the place at which the layer saves the variable.
    """
    found = {}

    def visit(layer, prefix):
        own = {}
        layer.save_own_variables(own)
        found.update({f"{prefix}/{index}": v for index, v in own.items()})
        for child in layer._flatten_layers(include_self=False, recursive=False):
            visit(child, f"{prefix}/{child.name}")

    for layer in model.layers:
        visit(layer, layer.name)
    return found


def assign(variables, arrays, source):
    """Sets each of `variables` to the array of the same key, or nothing at all.

    Args:
        variables: `{key: keras.Variable}`.
        arrays: `{key: array}`, of real numbers.
        source: what to call the arrays in an error.

    Raises:
        ValueError: keys missing or left over, shapes that differ, or values that are
            no real numbers or too large for the variable.
    """
    problems = [
        f"{variables[key].path} of shape {tuple(variables[key].shape)} is missing"
        for key in variables.keys() - arrays.keys()
    ]
    problems += [
        f"{key} has no place in the network" for key in arrays.keys() - variables.keys()
    ]
    values = {}
    for key in variables.keys() & arrays.keys():
        try:
            values[key] = _value_for(variables[key], arrays[key])
        except ValueError as error:
            problems.append(f"{variables[key].path} {error}")
    if problems:
        shown = "\n  ".join(sorted(problems)[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError(
            f"The weights in {source} are of another network; nothing was changed. "
            f"Of {len(variables)} parameters these do not fit, or are not there:\n"
            f"  {shown}{more}"
        )
    for key, variable in variables.items():
        variable.assign(values[key])


def _value_for(variable, array):
    """The array as the variable's dtype, or a ValueError that says what is wrong."""
    try:
        array = np.asarray(array)
    except Exception as error:  # of whatever type the thing is
        raise ValueError(f"is no array here: {error}") from error
    # Kind "V" is that of bfloat16 and its like.
    is_small_float = array.dtype.kind == "V" and array.dtype.names is None
    if array.dtype.kind not in "fiu" and not (
        is_small_float and array.dtype.isbuiltin == 2
    ):
        raise ValueError(f"is of dtype {array.dtype} here, not of real numbers")
    if tuple(variable.shape) != array.shape:
        raise ValueError(
            f"has shape {tuple(variable.shape)} in the network, {array.shape} here"
        )
    with np.errstate(over="ignore"):
        value = array.astype(variable.dtype, copy=False)
    if (np.isinf(value) & ~np.isinf(array)).any():
        raise ValueError(f"has numbers here that are too large for {variable.dtype}")
    return value


def _read_file(path):
    """The arrays of a Keras weight file, under the keys of `named_variables`."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                content = io.BytesIO(archive.read("model.weights.h5"))
        else:
            content = os.fspath(path)
        with h5py.File(content, "r") as file:
            return _read_layers(file["layers"])
    # A broken file shows by whatever the libraries stumbled over: OSError, KeyError,
    # RuntimeError, zlib.error, ...
    except Exception as error:
        raise ValueError(
            f"{path} is not a whole .weights.h5 or .keras file; nothing was changed. "
            f"Reading it failed with: {error}"
        ) from error


def _read_layers(group):
    arrays = {}

    def visit(group, prefix):
        own = group.get("vars")
        # Keras writes the layer's own name beside the variables.
        if own is not None and "name" in own.attrs:
            prefix = [*prefix, own.attrs["name"]]
        for name, item in group.items():
            if name == "vars":
                for index, dataset in item.items():
                    array = dataset[()]
                    # HDF5 knows no bfloat16: Keras leaves a note beside the bytes.
                    if dataset.attrs.get("dtype") == "bfloat16":
                        array = array.view(ml_dtypes.bfloat16)
                    arrays["/".join([*prefix, index])] = array
            # The state of random number generators is no weight.
            elif name != "seed_generator":
                visit(item, prefix)

    visit(group, [])
    return arrays
