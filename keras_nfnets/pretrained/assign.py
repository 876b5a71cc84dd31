"""Assignment of arrays to a network: all or none, with a report of mismatches."""

import math
import pathlib
import warnings

import keras
import numpy as np

from keras_nfnets.backend import keras_internals
from keras_nfnets.printing import printable

# Keys of the classifier's variables: indices as in Keras files, and names.
_HEAD = {f"predictions/{variable}" for variable in (0, 1, "kernel", "bias")}
# Keys of the first convolution's kernel, likewise.
FIRST_KERNEL = {
    f"{layer}/{variable}"
    for layer in ("stem_conv", "stem_conv0")
    for variable in (0, "kernel")
}


def named_variables(model):
    """Return `{"layer/.../layer/index": variable}` of a functional model's weights.

    The index is the key under which the layer's `save_own_variables` stores the
    variable.
    """
    found = {}

    def visit(layer, prefix):
        own = {}
        layer.save_own_variables(own)
        found.update({f"{prefix}/{index}": v for index, v in own.items()})
        for child in keras_internals.layers_of(
            layer, include_self=False, recursive=False
        ):
            visit(child, f"{prefix}/{child.name}")

    for layer in model.layers:
        visit(layer, layer.name)
    return found


def existing_file(source):
    """Return `source` as the path of an existing file, or raise a ValueError."""
    try:
        path = pathlib.Path(source).expanduser()
        if path.is_file():
            return path
        received = f"{str(source)!r}, where there is no file"
    except TypeError:
        received = f"{type(source).__name__!r}"
    # Raised for "~nobody", for names that contain "\0" or are too long, and for files
    # in folders without access.
    except (RuntimeError, ValueError, OSError) as error:
        received = f"{str(source)[:200]!r}, where there is no file: {error}"
    raise ValueError(
        "Weights must be the path of a file, or in memory a mapping from names to "
        f"arrays. Received: {received}"
    )


def variables_by_name(model):
    """Return `{"layer/.../layer/variable": variable}` of a functional model's weights."""
    return {
        f"{key.rpartition('/')[0]}/{variable.name}": variable
        for key, variable in named_variables(model).items()
    }


def with_input_channels(variables, arrays):
    """Adapt the first kernel of an RGB network to the input channels of another network.

    Args:
        variables: dict `{key: keras.Variable}` of the network.
        arrays: dict `{key: array}` under the same keys.

    Returns:
        The arrays. If the network has other than three input channels and the kernel
        has three, it is adapted: for one channel its sum over the three; for n channels
        its three channels, repeated and multiplied by `3 / n`. Other arrays are
        returned unchanged; `assign` rejects those that do not fit.

    Reference: `adapt_input_conv` of timm 1.0, models/_manipulate.py.
    """
    adapted = {}
    for key in FIRST_KERNEL & variables.keys() & arrays.keys():
        height, width, channels, filters = variables[key].shape
        rgb = (height, width, 3, filters)
        if channels == 3 or getattr(arrays[key], "shape", None) != rgb:
            continue
        kernel = np.asarray(arrays[key])
        if not _holds_real_numbers(kernel):
            continue
        # In float32, as timm does: a file may have half precision.
        kernel = kernel.astype("float32")
        if channels == 1:
            adapted[key] = kernel.sum(axis=2, keepdims=True)
        else:
            repeated = np.tile(kernel, (1, 1, math.ceil(channels / 3), 1))
            adapted[key] = repeated[:, :, :channels] * np.float32(3 / channels)
    return {**arrays, **adapted}


def assign(variables, arrays, source, progress=iter):
    """Assign to each of `variables` the array of the same key, or change nothing.

    The classifier (the layer `"predictions"`) is skipped if the network has none. It is
    also skipped, with a warning, if the arrays have another number of classes.

    Args:
        variables: dict `{key: keras.Variable}`.
        arrays: dict `{key: array}`, of real numbers.
        source: str. Name of the arrays in errors and warnings.
        progress: callable that wraps the list of variables to assign, as `tqdm.tqdm`
            does.

    Raises:
        ValueError: keys are missing or left over, shapes differ, or values are not
            real numbers or too large for the variable.
    """
    variables, arrays, other_classes = _without_head(variables, arrays)
    problems = [
        f"{variables[key].path} of shape {tuple(variables[key].shape)} is missing"
        for key in variables.keys() - arrays.keys()
    ]
    problems += [
        f"{key:.200} is not in the network" for key in arrays.keys() - variables.keys()
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
            f"The weights in {source} are those of another network; nothing was changed. "
            f"Create the network that they belong to. Received, for {len(variables)} "
            f"parameters:\n  {shown}{more}"
        )
    for key, variable in progress(list(variables.items())):
        variable.assign(values[key])
    if other_classes:
        ours, theirs = other_classes
        warnings.warn(
            f"The classifier of {printable(source)} has {theirs} classes, that of the "
            f"network has {ours}, so it was not loaded. All other weights were loaded.",
            stacklevel=2,
        )


def _without_head(variables, arrays):
    """Remove the classifier from both dicts if it must not be assigned.

    Returns:
        The variables, the arrays, and the numbers of classes `(ours, theirs)` if they
        differ, else None.
    """
    head = {key: v for key, v in variables.items() if key in _HEAD}
    given = {key: a for key, a in arrays.items() if key in _HEAD}
    classes = None
    if head and head.keys() == given.keys():
        # Kernel (features, classes) and bias (classes,): only the last may differ.
        ours = [tuple(variable.shape) for variable in head.values()]
        theirs = [getattr(given[key], "shape", ()) for key in head]
        ends = {shape[-1:] for shape in theirs}
        same_features = [s[:-1] for s in ours] == [s[:-1] for s in theirs]
        if ours != theirs and same_features and len(ends) == 1 and ends != {(0,)}:
            [(count,)] = ends
            classes = (ours[0][-1], count)
    if head and not classes:
        return variables, arrays, None
    return (
        {key: v for key, v in variables.items() if key not in head},
        {key: a for key, a in arrays.items() if key not in given},
        classes,
    )


def _value_for(variable, array):
    """Convert an array to the dtype of a variable, or raise a ValueError."""
    try:
        array = np.asarray(array)
    except Exception as error:  # its type depends on that of the object
        raise ValueError(f"is not an array in the source: {error}") from error
    if not _holds_real_numbers(array):
        raise ValueError(f"has dtype {array.dtype} in the source, not of real numbers")
    if tuple(variable.shape) != array.shape:
        raise ValueError(
            f"has shape {tuple(variable.shape)} in the network, {array.shape} in the source"
        )
    with np.errstate(over="ignore"):
        value = array.astype(variable.dtype, copy=False)
    if not is_finite(value):
        raise ValueError(
            "has values in the source that are not finite, or too large for "
            f"{variable.dtype}"
        )
    return value


def is_finite(values):
    """Whether all values of a variable or an array of real numbers are finite."""
    # Small integers of `ml_dtypes` have no `isfinite`.
    if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(values.dtype)):
        return True
    return bool(np.isfinite(keras.ops.convert_to_numpy(values)).all())


def _holds_real_numbers(array):
    # NumPy's kind of bfloat16 and similar dtypes is "V".
    dtype = array.dtype
    is_small_float = dtype.kind == "V" and dtype.names is None and dtype.isbuiltin == 2
    return dtype.kind in "fiu" or is_small_float
