"""`keras-nfnets train`, also in its own process, as users run it."""

import contextlib
import csv
import io
import re
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import one_block
import pytest
from PIL import Image

import keras_nfnets  # noqa: F401  (its layers are needed to load models)
from keras_nfnets import data
from keras_nfnets.cli.main import main
from keras_nfnets.runs.saved_model import save_model

FILES = {
    *("model.keras", "model.json", "history.csv"),
    *("training_curves.png", "predictions.png"),
}

# Without clipping, a step is faster, but training needs a lower learning rate.
QUICK = ["--image_size=8", "--noagc", "--learning_rate=0.1", "--batch_size=512"]


@pytest.fixture(scope="module", autouse=True)
def _one_block():
    with one_block.networks_of_one_block():
        yield


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, one_block.PROGRAM, "train", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def history_of(folder):
    with open(folder / "history.csv", newline="") as file:
        return [
            {key: float(value) for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def evaluate(folder, image_size=32):
    model = keras.saving.load_model(folder / "model.keras")
    test = data.load("digits", "test", image_size=image_size, batch_size=64)
    return model.evaluate(test, verbose=0, return_dict=True)


# Runs of 3 and of 15 epochs differ only in accuracy.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "epochs", "accuracy"), [(["--epochs=3"], 3, 0.8), ([], 15, 0.985)]
)
def test_the_first_command_learns_the_digits(flags, epochs, accuracy, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "keras_nfnets", "train", *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    [folder] = (tmp_path / "runs").iterdir()
    assert {path.name for path in folder.iterdir()} == FILES
    rows = history_of(folder)
    assert rows[-1]["val_accuracy"] >= accuracy
    assert max(row["clip_share"] for row in rows) > 0.1
    for name in ("learning_rate", "images_per_second", "skipped", "clip_share_stage4"):
        assert name in rows[0]
    assert 0.3 < max(row["learning_rate"] for row in rows) <= 0.4  # 1.6 * 64 / 256
    last = f"Epoch {epochs}/{epochs} +{rows[-1]['loss']:.3f} .* {rows[-1]['val_accuracy']:.1%} "
    assert re.search(last, result.stdout)
    assert f"{rows[-1]['val_accuracy']:.2%}" in result.stdout
    for name in FILES:
        assert f"runs/{folder.name}/{name}" in result.stdout
    assert "keras-nfnets train --noagc" in result.stdout
    for name in ("training_curves.png", "predictions.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 300
            assert len(set(picture.convert("L").tobytes())) > 50  # it is not blank
    assert evaluate(folder)["accuracy"] == pytest.approx(rows[-1]["val_accuracy"])


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """Folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("runs") / "a b"
    arguments = ["--epochs=1", "--seed=3", f"--output_dir={folder}"]
    assert main(["train", *QUICK, *arguments]) == 0
    return folder


def test_a_path_may_have_spaces(left_alone):
    assert {path.name for path in left_alone.iterdir()} == FILES


def test_a_run_is_not_overwritten_by_accident(tmp_path, capsys):
    for name in sorted(FILES):
        file = tmp_path / name
        file.write_text("precious")
        result = main(["train", f"--output_dir={tmp_path}"])
        assert result == 2
        error = capsys.readouterr().err
        assert f"holds {name} of another run" in error and "--overwrite" in error
        assert file.read_text() == "precious"
        assert list(tmp_path.iterdir()) == [file]
        file.unlink()


def test_ctrl_c_leaves_what_there_is(tmp_path):
    flags = ["--epochs=1000", "--image_size=8", "--batch_size=512", "--tensorboard"]
    process = start(*flags, cwd=tmp_path, stderr=subprocess.STDOUT)
    seen = ""
    while "Epoch 2/1000" not in seen:
        piece = process.stdout.read(1)
        assert piece, seen
        seen += piece
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == 130
    found = re.search(r"Interrupted: stopped after (\d+) of 1000 epochs", rest)
    assert "Traceback" not in rest and "Next, " not in rest
    [folder] = (tmp_path / "runs").iterdir()
    # The folder has what is needed to resume.
    more = {"checkpoints", "tensorboard"}
    assert {path.name for path in folder.iterdir()} == FILES | more
    [log] = (folder / "tensorboard" / "train").iterdir()
    for name in (b"epoch_learning_rate", b"epoch_clip_share_stage1", b"epoch_skipped"):
        assert name in log.read_bytes()
    assert len(history_of(folder)) == int(found[1]) >= 2
    assert evaluate(folder, image_size=8)["accuracy"] > 0.1


class Impatient(io.StringIO):
    """Output stream that raises Ctrl-C when `last` is written."""

    def __init__(self, last):
        super().__init__()
        self.last = last

    def write(self, text):
        count = super().write(text)
        if self.last is not None and self.last in self.getvalue():
            self.last = None
            signal.raise_signal(signal.SIGINT)
        return count


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Output and folder of a run over another one, stopped before its first epoch ended."""
    folder = tmp_path_factory.mktemp("stopped")
    for name in FILES:
        (folder / name).write_text("old")
    save_model(
        keras.Sequential([keras.Input((2,)), keras.layers.Flatten()]),
        folder / "model.keras",
        {},
    )
    flags = ["--epochs=1000", "--seed=3", "--overwrite", f"--output_dir={folder}"]
    with contextlib.redirect_stdout(Impatient("pixels, 1000 epochs")) as out:
        assert main(["train", *QUICK, *flags]) == 130
    return out.getvalue(), folder


def test_overwriting_leaves_nothing_of_the_earlier_run(stopped):
    printed, folder = stopped
    assert "stopped after 0 of 1000 epochs" in printed
    # Without a complete epoch there is no history, and the old one is of another run.
    assert {path.name for path in folder.iterdir()} == {
        "model.keras",
        "model.json",
        "predictions.png",
    }
    assert evaluate(folder, image_size=8)["loss"] > 0


def test_what_was_stopped_before_its_first_epoch_starts_again_as_the_same_run(
    stopped, left_alone, tmp_path, caplog
):
    folder = tmp_path / "stopped"
    shutil.copytree(stopped[1], folder)
    # Only the number of epochs differs from the flags of the stopped run.
    flags = ["--epochs=1", "--seed=3", f"--output_dir={folder}"]
    assert main(["train", *QUICK, *flags, "--resume"]) == 0
    assert f"no checkpoint in {folder}: the run starts" in caplog.text
    # The same seed gives the same run.
    [row], [expected] = history_of(folder), history_of(left_alone)
    np.testing.assert_allclose(row["loss"], expected["loss"], rtol=1e-5)


@pytest.mark.slow
def test_a_reader_that_leaves_does_not_cost_the_model(tmp_path):
    flags = [*QUICK, "--epochs=30", f"--output_dir={tmp_path}"]
    process = start(*flags, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(timeout=300) == 1
    assert "The output was closed: stopped after" in error and "Traceback" not in error
    assert "model.keras" in {path.name for path in tmp_path.iterdir()}
