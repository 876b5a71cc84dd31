"""Limits of the content of a file, relative to its size."""

# Content of this size is read from a file of any size.
_HARMLESS = 64 * 2**20

# Weights hardly compress; those that are rounded or partly zero, by a factor below ten.
_RATIO = 20

# The largest published network, NFNet-F7+, has 2 GB of weights. A file that is not
# compressed has no limit but its own size.
_GAIN = 2 * 2**30


def most_content(size):
    """Return how many bytes the content of a file may have when it is decompressed.

    Args:
        size: int. Bytes of the file.
    """
    return max(_HARMLESS, min(_RATIO * size, size + _GAIN))


class TooMuchContent(ValueError):
    """Error for a file, maybe complete, with more content than its size allows."""


def check_content(content, limit):
    """Raise a `TooMuchContent` if the content has more bytes than `most_content` allows."""
    if content > limit:
        raise TooMuchContent(
            f"content of {content:,} bytes, far more than the size of the file allows "
            f"({limit:,}). If that is right, save it without compression"
        )
