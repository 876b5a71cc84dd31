"""Preprocessing as a dict of the keyword arguments of `prepare`.

Sources, checkpoints, recipes and callers each decide on some of them.
"""

import numpy as np

from keras_nfnets import checks
from keras_nfnets.data.preprocessing import (
    IMAGENET,
    INTERPOLATIONS,
    TIMM_CROP_MODES,
    check_crop_mode,
    crop_margin,
)

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
            f"The keys of `preparation` must be among {', '.join(_KEYS)}. "
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


# Bounds of what a file may ask for, in pixels and in multiples of the largest value.
_LARGEST_SIDE = 4096
_LARGEST_STATISTIC = 1e4
_SMALLEST_DEVIATION = 1e-6


def checked_preparation(preparation):
    """Return keyword arguments of `prepare` that came from elsewhere, after checking them.

    Images prepared in this way are finite, and neither they nor what is computed for them
    has more than 4,096 pixels per side.

    Args:
        preparation: dict.

    Returns:
        The same dict.

    Raises:
        ValueError: it has an unknown key or a value that is out of range.

    Example:

    >>> checked_preparation({"size": 32, "crop": 0.9})
    {'size': 32, 'crop': 0.9}
    """
    if not isinstance(preparation, dict):
        raise ValueError(
            f"`preparation` must be a dict. Received: {type(preparation).__name__}"
        )
    if unknown := [key for key in preparation if key not in _KEYS]:
        raise ValueError(
            f"The keys of `preparation` must be among {', '.join(_KEYS)}. "
            f"Received: {str(unknown)[:200]}"
        )
    side = checks.integer("size", preparation.get("size"))
    mode = preparation.get("crop_mode", "whole")
    if isinstance(mode, str) and mode in TIMM_CROP_MODES:
        crop = preparation.get("crop", DEFAULTS["crop"])
        # (A larger number than 1 would need pixels beyond the border.)
        side /= min(checks.number("crop", crop, below=1 + 1e-9, exclusive=True), 1)
    else:
        check_crop_mode(mode)
        side += crop_margin(mode)
    if side > _LARGEST_SIDE:
        raise ValueError(
            f"`size`, with what `crop` or `crop_mode` cuts off, must be at most "
            f"{_LARGEST_SIDE:,} pixels. Received: {side:,.0f}"
        )
    if "interpolation" in preparation:
        known = (*INTERPOLATIONS, *(["nearest"] if mode in TIMM_CROP_MODES else []))
        checks.one_of("interpolation", preparation["interpolation"], known)
    if preparation.get("channels", 3) not in (1, 3):
        raise ValueError(
            f"`channels` must be 1 or 3. Received: {str(preparation['channels'])[:99]}"
        )
    _check_statistics(preparation, "mean", -_LARGEST_STATISTIC)
    _check_statistics(preparation, "deviation", _SMALLEST_DEVIATION)
    if (preparation.get("mean") is None) != (preparation.get("deviation") is None):
        given = {name: preparation.get(name) for name in ("mean", "deviation")}
        raise ValueError(
            "`mean` and `deviation` must both be given, or neither. "
            f"Received: {str(given)[:200]}"
        )
    return preparation


def _check_statistics(preparation, name, minimum):
    """Check that the `mean` or `deviation` is None or one number for each channel."""
    values = preparation.get(name)
    if values is None:
        return
    values = [values] if np.ndim(values) == 0 else values
    count = len(values) if isinstance(values, (list, tuple, np.ndarray)) else 0
    if count not in {1, preparation.get("channels", 3), 3}:
        raise ValueError(
            f"`{name}` must have one number for each channel. "
            f"Received: {name}={str(values)[:99]}"
        )
    for value in values:
        checks.number(name, value, minimum, _LARGEST_STATISTIC)


def completed(preparation):
    """Return keyword arguments of `prepare` with its defaults for missing keys."""
    return {**DEFAULTS, **preparation}
