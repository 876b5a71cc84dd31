"""Checks of the metadata in model files of unknown origin."""

from keras_nfnets import checks
from keras_nfnets.data.preparation import checked_preparation

_LONGEST_NAME = 1000  # characters


def checked(metadata):
    """Return those metadata of a model that are known, after checking them.

    Nothing that a file says starts a download or takes memory beyond that of its model.

    Args:
        metadata: what a JSON file contains.

    Returns:
        A dict with `"preparation"`, `"class_names"`, and those of `"data"`, `"images"`,
        `"split"` and `"label_smoothing"` that are there.

    Raises:
        ValueError: something is missing, or is not what `train` writes.

    Example:

    >>> checked({"preparation": {"size": 32}, "class_names": ["a", "b"], "page": 1})
    {'preparation': {'size': 32}, 'class_names': ['a', 'b']}
    """
    if not isinstance(metadata, dict):
        raise ValueError(f"it must be an object. Received: {type(metadata).__name__}")
    missing = {"preparation", "class_names"} - metadata.keys()
    if missing:
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    result = {
        "preparation": checked_preparation(metadata["preparation"]),
        "class_names": _class_names(metadata["class_names"]),
    }
    for name in ("data", "images", "split"):
        if metadata.get(name) is not None:
            result[name] = _text(name, metadata[name])
    if metadata.get("label_smoothing") is not None:
        result["label_smoothing"] = checks.number(
            "label_smoothing", metadata["label_smoothing"], below=1
        )
    return result


def _class_names(names):
    if not isinstance(names, list):
        raise ValueError(
            f"`class_names` must be a list. Received: {type(names).__name__}"
        )
    return [_text("class_names", name) for name in names]


def _text(name, value):
    if not isinstance(value, str):
        raise ValueError(f"`{name}` must be text. Received: {type(value).__name__}")
    if len(value) > _LONGEST_NAME:
        raise ValueError(
            f"`{name}` must have at most {_LONGEST_NAME:,} characters. "
            f"Received: {len(value):,} characters, {value[:40]!r}..."
        )
    return value
