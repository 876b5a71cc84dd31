"""Argument checks with errors that say what was expected and what was received."""

import difflib
import importlib
import math
import numbers
import operator
import os
import re

import numpy as np


def integer(name, value, minimum=1):
    """Return `value` as an int of at least `minimum`.

    NumPy integers are accepted, bools are not.
    """
    try:
        result = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        result = None
    if result is None or result < minimum:
        raise ValueError(
            f"`{name}` must be an integer of at least {minimum}. "
            f"Received: {name}={value!r}"
        )
    return result


def number(name, value, minimum=0.0, below=math.inf, exclusive=False):
    """Return `value` as a finite float in [minimum, below).

    With `exclusive` the interval is (minimum, below). NumPy numbers are accepted; bools,
    arrays and tensors are not.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    result = float(value) if is_number else math.nan
    enough = result > minimum if exclusive else result >= minimum
    if not (enough and result < below and math.isfinite(result)):
        least = f", more than {minimum:g}" if exclusive else f", at least {minimum:g}"
        least = "" if minimum == -math.inf else least
        most = "" if below == math.inf else f" and less than {below:g}"
        raise ValueError(
            f"`{name}` must be a finite number{least}{most}. Received: {name}={value!r}"
        )
    return result


def from_environment(variable, default):
    """Return the number of an environment variable, or `default` if it is not set.

    Args:
        variable: str. Name of the variable.
        default: number.

    Returns:
        float, or `default`.

    Raises:
        ValueError: the variable is not a finite number of at least one.
    """
    text = os.environ.get(variable)
    if not text:
        return default
    try:
        return number(variable, float(text), minimum=1)
    except ValueError:
        raise ValueError(
            f"The environment variable {variable} must be a number of at least 1. "
            f"Received: {variable}={text!r}"
        ) from None


def flag(name, value):
    """Return `value`, which must be a bool (also of NumPy), as a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"`{name}` must be True or False. Received: {name}={value!r}")
    return bool(value)


def text(name, value):
    """Check that an argument is text, which files can hold, and return it.

    Raises:
        ValueError: it is not a `str`, empty, or has surrogates, which are no characters.
    """
    if not isinstance(value, str) or not value or not _is_encodable(value):
        raise ValueError(
            f"`{name}` must be text, of at least one character. Received: {name}={value!r}"
        )
    return value


def _is_encodable(value):
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def one_of(name, value, choices):
    """Return `value`, which must be one of `choices`."""
    # An array would be compared element by element.
    if not (value is None or isinstance(value, (str, int))) or value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, choices))}. "
            f"Received: {name}={value!r}"
        )
    return value


def perhaps(value, known):
    """Suggest `known` names for a mistyped one: `"; perhaps a or b?"`, or `""`.

    A name that differs only in case or punctuation is the single suggestion. Otherwise
    these are the names that begin with `value`, or else the names similar to it.
    """

    def plain(name):
        return re.sub(r"[\W_]", "", str(name)).lower()

    def likeness(name):
        return difflib.SequenceMatcher(None, str(value), name).ratio()

    wanted = plain(value)
    # Of names that differ only in case or punctuation, the most similar comes last.
    names = {plain(name): name for name in sorted(known, key=likeness)}
    if wanted in names:
        close = [names[wanted]]
    else:
        begin = [name for name in known if wanted and plain(name).startswith(wanted)]
        alike = difflib.get_close_matches(wanted, names, cutoff=0.5)
        close = begin[:3] or [names[name] for name in alike]
    return f"; perhaps {' or '.join(close)}?" if close else ""


# Packages whose names differ from those of their modules.
_PACKAGES = {
    "PIL": "pillow",
    "fontTools": "fonttools",
    "keras_hub": "keras-hub",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
}


def installed(what, module, package=None):
    """Import a module that not every installation has.

    Args:
        what: str. What needs it, for the message.
        module: str.
        package: str. What to install; by default the package of the module.

    Raises:
        ModuleNotFoundError: it is missing.
        ImportError: the import fails, such as for a package that another is too old for.
    """
    try:
        importlib.import_module(module)
    except Exception as error:  # of the types that its code raises
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            message = not_installed(what, module, package)
            raise ModuleNotFoundError(message, name=module) from error
        raise ImportError(
            f"{what} needs the package {_PACKAGES.get(module, module)!r}, and its import "
            f"fails. Install it anew, in a version for this Python. Received: {error!r}"
        ) from error


def not_installed(what, module, package=None):
    """Return the message that `what` needs a module that is missing; see `installed`."""
    name = _PACKAGES.get(module, module)
    return (
        f"{what} needs the package {name!r}, which is not installed: "
        f"pip install {package or name}"
    )


def data_format(value):
    """Return `value`, a data format of Keras; for None, Keras's setting."""
    if value is None:
        import keras  # here, as the command checks its flags without Keras

        return keras.config.image_data_format()
    return one_of("data_format", value, ("channels_last", "channels_first"))
