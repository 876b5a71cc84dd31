"""Weight files of Keras, read as data: nothing in them is executed.

They are read by layer names. Keras's own loader goes by order, sets weights one by one
and does not mind what is left over.
"""

import io
import os
import zipfile

import h5py
import ml_dtypes

from keras_nfnets.pretrained.assign import named_variables


def match(model, arrays):
    """The model's variables and the arrays under the same keys."""
    return named_variables(model), arrays


def read(path):
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
