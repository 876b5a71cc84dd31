"""Half precision learns the digits as float32 does."""

import csv

import pytest

from keras_nfnets.cli.main import main


def accuracy(folder, precision, size):
    arguments = [f"--precision={precision}", f"--image_size={size}", "--epochs=5"]
    assert main(["train", *arguments, f"--output_dir={folder}"]) == 0
    with open(folder / "history.csv", newline="") as file:
        return float(list(csv.DictReader(file))[-1]["val_accuracy"])


@pytest.mark.parametrize(
    "precision, size",
    [
        ("mixed_bfloat16", 32),
        # Minutes, for want of float16 on CPUs.
        pytest.param("mixed_float16", 8, marks=pytest.mark.slow),
    ],
)
def test_half_precision_learns_as_much(precision, size, tmp_path):
    full = accuracy(tmp_path / "full", "float32", size)
    half = accuracy(tmp_path / "half", precision, size)
    assert full > 0.95
    assert abs(half - full) <= 0.01
