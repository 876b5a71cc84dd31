"""Text for a terminal."""


def printable(text, keep=""):
    r"""Return a text with escapes for the characters that are not printable.

    Names of files, classes and models may hold escape sequences, which a terminal would
    obey, controls of the writing direction, which reorder a line, or bytes that are no
    valid text.

    Args:
        text: object. Its `str` is used.
        keep: str. Other characters to keep, such as a line feed.

    Returns:
        str.

    Example:

    >>> print(printable("a\x1b[31mb\u202e.png"))
    a\x1b[31mb\u202e.png
    """
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape").decode()
        for character in str(text)
    )
