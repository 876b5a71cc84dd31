"""Text for a terminal."""

import re
import urllib.parse


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


# Parameters of URLs that let whoever knows them read a file.
_SECRET = (
    r"(?i)([?&;][\w.%-]*(?:auth|credential|key|passw|pwd|secret|sig|token)[\w.%-]*=)"
)


def without_secrets(text, url=""):
    """Return a text with `***` in place of passwords and tokens in URLs.

    Args:
        text: object. Its `str` is used.
        url: str. URL whose password is replaced wherever it is, as libraries repeat parts
            of URLs in their messages.

    Returns:
        str.

    Example:

    >>> without_secrets("https://me:pw@host/file?token=1&part=2")
    'https://***@host/file?token=***&part=2'
    """
    text = str(text)
    for secret in _secrets(str(url)):
        text = text.replace(secret, "***")
    # (Messages of libraries quote hosts without the beginning of the URL.)
    text = re.sub(r"(?<=://)[^/\s?#'\"<>]*@|(?<=['\"])[^/\s'\"<>]*@", "***@", text)
    return re.sub(_SECRET + r"[^&;\s#'\"<>]*", r"\1***", text)


def _secrets(url):
    """List the passwords and tokens in a URL, as they are and decoded, longest first."""
    parts = urllib.parse.urlsplit(url)
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    found = [password or user, *re.findall(_SECRET + "([^&;#]*)", "?" + parts.query)]
    found = [value[1] if isinstance(value, tuple) else value for value in found]
    found += [urllib.parse.unquote(value) for value in found]
    # (Shorter ones would be found within words.)
    return sorted({value for value in found if len(value) > 2}, key=len, reverse=True)
