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
    # Weights hardly shrink: what comes out a hundred times as large is a bomb.
    limit = 100 * path.stat().st_size
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                _refuse_more(archive.getinfo("model.weights.h5").file_size, limit)
                content = io.BytesIO(archive.read("model.weights.h5"))
        else:
            content = os.fspath(path)
        with h5py.File(content, "r") as file:
            return _read_layers(file, limit)
    # A broken file shows by whatever the libraries stumbled over: OSError, KeyError,
    # RuntimeError, zlib.error, ...
    except Exception as error:
        raise ValueError(
            f"{path} is not a whole .weights.h5 or .keras file; nothing was changed. "
            f"Reading it failed with: {error}"
        ) from error


def _refuse_more(size, limit):
    if size > limit:
        raise ValueError(f"{size:,} bytes come out of a file that holds far fewer")


def _read_layers(file, limit):
    arrays, seen, total = {}, set(), 0

    def item_of(group, name):
        # No links: they may lead to other files, or round in circles.
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{group.name}/{name} is a link to something else")
        item = group[name]
        at = h5py.h5o.get_info(item.id).addr
        if at in seen:
            raise ValueError(f"{item.name} is there under two names")
        seen.add(at)
        return item

    def visit(group, prefix):
        own = item_of(group, "vars") if "vars" in group else None
        # Keras writes the layer's own name beside the variables.
        if own is not None and "name" in own.attrs:
            prefix = [*prefix, own.attrs["name"]]
        for index in own or ():
            arrays["/".join([*prefix, index])] = array_of(item_of(own, index))
        for name in group:
            # The state of random number generators is no weight.
            if name not in ("vars", "seed_generator"):
                visit(item_of(group, name), prefix)

    def array_of(dataset):
        nonlocal total
        if dataset.is_virtual or dataset.external:
            raise ValueError(f"{dataset.name} is kept in another file")
        total += dataset.nbytes
        _refuse_more(total, limit)
        array = dataset[()]
        # HDF5 knows no bfloat16: Keras leaves a note beside the bytes.
        if dataset.attrs.get("dtype") == "bfloat16":
            array = array.view(ml_dtypes.bfloat16)
        return array

    visit(item_of(file, "layers"), [])
    return arrays
