"""Weights into a network: all of them or none, with an account of what does not fit."""

import io
import os
import pathlib
import zipfile

import h5py
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
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(
            "`weights` must be None or the path of a .weights.h5 or .keras file. "
            f"Received: weights={str(path)!r}, where there is no file"
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
        arrays: `{key: array}`.
        source: what to call the arrays in an error.

    Raises:
        ValueError: keys missing or left over, or shapes that differ.
    """
    problems = [
        f"{variables[key].path} of shape {tuple(variables[key].shape)} is missing"
        for key in variables.keys() - arrays.keys()
    ]
    problems += [
        f"{key} of shape {np.shape(arrays[key])} has no place in the network"
        for key in arrays.keys() - variables.keys()
    ]
    for key in variables.keys() & arrays.keys():
        variable, array = variables[key], arrays[key]
        if tuple(variable.shape) != np.shape(array):
            problems.append(
                f"{variable.path} has shape {tuple(variable.shape)} in the network, "
                f"{np.shape(array)} here"
            )
    if problems:
        shown = "\n  ".join(sorted(problems)[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError(
            f"The weights in {source} are of another network; nothing was changed. "
            f"{len(problems)} of {len(variables)} parameters differ:\n  {shown}{more}"
        )
    for key, variable in variables.items():
        variable.assign(arrays[key])


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
                    arrays["/".join([*prefix, index])] = dataset[()]
            # The state of random number generators is no weight.
            elif name != "seed_generator":
                visit(item, prefix)

    visit(group, [])
    return arrays
