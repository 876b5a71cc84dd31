"""`keras-nfnets train --resume` after killed runs."""

import contextlib
import csv
import io
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings

import keras
import numpy as np
import one_block
import pytest

import keras_nfnets  # noqa: F401  (its layers are needed to load models)
from keras_nfnets.cli.main import main

# Few steps at a small learning rate. At a large one, rounding differences grow a
# thousandfold per epoch, whether on one process or between one and several.
SMALL = [
    *("--image_size=8", "--epochs=3", "--ema_decay=0.9"),
    *("--learning_rate=0.04", "--batch_size=512"),
]


@pytest.fixture(scope="module", autouse=True)
def _one_block():
    with one_block.networks_of_one_block():
        yield


def start(folder, *arguments, **options):
    return subprocess.Popen(
        [
            *(sys.executable, one_block.PROGRAM, "train", *SMALL),
            *(f"--output_dir={folder}", *arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def outputs(process, status=0):
    out, error = process.communicate(timeout=300)
    assert process.returncode == status, error[-3000:]
    return out, error


def kill_after(process, folder, epoch, seconds=0.0):
    """Kill a process with SIGKILL, `seconds` after it saved that epoch."""
    file = folder / "checkpoints" / f"keras_nfnets-epoch-{epoch:06}.npz"
    while not file.exists() and epoch:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


def rows_of(folder):
    with open(folder / "history.csv", newline="") as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


def assert_same_run(folder, expected, rtol):
    rows, expected_rows = rows_of(folder), rows_of(expected)
    assert len(rows) == len(expected_rows)
    for row, expected_row in zip(rows, expected_rows):
        assert row == pytest.approx(expected_row, rel=rtol, abs=rtol)
    for name in ("model.keras", "averaged.keras"):
        model = keras.saving.load_model(folder / name)
        one = keras.saving.load_model(expected / name)
        for v, w in zip(model.get_weights(), one.get_weights()):
            np.testing.assert_allclose(v, w, rtol=rtol, atol=rtol, err_msg=name)
    assert {f.name for f in folder.iterdir()} == {f.name for f in expected.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "left alone"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["train", *SMALL, f"--output_dir={folder}"]) == 0
    assert "averaged weights: " in out.getvalue()
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Folder, to copy, of a run that was killed when two of its epochs were saved."""
    folder = tmp_path_factory.mktemp("runs") / "killed"
    kill_after(start(folder), folder, epoch=2, seconds=0.02)
    return folder


def test_a_killed_run_ends_as_if_it_had_not_been(whole, killed, tmp_path, capsys):
    folder = tmp_path / "killed twice"
    shutil.copytree(killed, folder)
    files = sorted((folder / "checkpoints").glob("*epoch-*.npz"))
    assert [file.name[-10:] for file in files][:2] == ["000001.npz", "000002.npz"]
    resume = ["train", *SMALL, f"--output_dir={folder}", "--resume"]

    # If the disk is too full for the next checkpoint, the last one stays.
    size = files[-1].stat().st_size
    with files_of_at_most(size // 2):
        assert main(resume) == 1
    error = capsys.readouterr().err
    assert f"Cannot write into {folder}" in error and "--resume" in error
    assert "Traceback" not in error
    left = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert left == [file.name for file in files]

    # The last checkpoint is truncated, as by a crash: resume from the one before it.
    whole_file = files[-1].read_bytes()
    files[-1].write_bytes(whole_file[: len(whole_file) // 2])
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert main(resume) == 0
    messages = " ".join(str(warning.message) for warning in warned)
    assert "epoch-000002.npz is not a complete checkpoint" in messages
    out = capsys.readouterr().out
    assert "resumed after epoch 1" in out or "resumed after epoch 2" in out
    assert_same_run(folder, whole, rtol=1e-6)


@contextlib.contextmanager
def files_of_at_most(size):
    """Context in which this process cannot write larger files."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_resuming_what_is_finished_or_other_is_refused(whole, killed, tmp_path, capsys):
    def train(folder, *arguments):
        status = main(["train", *SMALL, f"--output_dir={folder}", *arguments])
        return status, capsys.readouterr().err

    status, error = train(whole, "--resume")
    assert (status, "is finished" in error) == (2, True)

    folder = tmp_path / "other"
    shutil.copytree(killed, folder)
    before = [file.read_bytes() for file in sorted(folder.rglob("*.npz"))]
    status, error = train(folder, "--resume", "--seed=5")
    assert (status, "seed=0 in the checkpoint, 5 now" in error) == (2, True)
    status, error = train(folder)
    assert (status, "or --resume to continue it" in error) == (2, True)
    assert [file.read_bytes() for file in sorted(folder.rglob("*.npz"))] == before


def test_resuming_without_a_folder_takes_the_last_unfinished_run(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume"]) == 2
    assert "no unfinished run" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_run_killed_at_a_random_moment(seed, whole, tmp_path):
    folder = tmp_path / "run"
    process = start(folder)
    try:
        process.communicate(timeout=random.Random(seed).uniform(3, 30))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    if not (folder / "model.keras").exists() or (folder / "checkpoints").exists():
        outputs(start(folder, "--resume"))
    assert_same_run(folder, whole, rtol=1e-6)


def workers_of_two(folders):
    """Return a function that starts the first or the second of two workers."""
    with socket.socket() as a, socket.socket() as b:
        for listener in (a, b):
            listener.bind(("localhost", 0))
        hosts = [f"localhost:{s.getsockname()[1]}" for s in (a, b)]

    def worker(index, *more):
        config = {
            "cluster": {"worker": hosts},
            "task": {"type": "worker", "index": index},
        }
        return start(
            folders[index],
            "--strategy=multi_worker",
            *more,
            env={**os.environ, "TF_CONFIG": json.dumps(config)},
        )

    return worker


@pytest.mark.slow
def test_a_worker_that_was_killed_comes_back(whole, tmp_path):
    folder = tmp_path / "two workers"
    worker = workers_of_two([folder, folder])
    chief, other = worker(0), worker(1)
    kill_after(other, folder, epoch=1)
    # The remaining worker notices this and waits for the other one.
    line = ""
    while "Another worker was lost" not in line:
        line = chief.stderr.readline()
        assert line, "the chief ended"
    quiet, _ = outputs(worker(1, "--resume"))
    out, _ = outputs(chief)
    assert "resumed after epoch" in out
    assert "Epoch" not in quiet  # only the first worker reports
    assert_same_run(folder, whole, rtol=2e-5)


@pytest.mark.slow
def test_workers_that_do_not_see_one_folder_are_refused(tmp_path):
    folder = tmp_path / "first"
    kill_after(start(folder), folder, epoch=1)
    worker = workers_of_two([folder, tmp_path / "second"])
    both = [worker(0, "--resume"), worker(1, "--resume")]
    for process in both:
        _, error = outputs(process, status=2)
        assert "do not start at the same epoch" in error
    assert not (tmp_path / "second").exists()
