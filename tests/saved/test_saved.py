"""Files written by version 0.1.0 (commit 9f9f64f) load and give the same outputs.

`make.py` wrote them.
"""

import pathlib
import shutil

import keras
import numpy as np
import one_block
import pytest
from eager import eager_functions

import keras_nfnets
from keras_nfnets.cli.main import main

HERE = pathlib.Path(__file__).parent


@pytest.fixture(autouse=True)
def _eagerly():
    with eager_functions():
        yield


X = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype("float32")
Y = np.eye(3, dtype="float32")[np.arange(8) % 3]


def test_a_compiled_model_goes_on_where_it_was():
    model = keras.saving.load_model(HERE / "compiled.keras")
    assert isinstance(model, keras_nfnets.AGCModel)
    assert isinstance(model.optimizer, keras_nfnets.SGDAGC)
    assert model.sam_rho == 0.05
    expected = np.load(HERE / "compiled.npz")
    np.testing.assert_allclose(
        model.predict(X, verbose=0), expected["predictions"], rtol=1e-4
    )
    results = model.evaluate(X, Y, verbose=0, return_dict=True)
    assert results["loss"] == pytest.approx(float(expected["loss"]), rel=1e-5)
    assert results["ema_loss"] == pytest.approx(float(expected["ema_loss"]), rel=1e-5)
    # The optimizer state was restored: momentum and schedule continue.
    model.train_on_batch(X, Y)
    np.testing.assert_allclose(
        model.predict(X, verbose=0), expected["after_a_step"], rtol=1e-3
    )


def test_a_converted_network_computes_the_same():
    model = keras.saving.load_model(HERE / "converted.keras")
    expected = np.load(HERE / "converted.npz")["predictions"]
    np.testing.assert_allclose(model.predict(X, verbose=0), expected, rtol=1e-4)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the command trains on TensorFlow"
)
def test_an_unfinished_run_is_resumed(tmp_path, capsys):
    shutil.copytree(HERE / "run", tmp_path / "run")
    flags = ["--image_size=8", "--epochs=3", "--ema_decay=0.9", "--learning_rate=0.04"]
    flags += ["--batch_size=512", f"--output_dir={tmp_path / 'run'}", "--resume"]
    with one_block.networks_of_one_block():
        assert main(["train", *flags]) == 0
    out = capsys.readouterr().out
    assert "resumed after epoch 1" in out
    history = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert len(history) == 1 + 3
