"""The report holds whatever the names of classes, images and folders are."""

import html.parser
import pathlib
import re
import types

import numpy as np
import pytest

from keras_nfnets import data, runs
from keras_nfnets.runs import figures, html_report
from keras_nfnets.runs.evaluation import Results

NAMES = [
    "a" * 200,
    "b " * 100,
    "c\x1b[31m\u202e\x00\x9b",
    "<script>alert('d')</script>",
    "\"e'&amp;",
    "f\udce9",
    "g\nh",
]


def page(names=NAMES):
    """Return the report of a run whose classes have these names."""
    count = 3 * len(names)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (count, 8, 8, 3), "uint8")
    y = np.arange(count) % len(names)
    source = data.find({"train": (x, y), "test": (x, y)})
    source.class_names = list(names)
    source.left_out = {name: f"no image {name}" for name in names}
    recipe = types.SimpleNamespace(
        patience=0, train_split="train", test_split="test", data=names[0], about=""
    )
    run = types.SimpleNamespace(
        title=f"NFNetTiny on {' '.join(names)}",
        recipe=recipe,
        source=source,
        history={"loss": [1.0], "accuracy": [0.5]},
        epochs=1,
        best_epoch=None,
        folder=pathlib.Path("runs", *names[2:]),
    )
    probabilities = rng.dirichlet(np.ones(len(names)), count)
    return html_report.page(run, Results(np.arange(count), y, probabilities))


class Parser(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attributes)

    def handle_data(self, text):
        self.text += text


def test_names_are_text_of_the_report_and_nothing_else():
    parser, plain = Parser(), Parser()
    text = page()
    parser.feed(text)
    plain.feed(page(["a", "b", "c", "d", "e", "f", "g"]))
    assert parser.tags == plain.tags and "script" not in parser.tags
    assert parser.attributes == plain.attributes
    assert not re.search(
        "[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text
    )
    for shown in (
        r"c\x1b[31m\u202e\x00\x9b",
        "<script>alert('d')",
        r"f\udce9",
        r"g\nh",
    ):
        assert shown in parser.text


def test_long_names_are_cut_or_wrapped():
    style = html_report._STYLE
    assert re.search(r"td, p, li {[^}]*overflow-wrap: anywhere", style)
    assert re.search(r"\.side, \.up span {[^}]*text-overflow: ellipsis", style)
    # What is cut is shown in full by its title.
    assert page().count(f'title="{"a" * 200}"') >= 2


@pytest.mark.parametrize("name", ["x\x1b[31m", "none\n\nkeras-nfnets: all is well"])
def test_errors_do_not_obey_the_names_of_files(name, tmp_path):
    path = tmp_path / f"{name}.keras"
    path.write_bytes(b"no model")
    with pytest.raises(ValueError) as error:
        runs.load_classifier(path)
    assert name not in str(error.value).partition(" cannot be used")[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a" * 20, "a" * 20), ("a" * 10 + "b" * 190, "a" * 10 + "..." + "b" * 7)],
)
def test_captions_have_short_names(name, expected):
    assert figures.shortened(name, 20) == expected
    hidden = figures.shortened("\x1b" * 200, 20)
    assert len(hidden) == 20 and hidden.isprintable()
