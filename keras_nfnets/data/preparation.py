"""Preprocessing as a dict of the keyword arguments of `prepare`.

Sources, checkpoints, recipes and callers each decide on some of them.
"""

from keras_nfnets.data.preprocessing import IMAGENET, TIMM_CROP_MODES

_KEYS = (
    "size",
    "channels",
    "crop_mode",
    "crop",
    "interpolation",
    "mean",
    "deviation",
)
# What `prepare` does where a key is missing.
DEFAULTS = {"crop": 1.0, "channels": 3}

# For photographs, as the authors do.
AUTHORS = {"crop_mode": "crop_resize", "interpolation": "bicubic", **IMAGENET}
# For images that are small or of the right size, and have no margins.
WHOLE = {**AUTHORS, "crop_mode": "whole"}
# For a user's own images, which may be much larger than the network's input.
_ANTIALIASED = {"interpolation": "antialiased_bicubic"}
FOLDER = {**AUTHORS, **_ANTIALIASED}
ARRAYS = {**WHOLE, **_ANTIALIASED}
DIGITS = {
    "crop_mode": "whole",
    "interpolation": "bilinear",
    "mean": None,
    "deviation": None,
}
# For a model whose training is unknown, as timm does by default.
TIMM = {
    "size": 224,
    "crop": 0.875,
    "crop_mode": "center",
    "interpolation": "bicubic",
    **IMAGENET,
}


def combined(source, size, changes=None):
    """Return the preprocessing of a source's images, with some entries replaced.

    Args:
        source: `Source`.
        size: int. Side length of the results, in pixels, whatever `changes` says.
        changes: dict or None. Entries that replace those of the source, for example
            those of a checkpoint.

    Returns:
        A dict with all keys, but `crop` only for the crop modes that need it, or where
        it was given.

    Raises:
        ValueError: `changes` has a key that `prepare` does not know, or `crop` is missing.
    """
    changes = changes or {}
    if unknown := [key for key in changes if key not in _KEYS]:
        raise ValueError(
            f"`preparation` must have no keys but {', '.join(_KEYS)}. "
            f"Received: {', '.join(map(repr, unknown))} in preparation={changes}"
        )
    values = {**source.preparation, **changes, "size": size}
    values.setdefault("channels", source.channels)
    if values["crop_mode"] in TIMM_CROP_MODES and values.get("crop") is None:
        raise ValueError(
            f"crop_mode={values['crop_mode']!r} needs `crop` in `preparation`, the "
            "fraction of the resized image's side that is used. "
            f"Received: preparation={values}"
        )
    return values


def completed(preparation):
    """Return keyword arguments of `prepare` with its defaults for missing keys."""
    return {**DEFAULTS, **preparation}
