import pytest

from keras_nfnets.printing import printable


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Straße 7, 東京.png", "Straße 7, 東京.png"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\u2066a\u2069", r"\u2066a\u2069"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\x9b2J\x07\x7f", r"\x9b2J\x07\x7f"),
        # A byte of a file name that is not valid UTF-8.
        (b"caf\xe9".decode(errors="surrogateescape"), r"caf\udce9"),
    ],
)
def test_nothing_that_a_terminal_would_obey_is_left(text, expected):
    assert printable(text) == expected


def test_line_feeds_of_a_message_are_kept():
    assert printable("one\ntwo\x1b", keep="\n") == "one\ntwo\\x1b"
