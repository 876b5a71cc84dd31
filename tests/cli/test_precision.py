"""Half precision reaches the accuracy of float32 on the digits."""

import csv

import pytest

from keras_nfnets.cli.main import main


def accuracy(folder, precision, size):
    settings = [f"--precision={precision}", f"--image_size={size}"]
    arguments = [*settings, "--epochs=5", f"--output_dir={folder}"]
    assert main(["train", *arguments]) == 0
    with open(folder / "history.csv", newline="") as file:
        return float(list(csv.DictReader(file))[-1]["val_accuracy"])


# Half precision is slow on CPUs.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "size"), [("mixed_bfloat16", 32), ("mixed_float16", 8)]
)
def test_half_precision_learns_as_much(precision, size, tmp_path):
    full = accuracy(tmp_path / "full", "float32", size)
    half = accuracy(tmp_path / "half", precision, size)
    assert full > 0.9
    assert half >= full - 0.01
