"""Half precision reaches the accuracy of float32 on the digits."""

import contextlib
import csv

import pytest
from one_block import networks_of_one_block

from keras_nfnets.cli.main import main


def accuracy(folder, precision, size, epochs):
    settings = [f"--precision={precision}", f"--image_size={size}"]
    arguments = [*settings, f"--epochs={epochs}", f"--output_dir={folder}"]
    assert main(["train", *arguments]) == 0
    with open(folder / "history.csv", newline="") as file:
        return float(list(csv.DictReader(file))[-1]["val_accuracy"])


@pytest.mark.parametrize(
    ("network", "precision", "size", "epochs", "difference"),
    [
        (networks_of_one_block, "mixed_bfloat16", 8, 2, 0.02),
        # These take minutes, as half precision is slow on CPUs.
        *(
            pytest.param(
                contextlib.nullcontext, *settings, 0.01, marks=pytest.mark.slow
            )
            for settings in (("mixed_bfloat16", 32, 5), ("mixed_float16", 8, 5))
        ),
    ],
)
def test_half_precision_learns_as_much(
    network, precision, size, epochs, difference, tmp_path
):
    with network():
        full = accuracy(tmp_path / "full", "float32", size, epochs)
        half = accuracy(tmp_path / "half", precision, size, epochs)
    assert full > 0.9
    assert half >= full - difference
