"""JSON from files of unknown origin."""

import json
import pathlib

# That of NFNet-F7 has 0.1 MB. Parsed, JSON takes up to 25 times its size.
MAX_BYTES = 16 * 2**20


def parse(content):
    """Parse JSON.

    Args:
        content: str or bytes (UTF-8).

    Raises:
        ValueError: it is longer than `MAX_BYTES`, no JSON, or nested too deep.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(
            f"JSON of {len(content):,} bytes, more than the limit of {MAX_BYTES:,}"
        )
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deep") from error


def read(path):
    """Read a JSON file, see `parse`.

    Raises:
        OSError, ValueError: it cannot be read, or as for `parse`.
    """
    with pathlib.Path(path).open("rb") as file:
        return parse(file.read(MAX_BYTES + 1))
