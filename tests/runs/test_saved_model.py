"""Model files: complete, or not there."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from comparing import assert_unchanged, snapshot
from full_disk import full_disk

from keras_nfnets.runs import saved_model

TESTS = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model():
    model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(100)])
    model.compile("adam", "mse", run_eagerly=True)
    model.train_on_batch(np.ones((1, 100)), np.ones((1, 100)))
    return model


def test_saved_weights_are_those_that_keras_saves(model, tmp_path):
    path = tmp_path / "m.weights.h5"
    saved_model.save_weights(model, path)
    again = keras.models.clone_model(model)
    again.compile("adam", "mse")
    again.optimizer.build(again.trainable_variables)
    again.load_weights(path)
    assert_unchanged(again, snapshot(model))
    for a, b in zip(again.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["m.weights.h5", "m.keras"])
def test_a_full_disk_leaves_the_old_file(name, model, tmp_path):
    path = tmp_path / name
    path.write_text("old")
    with pytest.raises(OSError, match=f"Not written: .*'{path}'"), full_disk():
        if name == "m.keras":
            saved_model.save_model(model, path, {})
        else:
            saved_model.save_weights(model, path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [name]


def test_a_full_disk_does_not_crash_the_process(tmp_path):
    # libhdf5 crashes at exit if it could not write what it has in memory.
    path = tmp_path / "best.weights.h5"
    program = f"""
import pathlib
import keras
from full_disk import full_disk
from keras_nfnets.runs.training_run import KeepBest

model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(100)])
best = KeepBest(pathlib.Path({str(path)!r}), {{}}, patience=2, write=True)
best.set_model(model)
try:
    with full_disk():
        best.on_epoch_end(0, {{"val_accuracy": 1.0, "val_loss": 1.0}})
except OSError as error:
    print(error)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert str(path) in ended.stdout
    assert "Error" not in ended.stderr
    assert not os.listdir(tmp_path)
