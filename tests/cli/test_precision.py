"""Half precision learns the digits as float32 does."""

import csv

import pytest

from keras_nfnets.cli.main import main


def accuracy(folder, precision, size, epochs):
    settings = [f"--precision={precision}", f"--image_size={size}"]
    arguments = [*settings, f"--epochs={epochs}", f"--output_dir={folder}"]
    assert main(["train", *arguments]) == 0
    with open(folder / "history.csv", newline="") as file:
        return float(list(csv.DictReader(file))[-1]["val_accuracy"])


@pytest.mark.parametrize(
    ("precision", "size", "epochs", "learned", "difference"),
    [
        ("mixed_bfloat16", 8, 2, 0.8, 0.05),
        # Minutes, as half precision is slow on CPUs.
        pytest.param("mixed_bfloat16", 32, 5, 0.95, 0.01, marks=pytest.mark.slow),
        pytest.param("mixed_float16", 8, 5, 0.95, 0.01, marks=pytest.mark.slow),
    ],
)
def test_half_precision_learns_as_much(
    precision, size, epochs, learned, difference, tmp_path
):
    full = accuracy(tmp_path / "full", "float32", size, epochs)
    half = accuracy(tmp_path / "half", precision, size, epochs)
    assert full > learned
    assert abs(half - full) <= difference
